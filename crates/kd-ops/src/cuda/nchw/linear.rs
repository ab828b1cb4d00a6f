//! Linear layers of a plan on a GPU: products, biases and their gradients.

use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;

use super::super::{int, kernel_of, launch, ptx, threads_over};
use super::gemm::{Factor, product};
use super::{Gpu, Span, code};
use crate::nhwc::Activation;

const NAME: &str = "linear";
const FILE: &str = "kd-ops linear";

/// The sizes of a linear layer on a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// How many images the batch has.
    pub batch: usize,
    /// How many numbers the input of an image has.
    pub inputs: usize,
    /// How many numbers the output of an image has.
    pub outputs: usize,
}

impl Linear {
    fn x(&self) -> usize {
        self.batch * self.inputs
    }

    fn y(&self) -> usize {
        self.batch * self.outputs
    }

    fn weight(&self) -> usize {
        self.outputs * self.inputs
    }

    /// `y = activation(x * weight^T + bias)`; `weight` is `[outputs, inputs]`.
    ///
    /// # Errors
    /// When memory is too small or the GPU refuses; so for all functions here.
    pub fn forward(
        &self,
        gpu: &Gpu,
        x: Span<'_>,
        (weight, bias): (Span<'_>, Span<'_>),
        activation: Activation,
        y: Span<'_>,
    ) -> Result<()> {
        let Self { batch, inputs, outputs } = *self;
        let x = Factor::rows(x.at(NAME, self.x())?);
        let weight = Factor::transposed(weight.at(NAME, self.weight())?);
        let (bias, y) = (bias.at(NAME, outputs)?, y.at(NAME, self.y())?);
        // SAFETY: the sizes are those of the memory, as `at` has seen.
        unsafe { product(gpu, (batch, outputs, inputs), x, weight, y) }?;
        let (columns, activation) = (int(outputs)?, code(activation));
        let function = kernel_of::<f32>(&gpu.device, FILE, "linear_bias_forward", ptx::LINEAR)?;
        let mut args = function.builder();
        args.arg(&y).arg(&bias).arg(&columns).arg(&activation);
        // SAFETY: y has `batch` rows of `outputs` numbers, the bias one.
        unsafe { launch(args, (batch, 1), (threads_over(outputs), 1)) }
    }

    /// The gradient of x from that of y before the activation; errors as for [`forward`](Self::forward).
    pub fn data_gradient(
        &self,
        gpu: &Gpu,
        weight: Span<'_>,
        dy: Span<'_>,
        dx: Span<'_>,
    ) -> Result<()> {
        let Self { batch, inputs, outputs } = *self;
        let dy = Factor::rows(dy.at(NAME, self.y())?);
        let weight = Factor::rows(weight.at(NAME, self.weight())?);
        let dx = dx.at(NAME, self.x())?;
        // SAFETY: as for `forward`.
        unsafe { product(gpu, (batch, inputs, outputs), dy, weight, dx) }
    }

    /// The gradients of weight and bias, to those two spans; errors as for [`forward`](Self::forward).
    pub fn weight_gradients(
        &self,
        gpu: &Gpu,
        x: Span<'_>,
        dy: Span<'_>,
        (weight, bias): (Span<'_>, Span<'_>),
    ) -> Result<()> {
        let Self { batch, inputs, outputs } = *self;
        let dy = dy.at(NAME, self.y())?;
        let x = Factor::rows(x.at(NAME, self.x())?);
        let (weight, bias) = (weight.at(NAME, self.weight())?, bias.at(NAME, outputs)?);
        // SAFETY: as for `forward`.
        unsafe { product(gpu, (outputs, inputs, batch), Factor::transposed(dy), x, weight) }?;
        let (rows, columns) = (int(batch)?, int(outputs)?);
        let function = kernel_of::<f32>(&gpu.device, FILE, "linear_bias_backward", ptx::LINEAR)?;
        let mut args = function.builder();
        args.arg(&dy).arg(&rows).arg(&columns).arg(&bias);
        // SAFETY: the memory has the sizes that are passed.
        unsafe { launch(args, (outputs.div_ceil(32), 1), (32, 8)) }
    }
}
