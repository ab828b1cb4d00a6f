//! Numbers for tests of losses, and what is read off a loss.

use candle_core::{DType, Device, Tensor, Var};

pub(crate) const CPU: &Device = &Device::Cpu;

/// A variable with these values.
pub(crate) fn var(values: &[f64], shape: &[usize], dtype: DType) -> Var {
    let tensor = Tensor::from_slice(values, shape, CPU).unwrap().to_dtype(dtype).unwrap();
    Var::from_tensor(&tensor).unwrap()
}

/// f64 numbers in ±2 that look random.
pub(crate) fn ramp(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f64> = (0..count).map(|i| ((i * 37 % 101) as f64 - 50.0) / 25.0).collect();
    Tensor::from_vec(values, shape, CPU).unwrap()
}

/// All numbers of a tensor, as f64.
pub(crate) fn flat(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest absolute value; NaN if one is NaN.
pub(crate) fn largest(values: &[f64]) -> f64 {
    values.iter().fold(
        0.0,
        |largest, value| if value.is_nan() { f64::NAN } else { value.abs().max(largest) },
    )
}
