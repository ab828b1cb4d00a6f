//! The weights that training starts from.

use candle_core::{Device, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{ModelConfig, Parameters, Result, parameter_shapes};

/// Fresh weights, distributed as PyTorch's defaults for `Conv2d` and `Linear`: weights and biases
/// uniform in ±1/sqrt(fan_in).
///
/// For the weights PyTorch calls this `kaiming_uniform_(a=sqrt(5))` (He et al., 2015): the bound is
/// sqrt(6 / ((1 + a²) fan_in)) = 1/sqrt(fan_in). fan_in is the number of inputs of one output: input
/// channels times window. The values depend on `seed` and each parameter's name alone.
///
/// # Errors
/// When a setting of `config` makes no sense, or the device refuses.
pub fn init(config: &ModelConfig, seed: u64, device: &Device) -> Result<Parameters> {
    config.validate()?;
    let mut parameters = Parameters::new();
    let mut bound = 0.0;
    for (name, shape) in parameter_shapes(config) {
        // A bias follows its layer's weight and shares its bound.
        if shape.len() > 1 {
            bound = 1.0 / (shape[1..].iter().product::<usize>() as f64).sqrt();
        }
        let values = uniform(&name, &shape, bound, seed, device)?;
        parameters.insert(name, values);
    }
    Ok(parameters)
}

/// A variable of f32 values uniform in [-`bound`, `bound`), drawn from `seed` and `name` alone.
///
/// # Errors
/// When the device refuses.
pub fn uniform(name: &str, shape: &[usize], bound: f64, seed: u64, device: &Device) -> Result<Var> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream(name));
    // 24 random bits fill an f32's mantissa; the result is below 1.
    let unit = |bits: u32| f64::from(bits >> 8) / f64::from(1 << 24);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| ((2.0 * unit(rng.next_u32()) - 1.0) * bound) as f32)
        .collect();
    Ok(Var::from_vec(values, shape, device)?)
}

/// A stream number for a name: FNV-1a, 64 bits, chosen because it will never change.
fn stream(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
