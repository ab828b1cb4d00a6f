//! The weights that training starts from.

use candle_core::{Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{ModelConfig, Parameters, Result, buffer_shapes, parameter_shapes};

/// Fresh weights and running statistics.
///
/// The tutorial's networks have PyTorch's defaults for `Conv2d` and `Linear`: weights and biases uniform in
/// ±1/sqrt(fan_in). For the weights PyTorch calls this `kaiming_uniform_(a=sqrt(5))`: the bound is
/// sqrt(6 / ((1 + a²) fan_in)) = 1/sqrt(fan_in). fan_in is the number of inputs of one output: input
/// channels times window.
///
/// A ResNet's convolutions are normal with variance 2/fan_in (He et al., 2015, equation 10, which the paper
/// of the ResNets adopts; `kaiming_normal_`), its linear layer has PyTorch's default. Batch normalisations
/// start as 1 and 0, with running mean 0 and variance 1.
///
/// The values depend on `seed` and each parameter's name alone.
///
/// # Errors
/// When a setting of `config` makes no sense, or the device refuses.
pub fn init(config: &ModelConfig, seed: u64, device: &Device) -> Result<Parameters> {
    config.validate()?;
    let resnet = config.architecture.resnet().is_some();
    let mut parameters = Parameters::new();
    let mut bound = 0.0;
    for (name, shape) in parameter_shapes(config) {
        let fan_in = shape[1..].iter().product::<usize>() as f64;
        let values = match (resnet, shape.len()) {
            (true, 4) => normal(&name, &shape, (2.0 / fan_in).sqrt(), seed, device)?,
            (true, 1) if name != "linear.bias" => {
                constant(f32::from(u8::from(name.ends_with("weight"))), &shape, device)?
            }
            (_, rank) => {
                // A bias follows its layer's weight and shares its bound.
                if rank > 1 {
                    bound = 1.0 / fan_in.sqrt();
                }
                uniform(&name, &shape, bound, seed, device)?
            }
        };
        parameters.insert(name, values);
    }
    for (name, shape) in buffer_shapes(config) {
        let value = f32::from(u8::from(name.ends_with("running_var")));
        parameters.insert(name, constant(value, &shape, device)?);
    }
    Ok(parameters)
}

fn constant(value: f32, shape: &[usize], device: &Device) -> Result<Var> {
    Ok(Var::from_tensor(&Tensor::full(value, shape, device)?)?)
}

/// Normal values of mean 0, by Box and Muller (1958), drawn from `seed` and `name` alone.
fn normal(name: &str, shape: &[usize], std: f64, seed: u64, device: &Device) -> Result<Var> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream(name));
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
