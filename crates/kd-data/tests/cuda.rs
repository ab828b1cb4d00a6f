//! Batches gathered on a GPU against those prepared on the CPU, bit for bit. Where there is no GPU every test is
//! reported as ignored.
//!
//! ```text
//! cargo test -p kd-data --features cuda --test cuda
//! ```

use std::sync::Arc;

use candle_core::Device;
use kd_data::{Augment, Batch, BatchConfig, Result, Sampler, Split, batches};
use libtest_mimic::{Arguments, Failed, Trial};

type Test = fn(&Device) -> Result<()>;

fn main() {
    let tests: [(&str, Test); 2] = [
        ("batches_are_those_of_the_cpu", batches_are_those_of_the_cpu),
        ("two_splits_and_a_dropped_one", two_splits_and_a_dropped_one),
    ];
    let device = Device::new_cuda(0);
    if let Err(error) = &device {
        // The first line: a backtrace may follow.
        println!("skipped: no GPU ({})", error.to_string().lines().next().unwrap_or_default());
    }
    let trials = tests.into_iter().map(|(name, test)| {
        let device = device.as_ref().map(Device::clone).map_err(ToString::to_string);
        let ignored = device.is_err();
        let run = move || test(&device?).map_err(Failed::from);
        Trial::test(name, run).with_ignored_flag(ignored)
    });
    let mut arguments = Arguments::from_args();
    // All work for a GPU comes from one thread: candle's stream is another one in each thread.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn split(count: usize, [height, width]: [usize; 2]) -> Arc<Split> {
    let byte = |i: usize| ((i as u32).wrapping_mul(2654435761) >> 24) as u8;
    Arc::new(Split {
        images: (0..count * 3 * height * width).map(byte).collect(),
        labels: (0..count).map(|i| (i * 7 % 10) as u32).collect(),
        coarse_labels: None,
        shape: [3, height, width],
    })
}

fn numbers(batch: &Batch) -> Result<(Vec<u32>, Vec<u32>)> {
    let images = batch.images.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    Ok((images.into_iter().map(f32::to_bits).collect(), batch.labels.to_vec1()?))
}

fn same(split: &Arc<Split>, config: &BatchConfig, gpu: &Device) -> Result<()> {
    let expected: Vec<Batch> = batches(split, config, &Device::Cpu)?.collect::<Result<_>>()?;
    let found: Vec<Batch> = batches(split, config, gpu)?.collect::<Result<_>>()?;
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!((&found.indices, &found.views), (&expected.indices, &expected.views));
        assert_eq!(found.rows.to_vec1::<u32>()?, expected.indices);
        assert_eq!(found.images.dims(), expected.images.dims());
        assert_eq!(numbers(found)?, numbers(expected)?, "{config:?}");
    }
    Ok(())
}

fn batches_are_those_of_the_cpu(gpu: &Device) -> Result<()> {
    for sides in [[32, 32], [5, 7]] {
        let split = split(53, sides);
        for augment in [
            Augment::default(),
            Augment { crop_padding: 4, ..Augment::default() },
            Augment { flip: true, cutout: 3, ..Augment::default() },
            Augment { crop_padding: 2, flip: true, cutout: 8, ..Augment::OFF },
        ] {
            for (batch_size, epoch, first_batch) in [(16, 0, 0), (10, 3, 2), (53, 1, 0), (53, 1, 1)]
            {
                let shuffle_seed = Some(9);
                let config = BatchConfig {
                    batch_size,
                    epoch,
                    first_batch,
                    shuffle_seed,
                    augment,
                    ..BatchConfig::default()
                };
                same(&split, &config, gpu)?;
                same(&split, &BatchConfig { sampler: Sampler::Balanced, ..config }, gpu)?;
            }
        }
        same(&split, &BatchConfig { batch_size: 7, ..BatchConfig::default() }, gpu)?;
    }
    Ok(())
}

fn two_splits_and_a_dropped_one(gpu: &Device) -> Result<()> {
    let config = BatchConfig { batch_size: 4, ..BatchConfig::default() };
    let first = split(9, [4, 4]);
    same(&first, &config, gpu)?;
    same(&split(11, [4, 4]), &config, gpu)?;
    same(&split(13, [2, 6]), &config, gpu)?;
    same(&first, &config, gpu)
}
