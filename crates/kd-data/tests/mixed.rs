//! Mixed images and counted views: what is recorded of them gives them again, and they depend on seed, view and number alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Device;
use kd_data::{
    Augment, Batch, BatchConfig, Mix, MixConfig, Normalization, Sampler, Split, SyntheticConfig,
    View, batches, synthetic,
};

const AUGMENT: Augment = Augment { crop_padding: 4, flip: true, cutout: 0, ..Augment::OFF };
const MIX: MixConfig = MixConfig { mixup: 0.4, cutmix: 1.0, probability: 0.8 };

fn split() -> Arc<Split> {
    Arc::new(synthetic(&SyntheticConfig { train: 30, test: 0, seed: 3 }).train)
}

fn config() -> BatchConfig {
    BatchConfig {
        batch_size: 7,
        shuffle_seed: Some(5),
        epoch: 2,
        augment: AUGMENT,
        mix: MIX,
        ..BatchConfig::default()
    }
}

fn all(split: &Arc<Split>, config: &BatchConfig) -> Vec<Batch> {
    batches(split, config, &Device::Cpu).unwrap().map(|batch| batch.unwrap()).collect()
}

/// Of each image its pixels, its view, its mix, and the two labels and the share of its target.
type Seen = (Vec<f32>, View, Option<Mix>, [u32; 2], f32);

fn seen(batches: &[Batch]) -> BTreeMap<u32, Seen> {
    let mut seen = BTreeMap::new();
    for batch in batches {
        let pixels: Vec<f32> = batch.images.flatten_all().unwrap().to_vec1().unwrap();
        let labels = batch.labels.to_vec1::<u32>().unwrap();
        for (position, &index) in batch.indices.iter().enumerate() {
            let (mix, partner, share) = match &batch.mixed {
                None => (None, labels[position], 1.0),
                Some(mixed) => (
                    Some(mixed.mixes[position]),
                    mixed.labels.to_vec1::<u32>().unwrap()[position],
                    mixed.shares.to_vec1::<f32>().unwrap()[position],
                ),
            };
            let pixels = pixels[position * 3072..][..3072].to_vec();
            let targets = [labels[position], partner];
            seen.insert(index, (pixels, batch.views[position], mix, targets, share));
        }
    }
    seen
}

#[test]
fn recorded_views_and_mixes_give_the_same_pixels_and_targets_again() {
    let split = split();
    let mixed = seen(&all(&split, &config()));
    let plain = seen(&all(&split, &BatchConfig { mix: MixConfig::default(), ..config() }));
    let (mut blended, mut cut) = (0, 0);
    for (index, (pixels, view, mix, targets, share)) in &mixed {
        let mix = mix.unwrap();
        blended += usize::from(mix.rectangle.is_none() && mix.share < 1.0);
        cut += usize::from(mix.rectangle.is_some());
        assert_eq!(*view, plain[index].1);
        let image = |index: u32| {
            let mut input = vec![f32::NAN; 3072];
            let view = plain[&index].1;
            view.apply(
                split.image(index as usize),
                [32, 32],
                0,
                &Normalization::default(),
                &mut input,
            );
            input
        };
        let mut expected = image(*index);
        mix.apply(&image(mix.partner), [32, 32], &mut expected);
        assert_eq!(pixels, &expected, "image {index}");
        let label = |index: u32| split.labels[index as usize];
        assert_eq!((*targets, *share), ([label(*index), label(mix.partner)], mix.share));
    }
    assert!(blended > 3 && cut > 3, "{blended} {cut}");
}

#[test]
fn mixes_depend_on_seed_epoch_and_number_alone() {
    let split = split();
    let whole = seen(&all(&split, &config()));
    assert_eq!(whole, seen(&all(&split, &BatchConfig { batch_size: 30, prefetch: 1, ..config() })));
    let rest = all(&split, &BatchConfig { first_batch: 3, ..config() });
    for (index, rest) in seen(&rest) {
        assert_eq!(whole[&index], rest);
    }
    for other in
        [BatchConfig { epoch: 3, ..config() }, BatchConfig { shuffle_seed: Some(6), ..config() }]
    {
        let mixes =
            |seen: BTreeMap<u32, Seen>| seen.into_values().map(|of| of.2).collect::<Vec<_>>();
        assert_ne!(mixes(whole.clone()), mixes(seen(&all(&split, &other))));
    }
}

#[test]
fn views_come_again_in_an_order_of_their_own() {
    let split = split();
    let counted = |epoch| BatchConfig { views: Some(3), epoch, ..config() };
    let (first, again) = (all(&split, &counted(2)), all(&split, &counted(5)));
    assert_eq!(seen(&first), seen(&again));
    assert_eq!(
        seen(&first),
        seen(&all(&split, &config())),
        "the view of an epoch is that of the same number"
    );
    assert_ne!(seen(&first), seen(&all(&split, &counted(3))));
    let order =
        |batches: &[Batch]| batches.iter().flat_map(|b| b.indices.clone()).collect::<Vec<_>>();
    assert_ne!(order(&first), order(&again));
    assert!(again.iter().all(|batch| batch.view == 2));
    let plain = BatchConfig { augment: Augment::default(), mix: MixConfig::default(), ..config() };
    assert!(all(&split, &plain).iter().all(|batch| batch.view == 0));
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let split = split();
    let refused =
        |config: BatchConfig| batches(&split, &config, &Device::Cpu).unwrap_err().to_string();
    let message =
        refused(BatchConfig { shuffle_seed: None, augment: Augment::default(), ..config() });
    assert!(message.contains("a seed where augment or mix is on"), "{message}");
    let message = refused(BatchConfig { views: Some(0), ..config() });
    assert!(message.contains("views is 0"), "{message}");
    let message = refused(BatchConfig { views: Some(2), sampler: Sampler::Balanced, ..config() });
    assert!(message.contains("none where sampler is balanced"), "{message}");
    let message = refused(BatchConfig { mix: MixConfig { mixup: -1.0, ..MIX }, ..config() });
    assert!(message.contains("mix.mixup is -1"), "{message}");
}
