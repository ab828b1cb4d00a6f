//! Which range of values the bytes of a map stand for.

use kd_ops::Levels;

/// Bins of a histogram.
pub(super) const BINS: usize = 2048;
/// Shares of the whole range that are tried for the smallest squared error.
const TRIED: usize = 100;

/// How the range of a map's bytes is chosen from the values that calibration saw.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Calibration {
    /// From the smallest to the largest value.
    MinMax,
    /// What is left when so many percent of the values are kept, 50 to 100, and as many are cut off at both ends.
    Percentile(f64),
    /// Of the hundred ranges that are 1 to 100 % of the whole one, that whose rounding and cutting off have the smallest squared error.
    #[default]
    Mse,
}

/// The values that calibration saw of a map: how many lie in each of evenly wide bins from `low` to `high`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Histogram {
    pub(super) low: f32,
    pub(super) high: f32,
    pub(super) counts: Vec<u64>,
}

impl Histogram {
    pub(super) fn new(low: f32, high: f32) -> Self {
        Self { low, high, counts: vec![0; BINS] }
    }

    pub(super) fn add(&mut self, values: &[f32]) {
        let width = self.width();
        for value in values {
            let bin = ((f64::from(*value) - f64::from(self.low)) / width) as usize;
            self.counts[bin.min(BINS - 1)] += 1;
        }
    }

    fn width(&self) -> f64 {
        let width = (f64::from(self.high) - f64::from(self.low)) / BINS as f64;
        if width > 0.0 { width } else { 1.0 }
    }

    /// The middle of a bin.
    fn middle(&self, bin: usize) -> f64 {
        f64::from(self.low) + (bin as f64 + 0.5) * self.width()
    }
}

/// The levels of a map.
pub(super) fn choose(seen: &Histogram, calibration: Calibration) -> Levels {
    let (low, high) = (seen.low, seen.high);
    if low == high {
        return Levels::between(low, high);
    }
    match calibration {
        Calibration::MinMax => Levels::between(low, high),
        Calibration::Percentile(percent) => {
            let total: u64 = seen.counts.iter().sum();
            let cut = total as f64 * (1.0 - percent / 100.0) / 2.0;
            // The bin at which more than `cut` values have been passed.
            let passed = |bins: &mut dyn Iterator<Item = usize>| {
                let mut before = 0.0;
                for bin in bins {
                    before += seen.counts[bin] as f64;
                    if before > cut {
                        return bin;
                    }
                }
                0
            };
            let first = passed(&mut (0..BINS));
            let last = passed(&mut (0..BINS).rev());
            let edge = |bin: usize| f64::from(low) + bin as f64 * seen.width();
            let from = if first == 0 { low } else { edge(first) as f32 };
            let to = if last == BINS - 1 { high } else { edge(last + 1) as f32 };
            Levels::between(from, to)
        }
        Calibration::Mse => {
            let shrunk = |percent: usize| {
                let share = percent as f32 / TRIED as f32;
                Levels::between(low * share, high * share)
            };
            let error = |levels: &Levels| -> f64 {
                let bins = seen.counts.iter().enumerate().filter(|(_, count)| **count > 0);
                let of_bin = |(bin, count): (usize, &u64)| {
                    let value = seen.middle(bin);
                    let back = f64::from(levels.value(levels.byte(value as f32)));
                    *count as f64 * (value - back).powi(2)
                };
                bins.map(of_bin).sum()
            };
            // From the whole range down: of equal errors the wider range.
            let all = (1..=TRIED).rev().map(shrunk).map(|levels| (error(&levels), levels));
            let best = all.min_by(|(a, _), (b, _)| a.total_cmp(b));
            best.map_or_else(|| shrunk(TRIED), |(_, levels)| levels)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten thousand values evenly from 0 to 1, and one outlier.
    fn seen() -> Histogram {
        let mut seen = Histogram::new(0.0, 50.0);
        let values: Vec<f32> = (0..10_000).map(|i| i as f32 / 10_000.0).chain([50.0]).collect();
        seen.add(&values);
        seen
    }

    #[test]
    fn an_outlier_stretches_the_whole_range_and_is_cut_off_otherwise() {
        let most = |calibration| 255.0 * choose(&seen(), calibration).scale;
        assert!((most(Calibration::MinMax) - 50.0).abs() < 1e-4);
        assert!((most(Calibration::Percentile(99.9)) - 1.0).abs() < 0.05);
        // Cutting off the outlier costs (50 - r)² once; keeping it rounds ten thousand values to steps of r / 255.
        let error = |range: f64| 10_000.0 * (range / 255.0).powi(2) / 12.0 + (50.0 - range).powi(2);
        let best = (1..=100).map(|percent| 0.5 * f64::from(percent));
        let best = best.min_by(|a, b| error(*a).total_cmp(&error(*b))).unwrap();
        assert!((f64::from(most(Calibration::Mse)) - best).abs() <= 0.5, "{best}");
    }

    #[test]
    fn values_of_one_kind_have_levels() {
        for calibration in [Calibration::MinMax, Calibration::Percentile(99.0), Calibration::Mse] {
            let mut zeros = Histogram::new(0.0, 0.0);
            zeros.add(&[0.0; 4]);
            assert_eq!(choose(&zeros, calibration), Levels { scale: 1.0, zero_point: 0 });
            let mut ones = Histogram::new(1.0, 1.0);
            ones.add(&[1.0; 4]);
            let levels = choose(&ones, calibration);
            assert!((levels.value(levels.byte(1.0)) - 1.0).abs() < 0.01, "{levels:?}");
        }
    }
}
