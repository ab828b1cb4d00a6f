//! `kd prepare`: pictures decoded and scaled once, for training that reads them in many epochs.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use kd_data::{Interpolation, PrepareConfig, Prepared};
use kd_run::data;
use kd_run::recipe::DatasetName;

use super::{print, read_recipe};
use crate::args::{ComputeFlags, at_least_one, one_of};
use crate::failure::Failure;
use crate::progress::Messages;

const HELP: &str = "\
Pictures are written whole and upright, without loss, as BMP files in tar archives: train-000000.tar and so on, test-000000.tar and so on.
Stopped anywhere, the same command goes on; shards that are there are compared with what was written. Training with the same resize and
interpolation sees the same pixels as on the pictures themselves, unless it cuts random parts (resized_crop) or resizes to more: these are then
scaled from the smaller pictures. All pictures are prepared: a recipe's limits are left to training.

Examples:
  kd prepare --data pictures --resize 224 --out prepared
  kd train --model mobilenet_v2 --data prepared --dataset shards --train-shards 'train-*.tar' --test-shards 'test-*.tar' --size 224";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Prepare {
    /// The recipe whose table [data] says which pictures are meant [default: those in the folders of --data]
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// The folder with the pictures
    #[arg(long, value_name = "DIR", default_value = "data")]
    data: PathBuf,
    /// What lies there: "folder" or "shards" [default: that of the recipe, or folder]
    #[arg(long, value_parser = one_of::<DatasetName>(["folder", "shards"]))]
    dataset: Option<DatasetName>,
    /// The tar archives to train on (data set "shards"): "train-{000..015}.tar"
    #[arg(long, value_name = "PATTERN")]
    train_shards: Option<String>,
    /// The tar archives to test on
    #[arg(long, value_name = "PATTERN")]
    test_shards: Option<String>,
    /// Leave out pictures that can't be read
    #[arg(long)]
    skip_broken: bool,
    /// What the shorter side is scaled to; pictures that are no larger stay as they are
    #[arg(long, value_name = "PIXELS", value_parser = at_least_one)]
    resize: usize,
    /// How it is scaled
    #[arg(long, default_value = "bilinear", value_parser = one_of::<Interpolation>(["bilinear", "bicubic"]))]
    interpolation: Interpolation,
    /// Pictures in a shard
    #[arg(long, value_name = "PICTURES", default_value = "1000", value_parser = at_least_one)]
    shard_pictures: usize,
    /// The folder for the shards
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    compute: ComputeFlags,
}

/// The shortest time between two lines about how far it is.
const EVERY: Duration = Duration::from_secs(10);

pub(crate) fn run(flags: &Prepare) -> Result<(), Failure> {
    flags.compute.device()?;
    let mut config = read_recipe(flags.recipe.as_deref())?.data;
    config.dataset = match flags.recipe {
        Some(_) => flags.dataset.unwrap_or(config.dataset),
        None => flags.dataset.unwrap_or(DatasetName::Folder),
    };
    config.skip_broken |= flags.skip_broken;
    config.train_shards = flags.train_shards.clone().or(config.train_shards);
    config.test_shards = flags.test_shards.clone().or(config.test_shards);
    // Pictures are taken as they are, whatever size a network is given.
    config.size = config.size.or(Some(1));
    let (sources, notes) = data::pictures(&config, &flags.data)?;
    for note in &notes {
        tracing::warn!("{note}");
    }
    for skipped in &sources.skipped {
        tracing::warn!("left out: {}", skipped.line());
    }
    let Prepare { resize, interpolation, shard_pictures, .. } = *flags;
    let settings = PrepareConfig { resize, interpolation, shard_pictures };
    let mut last = Instant::now();
    let prepared = kd_data::prepare(&sources, &settings, &flags.out, &mut |done, total| {
        if last.elapsed() >= EVERY {
            last = Instant::now();
            let _ = writeln!(Messages, "{done} of {total} pictures");
        }
    });
    let Prepared { pictures: [train, test], shards, found } = prepared.map_err(data::with_cure)?;
    Ok(print(&format!(
        "{train} pictures to train on and {test} to test on in {shards} shards, {found} of which were there\n"
    ))?)
}
