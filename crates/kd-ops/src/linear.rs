//! A linear layer: matrix product, bias and ReLU in one operation.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::cpu;
use crate::matmul::{View, matmul};
use crate::relu::masked;

/// A linear layer: `y = x w^T + b`, then `max(y, 0)` with `relu`.
///
/// `x` is `[B, I]`, `weight` is `[O, I]` (PyTorch's layout), `bias` is `[O]`, the result `[B, O]`;
/// all f32.
///
/// # Errors
/// When the shapes don't fit together or a tensor is not f32.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, relu: bool) -> Result<Tensor> {
    let (Ok((_, inputs)), Ok((outputs, weight_inputs))) = (x.dims2(), weight.dims2()) else {
        bail!(
            "linear: expected x [B, I] and weight [O, I], got x {:?} and weight {:?}",
            x.shape(),
            weight.shape()
        )
    };
    if inputs != weight_inputs {
        bail!("linear: x has {inputs} inputs, weight {:?} takes {weight_inputs}", weight.shape());
    }
    let bias = match bias {
        Some(bias) if bias.dims() != [outputs] => {
            bail!("linear: expected a bias of shape [{outputs}], got {:?}", bias.shape())
        }
        Some(bias) => bias.clone(),
        None => Tensor::zeros(outputs, x.dtype(), x.device())?,
    };
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::linear::linear(x, weight, &bias, relu);
    }
    let op = Linear { relu };
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
}

struct Linear {
    relu: bool,
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, inputs) = x_layout.shape().dims2()?;
        let (outputs, _) = weight_layout.shape().dims2()?;
        let x = cpu::slice(self.name(), x, x_layout)?;
        let weight = cpu::slice(self.name(), weight, weight_layout)?;
        let bias = cpu::slice(self.name(), bias, bias_layout)?;
        let mut y = Vec::with_capacity(batch * outputs);
        for _ in 0..batch {
            y.extend_from_slice(bias);
        }
        matmul(
            &mut y,
            (batch, inputs, outputs),
            View::rows(x, inputs),
            View::transposed(weight, inputs),
            true,
        );
        if self.relu {
            for y in &mut y {
                *y = if *y < 0.0 { 0.0 } else { *y };
            }
        }
        Ok((CpuStorage::F32(y), Shape::from((batch, outputs))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let name = self.name();
        let (batch, inputs) = x.dims2()?;
        let outputs = weight.dim(0)?;
        let dy = if self.relu {
            cpu::with_slice(name, y, |y| cpu::with_slice(name, dy, |dy| Ok(masked(y, dy))))?
        } else {
            cpu::with_slice(name, dy, |dy| Ok(dy.to_vec()))?
        };
        let dx = match x.track_op() {
            true => cpu::with_slice(name, weight, |weight| {
                let mut dx = vec![0.0; batch * inputs];
                let (dy, weight) = (View::rows(&dy, outputs), View::rows(weight, inputs));
                matmul(&mut dx, (batch, outputs, inputs), dy, weight, false);
                Ok(Some(cpu::tensor(dx, (batch, inputs))?))
            })?,
            false => None,
        };
        let dweight = match weight.track_op() {
            true => cpu::with_slice(name, x, |x| {
                let mut dweight = vec![0.0; outputs * inputs];
                let (dy, x) = (View::transposed(&dy, outputs), View::rows(x, inputs));
                matmul(&mut dweight, (outputs, batch, inputs), dy, x, false);
                Ok(Some(cpu::tensor(dweight, (outputs, inputs))?))
            })?,
            false => None,
        };
        let dbias = match bias.track_op() {
            true => {
                let mut dbias = vec![0.0; outputs];
                for row in dy.chunks_exact(outputs.max(1)) {
                    for (sum, dy) in dbias.iter_mut().zip(row) {
                        *sum += dy;
                    }
                }
                Some(cpu::tensor(dbias, outputs)?)
            }
            false => None,
        };
        Ok((dx, dweight, dbias))
    }
}
