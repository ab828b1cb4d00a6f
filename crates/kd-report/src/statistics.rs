//! Mean and spread over seeds, and how far chance alone moves an accuracy.

/// Mean of some values; `None` without any.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Sample standard deviation (divided by n - 1); `None` with fewer than two values.
pub fn standard_deviation(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let mean = mean(values)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

/// Half the width of the 95 % interval of the difference of two accuracies on `images` test
/// images, from the binomial's normal approximation. The two are taken as independent; on the same
/// images they are positively correlated, so this is an upper bound.
pub fn difference_noise(a: f64, b: f64, images: u64) -> f64 {
    1.96 * ((a * (1.0 - a) + b * (1.0 - b)) / images.max(1) as f64).sqrt()
}
