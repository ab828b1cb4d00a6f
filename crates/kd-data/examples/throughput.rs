//! How many pictures a second are decoded and made into training batches of 224 x 224 pixels: random crop, flip, normalisation.
//!
//! ```text
//! cargo run --release -p kd-data --features images --example throughput -- clothing 2
//! ```
//!
//! `clothing` has a folder `train` with a folder for each class; 2 is the number of threads. Nothing is kept in memory from one epoch
//! to the next. `parity/dataloader.py` measures torchvision's `DataLoader` in the same way.

use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use kd_data::{
    Augment, BatchConfig, FilesConfig, ResizedCrop, Room, Scaling, TestOn, batches, picture_files,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("give the folder with train/CLASS/* in it")?;
    let threads: usize = arguments.next().map_or(Ok(2), |threads| threads.parse())?;
    let config = FilesConfig {
        scaling: Scaling::to(224),
        split: None,
        test_on: TestOn::Test,
        skip_broken: false,
        room: Room::new(0),
    };
    let (found, _) = picture_files(Path::new(&folder), &config)?;
    let augment =
        Augment { resized_crop: Some(ResizedCrop::default()), flip: true, ..Augment::default() };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    for epoch in 0..3 {
        let batch = BatchConfig {
            batch_size: 32,
            shuffle_seed: Some(0),
            epoch,
            augment,
            ..BatchConfig::default()
        };
        let started = Instant::now();
        let mut images = 0;
        for batch in pool.install(|| batches(&found.train, &batch, &Device::Cpu))? {
            images += batch?.indices.len();
        }
        let seconds = started.elapsed().as_secs_f64();
        println!("{images} pictures, {:.0} a second", images as f64 / seconds);
    }
    Ok(())
}
