//! How processes that share a batch come to the same sums over its images.

use candle_core::Result;

/// Sums over images that processes add their own images' to, one after the other.
#[derive(Debug)]
pub enum Sums<'a> {
    /// Sums for the gradients of weights and biases of convolutions and linear layers.
    F32(&'a mut [f32]),
    /// What a batch normalisation's statistics, and its gradient, are made of.
    F64(&'a mut [f64]),
}

/// The processes that share a batch, as one of them sees them. Process `r` of `n` computes the `r`-th of `n` equal runs of the
/// batch's images.
///
/// Everything that is summed over the batch goes through [`Self::in_turn`], in blocks of images that follow from the batch's size
/// alone, so that any number of processes that a batch's blocks can be dealt out to ends with the bits of one:
/// [`GraphNetwork::sharing`](crate::GraphNetwork::sharing) says which these are.
pub trait BlockSums: Send + Sync {
    /// This process's position among them, from 0.
    fn rank(&self) -> usize;

    /// The number of processes.
    fn ranks(&self) -> usize;

    /// Calls `add` on every process in the order of their ranks: on the first one with `sums` as they are, on each other one
    /// with what the process before it has left in them. Afterwards `sums` of every process are what the last one has left.
    ///
    /// Every process makes the same calls with the same lengths in the same order, from the thread that called
    /// [`Classifier::train`](crate::Classifier::train) or [`Classifier::backward`](crate::Classifier::backward).
    ///
    /// # Errors
    /// When a process can't be reached.
    fn in_turn(&self, sums: Sums<'_>, add: &mut dyn FnMut(Sums<'_>)) -> Result<()>;
}

/// One process that computes the whole batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alone;

impl BlockSums for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        1
    }

    fn in_turn(&self, sums: Sums<'_>, add: &mut dyn FnMut(Sums<'_>)) -> Result<()> {
        add(sums);
        Ok(())
    }
}

/// [`BlockSums::in_turn`] of sums in f32.
pub(crate) fn in_turn_f32(
    processes: &dyn BlockSums,
    sums: &mut [f32],
    mut add: impl FnMut(&mut [f32]),
) -> Result<()> {
    processes.in_turn(Sums::F32(sums), &mut |sums| {
        if let Sums::F32(sums) = sums {
            add(sums);
        }
    })
}

/// [`BlockSums::in_turn`] of sums in f64.
pub(crate) fn in_turn_f64(
    processes: &dyn BlockSums,
    sums: &mut [f64],
    mut add: impl FnMut(&mut [f64]),
) -> Result<()> {
    processes.in_turn(Sums::F64(sums), &mut |sums| {
        if let Sums::F64(sums) = sums {
            add(sums);
        }
    })
}
