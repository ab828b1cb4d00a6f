//! Labelled images in memory: every data set that this crate reads is two of these.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use crate::labels;
use crate::one_line::{on_one_line, shown};
use crate::source::{Block, NO_LABEL, Picture, Source};
use crate::{Error, Result};
use kd_record::hash::hex;

/// Labelled images of one size, as bytes in memory: a [`Source`] whose pictures lie in one block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Pixels, row-major `[N, C, H, W]`: of a colour image all of red, then green, then blue.
    pub images: Vec<u8>,
    /// The class of each image, counted from 0; `[N]`. Of images without labels each is [`NO_LABEL`].
    pub labels: Vec<u32>,
    /// The group of classes of each image, where the data set has such groups (CIFAR-100 has 20); `[N]`.
    pub coarse_labels: Option<Vec<u32>>,
    /// Channels, height and width, in pixels, of every image.
    pub shape: [usize; 3],
}

/// A data set: images to train on, and images to test on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// `cifar10`, `cifar100`, `synthetic` or `folder`.
    pub name: String,
    /// The classes' names, by label; none where neither kind of images has labels.
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
    /// The names of the images to train on and of those to test on, where they come from files of their own: each file's path as seen from
    /// the data set's folder, with `/` between folders.
    pub names: Option<[Vec<String>; 2]>,
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
    /// A file that is left out because of this error; its path as seen from the data set's folder.
    #[cfg(feature = "images")]
    pub(crate) fn of(path: PathBuf, error: crate::Error) -> Self {
        let reason = match error {
            Error::Picture { reason, .. } => reason,
            Error::Io { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        Self { path, reason }
    }

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

    /// The images as `u8` `[N, C, H, W]` and the labels as `u32` `[N]`.
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
        labels::class_counts(&self.labels, classes)
    }

    /// The images with these numbers, in that order; a number may occur twice.
    ///
    /// # Panics
    /// Where there is no image of such a number.
    pub fn select(&self, indices: &[u32]) -> Split {
        let pick =
            |labels: &[u32]| indices.iter().map(|&i| labels[i as usize]).collect::<Vec<u32>>();
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
        self.labels.get(index as usize).copied().filter(|label| *label != NO_LABEL)
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
        hash.update(labels::bytes(&self.labels));
        hash.update(labels::bytes(self.coarse_labels.as_deref().unwrap_or_default()));
        hex(hash)
    }

    fn memory(&self) -> u64 {
        (self.images.len() + std::mem::size_of_val(&self.labels[..])) as u64
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Image `i` is filled with `i`; three classes in uneven numbers.
    fn split() -> Split {
        let labels: Vec<u32> = (0..60).map(|i| if i < 30 { 0 } else { 1 + i % 2 }).collect();
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
        assert_eq!(labels.to_vec1::<u32>().unwrap(), split().labels);
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
