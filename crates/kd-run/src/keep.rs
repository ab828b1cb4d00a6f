//! Views of the training images whose teacher's logits are kept: made ahead of training, and checked.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use kd_data::BatchConfig;
use kd_loss::Needs;
use kd_record::{KeptViews, OutFolder};

use crate::run::ResolvedRun;
use crate::teacher::{self, Kept};
use crate::train::{batch_config, cache_config};
use crate::{Error, Result, evaluate};

/// What was made ahead.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    /// The file that the rows are in.
    pub path: PathBuf,
    /// Rows that the run asks for.
    pub rows: usize,
    /// Rows of them that were not there and were computed.
    pub computed: usize,
    /// Wall-clock seconds that it took.
    pub seconds: f64,
    /// Whether `progress` broke before the last row.
    pub stopped: bool,
}

/// What was computed again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Checked {
    /// Rows that were computed again and compared.
    pub rows: usize,
    /// Rows of them that came out the same to the last bit.
    pub equal: usize,
    /// The largest difference of a logit.
    pub largest: f64,
    /// Whether a difference is larger than rounding on another processor explains: over 2/1000, of the logit where that is above 1.
    pub differs: bool,
}

/// The run's teacher with its file of kept views.
///
/// # Errors
/// When the run keeps no views, or the file can't be opened.
pub fn open(run: &ResolvedRun) -> Result<Kept> {
    run.recipe.validate()?;
    let recipe = &run.recipe.run;
    let (Some(teacher), Some(keep)) = (&run.teacher, recipe.keep) else {
        return Err(Error::Choice(format!(
            "run {:?} keeps no views: its recipe has no line `keep` for it, such as keep = {{ type = \"f16\" }}, beside views in [data.augment]",
            recipe.name
        )));
    };
    let folder = OutFolder::new(&run.out).cache();
    let needs = Needs { teacher_logits: true, ..Needs::default() };
    teacher::keeping(teacher, &needs, &run.data, keep, &cache_config(run, &folder))
}

/// Computes the rows that the run's epochs will ask for and that are not there yet. What an earlier, broken-off call made is not made
/// again. `progress` is told the number of rows done, of all, after each batch, and may break.
///
/// # Errors
/// When the teacher refuses, its logits can't be kept, or the file can't be written.
pub fn make(
    run: &ResolvedRun,
    kept: &Kept,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Made> {
    let started = Instant::now();
    let file = &kept.used().file;
    let images: Vec<u32> = (0..file.images as u32).collect();
    let views = file.views.min(run.recipe.training.epochs);
    let rows = views * images.len();
    let made = |computed, stopped| Made {
        path: file.path.clone(),
        rows,
        computed,
        seconds: started.elapsed().as_secs_f64(),
        stopped,
    };
    let (mut done, mut computed) = (0, 0);
    for view in 0..views {
        if is_whole(file, view, &images)? {
            done += images.len();
            continue;
        }
        for batch in kd_data::batches(&run.data.train, &whole_epoch(run, view, 0), &run.device)? {
            let batch = batch?;
            computed += kept.fill(&batch)?;
            done += batch.indices.len();
            if progress(done, rows).is_break() {
                return Ok(made(computed, true));
            }
        }
    }
    Ok(made(computed, false))
}

/// Whether all of a view's rows are there. They are read a few at a time: all at once they may be more than memory holds.
fn is_whole(file: &KeptViews, view: usize, images: &[u32]) -> Result<bool> {
    for images in images.chunks(evaluate::BATCH) {
        if file.read(view, images)?.iter().any(Option::is_none) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Computes at least `rows` rows again, if so many are there, of batches that are spread over all views, and compares.
///
/// # Errors
/// When the teacher refuses, or the file can't be read.
pub fn check(run: &ResolvedRun, kept: &Kept, rows: usize) -> Result<Checked> {
    let views = kept.used().file.views;
    let batches = whole_epoch(run, 0, 0).count(run.data.train.len());
    let mut checked = Checked { rows: 0, equal: 0, largest: 0.0, differs: false };
    for turn in 0..views * batches {
        if checked.rows >= rows {
            break;
        }
        // Each view begins with another batch, and has all of them in turn.
        let view = turn % views;
        let config = whole_epoch(run, view, (turn / views + view) % batches);
        for batch in kd_data::batches(&run.data.train, &config, &run.device)?.take(1) {
            for (kept, now) in kept.again(&batch?)? {
                checked.rows += 1;
                checked.equal += usize::from(kept == now);
                for (kept, now) in kept.iter().zip(&now) {
                    let difference = f64::from((kept - now).abs());
                    checked.largest = checked.largest.max(difference);
                    checked.differs |= difference > 2e-3 * f64::from(kept.abs()).max(1.0);
                }
            }
        }
    }
    Ok(checked)
}

/// The batches of the epoch that shows view `view`, the last small one among them.
fn whole_epoch(run: &ResolvedRun, view: usize, first_batch: usize) -> BatchConfig {
    BatchConfig { drop_last: false, ..batch_config(run, view, first_batch) }
}
