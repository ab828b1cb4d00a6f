//! What a work costs at least: multiply-adds, and bytes to and from memory where they are known.

use kd_models::graph::{Graph, Op};
use kd_models::{Architecture, ModelConfig};

use crate::work::{CLASSES, Sized, Work};

/// The cost of a step or an evaluation of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    /// Multiplications, each with an addition, of convolutions and linear layers done directly. Winograd's way needs fewer.
    pub(crate) multiply_adds: u64,
    /// Bytes that pass through memory whatever is computed together, unless a cache holds them from one use to the next.
    pub(crate) bytes: Option<u64>,
}

/// The cost of a work on a batch of `images`; of losses alone it is not known.
pub(crate) fn cost(work: Work, images: u64) -> anyhow::Result<Option<Cost>> {
    let tutorials = |network: Architecture| Sized { network, input: network.default_input() };
    let student = || graph(tutorials(Architecture::TUTORIAL_STUDENT));
    Ok(match work {
        Work::Step(of) => {
            let graph = graph(of)?;
            let bytes = step_bytes(&graph, images);
            Some(Cost { multiply_adds: step_multiply_adds(&graph, images), bytes })
        }
        Work::Eval(of) => {
            Some(Cost { multiply_adds: graph(of)?.multiply_adds() * images, bytes: None })
        }
        Work::KdStep => {
            Some(Cost { multiply_adds: step_multiply_adds(&student()?, images), bytes: None })
        }
        Work::KdStepWithTeacher => {
            let teacher = graph(tutorials(Architecture::TUTORIAL_TEACHER))?;
            let multiply_adds =
                step_multiply_adds(&student()?, images) + teacher.multiply_adds() * images;
            Some(Cost { multiply_adds, bytes: None })
        }
        Work::Loss { .. } => None,
    })
}

fn graph(of: Sized) -> anyhow::Result<Graph> {
    Ok(ModelConfig { input: of.input, ..ModelConfig::new(of.network, CLASSES) }.graph()?)
}

/// Forward pass and both gradients, but for the gradient of the images, which nobody asks for.
fn step_multiply_adds(graph: &Graph, images: u64) -> u64 {
    let nodes = graph.nodes().iter();
    let passes = nodes.map(|node| {
        let reads_images =
            node.inputs.iter().any(|input| matches!(graph.node(*input).op, Op::Images(_)));
        node.multiply_adds * if reads_images { 2 } else { 3 }
    });
    images * passes.sum::<u64>()
}

/// The least traffic of a training step of a network whose convolutions all end in a batch normalisation. Such a normalisation
/// waits for the whole batch, so that each convolution's map is written and read on the way forth; on the way back its gradient
/// is written and read, and the map read for the normalisation's gradient and for the weight's. Adam reads gradient, weight and
/// both moments, and writes the latter three behind the gradient's own writing. Other networks may keep maps in the cache.
fn step_bytes(graph: &Graph, images: u64) -> Option<u64> {
    let nodes = graph.nodes();
    let convolutions = || nodes.iter().filter(|node| matches!(node.op, Op::Conv(_)));
    let normalised = |name: &str| {
        let mut readers = nodes
            .iter()
            .filter(|node| node.inputs.iter().any(|input| graph.node(*input).name == name));
        readers.all(|reader| matches!(reader.op, Op::BatchNorm(_)))
    };
    if convolutions().next().is_none() || !convolutions().all(|node| normalised(&node.name)) {
        return None;
    }
    let values = |shape: &[usize]| shape.iter().product::<usize>() as u64;
    let maps: u64 = convolutions().map(|node| values(&node.shape)).sum();
    Some(4 * (6 * images * maps + 8 * graph.parameter_count() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(work: &str, images: u64) -> Cost {
        cost(Work::from_name(work).unwrap(), images).unwrap().unwrap()
    }

    /// By hand for the tutorial's student: convolutions 3-16 at 32x32 and 16-16 at 16x16, linear layers 1024-256 and 256-10.
    #[test]
    fn multiply_adds_are_those_of_the_layers() {
        let (first, second, linear) = (27 * 16 * 1024, 144 * 16 * 256, 1024 * 256 + 256 * 10);
        assert_eq!(of("student_eval", 5).multiply_adds, 5 * (first + second + linear));
        let step = of("student_step", 2);
        assert_eq!(step.multiply_adds, 2 * (2 * first + 3 * (second + linear)));
        assert_eq!(step.bytes, None);
        assert_eq!(of("kd_step", 2), step);
        let both = of("kd_step_with_teacher", 2).multiply_adds;
        assert_eq!(both, step.multiply_adds + of("teacher_eval", 2).multiply_adds);
    }

    /// ResNet-8 by hand: seven convolutions of 16 x 32 x 32, 32 x 16 x 16 and 64 x 8 x 8 values.
    #[test]
    fn bytes_are_those_of_maps_and_parameters() {
        let maps = 3 * 16 * 1024 + 2 * 32 * 256 + 2 * 64 * 64;
        let parameters = graph(Sized { network: "resnet8".parse().unwrap(), input: [3, 32, 32] })
            .unwrap()
            .parameter_count() as u64;
        let expected = 4 * (6 * 3 * maps + 8 * parameters);
        assert_eq!(of("resnet8_step", 3).bytes, Some(expected));
        assert_eq!(of("resnet8_eval", 3).bytes, None);
    }
}
