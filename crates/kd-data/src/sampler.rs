//! Which images an epoch has, and in what order.

use std::collections::BTreeMap;
use std::str::FromStr;

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::batch::BatchConfig;
use crate::random::{Purpose, below, generator, shuffle};
use crate::source::Source;
use crate::{Error, Result};

/// Which images an epoch has, and in what order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampler {
    /// Each image once: shuffled where there is a seed, else in the source's order.
    #[default]
    Shuffle,
    /// As many draws as there are images, with replacement: each class is equally likely, and in it each of its images. So does
    /// PyTorch's `WeightedRandomSampler` whose weights are 1 / (images of the image's class). An image that comes several times in an
    /// epoch is augmented anew each time.
    Balanced,
}

impl Sampler {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Shuffle, Self::Balanced];

    /// The name in recipes and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shuffle => "shuffle",
            Self::Balanced => "balanced",
        }
    }

    /// Whether it is the one that recipes need not name.
    pub fn is_shuffle(&self) -> bool {
        *self == Self::Shuffle
    }

    /// The number by which the view of image `index` is drawn that comes at `position` of the epoch's order.
    pub(crate) fn view_number(self, position: usize, index: u32) -> u32 {
        match self {
            Self::Shuffle => index,
            Self::Balanced => position as u32,
        }
    }
}

impl FromStr for Sampler {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|sampler| sampler.name() == name);
        let known = Self::ALL.map(Self::name).join(", ");
        found.ok_or_else(|| format!("there is no sampler {name:?}; expected one of {known}"))
    }
}

/// The numbers of an epoch's images, in the order in which they come.
pub(crate) fn order<S: Source + ?Sized>(source: &S, config: &BatchConfig) -> Result<Vec<u32>> {
    let images = 0..source.len() as u32;
    let (Some(seed), epoch) = (config.shuffle_seed, config.epoch as u64) else {
        return Ok(images.collect());
    };
    match config.sampler {
        Sampler::Shuffle => {
            let mut order: Vec<u32> = images.collect();
            shuffle(&mut generator(seed, Purpose::Shuffle, epoch), &mut order);
            Ok(order)
        }
        Sampler::Balanced => {
            let classes = by_class(source)?;
            let mut rng = generator(seed, Purpose::Balance, epoch);
            Ok(images.map(|position| draw(&mut rng, position, &classes)).collect())
        }
    }
}

/// The numbers of each class's images, for the classes that have any.
fn by_class<S: Source + ?Sized>(source: &S) -> Result<Vec<Vec<u32>>> {
    let mut classes: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for index in 0..source.len() as u32 {
        let label = source.label(index).ok_or_else(|| Error::no_label(index))?;
        classes.entry(label).or_default().push(index);
    }
    Ok(classes.into_values().collect())
}

/// Words of the random stream that one draw has. It takes two; `below` draws again with a probability of at most n / 2^32, so that
/// the words of two draws practically never overlap. Where they did, each draw would still be the same in every run.
const WORDS_PER_DRAW: u128 = 4;

/// The image at `position` of the order: a function of the generator's seed and epoch and of the position alone.
fn draw(rng: &mut ChaCha8Rng, position: u32, classes: &[Vec<u32>]) -> u32 {
    rng.set_word_pos(u128::from(position) * WORDS_PER_DRAW);
    let images = &classes[below(rng, classes.len() as u32) as usize];
    images[below(rng, images.len() as u32) as usize]
}
