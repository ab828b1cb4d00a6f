//! From the start of a process to the first step done, as `kd train` comes to it.

use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use kd_record::DeviceChoice;
use kd_run::recipe::{DatasetName, Recipe, TUTORIAL};
use kd_run::resolve::{Choices, resolve};
use kd_run::train::{Progress, train};

/// Seconds from `start` until the tutorial's student has taken its first step on the data set in `folder`, where the run leaves
/// its own folder, too.
pub(crate) fn seconds(
    (device, start): (DeviceChoice, Instant),
    dataset: DatasetName,
    folder: &Path,
) -> anyhow::Result<f64> {
    let recipe = Recipe::parse(TUTORIAL, "the built-in recipe")?;
    let choices = Choices {
        dataset: Some(dataset),
        data: folder.to_path_buf(),
        out: Some(folder.join("run")),
        device: kd_run::device::choose(device)?,
        ..Choices::default()
    };
    let resolved = resolve(&recipe, recipe.run("student")?, &choices)?;
    let mut seconds = None;
    train(&resolved.run, &mut |progress| match progress {
        Progress::Step { .. } => {
            seconds = Some(start.elapsed().as_secs_f64());
            Break(())
        }
        _ => Continue(()),
    })?;
    seconds.context("the run took no step: its folder holds an earlier one")
}
