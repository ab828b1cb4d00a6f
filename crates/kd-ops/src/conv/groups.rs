//! Grouped convolutions: each group of output channels sees a group of input channels of its own.

use candle_core::{Result, Tensor, bail};

use super::depthwise::{Depthwise, depthwise};
use super::geometry::{Conv2dConfig, Geometry};
use crate::{max_pool2d, relu};

/// [`super::conv2d`] with more than one group, `weight` `[O, I / groups, kh, kw]`.
///
/// With one channel in and one out in each group it is a depthwise convolution, which has kernels of its own; otherwise each
/// group is a convolution by itself. On a GPU candle's own operations compute it.
pub(super) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &Conv2dConfig,
) -> Result<Tensor> {
    let Conv2dConfig { stride, padding, dilation, groups, .. } = *config;
    let (&[batch, channels, height, width], &[outputs, inputs, _, _]) = (x.dims(), weight.dims())
    else {
        bail!(
            "conv2d: expected x [N, I, H, W] and weight [O, I / groups, kh, kw], got x {:?} and weight {:?}",
            x.shape(),
            weight.shape()
        )
    };
    if groups == 0 || !channels.is_multiple_of(groups) || !outputs.is_multiple_of(groups) {
        bail!(
            "conv2d: groups is {groups}; expected a number that divides the {channels} channels of x and the {outputs} of the result"
        );
    }
    if channels / groups != inputs {
        bail!(
            "conv2d: each of the {groups} groups has {} of x's {channels} channels, weight {:?} takes {inputs}",
            channels / groups,
            weight.dims()
        );
    }
    // A group's input with all groups' outputs: every size but the number of input channels.
    let geometry = Geometry::new(&[batch, inputs, height, width], weight.dims(), config)?;
    if let Some(bias) = bias.filter(|bias| bias.dims() != [outputs]) {
        bail!("conv2d: expected a bias of shape [{outputs}], got {:?}", bias.shape());
    }
    let plain = Conv2dConfig { groups: 1, relu: false, max_pool2: false, ..*config };
    let y = if x.device().is_cuda() {
        let y = x.conv2d(&weight.to_dtype(x.dtype())?, padding, stride, dilation, groups)?;
        match bias {
            Some(bias) => y.broadcast_add(&bias.to_dtype(x.dtype())?.reshape((1, (), 1, 1))?)?,
            None => y,
        }
    } else if inputs == 1 && outputs == groups {
        depthwise(x, weight, bias, Depthwise::new(geometry))?
    } else {
        let rows = outputs / groups;
        let group = |group: usize| {
            let bias = bias.map(|bias| bias.narrow(0, group * rows, rows)).transpose()?;
            let weight = weight.narrow(0, group * rows, rows)?;
            super::conv2d(&x.narrow(1, group * inputs, inputs)?, &weight, bias.as_ref(), &plain)
        };
        Tensor::cat(&(0..groups).map(group).collect::<Result<Vec<_>>>()?, 1)?
    };
    let y = if config.relu { relu(&y)? } else { y };
    if config.max_pool2 { max_pool2d(&y, 2, 2) } else { Ok(y) }
}
