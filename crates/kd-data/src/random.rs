//! Random draws: ChaCha8 with a seed, and a stream for each purpose.
//!
//! The few distributions needed are written out here, in whole numbers, so that a seed means the
//! same thing on every machine and with every release of the `rand` crates.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// What random numbers are drawn for. Each purpose has streams of its own, so that drawing more for one
/// changes nothing in another.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// The order of an epoch; the number is the epoch.
    Shuffle,
    /// The images of a balanced epoch; the number is the epoch.
    Balance,
    /// Crops, flips and cutouts; the number is the epoch.
    Augment,
    /// Rectangles that are cut out and scaled; the number is the epoch.
    ResizedCrop,
    /// How colours are changed; the number is the epoch.
    Jitter,
    /// Changes of shape and colour out of a list; the number is the epoch.
    Policy,
    /// Rectangles that are erased; the number is the epoch.
    Erase,
    /// What images are mixed with; the number is the epoch.
    Mix,
    /// Which images are in a subset; the number is 0.
    Subset,
    /// A drawn training image; the number is its index.
    SyntheticTrain,
    /// A drawn test image; the number is its index.
    SyntheticTest,
}

/// The generator of a run's `seed` for a purpose; which of the purpose's streams it gives is said by `number`, below 2^48.
pub(crate) fn generator(seed: u64, purpose: Purpose, number: u64) -> ChaCha8Rng {
    let tag = match purpose {
        Purpose::Shuffle => 0xd001,
        Purpose::Augment => 0xd002,
        Purpose::Subset => 0xd003,
        Purpose::SyntheticTrain => 0xd004,
        Purpose::SyntheticTest => 0xd005u64,
        Purpose::Balance => 0xd006,
        Purpose::Mix => 0xd007,
        Purpose::ResizedCrop => 0xd008,
        Purpose::Jitter => 0xd009,
        Purpose::Policy => 0xd00a,
        Purpose::Erase => 0xd00b,
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(tag << 48 | number);
    rng
}

/// A whole number from 0 to `n - 1`, each equally likely (Lemire, "Fast random integer generation
/// in an interval", 2019).
pub(crate) fn below(rng: &mut ChaCha8Rng, n: u32) -> u32 {
    let threshold = n.wrapping_neg() % n;
    loop {
        let product = u64::from(rng.next_u32()) * u64::from(n);
        if product as u32 >= threshold {
            return (product >> 32) as u32;
        }
    }
}

/// Puts the items in random order (Fisher and Yates).
pub(crate) fn shuffle(rng: &mut ChaCha8Rng, items: &mut [u32]) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(rng, i as u32 + 1) as usize);
    }
}

/// A number from 0 to 1, below 1, in steps of 2^-24: exact in `f32`.
pub(crate) fn unit(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// The same in f64, in steps of 2^-53.
pub(crate) fn unit64(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_reaches_every_number_about_equally_often() {
        let mut rng = generator(1, Purpose::Subset, 0);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[below(&mut rng, 7) as usize] += 1;
        }
        // Standard deviation of each count: about 93.
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 500), "{counts:?}");
    }

    #[test]
    fn shuffle_keeps_every_item_and_moves_them_everywhere() {
        let mut places = [[0u32; 4]; 4];
        let mut rng = generator(2, Purpose::Shuffle, 0);
        for _ in 0..24_000 {
            let mut items = [0, 1, 2, 3];
            shuffle(&mut rng, &mut items);
            for (place, &item) in items.iter().enumerate() {
                places[item as usize][place] += 1;
            }
        }
        assert!(places.iter().flatten().all(|&count| count.abs_diff(6_000) < 400), "{places:?}");
    }

    #[test]
    fn purposes_and_numbers_have_streams_of_their_own() {
        let first = |seed, purpose, number| generator(seed, purpose, number).next_u64();
        let draws = [
            first(0, Purpose::Shuffle, 0),
            first(0, Purpose::Shuffle, 1),
            first(0, Purpose::Augment, 0),
            first(1, Purpose::Shuffle, 0),
        ];
        for (i, a) in draws.iter().enumerate() {
            assert!(draws[..i].iter().all(|b| a != b));
        }
    }
}
