//! What an observer of a run is told while it trains, and how a run ends.

use kd_record::EpochRecord;

use crate::evaluate::Evaluation;
use crate::figures::Sums;
use crate::plan::RunMemory;

/// What an observer of a run is told.
#[derive(Debug)]
pub enum Progress<'a> {
    /// Training begins, or goes on.
    Started {
        /// The run's name.
        run: &'a str,
        /// Epochs of the run.
        epochs: usize,
        /// Steps of each epoch.
        batches: usize,
        /// Steps that earlier processes took.
        step: u64,
        /// Whether the run goes on from a checkpoint.
        resumed: bool,
        /// The number of epochs that the run had until now, where it goes on for more.
        extended_from: Option<usize>,
        /// The memory that the run takes; `None` on a GPU.
        memory: Option<RunMemory>,
        /// Whether the training images have labels, by which their accuracy is known.
        labelled: bool,
    },
    /// The teacher computes its outputs for the training images, which are then cached.
    TeacherPass {
        /// The images whose outputs are there.
        done: usize,
        /// Images in all.
        images: usize,
    },
    /// A step is done. On a GPU only the steps are told at which figures are read: those with an event or a checkpoint,
    /// and the last of an epoch.
    Step {
        /// The epoch, from 1.
        epoch: usize,
        /// Steps done in this epoch.
        batch: usize,
        /// Steps done in all.
        step: u64,
        /// Sums over the steps of the epoch so far.
        sums: &'a Sums,
    },
    /// An epoch is done.
    Epoch(&'a EpochRecord),
    /// Something worth knowing, as a sentence.
    Note(&'a str),
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// The run is finished; what the network is worth on the test images, where there are any.
    Finished(Option<Evaluation>),
    /// The run was finished before; the same.
    AlreadyFinished(Option<Evaluation>),
    /// The observer stopped the run; a checkpoint is written, and the same run can go on.
    Stopped {
        /// The steps that the checkpoint is after.
        step: u64,
    },
}
