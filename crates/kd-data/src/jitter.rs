//! Random brightness, contrast, saturation and hue: `ColorJitter` of torchvision on PIL pictures.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use serde::{Deserialize, Serialize};

use crate::enhance::{brightness, contrast, hue, saturation};
use crate::random::{Purpose, generator};
use crate::source::Picture;
use crate::{Error, Result};

/// How far colours are changed: torchvision's `ColorJitter`, whose settings these are. The default changes none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColorJitter {
    /// Brightness is multiplied by a factor from 1 - this to 1 + this, at least 0.
    pub brightness: f64,
    /// The distance of a pixel from the picture's mean grey is multiplied by such a factor.
    pub contrast: f64,
    /// The distance of a pixel from its own grey is multiplied by such a factor.
    pub saturation: f64,
    /// The hue is turned by at most this share of the circle each way, 0 to 0.5.
    pub hue: f64,
}

/// How one picture's colours were changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Jitter {
    /// The order of the changes: 0 is brightness, 1 contrast, 2 saturation, 3 hue.
    pub order: [u8; 4],
    /// The factors of the first three, and the share of the circle that the hue is turned by, all in steps of 1/65536.
    pub amounts: [i32; 4],
}

/// The steps of [`Jitter::amounts`].
const STEPS: f64 = 65536.0;

impl ColorJitter {
    /// Refuses settings that make no sense.
    ///
    /// # Errors
    /// When a value is below 0, or above 100, the hue above 0.5.
    pub fn check(&self) -> Result<()> {
        let most = [100.0, 100.0, 100.0, 0.5];
        let values = [self.brightness, self.contrast, self.saturation, self.hue];
        if values.iter().zip(most).all(|(value, most)| (0.0..=most).contains(value)) {
            return Ok(());
        }
        let (found, expected) = (
            format!("{values:?}"),
            "brightness, contrast and saturation from 0 to 100, hue from 0 to 0.5".into(),
        );
        Err(Error::Config { field: "color_jitter", found, expected })
    }
}

/// Words of the random stream that one picture's jitter has; it takes seven.
const WORDS_PER_JITTER: u128 = 8;

/// Draws the jitter of one epoch, each a function of seed, epoch and the picture's number alone.
#[derive(Clone)]
pub(crate) struct Jitters {
    config: Option<ColorJitter>,
    rng: ChaCha8Rng,
}

impl Jitters {
    pub(crate) fn new(config: Option<ColorJitter>, seed: u64, epoch: usize) -> Self {
        let rng = match config {
            None => ChaCha8Rng::from_seed([0; 32]),
            Some(_) => generator(seed, Purpose::Jitter, epoch as u64),
        };
        Self { config, rng }
    }

    /// The jitter with number `number`; `None` where colours are not changed.
    pub(crate) fn draw(&mut self, number: u32) -> Option<Jitter> {
        let ColorJitter { brightness, contrast, saturation, hue } = self.config?;
        self.rng.set_word_pos(u128::from(number) * WORDS_PER_JITTER);
        let mut order = [0, 1, 2, 3];
        for last in (1..4usize).rev() {
            // The bias of so small a range by multiplication is below 2^-29.
            let other = (u64::from(self.rng.next_u32()) * (last as u64 + 1)) >> 32;
            order.swap(last, other as usize);
        }
        let mut between = |least: f64, most: f64| {
            let share = f64::from(self.rng.next_u32()) / 4_294_967_296.0;
            ((least + (most - least) * share) * STEPS).round() as i32
        };
        let mut factor = |strength: f64| between((1.0 - strength).max(0.0), 1.0 + strength);
        let amounts = [factor(brightness), factor(contrast), factor(saturation)];
        let [b, c, s] = amounts;
        Some(Jitter { order, amounts: [b, c, s, between(-hue, hue)] })
    }
}

impl Jitter {
    /// Changes the colours of a picture of three channels.
    pub fn apply(&self, picture: &mut Picture) {
        for change in self.order {
            let amount = f64::from(self.amounts[usize::from(change) & 3]) / STEPS;
            match change {
                // A hue that is turned by nothing still loses by the way through HSV; torchvision leaves such a change out.
                3 if self.amounts[3] == 0 => {}
                0 => brightness(picture, amount),
                1 => contrast(picture, amount),
                2 => saturation(picture, amount),
                _ => hue(picture, amount),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_and_orders_are_spread_evenly() {
        let config = ColorJitter { brightness: 0.4, contrast: 1.5, saturation: 0.2, hue: 0.1 };
        let mut jitters = Jitters::new(Some(config), 1, 2);
        let mut orders = std::collections::BTreeMap::new();
        let mut sums = [0.0; 4];
        for number in 0..24_000 {
            let Jitter { order, amounts } = jitters.draw(number).unwrap();
            *orders.entry(order).or_insert(0) += 1;
            for (sum, amount) in sums.iter_mut().zip(amounts) {
                *sum += f64::from(amount) / STEPS / 24_000.0;
            }
            let [b, c, s, h] = amounts.map(|amount| f64::from(amount) / STEPS);
            // Within half a step of the ends.
            let within =
                |value: f64, least: f64, most: f64| value > least - 1e-5 && value < most + 1e-5;
            assert!(within(b, 0.6, 1.4) && within(c, 0.0, 2.5), "{amounts:?}");
            assert!(within(s, 0.8, 1.2) && within(h, -0.1, 0.1), "{amounts:?}");
        }
        assert_eq!(orders.len(), 24);
        assert!(orders.values().all(|count| (850..1150).contains(count)), "{orders:?}");
        for (sum, mean) in sums.into_iter().zip([1.0, 1.25, 1.0, 0.0]) {
            assert!((sum - mean).abs() < 0.02, "{sums:?}");
        }
        assert_eq!(Jitters::new(None, 1, 2).draw(0), None);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let off = ColorJitter::default();
        assert!(ColorJitter { hue: 0.5, ..off }.check().is_ok());
        for wrong in [
            ColorJitter { hue: 0.6, ..off },
            ColorJitter { brightness: -0.1, ..off },
            ColorJitter { contrast: f64::NAN, ..off },
        ] {
            assert!(wrong.check().is_err());
        }
    }
}
