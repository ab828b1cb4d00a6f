//! Batches: every image once, the same for the same seed, exactly resumable.

use std::sync::Arc;

use candle_core::Device;
use kd_data::{
    Augment, Batch, BatchConfig, Error, Normalization, Sampler, Split, SyntheticConfig, View,
    batches, synthetic,
};
use proptest::prelude::*;

fn split(images: usize) -> Arc<Split> {
    Arc::new(synthetic(&SyntheticConfig { train: images, test: 0, seed: 3 }).train)
}

fn all(split: &Arc<Split>, config: &BatchConfig) -> Vec<Batch> {
    batches(split, config, &Device::Cpu).unwrap().map(|batch| batch.unwrap()).collect()
}

fn indices(batches: &[Batch]) -> Vec<u32> {
    batches.iter().flat_map(|batch| batch.indices.clone()).collect()
}

fn pixels(batch: &Batch) -> Vec<f32> {
    batch.images.flatten_all().unwrap().to_vec1().unwrap()
}

fn same(a: &Batch, b: &Batch) -> bool {
    a.indices == b.indices
        && a.views == b.views
        && pixels(a) == pixels(b)
        && a.labels.to_vec1::<u32>().unwrap() == b.labels.to_vec1::<u32>().unwrap()
}

const AUGMENT: Augment = Augment { crop_padding: 4, flip: true, cutout: 8, ..Augment::OFF };

#[test]
fn without_a_seed_images_come_in_order_and_the_last_partial_batch_is_kept() {
    let split = split(21);
    let config = BatchConfig { batch_size: 8, ..BatchConfig::default() };
    let batches = all(&split, &config);
    assert_eq!(batches.iter().map(|batch| batch.indices.len()).collect::<Vec<_>>(), [8, 8, 5]);
    assert_eq!(indices(&batches), (0..21).collect::<Vec<_>>());
    assert_eq!(batches[2].images.dims(), [5, 3, 32, 32]);
    assert_eq!(batches[2].labels.to_vec1::<u32>().unwrap(), [6, 7, 8, 9, 0]);
    assert!(batches.iter().flat_map(|batch| &batch.views).all(|view| *view == View::default()));
    // Channel 1, row 2, column 3 of image 9.
    let byte = split.image(9)[1024 + 2 * 32 + 3];
    let expected = (f32::from(byte) / 255.0 - 0.456) / 0.224;
    let found = pixels(&batches[1])[3072 + 1024 + 2 * 32 + 3];
    assert_eq!(found, expected);
}

#[test]
fn drop_last_leaves_out_a_batch_that_is_not_whole() {
    let split = split(21);
    let kept = BatchConfig { batch_size: 8, shuffle_seed: Some(4), ..BatchConfig::default() };
    let config = BatchConfig { drop_last: true, ..kept };
    let (with, without) = (all(&split, &kept), all(&split, &config));
    assert_eq!((with.len(), without.len(), config.count(21)), (3, 2, 2));
    assert!(with.iter().zip(&without).all(|(a, b)| same(a, b)));
    let rest = all(&split, &BatchConfig { first_batch: 1, ..config });
    assert!(rest.len() == 1 && same(&rest[0], &without[1]));
    assert!(all(&split, &BatchConfig { first_batch: 2, ..config }).is_empty());
    let beyond = BatchConfig { first_batch: 3, ..config };
    let message = batches(&split, &beyond, &Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("first_batch is 3; expected at most 2"), "{message}");
    // Of whole batches nothing is left out.
    let whole = BatchConfig { batch_size: 7, ..config };
    assert_eq!((whole.count(21), all(&split, &whole).len()), (3, 3));
    let none = BatchConfig { batch_size: 22, ..config };
    let message = batches(&split, &none, &Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("batch_size is 22; expected at most 21"), "{message}");
}

#[test]
fn an_epochs_order_depends_on_seed_and_epoch_alone() {
    let split = split(100);
    let order = |seed, epoch, prefetch| {
        let config =
            BatchConfig { shuffle_seed: Some(seed), epoch, prefetch, ..BatchConfig::default() };
        indices(&all(&split, &config))
    };
    assert_eq!(order(1, 0, 0), order(1, 0, 5));
    assert_ne!(order(1, 0, 2), order(1, 1, 2));
    assert_ne!(order(1, 0, 2), order(2, 0, 2));
    // Pinned: a seed means the same on every machine and in every release.
    assert_eq!(order(0, 0, 2)[..8], [8, 23, 49, 35, 75, 88, 31, 62]);
}

#[test]
fn a_recorded_view_gives_the_same_pixels_again() {
    let split = split(40);
    let config = BatchConfig {
        batch_size: 16,
        shuffle_seed: Some(5),
        epoch: 2,
        augment: AUGMENT,
        ..BatchConfig::default()
    };
    let batches = all(&split, &config);
    let views: Vec<_> = batches.iter().flat_map(|batch| batch.views.clone()).collect();
    assert!(views.iter().any(|view| view.flip) && views.iter().any(|view| view.dy != 0));
    for batch in &batches {
        let found = pixels(batch);
        let each = found.chunks(3072).zip(batch.indices.iter().zip(&batch.views));
        for (found, (&index, view)) in each {
            let mut input = vec![f32::NAN; 3072];
            let image = split.image(index as usize);
            view.apply(image, [32, 32], AUGMENT.cutout, &Normalization::default(), &mut input);
            assert_eq!(found, input);
        }
    }
}

#[test]
fn an_images_view_does_not_depend_on_the_batch_size() {
    let split = split(30);
    let views = |batch_size, epoch| {
        let config = BatchConfig {
            batch_size,
            epoch,
            shuffle_seed: Some(5),
            augment: AUGMENT,
            ..BatchConfig::default()
        };
        let mut views: Vec<_> = all(&split, &config)
            .into_iter()
            .flat_map(|batch| batch.indices.into_iter().zip(batch.views))
            .collect();
        views.sort();
        views
    };
    assert_eq!(views(7, 0), views(30, 0));
    assert_ne!(views(30, 0), views(30, 1));
}

/// Classes 0, 1, 2 and 5 of 3, 60, 17 and 1 pictures.
fn uneven() -> Arc<Split> {
    let counts = [(0u32, 3), (1, 60), (2, 17), (5, 1)];
    let labels: Vec<u32> = counts.into_iter().flat_map(|(l, n)| vec![l; n]).collect();
    let images = (0..labels.len() * 3 * 32 * 32).map(|i| (i % 251) as u8).collect();
    Arc::new(Split { images, labels, coarse_labels: None, shape: [3, 32, 32] })
}

fn balanced() -> BatchConfig {
    let sampler = Sampler::Balanced;
    BatchConfig { batch_size: 16, sampler, shuffle_seed: Some(7), ..BatchConfig::default() }
}

/// Expected counts are those of a weighted sampler with the weights 1 / (images of the class).
#[test]
fn balanced_draws_are_even_over_classes_and_over_each_classs_images() {
    let split = uneven();
    let mut of_image = vec![0f64; 81];
    let epochs = 200;
    for epoch in 0..epochs {
        let batches = all(&split, &BatchConfig { epoch, ..balanced() });
        assert_eq!(
            batches.iter().map(|b| b.indices.len()).collect::<Vec<_>>(),
            [16, 16, 16, 16, 16, 1]
        );
        for batch in batches {
            let labels = batch.indices.iter().map(|&i| split.labels[i as usize]);
            assert!(labels.eq(batch.labels.to_vec1::<u32>().unwrap()));
            batch.indices.iter().for_each(|&index| of_image[index as usize] += 1.0);
        }
    }
    // Each of the four classes has a quarter of the draws, in equal shares for its images. Pearson's statistic of 80 degrees of
    // freedom has mean 80 and standard deviation 12.6.
    let counts = [3.0, 60.0, 17.0, 1.0];
    let class = [0, 1, 2, 2, 2, 3];
    let draws = f64::from(epochs as u32) * 81.0;
    let statistic: f64 = of_image
        .iter()
        .zip(&split.labels)
        .map(|(found, label)| {
            let expected = draws / 4.0 / counts[class[*label as usize]];
            (found - expected).powi(2) / expected
        })
        .sum();
    assert!((40.0..140.0).contains(&statistic), "{statistic}");
}

#[test]
fn a_balanced_epoch_depends_on_seed_and_epoch_and_can_be_taken_up_anywhere() {
    let split = uneven();
    let config = BatchConfig { augment: AUGMENT, epoch: 3, ..balanced() };
    let whole = all(&split, &config);
    for first_batch in 0..=whole.len() {
        let rest = all(&split, &BatchConfig { first_batch, ..config });
        assert_eq!(rest.len(), whole.len() - first_batch);
        assert!(rest.iter().zip(&whole[first_batch..]).all(|(a, b)| same(a, b)));
    }
    // The draw at a place does not depend on the batch size, nor does its view.
    let views = |batches: &[Batch]| -> Vec<(u32, View)> {
        let of = |b: &Batch| b.indices.iter().copied().zip(b.views.clone()).collect::<Vec<_>>();
        batches.iter().flat_map(of).collect()
    };
    assert_eq!(views(&whole), views(&all(&split, &BatchConfig { batch_size: 5, ..config })));
    // The one picture of its class comes often, each time with a view of its own.
    let of_one: std::collections::BTreeSet<View> =
        views(&whole).into_iter().filter(|(index, _)| *index == 80).map(|(_, view)| view).collect();
    assert!(of_one.len() > 10, "{of_one:?}");
    let other = |config| indices(&all(&split, &config)) != indices(&whole);
    assert!(other(BatchConfig { epoch: 4, ..config }));
    assert!(other(BatchConfig { shuffle_seed: Some(8), ..config }));
    let short = BatchConfig { drop_last: true, ..config };
    assert_eq!(indices(&all(&split, &short)), indices(&whole)[..80]);
    // Pinned: a seed means the same on every machine and in every release.
    assert_eq!(indices(&whole)[..8], [73, 1, 64, 80, 69, 80, 1, 80]);
    let message = batches(&split, &BatchConfig { shuffle_seed: None, ..balanced() }, &Device::Cpu);
    let message = message.unwrap_err().to_string();
    assert!(
        message.contains("shuffle_seed is none; expected a seed where sampler is"),
        "{message}"
    );
    assert!(
        all(&Arc::new(Split { shape: [3, 32, 32], ..Split::default() }), &balanced()).is_empty()
    );
}

#[test]
fn dropping_early_stops_the_thread() {
    let split = split(64);
    let config = BatchConfig { batch_size: 1, prefetch: 1, ..BatchConfig::default() };
    let mut batches = batches(&split, &config, &Device::Cpu).unwrap();
    batches.next().unwrap().unwrap();
    assert_eq!(batches.len(), 63);
    drop(batches);
    // The thread holds the images while it lives, and is waited for.
    assert_eq!(Arc::strong_count(&split), 1);
}

#[test]
fn no_images_are_no_batches() {
    assert!(all(&split(0), &BatchConfig::default()).is_empty());
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let split = split(10);
    let message = |config: BatchConfig| {
        batches(&split, &config, &Device::Cpu).expect_err("refused").to_string()
    };
    let base = BatchConfig { batch_size: 4, ..BatchConfig::default() };
    assert_eq!(
        message(BatchConfig { batch_size: 0, ..base }),
        "data setting batch_size is 0; expected at least 1"
    );
    assert_eq!(
        message(BatchConfig { first_batch: 4, ..base }),
        "data setting first_batch is 4; expected at most 3, the number of batches"
    );
    assert!(message(BatchConfig { augment: AUGMENT, ..base }).contains("shuffle_seed is none"));
    let std = Normalization { std: [0.0; 3], ..Normalization::default() };
    assert!(message(BatchConfig { normalization: std, ..base }).contains("normalization.std"));
}

#[test]
fn a_split_that_does_not_fit_together_is_refused() {
    let wrong = Split { labels: vec![0; 3], ..Split::clone(&split(2)) };
    let error = batches(&Arc::new(wrong), &BatchConfig::default(), &Device::Cpu).err().unwrap();
    assert!(matches!(error, Error::Split { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 40,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_image_comes_once_and_an_epoch_can_be_taken_up_anywhere(
        images in 0usize..70,
        batch_size in 1usize..20,
        seed in any::<u64>(),
        epoch in 0usize..1000,
        skipped in 0usize..8,
        augmented in any::<bool>(),
    ) {
        let split = split(images);
        let augment = if augmented { AUGMENT } else { Augment::default() };
        let config = BatchConfig {
            batch_size, epoch, augment, shuffle_seed: Some(seed), ..BatchConfig::default()
        };
        let whole = all(&split, &config);
        let mut seen = indices(&whole);
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..images as u32).collect::<Vec<_>>());
        for batch in &whole {
            let labels: Vec<u32> =
                batch.indices.iter().map(|&i| split.labels[i as usize]).collect();
            prop_assert_eq!(batch.labels.to_vec1::<u32>().unwrap(), labels);
        }
        let first_batch = skipped.min(whole.len());
        let rest = all(&split, &BatchConfig { first_batch, ..config });
        prop_assert_eq!(rest.len(), whole.len() - first_batch);
        prop_assert!(rest.iter().zip(&whole[first_batch..]).all(|(a, b)| same(a, b)));
    }
}
