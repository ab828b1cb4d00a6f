//! The memory of a pass over a batch.
//!
//! A batch is cut into parts of images by its size alone, so what is summed over images is the same for any number of
//! threads.

use std::ops::Range;

use kd_ops::nhwc::Memory;
use rayon::prelude::*;

use super::plan::Plan;

/// How many parts a batch has at most. On two cores 16 leave neither waiting long for the other.
const PARTS: usize = 16;

/// The memory of a pass.
pub(super) struct Workspace {
    pub(super) batch: usize,
    pub(super) parts: Vec<Part>,
    /// Sums over images for the gradients of weights, a piece of memory a group of parts.
    pub(super) sums: Vec<Vec<f32>>,
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
    pub(super) fn new(plan: &Plan, batch: usize) -> Self {
        let images_per_part = batch.div_ceil(PARTS).max(1);
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
        Self { batch, parts, sums: Vec::new() }
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

    /// What an image keeps, to be changed.
    pub(super) fn kept_mut(&mut self, plan: &Plan, image: usize) -> &mut [f32] {
        let (part, image) = self.find(image);
        &mut self.parts[part].kept[image * plan.kept..(image + 1) * plan.kept]
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
        let images = stack.images.min(self.batch.div_ceil(4));
        let per_group = images.div_ceil(images_per_part).max(1);
        self.parts.par_chunks_mut(per_group).for_each(|parts| {
            stacks(parts, plan, stack, |images, scratch| each(images, scratch));
        });
    }

    /// Calls `each` for all images, at most `stack.images` at once, with sums of `sums` numbers: those of a group of parts, of
    /// which there are at most `groups`. Afterwards the first group's are the sums over all images; they are returned.
    pub(super) fn images_with_sums(
        &mut self,
        plan: &Plan,
        stack: Stack,
        (groups, sums): (usize, usize),
        each: impl Fn(&mut [Image<'_>], &mut [f32], &mut [f32]) + Sync,
    ) -> &[f32] {
        let per_group = self.parts.len().div_ceil(groups);
        let groups = self.parts.len().div_ceil(per_group);
        self.sums.resize_with(groups.max(self.sums.len()), Vec::new);
        let of_groups = &mut self.sums[..groups];
        self.parts.par_chunks_mut(per_group).zip(of_groups.par_iter_mut()).for_each(
            |(parts, memory)| {
                if memory.capacity() < sums {
                    // Not grown: a vector grows to twice its size and holds both while it copies.
                    *memory = Vec::new();
                    *memory = vec![0.0; sums];
                } else {
                    memory.clear();
                    memory.resize(sums, 0.0);
                }
                stacks(parts, plan, stack, |images, scratch| each(images, scratch, memory));
            },
        );
        let [total, rest @ ..] = of_groups else { return &[] };
        // Pieces in parallel, the groups of each in their order.
        const PIECE: usize = 1 << 14;
        total.par_chunks_mut(PIECE).enumerate().for_each(|(piece, total)| {
            let range = piece * PIECE..piece * PIECE + total.len();
            for group in rest.iter() {
                kd_ops::nhwc::add(plan.isa, total, &group[range.clone()]);
            }
        });
        total
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
