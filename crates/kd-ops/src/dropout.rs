//! Dropout whose masks come from a seed, so that a run can be repeated and resumed.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::cpu;

/// What the dropout masks of one training step depend on: the same key gives the same masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutKey {
    /// The run's seed.
    pub seed: u64,
    /// The number of the training step, counted from 0 at the start of the run.
    pub step: u64,
}

/// Sets each element to zero with probability `p` and divides the others by `1 - p`.
///
/// The mask depends on `key`, on `layer` (a number of its own for each dropout layer of a
/// network) and on the element's position alone. `x` is f32, of any shape. Use it in training
/// only: in evaluation a dropout layer does nothing.
///
/// Srivastava et al., "Dropout" (2014), in the "inverted" form that PyTorch uses.
///
/// # Errors
/// When `p` is not in [0, 1) or `x` is not f32.
pub fn dropout(x: &Tensor, p: f64, key: DropoutKey, layer: u64) -> Result<Tensor> {
    if !(0.0..1.0).contains(&p) {
        bail!("dropout: expected a probability in [0, 1), got {p}");
    }
    if p == 0.0 {
        return Ok(x.clone());
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::dropout::dropout(x, p, key.seed, key.step, layer);
    }
    x.contiguous()?.apply_op1(Dropout { p, key, layer })
}

/// Applies the mask of [`dropout`] in place to a part of its argument, whose first value is element `first` of the whole; the
/// gradient goes through the same mask.
pub(crate) fn dropout_part(values: &mut [f32], p: f64, key: DropoutKey, layer: u64, first: u64) {
    if p > 0.0 {
        Dropout { p, key, layer }.apply_from(first, values);
    }
}

struct Dropout {
    p: f64,
    key: DropoutKey,
    layer: u64,
}

impl Dropout {
    /// The generator of a step's mask: its key is made of seed and step, its stream is the layer. Word `i` decides on
    /// element `i`; `kernels/dropout.cu` computes the same words.
    fn generator(&self) -> ChaCha8Rng {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.key.seed.to_le_bytes());
        seed[8..16].copy_from_slice(&self.key.step.to_le_bytes());
        seed[16..].copy_from_slice(b"kd-ops dropout 1");
        let mut rng = ChaCha8Rng::from_seed(seed);
        rng.set_stream(self.layer);
        rng
    }

    /// `x` times the mask, divided by `1 - p`: the same in the forward and in the backward pass.
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut y = x.to_vec();
        self.apply_from(0, &mut y);
        y
    }

    /// Applies the mask to the values of which the first is element `first` of the whole.
    fn apply_from(&self, first: u64, values: &mut [f32]) {
        let mut rng = self.generator();
        rng.set_word_pos(u128::from(first));
        let scale = (1.0 / (1.0 - self.p)) as f32;
        let dropped_below = (self.p * (1u64 << 32) as f64) as u32;
        for value in values {
            *value = if rng.next_u32() < dropped_below { 0.0 } else { *value * scale };
        }
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = cpu::slice(self.name(), storage, layout)?;
        Ok((CpuStorage::F32(self.apply(x)), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = cpu::with_slice(self.name(), dy, |dy| Ok(self.apply(dy)))?;
        Ok(Some(cpu::tensor(dx, y.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words were worked out from ChaCha's definition, independently of both implementations; `parity/kernels/operations.cpp` pins the
    /// kernel to them.
    #[test]
    fn the_mask_is_that_of_the_kernel_check() {
        let key = DropoutKey { seed: 0x0123_4567_89ab_cdef, step: 5 };
        let mut rng = Dropout { p: 0.5, key, layer: 3 }.generator();
        let words: Vec<u32> = (0..100).map(|_| rng.next_u32()).collect();
        let found = [0, 1, 15, 16, 31, 32, 63, 64, 99].map(|i: usize| words[i]);
        let expected = [
            0xa63e4363, 0x385dbe92, 0x1f575a3b, 0x6b8aa62f, 0xfe9ec9db, 0x8e0c0351, 0x8250716f,
            0x81245298, 0xd51d5fd3,
        ];
        assert_eq!(found, expected);
    }
}
