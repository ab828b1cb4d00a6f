//! What is measured, and on what.

use anyhow::bail;
use candle_core::{DType, Device, Tensor, Var};
use kd_models::Architecture;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The classes of every network here.
pub(crate) const CLASSES: usize = 10;
/// Temperature and labels' share of the tutorial.
pub(crate) const TEMPERATURE: f64 = 2.0;
pub(crate) const ALPHA: f64 = 0.75;

/// Takes one step; a training step is forward pass, loss, backward pass and Adam.
pub(crate) type Step = Box<dyn FnMut() -> anyhow::Result<()>>;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Work {
    /// A network learns from labels: `resnet20_step`, or `resnet18_224_step` on images of 224 x 224 pixels.
    Step(Sized),
    /// A network computes its logits, as in evaluation: `resnet20_eval`.
    Eval(Sized),
    /// The tutorial's student learns from labels and from cached logits of its teacher.
    KdStep,
    /// The same, but the teacher computes its logits in the step, as in the tutorial.
    KdStepWithTeacher,
    /// Labels and soft targets of logits of this shape and type alone, forward and backward: `loss_4096x1000_bf16`.
    Loss { batch: usize, classes: usize, dtype: DType },
}

/// A network and the shape of an image.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Sized {
    pub(crate) network: Architecture,
    pub(crate) input: [usize; 3],
}

impl Sized {
    /// A network by its name, behind which the pixels of a side may stand: `mobilenet_v2_035_128`.
    fn from_name(name: &str) -> Option<Self> {
        if let Ok(network) = name.parse::<Architecture>() {
            return Some(Self { network, input: network.default_input() });
        }
        let (network, side) = name.rsplit_once('_')?;
        let (network, side) = (network.parse::<Architecture>().ok()?, side.parse().ok()?);
        Some(Self { network, input: [3, side, side] })
    }
}

impl Work {
    pub(crate) fn from_name(name: &str) -> anyhow::Result<Self> {
        let network = |suffix| name.strip_suffix(suffix).and_then(Sized::from_name);
        Ok(match name {
            "kd_step" => Self::KdStep,
            "kd_step_with_teacher" => Self::KdStepWithTeacher,
            _ => match (network("_step"), network("_eval"), Self::loss(name)) {
                (Some(network), _, _) => Self::Step(network),
                (_, Some(network), _) => Self::Eval(network),
                (_, _, Some(loss)) => loss,
                _ => bail!("no work is called {name:?}"),
            },
        })
    }

    /// The shape of one image.
    pub(crate) fn input(self) -> [usize; 3] {
        match self {
            Self::Step(of) | Self::Eval(of) => of.input,
            Self::KdStep | Self::KdStepWithTeacher | Self::Loss { .. } => [3, 32, 32],
        }
    }

    fn loss(name: &str) -> Option<Self> {
        let (shape, dtype) = name.strip_prefix("loss_")?.split_once('_')?;
        let (batch, classes) = shape.split_once('x')?;
        let dtype = match dtype {
            "f32" => DType::F32,
            "bf16" => DType::BF16,
            _ => return None,
        };
        Some(Self::Loss { batch: batch.parse().ok()?, classes: classes.parse().ok()?, dtype })
    }
}

/// Made-up images and labels: a step's time does not hang on what they show.
#[derive(Clone)]
pub(crate) struct Batch {
    /// f32 `[B, C, H, W]`.
    pub(crate) images: Tensor,
    /// u32 `[B]`.
    pub(crate) labels: Tensor,
    /// f32 `[B, 10]`.
    pub(crate) teacher_logits: Tensor,
}

impl Batch {
    pub(crate) fn new(
        size: usize,
        [channels, height, width]: [usize; 3],
        device: &Device,
    ) -> anyhow::Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let images = uniform(&mut rng, size * channels * height * width);
        let images = Tensor::from_vec(images, (size, channels, height, width), device)?;
        let teacher_logits = uniform(&mut rng, size * CLASSES);
        let teacher_logits = Tensor::from_vec(teacher_logits, (size, CLASSES), device)?;
        Ok(Self { images, labels: labels(size, CLASSES, device)?, teacher_logits })
    }

    /// The same as the trainer takes it: plain images of a training set that has no others.
    pub(crate) fn for_training(&self) -> anyhow::Result<kd_data::Batch> {
        let indices: Vec<u32> = (0..self.labels.elem_count() as u32).collect();
        Ok(kd_data::Batch {
            images: self.images.clone(),
            labels: self.labels.clone(),
            rows: Tensor::new(indices.as_slice(), self.images.device())?,
            views: vec![kd_data::View::default(); indices.len()],
            indices,
            mixed: None,
            view: 0,
        })
    }
}

fn uniform(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| (rng.next_u32() as f32 / u32::MAX as f32 - 0.5) * 4.0).collect()
}

fn labels(count: usize, classes: usize, device: &Device) -> anyhow::Result<Tensor> {
    let labels = (0..count).map(|i| (i % classes) as u32).collect();
    Ok(Tensor::from_vec(labels, count, device)?)
}

/// Made-up logits of both networks, and labels.
pub(crate) struct Logits {
    pub(crate) student: Var,
    pub(crate) teacher: Tensor,
    pub(crate) labels: Tensor,
}

impl Logits {
    pub(crate) fn new(
        batch: usize,
        classes: usize,
        dtype: DType,
        device: &Device,
    ) -> anyhow::Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut logits = || {
            let logits = uniform(&mut rng, batch * classes);
            Tensor::from_vec(logits, (batch, classes), device)?.to_dtype(dtype)
        };
        let (student, teacher) = (Var::from_tensor(&logits()?)?, logits()?);
        Ok(Self { student, teacher, labels: labels(batch, classes, device)? })
    }
}
