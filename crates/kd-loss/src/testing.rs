//! Inputs for tests.

use candle_core::{Device, Result, Tensor};

/// f64 numbers in ±1 from their index and `seed`.
pub(crate) fn numbers(rows: usize, columns: usize, seed: u32) -> Result<Tensor> {
    let value = |i: u32| f64::from(i.wrapping_mul(2_654_435_761).rotate_left(seed) >> 8);
    let values: Vec<f64> =
        (1..=(rows * columns) as u32).map(|i| value(i) / f64::from(1 << 23) - 1.0).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)
}
