//! The values that a fresh network has, drawn from a seed.

use candle_core::{Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Result;

/// How a fresh tensor is filled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Every value is this one.
    Constant(f32),
    /// Uniform in [-`bound`, `bound`).
    Uniform {
        /// The bound of the absolute values.
        bound: f64,
    },
    /// Normal with mean 0.
    Normal {
        /// The standard deviation.
        std: f64,
    },
}

impl Fill {
    /// A variable of f32 values, which depend on `seed` and `name` alone.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn values(self, name: &str, shape: &[usize], seed: u64, device: &Device) -> Result<Var> {
        match self {
            Self::Constant(value) => Ok(Var::from_tensor(&Tensor::full(value, shape, device)?)?),
            Self::Uniform { bound } => uniform(name, shape, bound, seed, device),
            Self::Normal { std } => normal(name, shape, std, seed, device),
        }
    }
}

/// A variable of f32 values uniform in [-`bound`, `bound`), drawn from `seed` and `name` alone.
///
/// # Errors
/// When the device refuses.
pub fn uniform(name: &str, shape: &[usize], bound: f64, seed: u64, device: &Device) -> Result<Var> {
    let mut rng = generator(name, seed);
    // 24 random bits fill an f32's mantissa; the result is below 1.
    let unit = |bits: u32| f64::from(bits >> 8) / f64::from(1 << 24);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| ((2.0 * unit(rng.next_u32()) - 1.0) * bound) as f32)
        .collect();
    Ok(Var::from_vec(values, shape, device)?)
}

/// Normal values of mean 0 by the method of Box and Muller (1958), drawn from `seed` and `name` alone.
fn normal(name: &str, shape: &[usize], std: f64, seed: u64, device: &Device) -> Result<Var> {
    let mut rng = generator(name, seed);
    // In (0, 1], so that the logarithm is finite.
    let mut unit = || (f64::from(rng.next_u32()) + 1.0) / (f64::from(u32::MAX) + 1.0);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            let (radius, angle) = ((-2.0 * unit().ln()).sqrt(), std::f64::consts::TAU * unit());
            (std * radius * angle.cos()) as f32
        })
        .collect();
    Ok(Var::from_vec(values, shape, device)?)
}

fn generator(name: &str, seed: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream(name));
    rng
}

/// A stream number for a name: FNV-1a, 64 bits, chosen because it will never change.
fn stream(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
