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
    /// Memory for what an operation needs besides.
    pub(super) scratch: &'a mut [f32],
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

    /// Calls `each` for every image, parts in parallel, with `scratch` numbers of scratch memory.
    pub(super) fn images(
        &mut self,
        plan: &Plan,
        scratch: usize,
        each: impl Fn(&mut Image<'_>) + Sync,
    ) {
        self.parts.par_iter_mut().for_each(|part| {
            part.images(plan, scratch, |image| each(image));
        });
    }

    /// Calls `each` for every image with sums of `sums` numbers: those of a group of parts, of which there are at most
    /// `groups`. Afterwards the first group's are the sums over all images; they are returned.
    pub(super) fn images_with_sums(
        &mut self,
        plan: &Plan,
        scratch: usize,
        (groups, sums): (usize, usize),
        each: impl Fn(&mut Image<'_>, &mut [f32]) + Sync,
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
                for part in parts {
                    part.images(plan, scratch, |image| each(image, memory));
                }
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

impl Part {
    fn images(&mut self, plan: &Plan, scratch: usize, mut each: impl FnMut(&mut Image<'_>)) {
        let Self { images, kept, winners, sums } = self;
        kd_ops::nhwc::with_scratch(plan.local + scratch, |memory| {
            let (local, scratch) = memory.split_at_mut(plan.local);
            for (i, index) in images.clone().enumerate() {
                let at = |len: usize| i * len..(i + 1) * len;
                each(&mut Image {
                    index,
                    memory: Memory { kept: &mut kept[at(plan.kept)], local: &mut *local },
                    winners: &mut winners[at(plan.units.winners)],
                    sums: &mut sums[at(plan.sums())],
                    scratch: &mut *scratch,
                });
            }
        });
    }
}
