//! Weights and biases as multiples of their scales.

use candle_core::Tensor;

use super::QuantizeConfig;
use crate::graph::{Graph, Node, Op};
use crate::parameters::find;
use crate::{Result, Tensors};

/// The largest number that a bias may be in its scale: half of what 32 bits hold, so that sums of products have room beside it.
const MOST_BIAS: f64 = (1u32 << 30) as f64;

/// Rounds a layer's weight to multiples of a scale for each output and its bias, corrected, to multiples of that times the scale
/// `input` of what it reads; gives the outputs' scales. `mean` is the mean of each channel of what it reads.
///
/// The correction is that of Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section
/// 4.2, with means that calibration saw: the bias less the mean of (rounded weight - weight) x. Zeros around a map are not counted.
pub(super) fn quantize(
    graph: &Graph,
    node: &Node,
    tensors: &mut Tensors,
    input: f32,
    mean: &[f64],
    config: &QuantizeConfig,
) -> Result<Vec<f32>> {
    let [weight_spec, bias_spec @ ..] = &node.parameters[..] else {
        unreachable!("a convolution or linear layer has a weight")
    };
    let weight = find(graph.name(), weight_spec, tensors)?;
    let mut values = weight.flatten_all()?.to_vec1::<f32>()?;
    let bias = bias_spec.first().map(|spec| find(graph.name(), spec, tensors)).transpose()?;
    let mut bias = bias.map(Tensor::to_vec1::<f32>).transpose()?;
    let outputs = weight_spec.shape[0];
    let row = values.len() / outputs;
    let window: usize = weight_spec.shape[2..].iter().product();
    let groups = match &node.op {
        Op::Conv(conv) => conv.groups,
        _ => 1,
    };
    let most = f64::from((1i32 << (config.weight_bits - 1)) - 1);
    let mut scales = Vec::with_capacity(outputs);
    for (output, weights) in values.chunks_exact_mut(row).enumerate() {
        let largest = weights.iter().fold(0f32, |most, weight| most.max(weight.abs()));
        let of_bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[output].abs()));
        let least = of_bias / (f64::from(input) * MOST_BIAS);
        let scale = (f64::from(largest) / most).max(least) as f32;
        let scale = if scale.is_normal() { scale } else { 1.0 };
        // A group of outputs reads a group of channels.
        let first = output / (outputs / groups) * (row / window);
        let mut error = 0.0;
        for (index, weight) in weights.iter_mut().enumerate() {
            let rounded =
                (*weight / scale).round_ties_even().clamp(-most as f32, most as f32) * scale;
            let read = mean.get(first + index / window).copied().unwrap_or(0.0);
            error += (f64::from(rounded) - f64::from(*weight)) * read;
            *weight = rounded;
        }
        if let Some(bias) = &mut bias {
            let correction = if config.bias_correction { error } else { 0.0 };
            let step = f64::from(input) * f64::from(scale);
            let number = ((f64::from(bias[output]) - correction) / step).round_ties_even();
            bias[output] = (number * step) as f32;
        }
        scales.push(scale);
    }
    let shape = weight.shape().clone();
    let device = weight.device().clone();
    tensors.insert(weight_spec.name.clone(), Tensor::from_vec(values, shape, &device)?);
    if let (Some(bias), [spec, ..]) = (bias, bias_spec) {
        tensors.insert(spec.name.clone(), Tensor::from_vec(bias, outputs, &device)?);
    }
    Ok(scales)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Conv, GraphBuilder};
    use candle_core::Device;

    /// A convolution in two groups and a linear layer, and weights that no scale fits.
    fn network() -> (Graph, Tensors) {
        let mut g = GraphBuilder::new("own", [4, 3, 3]).unwrap();
        let x = g.conv("conv", g.images(), Conv { groups: 2, ..Conv::new(6, 3) }).unwrap();
        let x = g.flatten("flat", x).unwrap();
        let x = g.linear("head", x, 3).unwrap();
        let graph = g.finish(x).unwrap();
        let weights = graph.init(5, &Device::Cpu).unwrap();
        let tensors =
            weights.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
        (graph, tensors)
    }

    #[test]
    fn weights_are_multiples_and_the_mean_output_stays() {
        let (graph, before) = network();
        let mean = [0.5, -1.0, 2.0, 3.0];
        let config = QuantizeConfig::default();
        let mut tensors = before.clone();
        let node = &graph.nodes()[1];
        let scales = quantize(&graph, node, &mut tensors, 0.01, &mean, &config).unwrap();
        let values = |tensors: &Tensors, name: &str| {
            tensors[name].flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        // In f64: of each output, its weights times the means of its group's channels, and its bias.
        let output = |tensors: &Tensors, output: usize| -> f64 {
            let weight = &values(tensors, "conv.weight")[18 * output..18 * (output + 1)];
            let read = |index: usize| mean[output / 3 * 2 + index / 9];
            let sum: f64 = weight.iter().enumerate().map(|(i, w)| f64::from(*w) * read(i)).sum();
            sum + f64::from(values(tensors, "conv.bias")[output])
        };
        for (index, scale) in scales.iter().enumerate() {
            let weight = &values(&tensors, "conv.weight")[18 * index..18 * (index + 1)];
            for value in weight {
                let number = value / scale;
                assert!((number - number.round()).abs() < 1e-4 && number.abs() < 63.5, "{number}");
            }
            let largest = weight.iter().fold(0f32, |most, weight| most.max(weight.abs()));
            assert!((largest / scale - 63.0).abs() < 1e-3);
            let bias = values(&tensors, "conv.bias")[index] / (0.01 * scale);
            assert!((bias - bias.round()).abs() < 0.01, "{bias}");
            let moved = output(&tensors, index) - output(&before, index);
            assert!(moved.abs() <= 0.51 * 0.01 * f64::from(*scale), "{index}: {moved}");
        }
        let plain = QuantizeConfig { bias_correction: false, ..config };
        let mut tensors = before.clone();
        quantize(&graph, node, &mut tensors, 0.01, &mean, &plain).unwrap();
        let moved = (0..6).map(|index| (output(&tensors, index) - output(&before, index)).abs());
        assert!(
            moved.fold(0.0, f64::max) > 1e-3,
            "rounding moves the mean where nothing corrects it"
        );
    }

    #[test]
    fn an_output_of_tiny_weights_and_a_large_bias_keeps_its_bias() {
        let (graph, mut tensors) = network();
        let zeros = tensors["head.weight"].zeros_like().unwrap();
        tensors.insert("head.weight".into(), zeros);
        let bias = Tensor::new(&[7.5f32, -300.0, 0.0], &Device::Cpu).unwrap();
        tensors.insert("head.bias".into(), bias);
        let node = &graph.nodes()[3];
        let config = QuantizeConfig::default();
        let scales = quantize(&graph, node, &mut tensors, 1e-3, &[], &config).unwrap();
        let found = tensors["head.bias"].to_vec1::<f32>().unwrap();
        for ((found, expected), scale) in found.iter().zip([7.5, -300.0, 0.0]).zip(scales) {
            assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{found}");
            assert!(f64::from(found.abs()) / (1e-3 * f64::from(scale)) < 2.2e9);
        }
    }
}
