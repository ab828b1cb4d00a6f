//! Random erasing: `RandomErasing` of torchvision with value 0 (Zhong et al., "Random Erasing Data Augmentation", 2020).

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use serde::{Deserialize, Serialize};

use crate::random::{Purpose, generator, unit64};
use crate::scaling::Crop;
use crate::{Error, Result};

/// Which rectangles of images are set to the mean colour: torchvision's `RandomErasing`, whose settings these are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandomErasing {
    /// The probability with which a rectangle of an image is erased.
    pub p: f64,
    /// The least and the largest share of the image's area.
    pub scale: [f64; 2],
    /// The least and the largest height over width; drawn evenly on a logarithmic scale.
    pub ratio: [f64; 2],
}

impl Default for RandomErasing {
    /// The defaults of torchvision's `RandomErasing`.
    fn default() -> Self {
        Self { p: 0.5, scale: [0.02, 0.33], ratio: [0.3, 3.3] }
    }
}

impl RandomErasing {
    /// Refuses settings that make no sense.
    ///
    /// # Errors
    /// When `p` is no probability, `scale` not two shares above 0 or `ratio` not two numbers from 0.01 to 100, the smaller first.
    pub fn check(&self) -> Result<()> {
        let wrong = |found: String, expected: &str| {
            let (field, expected) = ("random_erasing", expected.into());
            Err(Error::Config { field, found, expected })
        };
        if !(0.0..=1.0).contains(&self.p) {
            return wrong(format!("p = {}", self.p), "a probability p from 0 to 1");
        }
        let [[least, most], [narrow, wide]] = [self.scale, self.ratio];
        if least > 0.0
            && least <= most
            && most <= 1.0
            && narrow >= 0.01
            && narrow <= wide
            && wide <= 100.0
        {
            return Ok(());
        }
        wrong(
            format!("scale = {:?}, ratio = {:?}", self.scale, self.ratio),
            "a scale of two shares above 0 and at most 1 and a ratio of two numbers from 0.01 to 100, the smaller first",
        )
    }
}

/// Words of the random stream that one image has; ten tries take 62.
const WORDS_PER_IMAGE: u128 = 64;
const TRIES: usize = 10;

/// Draws the rectangles of one epoch, each a function of seed, epoch and the image's number alone.
#[derive(Clone)]
pub(crate) struct Erasings {
    config: Option<RandomErasing>,
    sides: [u32; 2],
    rng: ChaCha8Rng,
}

impl Erasings {
    /// For images of `shape` (channels, height, width).
    pub(crate) fn new(
        config: Option<RandomErasing>,
        shape: [usize; 3],
        seed: u64,
        epoch: usize,
    ) -> Self {
        let rng = match config {
            None => ChaCha8Rng::from_seed([0; 32]),
            Some(_) => generator(seed, Purpose::Erase, epoch as u64),
        };
        Self { config, sides: [shape[1] as u32, shape[2] as u32], rng }
    }

    /// The rectangle with number `number`: `RandomErasing.get_params` of `torchvision/transforms/transforms.py`, with other random
    /// numbers; `None` where nothing is erased.
    pub(crate) fn draw(&mut self, number: u32) -> Option<Crop> {
        let RandomErasing { p, scale, ratio } = self.config?;
        self.rng.set_word_pos(u128::from(number) * WORDS_PER_IMAGE);
        if unit64(&mut self.rng) >= p {
            return None;
        }
        let [height, width] = self.sides;
        let area = f64::from(height) * f64::from(width);
        let [least, most] = ratio.map(f64::ln);
        (0..TRIES).find_map(|_| {
            let of_area = area * (scale[0] + (scale[1] - scale[0]) * unit64(&mut self.rng));
            let ratio = (least + (most - least) * unit64(&mut self.rng)).exp();
            // So coarse a ratio does not hang on the last bit of a logarithm, which differs between machines.
            let ratio = (ratio * 65536.0).round() / 65536.0;
            let places = [self.rng.next_u32(), self.rng.next_u32()];
            let rows = (of_area * ratio).sqrt().round_ties_even();
            let columns = (of_area / ratio).sqrt().round_ties_even();
            if rows < 1.0
                || columns < 1.0
                || rows >= f64::from(height)
                || columns >= f64::from(width)
            {
                return None;
            }
            let (rows, columns) = (rows as u32, columns as u32);
            let place =
                |draw: u32, rest: u32| ((u64::from(draw) * (u64::from(rest) + 1)) >> 32) as u32;
            let (top, left) = (place(places[0], height - rows), place(places[1], width - columns));
            Some(Crop { top, left, height: rows, width: columns })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// torchvision's defaults on 224 x 224: areas are even over their range, since every rectangle fits but the longest.
    #[test]
    fn rectangles_lie_inside_and_have_the_areas_asked_for() {
        let config = RandomErasing { p: 0.25, ..RandomErasing::default() };
        let mut erasings = Erasings::new(Some(config), [3, 224, 224], 1, 0);
        let found: Vec<Crop> = (0..40_000).filter_map(|number| erasings.draw(number)).collect();
        assert!((9_600..10_400).contains(&found.len()), "{}", found.len());
        let share = |crop: &Crop| f64::from(crop.height * crop.width) / (224.0 * 224.0);
        let mean = found.iter().map(share).sum::<f64>() / found.len() as f64;
        assert!((mean - 0.175).abs() < 0.004, "{mean}");
        for crop in &found {
            assert!(crop.top + crop.height <= 224 && crop.left + crop.width <= 224, "{crop:?}");
            assert!((0.018..0.34).contains(&share(crop)), "{crop:?}");
        }
        let mut off = Erasings::new(None, [3, 224, 224], 1, 0);
        assert!((0..100).all(|number| off.draw(number).is_none()));
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let off = RandomErasing::default();
        assert!(off.check().is_ok());
        for wrong in [
            RandomErasing { p: 1.5, ..off },
            RandomErasing { scale: [0.5, 0.2], ..off },
            RandomErasing { ratio: [0.0, 1.0], ..off },
        ] {
            assert!(wrong.check().is_err());
        }
    }
}
