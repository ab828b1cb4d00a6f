//! The values of a network's maps on some pictures.

use std::collections::BTreeMap;

use candle_core::{D, Tensor};

use super::ranges::Histogram;
use super::{has_levels, is_layer};
use crate::classifier::Classifier;
use crate::graph::Graph;
use crate::{Error, GraphNetwork, Result, Tensors, frozen};

/// What calibration saw of the maps of a folded network.
#[derive(Clone, Debug)]
pub struct Observations {
    /// Of each node that gets levels, by its position: how its values are spread.
    histograms: BTreeMap<usize, Histogram>,
    /// Of each node that a layer reads: the mean of each channel.
    means: BTreeMap<usize, Vec<f64>>,
}

impl Observations {
    pub(super) fn histogram(&self, node: usize) -> Option<&Histogram> {
        self.histograms.get(&node)
    }

    /// The mean of each channel of a node that a layer reads.
    pub(super) fn mean(&self, node: usize) -> &[f64] {
        self.means.get(&node).map_or(&[], Vec::as_slice)
    }
}

/// Looks at the values of a folded network's maps on batches of normalised images, `[B, C, H, W]` each. The network is computed twice on
/// each batch: for the ranges, and for how the values are spread in them.
///
/// # Errors
/// When there is no image, a value is not finite, or a batch can't be computed.
pub fn observe(graph: &Graph, tensors: &Tensors, batches: &[Tensor]) -> Result<Observations> {
    let readers = graph.readers();
    let with_levels: Vec<usize> =
        (0..graph.nodes().len()).filter(|node| has_levels(graph, *node, &readers)).collect();
    let read: Vec<usize> = (0..graph.nodes().len())
        .filter(|node| readers[*node].iter().any(|reader| is_layer(&graph.nodes()[*reader])))
        .collect();
    let shown: std::collections::BTreeSet<usize> =
        with_levels.iter().chain(&read).copied().collect();
    let shown_graph = graph.showing(shown.iter().copied());
    let network = GraphNetwork::new(shown_graph, frozen(tensors))?;
    let name = |node: usize| graph.nodes()[node].name.as_str();
    let names: Vec<&str> = shown.iter().map(|node| name(*node)).collect();

    let mut ranges: BTreeMap<usize, (f32, f32)> = BTreeMap::new();
    let mut sums: BTreeMap<usize, (Vec<f64>, f64)> = BTreeMap::new();
    for batch in batches {
        let features = network.evaluate(batch, &names)?.features;
        for &node in &with_levels {
            let values = features[name(node)].flatten_all()?.to_vec1::<f32>()?;
            let (low, high) = ranges.entry(node).or_insert((f32::INFINITY, f32::NEG_INFINITY));
            for value in values {
                if !value.is_finite() {
                    let reason = format!(
                        "its values on the pictures to calibrate on hold {value}; expected finite numbers"
                    );
                    return Err(graph.layer_error(name(node), reason));
                }
                (*low, *high) = (low.min(value), high.max(value));
            }
        }
        for &node in &read {
            let (sum, count) = channel_sums(&features[name(node)])?;
            let (all, images) = sums.entry(node).or_insert((vec![0.0; sum.len()], 0.0));
            all.iter_mut().zip(sum).for_each(|(all, sum)| *all += sum);
            *images += count;
        }
    }
    if batches.iter().all(|batch| batch.elem_count() == 0) {
        return Err(Error::Config {
            field: "pictures",
            found: "0".into(),
            expected: "at least one picture to calibrate on".into(),
        });
    }
    let histogram = |(node, (low, high)): (usize, (f32, f32))| (node, Histogram::new(low, high));
    let mut histograms: BTreeMap<usize, Histogram> = ranges.into_iter().map(histogram).collect();
    for batch in batches {
        let features = network.evaluate(batch, &names)?.features;
        for (node, histogram) in &mut histograms {
            histogram.add(&features[name(*node)].flatten_all()?.to_vec1::<f32>()?);
        }
    }
    let mean = |(node, (sum, count)): (usize, (Vec<f64>, f64))| {
        (node, sum.into_iter().map(|sum| sum / count).collect())
    };
    Ok(Observations { histograms, means: sums.into_iter().map(mean).collect() })
}

/// The sum of each channel over images and pixels, and how many values each is of.
fn channel_sums(values: &Tensor) -> Result<(Vec<f64>, f64)> {
    let values = values.detach();
    let pixels = match values.dims() {
        [_, _, height, width] => height * width,
        _ => 1,
    };
    let of_images = match pixels {
        1 => values.flatten_from(1)?,
        _ => values.flatten_from(2)?.sum(D::Minus1)?,
    };
    let rows = of_images.to_vec2::<f32>()?;
    let mut sums = vec![0.0; rows.first().map_or(0, Vec::len)];
    for row in &rows {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    Ok((sums, (rows.len() * pixels) as f64))
}
