//! The memory of a pass over a batch.
//!
//! A batch is cut into parts of images by its size alone, so what is summed over images is the same for any number of
//! threads.

use std::ops::Range;

use candle_core::Result;
use kd_ops::nhwc::{Memory, Place};
use rayon::prelude::*;

use super::plan::Plan;
use crate::block_sums::{BlockSums, in_turn_f32};

/// How many parts a batch has at most. On two cores 16 leave neither waiting long for the other.
const PARTS: usize = 16;

/// Into how many groups the parts of a batch are put at most, for sums over its images: large sums cost memory and its traffic,
/// so fewer groups of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Groups {
    Four = 4,
    Eight = 8,
    Sixteen = 16,
}

impl Groups {
    const ALL: [Self; 3] = [Self::Four, Self::Eight, Self::Sixteen];

    /// How many parts of a whole batch's form a group.
    fn parts(self, of: usize) -> usize {
        of.div_ceil(self as usize).max(1)
    }
}

/// The memory of a pass.
pub(super) struct Workspace {
    /// The images that this process computes.
    pub(super) batch: usize,
    /// The images of the batch, those of other processes among them.
    pub(super) whole: usize,
    /// The parts of the whole batch.
    whole_parts: usize,
    pub(super) parts: Vec<Part>,
    /// Sums over images for the gradients of weights, a piece of memory a group of parts.
    pub(super) sums: Vec<Vec<f32>>,
    /// The sums of the processes before this one.
    before: Vec<f32>,
}

/// Images of each part of a batch but the last one.
fn images_per_part(whole: usize) -> usize {
    whole.div_ceil(PARTS).max(1)
}

/// Whether so many processes, each with `batch` images, have whole groups of parts each, and so end with the bits of one.
pub(super) fn can_share(batch: usize, ranks: usize) -> bool {
    let per_part = images_per_part(batch * ranks);
    let parts = (batch * ranks).div_ceil(per_part);
    ranks == 1
        || Groups::ALL.iter().all(|groups| batch.is_multiple_of(per_part * groups.parts(parts)))
}

/// How images pass a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stack {
    /// How many are taken at once at most.
    pub(super) images: usize,
    /// Numbers of scratch memory that so many images need.
    pub(super) scratch: usize,
}

/// A part of the batch's images and their memory.
pub(super) struct Part {
    pub(super) images: Range<usize>,
    kept: Vec<f32>,
    winners: Vec<u8>,
    /// Two sums for each channel of each batch normalisation, image by image.
    pub(super) sums: Vec<f64>,
}

/// One image's memory, and what the loop over images gives it.
pub(super) struct Image<'a> {
    /// The position in the batch.
    pub(super) index: usize,
    pub(super) memory: Memory<'a>,
    pub(super) winners: &'a mut [u8],
    /// The image's part of [`Part::sums`].
    pub(super) sums: &'a mut [f64],
}

impl Workspace {
    /// Memory for `batch` images of a batch that so many processes share.
    pub(super) fn new(plan: &Plan, batch: usize, ranks: usize) -> Self {
        let whole = batch * ranks;
        let images_per_part = images_per_part(whole);
        let part = |first: usize| {
            let images = first..(first + images_per_part).min(batch);
            Part {
                kept: vec![0.0; images.len() * plan.kept],
                winners: vec![0; images.len() * plan.units.winners],
                sums: vec![0.0; images.len() * plan.sums()],
                images,
            }
        };
        // A batch without images is one empty part.
        let parts = (0..batch.max(1)).step_by(images_per_part).map(part).collect();
        let whole_parts = whole.div_ceil(images_per_part);
        Self { batch, whole, whole_parts, parts, sums: Vec::new(), before: Vec::new() }
    }

    /// The bytes of the memory of a pass over so many images, without the sums for the gradients of weights.
    pub(super) fn bytes(plan: &Plan, batch: usize) -> u64 {
        let image =
            size_of::<f32>() * plan.kept + plan.units.winners + size_of::<f64>() * plan.sums();
        batch as u64 * image as u64
    }

    /// The part that has an image, and the image's position in it.
    fn find(&self, image: usize) -> (usize, usize) {
        let per_part = self.parts[0].images.len();
        (image / per_part, image % per_part)
    }

    /// What an image keeps.
    pub(super) fn kept(&self, plan: &Plan, image: usize) -> &[f32] {
        let (part, image) = self.find(image);
        &self.parts[part].kept[image * plan.kept..(image + 1) * plan.kept]
    }

    /// Calls `each` for all images, at most `stack.images` at once, in parallel.
    pub(super) fn images(
        &mut self,
        plan: &Plan,
        stack: Stack,
        each: impl Fn(&mut [Image<'_>], &mut [f32]) + Sync,
    ) {
        let images_per_part = self.parts[0].images.len().max(1);
        // At least four pieces of work, where the batch allows it.
        let images = stack.images.min(self.whole.div_ceil(4));
        let per_group = images.div_ceil(images_per_part).max(1);
        self.parts.par_chunks_mut(per_group).for_each(|parts| {
            stacks(parts, plan, stack, |images, scratch| each(images, scratch));
        });
    }

    /// Calls `each` for all groups of parts, in parallel.
    pub(super) fn groups(&mut self, groups: Groups, each: impl Fn(&mut [Part]) + Sync + Send) {
        let groups = self.parts.par_chunks_mut(groups.parts(self.whole_parts));
        groups.for_each(each);
    }

    /// Calls `each` for all images, at most `stack.images` at once, with the sums of their group; see [`Self::sum`].
    pub(super) fn images_with_sums(
        &mut self,
        plan: &Plan,
        stack: Stack,
        (groups, sums): (Groups, usize),
        processes: &dyn BlockSums,
        each: impl Fn(&mut [Image<'_>], &mut [f32], &mut [f32]) + Sync,
    ) -> Result<&[f32]> {
        self.sum(plan, (groups, sums), processes, |parts, memory| {
            memory.fill(0.0);
            stacks(parts, plan, stack, |images, scratch| each(images, scratch, memory));
        })
    }

    /// Calls `each` for all groups of parts, in parallel, which leaves a group's `sums` numbers in the memory that it is given.
    /// Returns the sums over the whole batch: the groups' in their order.
    pub(super) fn sum(
        &mut self,
        plan: &Plan,
        (groups, sums): (Groups, usize),
        processes: &dyn BlockSums,
        each: impl Fn(&mut [Part], &mut [f32]) + Sync,
    ) -> Result<&[f32]> {
        let per_group = groups.parts(self.whole_parts);
        let groups = self.parts.len().div_ceil(per_group);
        self.sums.resize_with(groups.max(self.sums.len()), Vec::new);
        let of_groups = &mut self.sums[..groups];
        self.parts.par_chunks_mut(per_group).zip(of_groups.par_iter_mut()).for_each(
            |(parts, memory)| {
                make_room(memory, sums);
                each(parts, &mut memory[..sums]);
            },
        );
        // The first process adds to its first group's sums, any other one to what has come to it.
        let (total, rest) = match processes.rank() {
            0 => of_groups.split_at_mut(1),
            _ => (std::slice::from_mut(&mut self.before), of_groups),
        };
        make_room(&mut total[0], sums);
        let total = &mut total[0][..sums];
        if sums > 0 {
            in_turn_f32(processes, total, |total| {
                // Pieces in parallel, the groups of each in their order.
                const PIECE: usize = 1 << 14;
                total.par_chunks_mut(PIECE).enumerate().for_each(|(piece, total)| {
                    let range = piece * PIECE..piece * PIECE + total.len();
                    for group in rest.iter() {
                        kd_ops::nhwc::add(plan.isa, total, &group[range.clone()]);
                    }
                });
            })?;
        }
        Ok(total)
    }
}

/// Makes a piece of memory at least `len` long; what it holds is arbitrary.
fn make_room(memory: &mut Vec<f32>, len: usize) {
    if memory.len() < len {
        // Not grown: a vector grows to twice its size and holds both while it copies.
        *memory = Vec::new();
        *memory = vec![0.0; len];
    }
}

/// Calls `each` for the images of some parts, as many at once as `stack` says, with scratch memory.
fn stacks(
    parts: &mut [Part],
    plan: &Plan,
    stack: Stack,
    mut each: impl FnMut(&mut [Image<'_>], &mut [f32]),
) {
    let count: usize = parts.iter().map(|part| part.images.len()).sum();
    // Stacks of much the same size.
    let at_once = count.div_ceil(count.div_ceil(stack.images).max(1)).max(1);
    let local = plan.local.max(1);
    kd_ops::nhwc::with_scratch(at_once * local + stack.scratch, |memory| {
        let (locals, scratch) = memory.split_at_mut(at_once * local);
        let mut images = parts.iter_mut().flat_map(|part| part.images(plan));
        if at_once == 1 {
            for (index, memory, winners, sums) in images {
                let memory = Memory { kept: memory, local: &mut *locals };
                each(&mut [Image { index, memory, winners, sums }], scratch);
            }
            return;
        }
        loop {
            let with_local = locals.chunks_exact_mut(local).zip(images.by_ref());
            let mut stack: Vec<Image<'_>> = with_local
                .map(|(local, (index, kept, winners, sums))| {
                    let memory = Memory { kept, local };
                    Image { index, memory, winners, sums }
                })
                .collect();
            if stack.is_empty() {
                return;
            }
            each(&mut stack, scratch);
        }
    });
}

impl Part {
    /// The vectors at a place, one for each of the part's images.
    pub(super) fn vectors(&self, plan: &Plan, place: Place) -> impl Iterator<Item = &[f32]> {
        assert!(place.kept, "what a linear layer reads outlives its segment");
        self.kept.chunks_exact(plan.kept).map(move |kept| &kept[place.offset..][..place.len])
    }

    /// The same, to be changed.
    pub(super) fn vectors_mut(
        &mut self,
        plan: &Plan,
        place: Place,
    ) -> impl Iterator<Item = &mut [f32]> {
        assert!(place.kept, "what a linear layer gives outlives its segment");
        let kept = self.kept.chunks_exact_mut(plan.kept);
        kept.map(move |kept| &mut kept[place.offset..][..place.len])
    }

    /// Each image's position in the batch and its pieces of the part's memory.
    fn images<'a>(
        &'a mut self,
        plan: &Plan,
    ) -> impl Iterator<Item = (usize, &'a mut [f32], &'a mut [u8], &'a mut [f64])> + use<'a> {
        let lens = (plan.kept, plan.units.winners, plan.sums());
        let mut kept = &mut self.kept[..];
        let mut winners = &mut self.winners[..];
        let mut sums = &mut self.sums[..];
        self.images.clone().map(move |index| {
            (index, take(&mut kept, lens.0), take(&mut winners, lens.1), take(&mut sums, lens.2))
        })
    }
}

/// Cuts the first `len` entries off.
fn take<'a, T>(all: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (piece, rest) = std::mem::take(all).split_at_mut(len);
    *all = rest;
    piece
}
