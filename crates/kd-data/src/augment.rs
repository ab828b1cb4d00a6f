//! Augmentation: random crops, horizontal flip, changes of colour and shape, cutout and random erasing. What was done to an image is a small
//! record, its view, which can be applied again.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use crate::crop::ResizedCrop;
use crate::erase::{Erasings, RandomErasing};
use crate::jitter::{ColorJitter, Jitter, Jitters};
use crate::normalize::Table;
use crate::policy::{Changes, Policies, Policy};
use crate::random::{Purpose, below, generator};
use crate::scaling::Crop;
use crate::source::Picture;
use crate::{Error, Normalization, Result};

/// Which random changes images get. All are off by default. What an image gets depends on seed, epoch and the image's number
/// alone. They are made in the order of the fields, but cutout before erasing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Augment {
    /// Cut a rectangle of random size, shape and place out of the whole picture and scale it to the image's size.
    pub resized_crop: Option<ResizedCrop>,
    /// Shift each image by up to this many pixels each way: a random crop of the image's own size after
    /// padding with black, as torchvision's `RandomCrop` does. At most 127, and less than the image's side.
    pub crop_padding: usize,
    /// Mirror an image, left to right, with probability one half.
    pub flip: bool,
    /// Change brightness, contrast, saturation and hue.
    pub color_jitter: Option<ColorJitter>,
    /// Change shape and colours by one or several changes out of a list.
    pub policy: Option<Policy>,
    /// Set a rectangle to the mean colour.
    pub random_erasing: Option<RandomErasing>,
    /// Side in pixels of a square that is set to the mean colour; 0 is off. Its centre is any pixel, so part
    /// of the square may lie outside of the image (DeVries and Taylor, "Improved Regularization of Convolutional Neural
    /// Networks with Cutout", 2017).
    pub cutout: usize,
}

/// How augmentation changed one image: its "view". The default is the image unchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct View {
    /// The rectangle of the whole picture that was cut out and scaled to the image's size, before all else; `None` where the image is
    /// what its source reads.
    pub crop: Option<Crop>,
    /// Vertical shift in pixels: row `y` of the view shows the image's row `y + dy`, or black where there is none.
    pub dy: i8,
    /// Horizontal shift in pixels: column `x` of the view shows the image's column `x + dx`, or black where there is none.
    pub dx: i8,
    /// Whether the image was mirrored left to right, after the shift.
    pub flip: bool,
    /// How the colours were changed, after that.
    pub jitter: Option<Jitter>,
    /// What was then done out of a list of changes.
    pub changes: Changes,
    /// Centre (row, column) of the square that was cut out, in the view; `None` where there is none.
    pub cutout: Option<(u8, u8)>,
    /// The rectangle that was erased, in the view; `None` where there is none.
    pub erased: Option<Crop>,
}

/// Words of the random stream that one image's view has. It takes five; `below` draws again with a probability of
/// at most 2^-24, so that the words of two images practically never overlap. Where they did, each view
/// would still be the same in every run.
const WORDS_PER_VIEW: u128 = 8;

/// Draws the views of one epoch, each a function of seed, epoch and the image's number alone.
#[derive(Clone)]
pub(crate) struct Views {
    augment: Augment,
    height: u32,
    width: u32,
    rng: ChaCha8Rng,
    jitters: Jitters,
    policies: Policies,
    erasings: Erasings,
}

impl Views {
    /// For images of `shape` (channels, height, width).
    pub(crate) fn new(augment: Augment, shape: [usize; 3], seed: u64, epoch: usize) -> Self {
        let rng = if augment.is_off() {
            ChaCha8Rng::from_seed([0; 32])
        } else {
            generator(seed, Purpose::Augment, epoch as u64)
        };
        Self {
            augment,
            height: shape[1] as u32,
            width: shape[2] as u32,
            rng,
            jitters: Jitters::new(augment.color_jitter, seed, epoch),
            policies: Policies::new(augment.policy, seed, epoch),
            erasings: Erasings::new(augment.random_erasing, shape, seed, epoch),
        }
    }

    /// The view of the image with number `index`.
    pub(crate) fn view(&mut self, index: u32) -> View {
        let Augment { crop_padding, flip, cutout, .. } = self.augment;
        if self.augment.is_off() {
            return View::default();
        }
        self.rng.set_word_pos(u128::from(index) * WORDS_PER_VIEW);
        // Each draw is made whether or not it is used: switching one change off leaves the others as they are.
        let mut shift = || {
            let n = 2 * crop_padding as u32 + 1;
            (below(&mut self.rng, n) as i32 - crop_padding as i32) as i8
        };
        let (dy, dx) = (shift(), shift());
        let mirrored = self.rng.next_u32() >> 31 == 1;
        let centre = (below(&mut self.rng, self.height), below(&mut self.rng, self.width));
        View {
            crop: None,
            dy,
            dx,
            flip: flip && mirrored,
            jitter: self.jitters.draw(index),
            changes: self.policies.draw(index),
            erased: self.erasings.draw(index),
            cutout: (cutout > 0).then_some((centre.0 as u8, centre.1 as u8)),
        }
    }
}

impl Augment {
    /// No change: the default, as a constant.
    pub const OFF: Self = Self {
        resized_crop: None,
        crop_padding: 0,
        flip: false,
        color_jitter: None,
        policy: None,
        random_erasing: None,
        cutout: 0,
    };

    /// Whether all changes are off.
    pub fn is_off(&self) -> bool {
        *self == Self::OFF
    }

    /// Refuses settings that make no sense for images of `shape` (channels, height, width).
    pub(crate) fn check(&self, shape: [usize; 3]) -> Result<()> {
        let wrong = |field, found: usize, expected: String| {
            Err(Error::Config { field, found: found.to_string(), expected })
        };
        let side = shape[1].min(shape[2]);
        if let Some(crop) = &self.resized_crop {
            crop.check()?;
        }
        if let Some(jitter) = &self.color_jitter {
            jitter.check()?;
        }
        if let Some(Policy::RandAugment(settings)) = &self.policy {
            settings.check()?;
        }
        if let Some(erasing) = &self.random_erasing {
            erasing.check()?;
        }
        if self.crop_padding > 127.min(side.saturating_sub(1)) {
            return wrong(
                "augment.crop_padding",
                self.crop_padding,
                format!("at most 127 and less than the image's side of {side} pixels"),
            );
        }
        if self.cutout > 0 && shape[1].max(shape[2]) > 256 {
            return wrong("augment.cutout", self.cutout, "0 for images of over 256 pixels".into());
        }
        if self.cutout > 2 * shape[1].max(shape[2]) {
            return wrong(
                "augment.cutout",
                self.cutout,
                format!("at most twice the image's side of {side} pixels"),
            );
        }
        Ok(())
    }
}

impl View {
    /// The image, shifted and mirrored, with the changes of colour and shape that are made to its bytes; `None` where there are none.
    fn changed(&self, image: &[u8], [height, width]: [usize; 2]) -> Option<Picture> {
        if self.jitter.is_none() && self.changes == Changes::default() {
            return None;
        }
        let mut picture = Picture { shape: [3, height, width], pixels: vec![0; image.len()] };
        let same: [u8; 256] = std::array::from_fn(|byte| byte as u8);
        let planes = picture.pixels.chunks_exact_mut(height * width);
        for (plane, bytes) in planes.zip(image.chunks_exact(height * width)) {
            shift_and_flip(self, bytes, [height, width], &same, plane);
        }
        if let Some(jitter) = &self.jitter {
            jitter.apply(&mut picture);
        }
        for change in self.changes.iter().flatten() {
            change.apply(&mut picture);
        }
        Some(picture)
    }

    /// Computes the network's input for this view of an image: `image` is `[3, H, W]` in bytes, `input`, which is written, the
    /// same in f32. Where the view has a [`crop`](Self::crop), the image is that crop, scaled. `cutout` is the side of the square, [`Augment::cutout`]. This is what
    /// [`batches`](crate::batches()) computes, so a recorded view gives the same numbers again.
    ///
    /// # Panics
    /// Where `image` or `input` doesn't have `3 * H * W` entries.
    pub fn apply(
        &self,
        image: &[u8],
        [height, width]: [usize; 2],
        cutout: usize,
        normalization: &Normalization,
        input: &mut [f32],
    ) {
        apply(self, image, [height, width], cutout, &normalization.table(), input);
    }
}

/// As [`View::apply`], with the normalisation as a table.
pub(crate) fn apply(
    view: &View,
    image: &[u8],
    [height, width]: [usize; 2],
    cutout: usize,
    table: &Table,
    input: &mut [f32],
) {
    assert_eq!(image.len(), 3 * height * width);
    assert_eq!(input.len(), image.len());
    let changed = view.changed(image, [height, width]);
    let is_plain = changed.is_some() || view.dy == 0 && view.dx == 0 && !view.flip;
    let image = changed.as_ref().map_or(image, |picture| &picture.pixels);
    let planes = image.chunks_exact(height * width).zip(input.chunks_exact_mut(height * width));
    for ((bytes, plane), table) in planes.zip(table) {
        if is_plain {
            for (value, &byte) in plane.iter_mut().zip(bytes) {
                *value = table[usize::from(byte)];
            }
        } else {
            shift_and_flip(view, bytes, [height, width], table, plane);
        }
        let square = view
            .cutout
            .map(|(row, column)| (square(row, cutout, height), square(column, cutout, width)));
        let rectangle = view.erased.map(|Crop { top, left, height, width }| {
            (top as usize..(top + height) as usize, left as usize..(left + width) as usize)
        });
        for (rows, columns) in square.into_iter().chain(rectangle) {
            for row in plane.chunks_exact_mut(width).take(rows.end).skip(rows.start) {
                // 0 after normalisation: the mean colour.
                row[columns.clone()].fill(0.0);
            }
        }
    }
}

/// One channel of a view that is shifted or mirrored, each value by the table, without the cutout.
fn shift_and_flip<T: Copy>(
    view: &View,
    bytes: &[u8],
    [height, width]: [usize; 2],
    table: &[T; 256],
    plane: &mut [T],
) {
    let black = table[0];
    for (y, row) in plane.chunks_exact_mut(width).enumerate() {
        let from = y.checked_add_signed(isize::from(view.dy)).filter(|&from| from < height);
        let Some(from) = from else {
            row.fill(black);
            continue;
        };
        let bytes = &bytes[from * width..(from + 1) * width];
        for (x, value) in row.iter_mut().enumerate() {
            let from = x.checked_add_signed(isize::from(view.dx)).and_then(|from| bytes.get(from));
            *value = from.map_or(black, |&byte| table[usize::from(byte)]);
        }
        if view.flip {
            row.reverse();
        }
    }
}

/// The rows (or columns) that a square of this side around `centre` covers.
fn square(centre: u8, side: usize, limit: usize) -> std::ops::Range<usize> {
    let start = usize::from(centre) as isize - (side / 2) as isize;
    let end = (start + side as isize).clamp(0, limit as isize) as usize;
    (start.max(0) as usize).min(end)..end
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Normalization = Normalization { mean: [0.0; 3], std: [1.0 / 255.0; 3] };

    /// A picture of 3 rows and 4 columns, numbered from 1, the same in each channel; read back as
    /// bytes. With this normalisation mean colour and black are both 0.
    fn shown(view: View, cutout: usize) -> Vec<Vec<u8>> {
        let plane: Vec<u8> = (1..=12).collect();
        let mut input = vec![f32::NAN; 36];
        view.apply(&plane.repeat(3), [3, 4], cutout, &PLAIN, &mut input);
        assert_eq!(input[..12], input[12..24]);
        assert_eq!(input[..12], input[24..]);
        input[..12].chunks(4).map(|row| row.iter().map(|v| v.round() as u8).collect()).collect()
    }

    #[test]
    fn the_default_view_is_the_plain_image() {
        assert_eq!(shown(View::default(), 0), [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]);
    }

    #[test]
    fn a_shift_brings_in_black() {
        let down = View { dy: -1, dx: 2, ..View::default() };
        assert_eq!(shown(down, 0), [[0, 0, 0, 0], [3, 4, 0, 0], [7, 8, 0, 0]]);
        let away = View { dy: 3, ..View::default() };
        assert_eq!(shown(away, 0), [[0; 4]; 3]);
    }

    #[test]
    fn a_flip_follows_the_shift() {
        let view = View { dx: 1, flip: true, ..View::default() };
        assert_eq!(shown(view, 0), [[0, 4, 3, 2], [0, 8, 7, 6], [0, 12, 11, 10]]);
    }

    #[test]
    fn a_cutout_is_clipped_at_the_border() {
        let corner = View { cutout: Some((0, 3)), ..View::default() };
        assert_eq!(shown(corner, 2), [[1, 2, 0, 0], [5, 6, 7, 8], [9, 10, 11, 12]]);
        let middle = View { cutout: Some((1, 1)), ..View::default() };
        assert_eq!(shown(middle, 3), [[0, 0, 0, 4], [0, 0, 0, 8], [0, 0, 0, 12]]);
    }

    #[test]
    fn padding_is_black_and_cutout_the_mean_colour() {
        let view = View { dy: 1, cutout: Some((0, 0)), ..View::default() };
        let mut input = [f32::NAN; 12];
        let normalization = Normalization::default();
        view.apply(&[255; 12], [2, 2], 2, &normalization, &mut input);
        for channel in 0..3 {
            let black = normalization.apply(channel, 0);
            let white = normalization.apply(channel, 255);
            assert_eq!(input[channel * 4..][..4], [0.0, white, black, black]);
        }
    }

    #[test]
    fn views_cover_every_shift_and_do_not_depend_on_what_else_is_on() {
        let all = Augment { crop_padding: 2, flip: true, cutout: 4, ..Augment::default() };
        let draw = |augment| {
            let mut views = Views::new(augment, [3, 8, 8], 5, 1);
            (0..2000).map(|index| views.view(index)).collect::<Vec<_>>()
        };
        let views = draw(all);
        for shift in -2..=2 {
            for count in [
                views.iter().filter(|view| view.dy == shift).count(),
                views.iter().filter(|view| view.dx == shift).count(),
            ] {
                assert!((300..500).contains(&count), "shift {shift}: {count} of 2000");
            }
        }
        let flips = views.iter().filter(|view| view.flip).count();
        assert!((900..1100).contains(&flips), "{flips} flips");
        let shifts_alone = draw(Augment { flip: false, cutout: 0, ..all });
        for (view, alone) in views.iter().zip(&shifts_alone) {
            assert_eq!((view.dy, view.dx), (alone.dy, alone.dx));
            assert_eq!((alone.flip, alone.cutout), (false, None));
        }
    }

    #[test]
    fn settings_that_fit_no_image_are_refused() {
        let check = |augment: Augment| augment.check([3, 32, 32]);
        assert!(
            check(Augment { crop_padding: 4, flip: true, cutout: 16, ..Augment::default() })
                .is_ok()
        );
        assert!(check(Augment { crop_padding: 32, ..Augment::default() }).is_err());
        assert!(check(Augment { cutout: 65, ..Augment::default() }).is_err());
    }
}
