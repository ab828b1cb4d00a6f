//! `RandAugment` and `TrivialAugmentWide` of torchvision on PIL pictures: random changes of shape and colour out of a fixed list.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use serde::{Deserialize, Serialize};

use crate::random::{Purpose, below, generator};
use crate::source::Picture;
use crate::{Error, Result, affine, enhance};

/// Several changes of one strength to each picture: torchvision's `RandAugment`, whose settings these are (Cubuk et al., "RandAugment:
/// Practical Automated Data Augmentation with a Reduced Search Space", 2020).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandAugment {
    /// The number of changes to each picture, one after the other: 1 to 4. One may come twice.
    pub num_ops: usize,
    /// How strong they are, from 0 to 30.
    pub magnitude: usize,
}

impl Default for RandAugment {
    /// As torchvision's: two changes of strength 9.
    fn default() -> Self {
        Self { num_ops: 2, magnitude: 9 }
    }
}

impl RandAugment {
    /// Refuses settings that make no sense.
    ///
    /// # Errors
    /// When `num_ops` is not 1 to 4 or `magnitude` above 30.
    pub fn check(&self) -> Result<()> {
        if (1..=MOST_OPS).contains(&self.num_ops) && self.magnitude < LEVELS {
            return Ok(());
        }
        let found = format!("num_ops = {}, magnitude = {}", self.num_ops, self.magnitude);
        let expected = "num_ops from 1 to 4 and a magnitude from 0 to 30".into();
        Err(Error::Config { field: "rand_augment", found, expected })
    }
}

/// Which changes pictures get out of a fixed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Several of one strength.
    RandAugment(RandAugment),
    /// One of any strength, over wider ranges: torchvision's `TrivialAugmentWide` (Müller and Hutter, "TrivialAugment: Tuning-free Yet
    /// State-of-the-Art Data Augmentation", 2021).
    TrivialAugmentWide,
}

/// The most changes to one picture.
const MOST_OPS: usize = 4;
/// The number of strengths: `num_magnitude_bins` of torchvision's.
const LEVELS: usize = 31;

/// What may be done to a picture; the names are torchvision's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// Leaves the picture as it is.
    Identity,
    /// Moves rows to the side, the more the lower they are.
    ShearX,
    /// Moves columns down or up, the more the further right they are.
    ShearY,
    /// Moves the picture to the side.
    TranslateX,
    /// Moves the picture down or up.
    TranslateY,
    /// Turns the picture around its middle.
    Rotate,
    /// Makes it lighter or darker.
    Brightness,
    /// Makes its colours stronger or weaker.
    Color,
    /// Makes its contrast stronger or weaker.
    Contrast,
    /// Makes it sharper or smoother.
    Sharpness,
    /// Leaves fewer values of each colour.
    Posterize,
    /// Turns light values around.
    Solarize,
    /// Spreads each colour's values from 0 to 255.
    AutoContrast,
    /// Makes each colour's values equally frequent.
    Equalize,
}

impl Op {
    /// All of them, in the order of torchvision's list.
    pub const ALL: [Self; 14] = [
        Self::Identity,
        Self::ShearX,
        Self::ShearY,
        Self::TranslateX,
        Self::TranslateY,
        Self::Rotate,
        Self::Brightness,
        Self::Color,
        Self::Contrast,
        Self::Sharpness,
        Self::Posterize,
        Self::Solarize,
        Self::AutoContrast,
        Self::Equalize,
    ];

    /// Whether it may go either way, each with probability one half.
    fn is_signed(self) -> bool {
        !matches!(
            self,
            Self::Identity | Self::Posterize | Self::Solarize | Self::AutoContrast | Self::Equalize
        )
    }
}

/// One change to a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Change {
    /// What is done.
    pub op: Op,
    /// How strongly, from 0 to 30.
    pub level: u8,
    /// Whether it goes the other way: to the left, upwards, clockwise, darker, weaker, smoother.
    pub negative: bool,
    /// Whether the strengths are the wider ones of `TrivialAugmentWide`.
    pub wide: bool,
}

/// The changes to one picture, in their order.
pub type Changes = [Option<Change>; MOST_OPS];

/// `torch.linspace(0, end, 31)[level]` in single precision, which counts from the nearer end.
fn linspace(end: f32, level: u8) -> f64 {
    let step = end / (LEVELS - 1) as f32;
    let last = LEVELS as u8 - 1;
    f64::from(match usize::from(level) < LEVELS / 2 {
        true => step * f32::from(level),
        false => end - step * f32::from(last.saturating_sub(level)),
    })
}

impl Change {
    /// Changes a picture of three channels: `_apply_op` of `torchvision/transforms/autoaugment.py`.
    pub fn apply(&self, picture: &mut Picture) {
        let [_, height, width] = picture.shape;
        let Self { op, level, negative, wide } = *self;
        // Narrow and wide ranges: `_augmentation_space` of both classes.
        let between = |narrow: f32, widest: f32| {
            let value = linspace(if wide { widest } else { narrow }, level);
            if negative { -value } else { value }
        };
        let moved = |side: usize| {
            let narrow = (150.0 / 331.0 * side as f64) as f32;
            between(narrow, 32.0) as i32
        };
        let factor = || 1.0 + between(0.9, 0.99);
        match op {
            Op::Identity => {}
            Op::ShearX => affine::shear_x(picture, between(0.3, 0.99)),
            Op::ShearY => affine::shear_y(picture, between(0.3, 0.99)),
            Op::TranslateX => affine::translate(picture, moved(width), 0),
            Op::TranslateY => affine::translate(picture, 0, moved(height)),
            Op::Rotate => affine::rotate(picture, between(30.0, 135.0)),
            Op::Brightness => enhance::brightness(picture, factor()),
            Op::Color => enhance::saturation(picture, factor()),
            Op::Contrast => enhance::contrast(picture, factor()),
            Op::Sharpness => enhance::sharpness(picture, factor()),
            Op::Posterize => {
                let fewer = if wide { 6.0 } else { 4.0 };
                let cut = f32::from(level) / ((LEVELS - 1) as f32 / fewer);
                enhance::posterize(picture, 8 - cut.round_ties_even() as u32);
            }
            Op::Solarize => {
                // From 255 down to 0, so the nearer end is the other one.
                let up = linspace(255.0, LEVELS as u8 - 1 - level.min(LEVELS as u8 - 1));
                enhance::solarize(picture, up);
            }
            Op::AutoContrast => enhance::autocontrast(picture),
            Op::Equalize => enhance::equalize(picture),
        }
    }
}

/// Words of the random stream that one picture has; four changes take twelve, `below` more with a probability of at most 2^-27.
const WORDS_PER_PICTURE: u128 = 16;

/// Draws the changes of one epoch, each a function of seed, epoch and the picture's number alone.
#[derive(Clone)]
pub(crate) struct Policies {
    policy: Option<Policy>,
    rng: ChaCha8Rng,
}

impl Policies {
    pub(crate) fn new(policy: Option<Policy>, seed: u64, epoch: usize) -> Self {
        let rng = match policy {
            None => ChaCha8Rng::from_seed([0; 32]),
            Some(_) => generator(seed, Purpose::Policy, epoch as u64),
        };
        Self { policy, rng }
    }

    /// The changes with number `number`.
    pub(crate) fn draw(&mut self, number: u32) -> Changes {
        let mut changes = Changes::default();
        let Some(policy) = self.policy else { return changes };
        self.rng.set_word_pos(u128::from(number) * WORDS_PER_PICTURE);
        let (count, wide) = match policy {
            Policy::RandAugment(RandAugment { num_ops, .. }) => (num_ops, false),
            Policy::TrivialAugmentWide => (1, true),
        };
        for change in changes.iter_mut().take(count) {
            let op = Op::ALL[below(&mut self.rng, Op::ALL.len() as u32) as usize];
            let drawn = below(&mut self.rng, LEVELS as u32) as u8;
            let negative = op.is_signed() && self.rng.next_u32() >> 31 == 1;
            let level = match policy {
                Policy::RandAugment(RandAugment { magnitude, .. }) => magnitude as u8,
                Policy::TrivialAugmentWide => drawn,
            };
            *change = Some(Change { op, level, negative, wide });
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// torchvision draws each of its list, each of 31 strengths, and either sign of what has one equally often.
    #[test]
    fn changes_are_drawn_evenly() {
        let mut policies = Policies::new(Some(Policy::TrivialAugmentWide), 1, 0);
        let (mut ops, mut levels, mut negative) = ([0; 14], [0; 31], 0);
        for number in 0..42_000 {
            let [Some(change), None, None, None] = policies.draw(number) else { panic!() };
            ops[change.op as usize] += 1;
            levels[usize::from(change.level)] += 1;
            negative += usize::from(change.negative);
            assert!(change.wide && (change.op.is_signed() || !change.negative));
        }
        assert!(ops.iter().all(|count| (2_750..3_250).contains(count)), "{ops:?}");
        assert!(levels.iter().all(|count| (1_200..1_510).contains(count)), "{levels:?}");
        assert!((13_000..14_000).contains(&negative), "{negative} of 27,000");
        let two = RandAugment { num_ops: 2, magnitude: 5 };
        let mut policies = Policies::new(Some(Policy::RandAugment(two)), 1, 0);
        let drawn = [3, 1, 3].map(|number| policies.draw(number));
        assert_eq!(drawn[0], drawn[2]);
        let of = drawn.iter().flat_map(|changes| changes.iter().flatten());
        assert!(of.clone().count() == 6 && of.into_iter().all(|c| c.level == 5 && !c.wide));
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        assert!(RandAugment::default().check().is_ok());
        for (num_ops, magnitude) in [(0, 9), (5, 9), (2, 31)] {
            assert!(RandAugment { num_ops, magnitude }.check().is_err());
        }
    }
}
