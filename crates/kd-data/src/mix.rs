//! Mixup and CutMix: training pictures that are made of two. Which two and in what shares is a small record that can be
//! looked up again.

use candle_core::Tensor;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use crate::random::{Purpose, below, generator, unit64};
use crate::{Error, Result};

/// How training pictures are mixed. Off by default. What an image is mixed with depends on seed, epoch and the image's number alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MixConfig {
    /// Mixup (Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018): a picture becomes λ times itself plus 1 - λ times
    /// another, λ from Beta(α, α). This is α; 1 draws λ evenly from 0 to 1, and 0 mixes none so.
    pub mixup: f64,
    /// CutMix (Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", 2019): a rectangle
    /// of a picture, of about 1 - λ of its area, is that of another. This is the α of λ, as for mixup; 0 mixes none so. With both, each
    /// picture gets either with probability one half.
    pub cutmix: f64,
    /// The share of pictures that are mixed at all, from 0 to 1.
    pub probability: f64,
}

impl Default for MixConfig {
    fn default() -> Self {
        Self { mixup: 0.0, cutmix: 0.0, probability: 1.0 }
    }
}

impl MixConfig {
    /// Whether no picture is mixed.
    pub fn is_off(&self) -> bool {
        self.probability == 0.0 || (self.mixup == 0.0 && self.cutmix == 0.0)
    }

    /// Refuses settings that make no sense.
    pub(crate) fn check(&self) -> Result<()> {
        for (field, alpha) in [("mix.mixup", self.mixup), ("mix.cutmix", self.cutmix)] {
            if !(alpha == 0.0 || (LEAST_ALPHA..=MOST_ALPHA).contains(&alpha)) {
                let (found, expected) =
                    (alpha.to_string(), "0, or a number from 0.01 to 100".into());
                return Err(Error::Config { field, found, expected });
            }
        }
        if (0.0..=1.0).contains(&self.probability) {
            return Ok(());
        }
        let (found, expected) = (self.probability.to_string(), "a share from 0 to 1".into());
        Err(Error::Config { field: "mix.probability", found, expected })
    }
}

/// The smallest and the largest α: beyond them λ is practically 0 or 1, or one half.
const LEAST_ALPHA: f64 = 0.01;
const MOST_ALPHA: f64 = 100.0;

/// What one image is mixed with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    /// The other image's number in its source; it is seen as it would be seen itself in the same epoch.
    pub partner: u32,
    /// The share of the image's own class in the target, from 0 to 1; the partner's class has the rest.
    pub share: f32,
    /// The rows and columns (first row, row behind the last, first column, column behind the last) that are the partner's; `None` where
    /// both pictures are everywhere, each with its share.
    pub rectangle: Option<[u16; 4]>,
}

/// How a batch's images were mixed; entry `i` belongs to image `i`.
#[derive(Clone, Debug)]
pub struct Mixed {
    /// What each image is mixed with: `B` of them.
    pub mixes: Vec<Mix>,
    /// The partners' classes, u32 `[B]`.
    pub labels: Tensor,
    /// The share of each image's own class in its target, f32 `[B]`.
    pub shares: Tensor,
}

/// Words of the random stream that one image's mix has: 16 for what is drawn once, the rest for the share, which is drawn until it
/// is accepted. Where the words of two images overlapped, each would still be mixed the same in every run.
const WORDS_PER_MIX: u128 = 1 << 12;
const WORDS_BEFORE_SHARE: u128 = 16;
/// The steps in which shares are drawn. So coarse a share does not hang on the last bit of a logarithm, which differs between machines.
const SHARES: f64 = 65536.0;

/// Draws the mixes of one epoch, each a function of seed, epoch and the image's number alone.
#[derive(Clone)]
pub(crate) struct Mixes {
    config: MixConfig,
    images: u32,
    height: u32,
    width: u32,
    rng: ChaCha8Rng,
}

impl Mixes {
    /// For so many images of `shape` (channels, height, width).
    pub(crate) fn new(
        config: MixConfig,
        images: usize,
        shape: [usize; 3],
        seed: u64,
        epoch: usize,
    ) -> Self {
        let rng = match config.is_off() {
            true => ChaCha8Rng::from_seed([0; 32]),
            false => generator(seed, Purpose::Mix, epoch as u64),
        };
        let [_, height, width] = shape;
        Self { config, images: images as u32, height: height as u32, width: width as u32, rng }
    }

    /// What image `index` is mixed with, by the draw of number `number`; `None` where no image is mixed at all.
    pub(crate) fn mix(&mut self, number: u32, index: u32) -> Option<Mix> {
        let MixConfig { mixup, cutmix, probability } = self.config;
        if self.config.is_off() {
            return None;
        }
        let start = u128::from(number) * WORDS_PER_MIX;
        self.rng.set_word_pos(start);
        // Each draw is made whether or not it is used: switching one change off leaves the others as they are.
        let mixes = unit64(&mut self.rng) < probability;
        let cuts = self.rng.next_u32() >> 31 == 1;
        let partner = below(&mut self.rng, self.images);
        let centre = (below(&mut self.rng, self.height), below(&mut self.rng, self.width));
        if !mixes {
            return Some(Mix { partner: index, share: 1.0, rectangle: None });
        }
        self.rng.set_word_pos(start + WORDS_BEFORE_SHARE);
        let cuts = cutmix > 0.0 && (cuts || mixup == 0.0);
        let share = beta(&mut self.rng, if cuts { cutmix } else { mixup });
        let share = (share * SHARES).round() / SHARES;
        if !cuts {
            return Some(Mix { partner, share: share as f32, rectangle: None });
        }
        let (rows, columns) = (self.height, self.width);
        let half = |side: u32| (0.5 * (1.0 - share).sqrt() * f64::from(side)) as u32;
        let clipped = |centre: u32, side: u32| {
            let half = half(side);
            [centre.saturating_sub(half), (centre + half).min(side)]
        };
        let ([top, bottom], [left, right]) = (clipped(centre.0, rows), clipped(centre.1, columns));
        let area = f64::from((bottom - top) * (right - left));
        // What is really the partner's, since a rectangle is cut off at the border.
        let share = (1.0 - area / f64::from(rows * columns)) as f32;
        let rectangle = [top, bottom, left, right].map(|edge| edge as u16);
        Some(Mix { partner, share, rectangle: Some(rectangle) })
    }
}

impl Mix {
    /// Mixes `partner` into `input`, both f32 `[3, H, W]`: the pictures as each would be seen by itself. This is what
    /// [`batches`](crate::batches()) computes, so a recorded mix gives the same numbers again.
    ///
    /// # Panics
    /// Where the pictures don't have `3 * H * W` entries.
    pub fn apply(&self, partner: &[f32], [height, width]: [usize; 2], input: &mut [f32]) {
        assert_eq!(partner.len(), 3 * height * width);
        assert_eq!(input.len(), partner.len());
        let Some(rectangle) = self.rectangle else {
            for (value, &other) in input.iter_mut().zip(partner) {
                *value = self.share * *value + (1.0 - self.share) * other;
            }
            return;
        };
        let [top, bottom, left, right] = rectangle.map(usize::from);
        let planes =
            input.chunks_exact_mut(height * width).zip(partner.chunks_exact(height * width));
        for (plane, other) in planes {
            for row in top..bottom {
                let columns = row * width + left..row * width + right;
                plane[columns.clone()].copy_from_slice(&other[columns]);
            }
        }
    }
}

/// A draw from Beta(`alpha`, `alpha`), with its logarithms and powers in f64.
fn beta(rng: &mut ChaCha8Rng, alpha: f64) -> f64 {
    if alpha == 1.0 {
        return unit64(rng);
    }
    let (u, v) = loop {
        let (u, v) = (unit64(rng), unit64(rng));
        if u > 0.0 && v > 0.0 && u < 1.0 {
            break (u, v);
        }
    };
    match alpha < 1.0 {
        true => johnk(rng, alpha, (u, v)),
        false => cheng(rng, alpha, (u, v)),
    }
}

/// Jöhnk (1964): u^(1/α) / (u^(1/α) + v^(1/α)) of the first two numbers whose sum of powers is at most 1. In logarithms: the powers
/// of a small α are smaller than any f64.
fn johnk(rng: &mut ChaCha8Rng, alpha: f64, mut numbers: (f64, f64)) -> f64 {
    loop {
        let (x, y) = (numbers.0.ln() / alpha, numbers.1.ln() / alpha);
        let larger = x.max(y);
        let sum = larger + ((x - larger).exp() + (y - larger).exp()).ln();
        if sum <= 0.0 {
            return (x - sum).exp();
        }
        numbers = (unit64(rng), unit64(rng));
    }
}

/// Cheng, "Generating Beta Variates with Nonintegral Shape Parameters" (1978), algorithm BB, for two equal parameters above 1.
fn cheng(rng: &mut ChaCha8Rng, alpha: f64, mut numbers: (f64, f64)) -> f64 {
    let sum = 2.0 * alpha;
    // (sum - 2) / (2 α α - sum) with the common factor taken out, which is 0 at α = 1.
    let beta = (1.0 / alpha).sqrt();
    let gamma = alpha + 1.0 / beta;
    loop {
        let (u, v) = numbers;
        let odds = beta * (u / (1.0 - u)).ln();
        let w = alpha * odds.exp();
        let z = u * u * v;
        let r = gamma * odds - 4f64.ln();
        let accepted = r + sum * (sum / (alpha + w)).ln() >= z.ln();
        if accepted && w.is_finite() {
            return w / (alpha + w);
        }
        numbers = (unit64(rng), unit64(rng));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(config: MixConfig) -> Vec<Mix> {
        let mut mixes = Mixes::new(config, 500, [3, 32, 32], 5, 1);
        (0..20_000).map(|number| mixes.mix(number, 7).unwrap()).collect()
    }

    /// Mean, variance and fourth central moment of Beta(α, α) are 1/2, 1 / (4 (2α + 1)) and 3 / (16 (2α + 1) (2α + 3)).
    #[test]
    fn shares_are_drawn_from_the_beta_distribution() {
        for alpha in [0.05, 0.2, 1.0, 1.5, 8.0] {
            let shares = draws(MixConfig { mixup: alpha, ..MixConfig::default() });
            let moment = |power: i32| {
                let sum: f64 =
                    shares.iter().map(|mix| (f64::from(mix.share) - 0.5).powi(power)).sum();
                sum / shares.len() as f64
            };
            let second = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            let fourth = 3.0 / (16.0 * (2.0 * alpha + 1.0) * (2.0 * alpha + 3.0));
            assert!(moment(1).abs() < 4.0 * (second / 20_000.0).sqrt(), "{alpha}: {}", moment(1));
            assert!((moment(2) / second - 1.0).abs() < 0.03, "{alpha}: {}", moment(2));
            assert!((moment(4) / fourth - 1.0).abs() < 0.05, "{alpha}: {}", moment(4));
        }
    }

    #[test]
    fn half_of_the_pictures_are_cut_where_both_are_on_and_the_rest_are_as_without() {
        let both = draws(MixConfig { mixup: 0.4, cutmix: 1.0, probability: 0.75 });
        let mixup = draws(MixConfig { mixup: 0.4, cutmix: 0.0, probability: 0.75 });
        let (mut cut, mut plain) = (0, 0);
        for (mix, alone) in both.iter().zip(&mixup) {
            match mix.rectangle {
                Some([top, bottom, left, right]) => {
                    cut += 1;
                    let area = f32::from(bottom - top) * f32::from(right - left);
                    assert_eq!(mix.share, 1.0 - area / 1024.0);
                    assert!(bottom <= 32 && right <= 32);
                }
                None => assert_eq!(mix, alone),
            }
            plain += usize::from(mix.partner == 7 && mix.share == 1.0);
        }
        assert!((7_300..7_700).contains(&cut), "{cut}");
        assert!((4_800..5_200).contains(&plain), "{plain}");
        let mut partners = vec![0; 500];
        mixup.iter().for_each(|mix| partners[mix.partner as usize] += 1);
        assert!(partners.iter().all(|&count| count > 5), "{partners:?}");
    }

    #[test]
    fn pictures_are_mixed_by_share_or_by_rectangle() {
        let partner: Vec<f32> = (0..12).map(|value| value as f32).collect();
        let mut input = vec![100.0; 12];
        let mix = Mix { partner: 1, share: 0.75, rectangle: None };
        mix.apply(&partner, [2, 2], &mut input);
        assert_eq!(input[..5], [75.0, 75.25, 75.5, 75.75, 76.0]);
        let mut input = vec![100.0; 12];
        let mix = Mix { partner: 1, share: 0.5, rectangle: Some([1, 2, 0, 2]) };
        mix.apply(&partner, [2, 2], &mut input);
        assert_eq!(input[..8], [100.0, 100.0, 2.0, 3.0, 100.0, 100.0, 6.0, 7.0]);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let check = |mixup, cutmix, probability| MixConfig { mixup, cutmix, probability }.check();
        assert!(check(0.0, 1.0, 1.0).is_ok());
        for (mixup, cutmix, probability) in
            [(-1.0, 0.0, 1.0), (0.0, f64::NAN, 1.0), (1e-3, 0.0, 1.0), (0.0, 1.0, 1.5)]
        {
            assert!(check(mixup, cutmix, probability).is_err());
        }
    }
}
