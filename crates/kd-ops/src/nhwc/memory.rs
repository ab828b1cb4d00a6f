//! The memory of one image's pass: values that stay and values of the moment, cut into places.

use std::ops::Range;

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whether it lies in [`Memory::kept`], else in [`Memory::local`].
    pub kept: bool,
    /// Its first number there.
    pub offset: usize,
    /// How many numbers it has.
    pub len: usize,
}

impl Place {
    fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }

    /// Whether it shares a number with another place.
    fn meets(&self, other: &Self) -> bool {
        self.kept == other.kept
            && self.offset < other.offset + other.len
            && other.offset < self.offset + self.len
    }
}

/// The memory of one image.
pub struct Memory<'a> {
    /// What stays from one part of a pass to the next.
    pub kept: &'a mut [f32],
    /// What does not outlive a part of a pass, so that the next image has it again while it is in the cache.
    pub local: &'a mut [f32],
}

impl Memory<'_> {
    /// The values at some places to read and at others to write.
    ///
    /// # Panics
    /// When a place that is written meets another one, or lies outside of the memory.
    pub fn places<const R: usize, const W: usize>(
        &mut self,
        read: [Place; R],
        written: [Place; W],
    ) -> ([&[f32]; R], [&mut [f32]; W]) {
        for (i, place) in written.iter().enumerate() {
            let others = read.iter().chain(&written[..i]);
            assert!(others.into_iter().all(|other| !place.meets(other)), "{place:?} is in use");
        }
        let pointer = |memory: &mut Self, place: &Place| {
            let memory = if place.kept { &mut *memory.kept } else { &mut *memory.local };
            memory[place.range()].as_mut_ptr()
        };
        // SAFETY: each slice lies within the memory, which is borrowed as long as the slices live; those that are written
        // meet no other one, as asserted.
        unsafe {
            (
                read.map(|place| std::slice::from_raw_parts(pointer(self, &place), place.len)),
                written
                    .map(|place| std::slice::from_raw_parts_mut(pointer(self, &place), place.len)),
            )
        }
    }
}
