//! What is measured, and on what.

use anyhow::bail;
use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The classes of every network here.
pub(crate) const CLASSES: usize = 10;
/// Temperature and labels' share of the tutorial.
pub(crate) const TEMPERATURE: f64 = 2.0;
pub(crate) const ALPHA: f64 = 0.75;

/// One step of something; a training step is forward, loss, backward and Adam.
pub(crate) type Step = Box<dyn FnMut() -> anyhow::Result<()>>;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Work {
    /// The teacher learns from labels.
    TeacherStep,
    /// The student learns from labels.
    StudentStep,
    /// The teacher's logits in evaluation.
    TeacherEval,
    /// The student learns from labels and from the teacher's logits, which are given.
    KdStep,
    /// The same with the teacher run first, as the tutorial writes it.
    KdStepWithTeacher,
}

impl Work {
    pub(crate) fn from_name(name: &str) -> anyhow::Result<Self> {
        Ok(match name {
            "teacher_step" => Self::TeacherStep,
            "student_step" => Self::StudentStep,
            "teacher_eval" => Self::TeacherEval,
            "kd_step" => Self::KdStep,
            "kd_step_with_teacher" => Self::KdStepWithTeacher,
            _ => bail!("no work is called {name:?}"),
        })
    }
}

/// Made-up images and labels: a step's time does not hang on what they show.
#[derive(Clone)]
pub(crate) struct Batch {
    /// f32 `[B, 3, 32, 32]`.
    pub(crate) images: Tensor,
    /// u32 `[B]`.
    pub(crate) labels: Tensor,
    /// f32 `[B, 10]`.
    pub(crate) teacher_logits: Tensor,
}

impl Batch {
    pub(crate) fn new(size: usize) -> anyhow::Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut uniform = |count: usize| -> Vec<f32> {
            (0..count).map(|_| (rng.next_u32() as f32 / u32::MAX as f32 - 0.5) * 4.0).collect()
        };
        let device = Device::Cpu;
        let images = Tensor::from_vec(uniform(size * 3 * 32 * 32), (size, 3, 32, 32), &device)?;
        let teacher_logits = Tensor::from_vec(uniform(size * CLASSES), (size, CLASSES), &device)?;
        let labels = (0..size).map(|i| (i % CLASSES) as u32).collect();
        Ok(Self { images, labels: Tensor::from_vec(labels, size, &device)?, teacher_logits })
    }
}
