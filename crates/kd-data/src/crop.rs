//! Random crops of any size and shape: `RandomResizedCrop` of torchvision.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use crate::random::{Purpose, generator, unit64};
use crate::scaling::Crop;
use crate::{Error, Interpolation, Result};

/// The rectangles that random crops are: torchvision's `RandomResizedCrop`, whose settings these are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResizedCrop {
    /// The least and the largest share of the picture's area.
    pub scale: [f64; 2],
    /// The least and the largest width over height; drawn evenly on a logarithmic scale.
    pub ratio: [f64; 2],
    /// How the rectangle is scaled to the image's size.
    pub interpolation: Interpolation,
}

impl Default for ResizedCrop {
    /// As torchvision's: 0.08 to 1 of the area, 3/4 to 4/3.
    fn default() -> Self {
        let interpolation = Interpolation::default();
        Self { scale: [0.08, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0], interpolation }
    }
}

impl ResizedCrop {
    /// Refuses settings that make no sense.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |field, found: [f64; 2], expected: &str| {
            let found = format!("{found:?}");
            Err(Error::Config { field, found, expected: expected.into() })
        };
        let [least, most] = self.scale;
        if !(least > 0.0 && least <= most && most <= 1.0) {
            let expected = "two shares above 0 and at most 1, the smaller first";
            return wrong("augment.resized_crop", self.scale, expected);
        }
        let [least, most] = self.ratio;
        if !(least >= 0.01 && least <= most && most <= 100.0) {
            let expected = "two numbers from 0.01 to 100, the smaller first";
            return wrong("augment.crop_ratio", self.ratio, expected);
        }
        Ok(())
    }
}

/// Words of the random stream that one picture's crop has. Each of ten tries takes eight at most in practice; where the words of two
/// pictures overlapped, each crop would still be the same in every run.
const WORDS_PER_CROP: u128 = 128;
const TRIES: usize = 10;

/// Draws the crops of one epoch, each a function of seed, epoch, the picture's number and its size alone.
#[derive(Clone)]
pub(crate) struct Crops {
    config: Option<ResizedCrop>,
    rng: ChaCha8Rng,
}

impl Crops {
    pub(crate) fn new(config: Option<ResizedCrop>, seed: u64, epoch: usize) -> Self {
        let rng = match config {
            None => ChaCha8Rng::from_seed([0; 32]),
            Some(_) => generator(seed, Purpose::ResizedCrop, epoch as u64),
        };
        Self { config, rng }
    }

    /// How crops are drawn; `None` where none are.
    pub(crate) fn config(&self) -> Option<ResizedCrop> {
        self.config
    }

    /// The rectangle with number `number` of a picture of this height and width, each at least 1: `RandomResizedCrop.get_params` of
    /// `torchvision/transforms/transforms.py`, with other random numbers.
    pub(crate) fn draw(&mut self, number: u32, [height, width]: [usize; 2]) -> Crop {
        let ResizedCrop { scale, ratio, .. } = self.config.unwrap_or_default();
        self.rng.set_word_pos(u128::from(number) * WORDS_PER_CROP);
        let area = height as f64 * width as f64;
        let [least, most] = ratio.map(f64::ln);
        for _ in 0..TRIES {
            let of_area = area * (scale[0] + (scale[1] - scale[0]) * unit64(&mut self.rng));
            // So coarse a ratio does not hang on the last bit of a logarithm, which differs between machines.
            let ratio = (least + (most - least) * unit64(&mut self.rng)).exp();
            let ratio = (ratio * 65536.0).round() / 65536.0;
            let places = [self.rng.next_u32(), self.rng.next_u32()];
            let columns = (of_area * ratio).sqrt().round_ties_even();
            let rows = (of_area / ratio).sqrt().round_ties_even();
            if columns >= 1.0 && columns <= width as f64 && rows >= 1.0 && rows <= height as f64 {
                let (rows, columns) = (rows as u32, columns as u32);
                let place =
                    |draw: u32, rest: u32| ((u64::from(draw) * (u64::from(rest) + 1)) >> 32) as u32;
                return Crop {
                    top: place(places[0], height as u32 - rows),
                    left: place(places[1], width as u32 - columns),
                    height: rows,
                    width: columns,
                };
            }
        }
        middle([height, width], ratio)
    }
}

/// The largest rectangle of a permitted shape in the middle, which torchvision takes where no draw fits.
fn middle([height, width]: [usize; 2], [least, most]: [f64; 2]) -> Crop {
    let found = width as f64 / height as f64;
    let (rows, columns) = if found < least {
        ((width as f64 / least).round_ties_even() as usize, width)
    } else if found > most {
        (height, (height as f64 * most).round_ties_even() as usize)
    } else {
        (height, width)
    };
    let (rows, columns) = (rows.clamp(1, height), columns.clamp(1, width));
    Crop {
        top: ((height - rows) / 2) as u32,
        left: ((width - columns) / 2) as u32,
        height: rows as u32,
        width: columns as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crops(config: ResizedCrop) -> Crops {
        Crops::new(Some(config), 3, 1)
    }

    /// Of an ordinary photograph nearly every first draw fits: area and shape are then spread evenly, the shape by its logarithm.
    #[test]
    fn areas_and_shapes_are_spread_evenly_over_what_is_allowed() {
        let config = ResizedCrop { scale: [0.1, 0.5], ..ResizedCrop::default() };
        let (mut areas, mut shapes, mut places) = (Vec::new(), Vec::new(), [0.0; 2]);
        let mut crops = crops(config);
        for number in 0..20_000 {
            let crop = crops.draw(number, [600, 800]);
            assert!(crop.top + crop.height <= 600 && crop.left + crop.width <= 800, "{crop:?}");
            areas.push(f64::from(crop.height * crop.width) / 480_000.0);
            shapes.push((f64::from(crop.width) / f64::from(crop.height)).ln());
            places[0] += f64::from(crop.top) / f64::from(600 - crop.height) / 20_000.0;
            places[1] += f64::from(crop.left) / f64::from(800 - crop.width) / 20_000.0;
        }
        for (values, [least, most]) in [(areas, config.scale), (shapes, config.ratio.map(f64::ln))]
        {
            let mean = values.iter().sum::<f64>() / 20_000.0;
            let variance =
                values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 20_000.0;
            let even = (most - least).powi(2) / 12.0;
            assert!((mean - (least + most) / 2.0).abs() < 0.01 * (most - least), "{mean}");
            assert!((variance / even - 1.0).abs() < 0.03, "{variance} {even}");
        }
        assert!(places.iter().all(|mean| (mean - 0.5).abs() < 0.01), "{places:?}");
    }

    /// What `RandomResizedCrop.get_params` returns where no draw can fit.
    #[test]
    fn a_very_long_picture_gets_its_middle() {
        let config = ResizedCrop { scale: [1.0, 1.0], ..ResizedCrop::default() };
        let wide = crops(config).draw(0, [30, 900]);
        assert_eq!(wide, Crop { top: 0, left: 430, height: 30, width: 40 });
        let high = crops(config).draw(0, [900, 30]);
        assert_eq!(high, Crop { top: 430, left: 0, height: 40, width: 30 });
        assert_eq!(crops(config).draw(5, [1, 1]), Crop { top: 0, left: 0, height: 1, width: 1 });
    }

    #[test]
    fn a_crop_hangs_on_number_seed_and_epoch_alone() {
        let mut first = crops(ResizedCrop::default());
        let drawn: Vec<Crop> = (0..50).map(|number| first.draw(number, [64, 48])).collect();
        let mut again = crops(ResizedCrop::default());
        let backwards: Vec<Crop> =
            (0..50).rev().map(|number| again.draw(number, [64, 48])).collect();
        assert!(drawn.iter().eq(backwards.iter().rev()));
        let mut other = Crops::new(Some(ResizedCrop::default()), 3, 2);
        assert!((0..50).any(|number| other.draw(number, [64, 48]) != drawn[number as usize]));
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        for (scale, ratio) in [
            ([0.0, 1.0], [0.75, 1.3]),
            ([0.5, 0.2], [0.75, 1.3]),
            ([0.5, 1.2], [0.75, 1.3]),
            ([f64::NAN, 1.0], [0.75, 1.3]),
            ([0.5, 1.0], [1.3, 0.75]),
            ([0.5, 1.0], [0.0, 1.0]),
        ] {
            assert!(ResizedCrop { scale, ratio, ..ResizedCrop::default() }.check().is_err());
        }
        assert!(ResizedCrop::default().check().is_ok());
    }
}
