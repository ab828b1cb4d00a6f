//! Labelled images in memory: every data set that this crate reads is two of these.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use crate::hash::hex;
use crate::one_line::{on_one_line, shown};
use crate::random::{Purpose, generator, shuffle};
use crate::source::{Block, Picture, Source};
use crate::{Error, Result};

/// Labelled images of one size, as bytes in memory: a [`Source`] whose pictures lie in one block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Pixels, row-major `[N, C, H, W]`: of a colour image all of red, then green, then blue.
    pub images: Vec<u8>,
    /// The class of each image, counted from 0; `[N]`.
    pub labels: Vec<u8>,
    /// The group of classes of each image, where the data set has such groups (CIFAR-100 has 20); `[N]`.
    pub coarse_labels: Option<Vec<u8>>,
    /// Channels, height and width, in pixels, of every image.
    pub shape: [usize; 3],
}

/// A data set: images to train on, and images to test on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// `cifar10`, `cifar100`, `synthetic` or `folder`.
    pub name: String,
    /// The classes' names, by label.
    pub classes: Vec<String>,
    /// The images to train on.
    pub train: Split,
    /// The images to test on.
    pub test: Split,
    /// SHA-256 in hex. Of CIFAR's files it is that of their contents, in the files' order; of any other data set that of
    /// training images, training labels, test images and test labels, and, of a folder of pictures, of the classes'
    /// names and the paths of the pictures that were left out.
    pub sha256: String,
    /// The pictures that can't be read and were left out; none but of a folder of pictures.
    pub skipped: Vec<Skipped>,
}

/// A picture of a folder that can't be read and was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its file, as seen from the data set's folder.
    pub path: PathBuf,
    /// Why it can't be read.
    pub reason: String,
}

impl Skipped {
    /// The file's name and why it can't be read, on one line, with control characters escaped as in Rust (`\n`).
    pub fn line(&self) -> String {
        format!("{}: {}", shown(&self.path), on_one_line(&self.reason))
    }
}

impl Split {
    /// The number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The pixels of image `i`, `[C, H, W]`.
    ///
    /// # Panics
    /// Where there is no image `i`.
    pub fn image(&self, i: usize) -> &[u8] {
        let size = self.image_size();
        &self.images[i * size..(i + 1) * size]
    }

    /// The images as `u8` `[N, C, H, W]` and the labels as `u8` `[N]`.
    ///
    /// # Errors
    /// Where the parts don't fit together, or the device refuses.
    pub fn to_tensors(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        self.check()?;
        let [channels, height, width] = self.shape;
        let images =
            Tensor::from_slice(&self.images, (self.len(), channels, height, width), device)?;
        let labels = Tensor::from_slice(&self.labels, self.len(), device)?;
        Ok((images, labels))
    }

    /// How many images each of the first `classes` classes has; images of further classes are not counted.
    pub fn class_counts(&self, classes: usize) -> Vec<usize> {
        let mut counts = vec![0; classes];
        for &label in &self.labels {
            if let Some(count) = counts.get_mut(usize::from(label)) {
                *count += 1;
            }
        }
        counts
    }

    /// Draws at most `limit` images, as evenly over the first `classes` classes as can be: their numbers in rising order,
    /// the same in every run with the same seed.
    ///
    /// Where `limit` is no multiple of `classes`, the first classes have one image more. A smaller
    /// subset is part of each larger one with the same seed. Images of further classes are left out.
    pub fn balanced_subset(&self, limit: usize, classes: usize, seed: u64) -> Vec<u32> {
        sorted(self.ranked(classes, seed).into_iter().take(limit))
    }

    /// Draws at most `count` images to be held out of the others, as [`balanced_subset`](Self::balanced_subset) does but
    /// never a class's last one, so that each of the first `classes` classes that has an image keeps one. There are fewer
    /// than `count` where no class can give more.
    ///
    /// Where `balanced_subset` leaves each class an image, both draw the same.
    pub fn held_out_subset(&self, count: usize, classes: usize, seed: u64) -> Vec<u32> {
        let counts = self.class_counts(classes);
        let given = |ranked: &Ranked| ranked.rank + 1 < counts[usize::from(ranked.label)];
        sorted(self.ranked(classes, seed).into_iter().filter(given).take(count))
    }

    /// Cuts the images of the first `classes` classes into `of` parts of nearly equal size, the same in every run with the
    /// same seed: the numbers of each part's images, in rising order. An image is in exactly one part.
    ///
    /// A part is what one balanced subset has more than the one before. Where that would put all of a class's two or more
    /// images into one part, or leave a part without a class that has more images than there are parts, the images are dealt
    /// out class by class instead, one to each part in turn.
    pub fn balanced_parts(&self, of: usize, classes: usize, seed: u64) -> Vec<Vec<u32>> {
        let mut ranked = self.ranked(classes, seed);
        let end = |part: usize| ranked.len() * part / of;
        let cut: Vec<&[Ranked]> = (0..of).map(|part| &ranked[end(part)..end(part + 1)]).collect();
        if are_spread(&cut, &self.class_counts(classes)) {
            return cut.into_iter().map(|part| sorted(part.iter().copied())).collect();
        }
        ranked.sort_unstable_by_key(|ranked| (ranked.label, ranked.rank));
        let dealt = |part| sorted(ranked.iter().copied().skip(part).step_by(of));
        (0..of).map(dealt).collect()
    }

    /// The images of the first `classes` classes in the order in which subsets take them: the first of each class, then the
    /// second, ...
    fn ranked(&self, classes: usize, seed: u64) -> Vec<Ranked> {
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        shuffle(&mut generator(seed, Purpose::Subset, 0), &mut order);
        let mut taken = vec![0; classes];
        let mut ranked = Vec::with_capacity(order.len());
        for index in order {
            let label = self.labels[index as usize];
            if let Some(rank) = taken.get_mut(usize::from(label)) {
                ranked.push(Ranked { rank: *rank, label, index });
                *rank += 1;
            }
        }
        ranked.sort_unstable();
        ranked
    }

    /// The images with these numbers, in that order; a number may occur twice.
    ///
    /// # Panics
    /// Where there is no image of such a number.
    pub fn select(&self, indices: &[u32]) -> Split {
        let pick = |labels: &[u8]| indices.iter().map(|&i| labels[i as usize]).collect::<Vec<u8>>();
        let mut images = Vec::with_capacity(indices.len() * self.image_size());
        for &index in indices {
            images.extend_from_slice(self.image(index as usize));
        }
        Split {
            images,
            labels: pick(&self.labels),
            coarse_labels: self.coarse_labels.as_deref().map(pick),
            shape: self.shape,
        }
    }

    /// Bytes of an image.
    fn image_size(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Source for Split {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn shape(&self) -> [usize; 3] {
        self.shape
    }

    fn label(&self, index: u32) -> Option<u32> {
        self.labels.get(index as usize).map(|&label| u32::from(label))
    }

    fn read(&self, index: u32, into: &mut Picture) -> Result<()> {
        let (size, at) = (self.image_size(), index as usize);
        let Some(pixels) = self.images.get(at * size..(at + 1) * size) else {
            return Err(Error::Source {
                index,
                found: format!("a split of {} pictures", Source::len(self)),
                expected: "the number of one of them".into(),
            });
        };
        into.shape = self.shape;
        into.pixels.clear();
        into.pixels.extend_from_slice(pixels);
        Ok(())
    }

    /// SHA-256 in hex of shape, images, labels and coarse labels. It is computed anew each time, since all of them may be
    /// changed.
    fn identity(&self) -> String {
        let mut hash = Sha256::new();
        for size in self.shape {
            hash.update((size as u64).to_le_bytes());
        }
        hash.update((self.labels.len() as u64).to_le_bytes());
        hash.update(&self.images);
        hash.update(&self.labels);
        hash.update(self.coarse_labels.as_deref().unwrap_or_default());
        hex(hash)
    }

    fn block(&self) -> Option<Block<'_>> {
        Some(Block { images: &self.images, labels: &self.labels })
    }

    /// Refuses a split whose numbers of pixels and labels don't fit together.
    fn check(&self) -> Result<()> {
        let wrong = |found, expected| Err(Error::Split { shape: self.shape, found, expected });
        if self.images.len() != self.len() * self.image_size() {
            return wrong(
                format!("{} labels and {} bytes of images", self.len(), self.images.len()),
                format!("{} bytes for each label", self.image_size()),
            );
        }
        match &self.coarse_labels {
            Some(coarse) if coarse.len() != self.len() => wrong(
                format!("{} labels and {} coarse labels", self.len(), coarse.len()),
                "as many of each".into(),
            ),
            _ => Ok(()),
        }
    }
}

/// An image in the order of its class; ordered by rank, then by class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ranked {
    /// How many images of its class come before it in the shuffled order.
    rank: usize,
    label: u8,
    /// The image's number in the split.
    index: u32,
}

/// The images' numbers, in rising order.
fn sorted(ranked: impl Iterator<Item = Ranked>) -> Vec<u32> {
    let mut indices: Vec<u32> = ranked.map(|ranked| ranked.index).collect();
    indices.sort_unstable();
    indices
}

/// Whether no class of two images or more lies in one part alone, and each class with more images than there are parts in all
/// of them. `counts` are the classes' images.
fn are_spread(parts: &[&[Ranked]], counts: &[usize]) -> bool {
    let has = |part: &[Ranked], class: usize| part.iter().any(|r| usize::from(r.label) == class);
    counts.iter().enumerate().all(|(class, &count)| {
        let with = parts.iter().filter(|part| has(part, class)).count();
        (count < 2 || with > 1) && (count <= parts.len() || with == parts.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Image `i` is filled with `i`; three classes in uneven numbers.
    fn split() -> Split {
        let labels: Vec<u8> = (0..60u8).map(|i| if i < 30 { 0 } else { 1 + i % 2 }).collect();
        Split {
            images: (0..60u8).flat_map(|i| [i; 12]).collect(),
            coarse_labels: Some(labels.iter().map(|label| label / 2).collect()),
            labels,
            shape: [3, 2, 2],
        }
    }

    #[test]
    fn tensors_have_the_shape_and_the_bytes() {
        let (images, labels) = split().to_tensors(&Device::Cpu).unwrap();
        assert_eq!(images.dims(), [60, 3, 2, 2]);
        assert_eq!(images.flatten_all().unwrap().to_vec1::<u8>().unwrap(), split().images);
        assert_eq!(labels.to_vec1::<u8>().unwrap(), split().labels);
    }

    #[test]
    fn a_subset_is_balanced_and_the_same_in_every_run() {
        let split = split();
        let subset = split.balanced_subset(14, 3, 7);
        assert_eq!(split.select(&subset).class_counts(3), [5, 5, 4]);
        assert!(subset.is_sorted());
        assert_eq!(subset, split.balanced_subset(14, 3, 7));
        assert_ne!(subset, split.balanced_subset(14, 3, 8));
        let larger = split.balanced_subset(20, 3, 7);
        assert!(subset.iter().all(|index| larger.contains(index)));
    }

    #[test]
    fn a_class_that_runs_out_is_made_up_for_by_the_others() {
        let split = split();
        let subset = split.balanced_subset(50, 3, 0);
        assert_eq!(split.select(&subset).class_counts(3), [20, 15, 15]);
        assert_eq!(split.balanced_subset(1000, 3, 0), (0..60).collect::<Vec<_>>());
        assert!(split.balanced_subset(0, 3, 0).is_empty());
    }

    /// Classes of so many images each, of one pixel.
    fn of_counts(counts: &[usize]) -> Split {
        let labels: Vec<u8> = (0u8..).zip(counts).flat_map(|(l, &n)| vec![l; n]).collect();
        Split { images: labels.clone(), labels, coarse_labels: None, shape: [1, 1, 1] }
    }

    #[test]
    fn what_is_held_out_leaves_each_class_an_image() {
        let rare = of_counts(&[200, 20, 5, 1, 0]);
        for (count, expected) in
            [(3, [1, 1, 1, 0, 0]), (30, [13, 13, 4, 0, 0]), (999, [199, 19, 4, 0, 0])]
        {
            let held_out = rare.held_out_subset(count, 5, 1);
            assert_eq!(rare.select(&held_out).class_counts(5), expected);
            assert!(held_out.is_sorted());
        }
        // Nothing is drawn otherwise where no class is emptied.
        let even = of_counts(&[50; 10]);
        for count in [0, 7, 10, 333, 490] {
            assert_eq!(even.held_out_subset(count, 10, 1), even.balanced_subset(count, 10, 1));
        }
        assert_eq!(rare.held_out_subset(9, 5, 1), {
            let plain = rare.balanced_subset(10, 5, 1);
            plain.into_iter().filter(|&index| rare.labels[index as usize] != 3).collect::<Vec<_>>()
        });
    }

    #[test]
    fn no_part_has_a_class_to_itself() {
        for (counts, of) in [
            (vec![200, 20, 5], 2),
            (vec![200, 20, 5], 5),
            (vec![100, 100, 10], 3),
            (vec![40, 2, 2], 4),
            (vec![3, 1], 2),
        ] {
            let split = of_counts(&counts);
            let parts = split.balanced_parts(of, counts.len(), 2);
            let all: std::collections::BTreeSet<u32> = parts.concat().into_iter().collect();
            assert_eq!((parts.len(), all.len()), (of, split.len()), "{counts:?}");
            assert_eq!(parts.concat().len(), split.len());
            let sizes = parts.iter().map(Vec::len);
            assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1, "{counts:?}");
            for part in &parts {
                let inside = split.select(part).class_counts(counts.len());
                for (class, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 1) {
                    assert!(inside[class] < count, "{counts:?}: {inside:?}");
                    assert!(inside[class] >= count / of, "{counts:?}: {inside:?}");
                }
            }
        }
    }

    #[test]
    fn parts_of_balanced_classes_are_what_each_larger_subset_adds() {
        for (counts, of) in [(vec![50; 10], 4), (vec![11, 11, 11, 10, 10], 7), (vec![4; 10], 4)] {
            let split = of_counts(&counts);
            let up_to = |part| split.balanced_subset(split.len() * part / of, counts.len(), 2);
            let cut = (0..of).map(|part| -> Vec<u32> {
                let before = up_to(part);
                up_to(part + 1).into_iter().filter(|i| !before.contains(i)).collect()
            });
            assert_eq!(split.balanced_parts(of, counts.len(), 2), cut.collect::<Vec<_>>());
        }
    }

    #[test]
    fn select_keeps_images_and_labels_together() {
        let chosen = split().select(&[59, 3, 3]);
        assert_eq!(chosen.len(), 3);
        assert_eq!(chosen.image(0), [59; 12]);
        assert_eq!(chosen.image(2), [3; 12]);
        assert_eq!(chosen.labels, [2, 0, 0]);
        assert_eq!(chosen.coarse_labels, Some(vec![1, 0, 0]));
    }

    #[test]
    fn parts_that_do_not_fit_are_an_error() {
        let mut short = split();
        short.images.pop();
        let message = short.to_tensors(&Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("60 labels and 719 bytes"), "{message}");
        let mut coarse = split();
        coarse.coarse_labels = Some(vec![0]);
        assert!(coarse.to_tensors(&Device::Cpu).is_err());
    }
}
