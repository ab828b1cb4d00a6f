//! Fake quantisation: values as they come back from unsigned bytes.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::cpu;

/// Elements that a thread takes at a time. With fewer, handing out the work costs more than it gains.
const CHUNK: usize = 1 << 16;

/// What unsigned bytes stand for: byte q for `(q - zero_point) * scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Levels {
    /// The difference of neighbouring values, above 0.
    pub scale: f32,
    /// The byte that stands for 0.
    pub zero_point: u8,
}

impl Levels {
    /// The levels from `low` to `high`, widened so that 0 is one of them, as ONNX's operators need it: padding is 0.
    pub fn between(low: f32, high: f32) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let scale = ((f64::from(high) - f64::from(low)) / 255.0) as f32;
        // All values 0, or too small for the division: any scale will do.
        if !scale.is_normal() {
            return Self { scale: 1.0, zero_point: 0 };
        }
        let zero_point = (-low / scale).round_ties_even().clamp(0.0, 255.0);
        Self { scale, zero_point: zero_point as u8 }
    }

    /// The byte of a value: ONNX's `QuantizeLinear`, which rounds halves to even and saturates. NaN becomes 0's byte.
    pub fn byte(self, x: f32) -> u8 {
        let byte = (x / self.scale).round_ties_even() + f32::from(self.zero_point);
        if byte.is_nan() { self.zero_point } else { byte.clamp(0.0, 255.0) as u8 }
    }

    /// The value of a byte: ONNX's `DequantizeLinear`.
    pub fn value(self, byte: u8) -> f32 {
        (f32::from(byte) - f32::from(self.zero_point)) * self.scale
    }

    /// Whether a value is not cut off.
    fn holds(self, x: f32) -> bool {
        let byte = (x / self.scale).round_ties_even() + f32::from(self.zero_point);
        (0.0..=255.0).contains(&byte)
    }
}

/// Each value as it comes back from its byte, for an f32 tensor of any shape.
///
/// The gradient goes straight through where a value is not cut off, and is 0 where it is, as
/// `torch.fake_quantize_per_tensor_affine` has it. On the CPU alone.
///
/// # Errors
/// When `x` is not f32, or not on the CPU.
pub fn fake_quantize(x: &Tensor, levels: Levels) -> Result<Tensor> {
    x.contiguous()?.apply_op1(FakeQuantize(levels))
}

struct FakeQuantize(Levels);

impl CustomOp1 for FakeQuantize {
    fn name(&self) -> &'static str {
        "fake quantization"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = cpu::slice(self.name(), storage, layout)?;
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = self.0.value(self.0.byte(x));
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = vec![0.0; x.elem_count()];
        cpu::with_slice(self.name(), x, |x| {
            cpu::with_slice(self.name(), dy, |dy| {
                for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
                    *dx = if self.0.holds(x) { dy } else { 0.0 };
                }
                Ok(())
            })
        })?;
        Ok(Some(cpu::tensor(dx, x.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn values_and_gradients_are_pytorchs() {
        // x = torch.tensor([-2., -.5, -.13, 0., .1, .125, .375, .4, 30., 31.9, 70.], requires_grad=True)
        // y = torch.fake_quantize_per_tensor_affine(x, 0.25, 4, 0, 255); (y * torch.arange(1., 12.)).sum().backward()
        // 0.125 and 0.375 lie between two levels and go to the even one.
        let x = [-2f32, -0.5, -0.13, 0., 0.1, 0.125, 0.375, 0.4, 30., 31.9, 70.];
        let levels = Levels { scale: 0.25, zero_point: 4 };
        let x = Var::from_vec(x.to_vec(), 11, &Device::Cpu).unwrap();
        let y = fake_quantize(x.as_tensor(), levels).unwrap();
        let expected = [-1., -0.5, -0.25, 0., 0., 0., 0.5, 0.5, 30., 32., 62.75];
        assert_eq!(y.to_vec1::<f32>().unwrap(), expected);
        let weights = Tensor::arange(1f32, 12., &Device::Cpu).unwrap();
        let gradients = (y * weights).unwrap().sum_all().unwrap().backward().unwrap();
        let found = gradients.get(&x).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(found, [0., 2., 3., 4., 5., 6., 7., 8., 9., 10., 0.]);
    }

    #[test]
    fn levels_hold_zero_and_both_ends() {
        let levels = Levels::between(-1.0, 3.0);
        assert_eq!(levels.value(levels.byte(0.0)), 0.0);
        for end in [-1.0, 3.0] {
            assert!((levels.value(levels.byte(end)) - end).abs() <= 0.5 * levels.scale);
        }
        // Values of one sign alone, values that are all 0, and none that are finite numbers.
        assert_eq!(Levels::between(2.0, 5.1), Levels { scale: 0.02, zero_point: 0 });
        assert_eq!(Levels::between(-5.1, -2.0).zero_point, 255);
        assert_eq!(Levels::between(0.0, 0.0), Levels { scale: 1.0, zero_point: 0 });
        assert_eq!(Levels::between(0.0, 0.0).byte(f32::NAN), 0);
    }
}
