//! What a few paired figures say: mean, spread, interval, and how often chance does as well.

use crate::statistics::{mean, standard_deviation};

/// Most seeds: the sign-flip test goes through all 2^n patterns, and the interval's factors end here.
pub const MOST: usize = 20;

/// 0.975 quantile of Student's t for 1, 2, ... degrees of freedom.
const T_975: [f64; MOST - 1] = [
    12.706204736,
    4.302652730,
    3.182446305,
    2.776445105,
    2.570581836,
    2.446911851,
    2.364624252,
    2.306004135,
    2.262157163,
    2.228138852,
    2.200985160,
    2.178812830,
    2.160368656,
    2.144786688,
    2.131449546,
    2.119905299,
    2.109815578,
    2.100922040,
    2.093024054,
];

/// Mean and spread of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// How many values there are.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Sample standard deviation (divided by n - 1); `None` of one value.
    pub deviation: Option<f64>,
    /// Half the width of the 95 % interval around the mean (Student's t); `None` of one value.
    pub half_width: Option<f64>,
}

/// Mean, spread and interval of some values; `None` without values, or with more than [`MOST`].
pub fn sample(values: &[f64]) -> Option<Sample> {
    let count = values.len();
    if count == 0 || count > MOST {
        return None;
    }
    let deviation = standard_deviation(values);
    let half_width =
        deviation.map(|deviation| T_975[count - 2] * deviation / (count as f64).sqrt());
    Some(Sample { count, mean: mean(values)?, deviation, half_width })
}

/// Two-sided p-value of paired differences by the exact sign-flip test (Fisher, 1935): were both
/// arms alike, each difference could as well have had the other sign. The share of the 2^n patterns of
/// signs whose mean is at least as far from zero as the one found. Its least value is 2 / 2^n, so six seeds
/// are the fewest that can come below 0.05.
///
/// `None` without values, or with more than [`MOST`].
pub fn sign_flip_p(differences: &[f64]) -> Option<f64> {
    let count = differences.len();
    if count == 0 || count > MOST {
        return None;
    }
    let found = differences.iter().sum::<f64>().abs();
    // Accuracies are counts, so ties are common; rounding must not break them.
    let slack = 1e-9 * differences.iter().map(|value| value.abs()).sum::<f64>();
    let patterns = 1u32 << count;
    let as_far = (0..patterns).filter(|pattern| {
        let signed =
            |(i, value): (usize, &f64)| if pattern >> i & 1 == 1 { -value } else { *value };
        differences.iter().enumerate().map(signed).sum::<f64>().abs() >= found - slack
    });
    Some(as_far.count() as f64 / f64::from(patterns))
}

/// How much of the way from the student alone to the teacher an arm has gone; `None` where the
/// teacher is no better than the student.
pub fn gap_closed(arm: f64, student: f64, teacher: f64) -> Option<f64> {
    (teacher > student).then(|| (arm - student) / (teacher - student))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIFFERENCES: [f64; 6] = [0.9, -0.3, 1.4, 0.7, 1.1, 0.2];

    fn assert_near(found: Option<f64>, expected: f64) {
        let found = found.unwrap();
        assert!((found - expected).abs() < 1e-8, "{found}, expected {expected}");
    }

    #[test]
    fn mean_spread_and_interval_are_scipys() {
        // numpy: mean, std(ddof=1); scipy 1.17: t.interval(0.95, 5, mean, sem) = (0.01410107, 1.31923227).
        let found = sample(&DIFFERENCES).unwrap();
        assert_near(Some(found.mean), 0.666_666_666_667);
        assert_near(found.deviation, 0.621_825_270_206);
        assert_near(found.half_width.map(|half| found.mean - half), 0.014_101_066_325);
        assert_near(found.half_width.map(|half| found.mean + half), 1.319_232_267_009);
        // scipy: t.interval(0.95, 1, 2, sem([1, 3])) = (-10.70620474, 14.70620474).
        assert_near(sample(&[1.0, 3.0]).unwrap().half_width, 12.706_204_736);
        // scipy: t.ppf(0.975, 19) * sem(range(20)).
        let twenty: Vec<f64> = (0..20).map(f64::from).collect();
        assert_near(sample(&twenty).unwrap().half_width, 2.768_810_568);
    }

    #[test]
    fn one_value_has_a_mean_and_no_spread() {
        let found = sample(&[0.7]).unwrap();
        assert_eq!((found.mean, found.deviation, found.half_width), (0.7, None, None));
        assert_eq!(sample(&[]), None);
        assert_eq!(sample(&[0.0; MOST + 1]), None);
    }

    #[test]
    fn the_p_value_is_scipys() {
        // permutation_test((d,), mean, permutation_type="samples", n_resamples=inf): 6 of 64.
        assert_near(sign_flip_p(&DIFFERENCES), 0.09375);
    }

    #[test]
    fn the_p_value_of_small_cases_is_that_of_counting_by_hand() {
        // All of one sign: the pattern itself and its opposite.
        assert_near(sign_flip_p(&[0.1; 6]), 2.0 / 64.0);
        assert_near(sign_flip_p(&[0.1; 5]), 2.0 / 32.0);
        // +1 +2 -3 sums to 0: every pattern is at least as far.
        assert_near(sign_flip_p(&[1.0, 2.0, -3.0]), 1.0);
        // +1 +2: sums 3, 1, -1, -3; those at least 3 from 0 are two of four.
        assert_near(sign_flip_p(&[1.0, 2.0]), 0.5);
        // Ties of counts as shares of 10,000: 0.1 + 0.2 must equal 0.3.
        assert_near(sign_flip_p(&[0.1, 0.2, 0.3, -0.3]), 0.75);
        assert_near(sign_flip_p(&[0.0, 0.0]), 1.0);
        assert_eq!(sign_flip_p(&[]), None);
    }

    #[test]
    fn the_gap_is_closed_from_student_to_teacher() {
        assert_near(gap_closed(70.5, 69.0, 72.0), 0.5);
        assert_near(gap_closed(68.0, 69.0, 71.0), -0.5);
        assert_eq!(gap_closed(70.0, 72.0, 71.0), None);
    }
}
