//! The steps that `kd train` and `kd distill` take.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use kd_loss::{
    Inputs, KdConfig, MethodConfig, Objective, RunStep, Setup, Weighted, alpha_weights,
    kd_with_labels,
};
use kd_models::{Architecture, Classifier, Mode, ModelConfig, Parameters};
use kd_ops::DropoutKey;
use kd_ops::adam::{Adam, AdamConfig};

use crate::Precision;
use crate::work::{ALPHA, Batch, CLASSES, Logits, Step, TEMPERATURE, Work};

/// How a training step reaches a GPU.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Layout {
    /// Piece by piece.
    Default,
    /// As a CUDA graph.
    Graph,
}

pub(crate) fn prepare(
    work: Work,
    batch: Batch,
    precision: Precision,
    layout: Layout,
) -> anyhow::Result<Step> {
    let training =
        |architecture, batch, soft| training(architecture, precision, layout, batch, soft);
    Ok(match work {
        Work::TeacherStep => training(Architecture::Teacher, batch, Soft::None)?,
        Work::StudentStep => training(Architecture::Student, batch, Soft::None)?,
        Work::KdStep => training(Architecture::Student, batch, Soft::Given)?,
        Work::KdStepWithTeacher => {
            let teacher = teacher(batch.images.device())?;
            training(Architecture::Student, batch, Soft::Live(teacher))?
        }
        Work::TeacherEval | Work::Loss { .. } if layout == Layout::Graph => {
            anyhow::bail!("only training steps are captured")
        }
        Work::TeacherEval => {
            let teacher = teacher(batch.images.device())?;
            Box::new(move || {
                logits(&*teacher, &batch.images)?;
                Ok(())
            })
        }
        Work::Loss { batch: rows, classes, dtype } => {
            let logits = Logits::new(rows, classes, dtype, batch.images.device())?;
            Box::new(move || {
                let Logits { student, teacher, labels } = &logits;
                kd_with_labels(student, teacher, labels, TEMPERATURE, ALPHA)?.backward()?;
                Ok(())
            })
        }
    })
}

/// As `[training] precision` does; what a teacher says and the losses are f32 always.
fn allow_tf32(allow: bool) {
    #[cfg(feature = "cuda")]
    kd_ops::cuda::allow_tf32(allow);
    #[cfg(not(feature = "cuda"))]
    let _ = allow;
}

/// Where the soft targets come from.
enum Soft {
    None,
    Given,
    Live(Box<dyn Classifier + Send + Sync>),
}

fn config(architecture: Architecture) -> ModelConfig {
    ModelConfig { architecture, classes: CLASSES, dropout: 0.1 }
}

/// A teacher that takes no part in training.
fn teacher(device: &Device) -> anyhow::Result<Box<dyn Classifier + Send + Sync>> {
    let config = config(Architecture::Teacher);
    let parameters = kd_models::init(&config, 1, device)?;
    let weights: BTreeMap<String, Tensor> =
        parameters.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
    Ok(kd_models::build(&config, kd_models::frozen(&weights))?)
}

fn logits(network: &dyn Classifier, images: &Tensor) -> anyhow::Result<Tensor> {
    Ok(network.forward_t(images, Mode::Eval, &[])?.logits)
}

fn training(
    architecture: Architecture,
    precision: Precision,
    layout: Layout,
    batch: Batch,
    soft: Soft,
) -> anyhow::Result<Step> {
    let config = config(architecture);
    let parameters = kd_models::init(&config, 0, batch.images.device())?;
    let network = kd_models::build(&config, kd_models::var_builder(&parameters))?;
    let (labels_weight, kd_weight) = alpha_weights(ALPHA)?;
    let objective = if matches!(soft, Soft::None) {
        Objective::new(1.0, Vec::new())?
    } else {
        let kd = MethodConfig::Kd(KdConfig { temperature: TEMPERATURE, ..KdConfig::default() });
        let kd = kd_loss::build(&kd, &Setup::default(), kd_models::frozen(&BTreeMap::new()))?;
        Objective::new(labels_weight, vec![Weighted::new("kd", kd_weight, kd)])?
    };
    let mut trainer = Trainer {
        parameters,
        network,
        objective,
        adam: Adam::new(AdamConfig::default()),
        soft,
        precision,
        step: 0,
    };
    if layout == Layout::Graph {
        return captured(trainer, batch);
    }
    Ok(Box::new(move || {
        // Last: on a GPU it waits for the step.
        trainer.submit(&batch)?.to_scalar::<f32>()?;
        trainer.step += 1;
        Ok(())
    }))
}

/// A network in training.
struct Trainer {
    parameters: Parameters,
    network: Box<dyn Classifier + Send + Sync>,
    objective: Objective,
    adam: Adam,
    soft: Soft,
    precision: Precision,
    step: u64,
}

impl Trainer {
    /// One step of training; its loss.
    fn submit(&mut self, batch: &Batch) -> anyhow::Result<Tensor> {
        let live = match &self.soft {
            Soft::Live(teacher) => Some(logits(&**teacher, &batch.images)?),
            Soft::None | Soft::Given => None,
        };
        let mode = Mode::Train(DropoutKey { seed: 0, step: self.step });
        allow_tf32(self.precision == Precision::Tf32);
        let images = match self.precision {
            Precision::Bf16 => batch.images.to_dtype(DType::BF16)?,
            Precision::F32 | Precision::Tf32 => batch.images.clone(),
        };
        let logits = self.network.forward_t(&images, mode, &[])?.logits.to_dtype(DType::F32)?;
        let inputs = Inputs {
            teacher_logits: Some(live.as_ref().unwrap_or(&batch.teacher_logits)),
            ..Inputs::new(&logits, &batch.labels)
        };
        let loss = self.objective.loss(&inputs, RunStep::default())?;
        let gradients = loss.total.backward()?;
        allow_tf32(false);
        self.adam.step(&self.parameters, &gradients)?;
        Ok(loss.total.detach())
    }
}

/// The step as `kd train --compile graph` takes it: a batch is copied to where the graph looks for it.
#[cfg(feature = "cuda")]
fn captured(mut trainer: Trainer, batch: Batch) -> anyhow::Result<Step> {
    use kd_ops::cuda::graph::{Graph, keep_uploads};

    let device = batch.images.device().clone();
    let fixed = Batch {
        images: batch.images.copy()?,
        labels: batch.labels.copy()?,
        teacher_logits: batch.teacher_logits.copy()?,
    };
    let uploads = keep_uploads(&device);
    for _ in 0..2 {
        trainer.submit(&fixed)?;
        trainer.step += 1;
    }
    drop(uploads);
    let loss = Tensor::zeros(1, DType::F32, &device)?;
    // A capture may not load the kernel that copies it.
    loss.slice_set(&loss.zeros_like()?, 0, 0)?;
    let body = || {
        loss.slice_set(&trainer.submit(&fixed)?.reshape(1)?, 0, 0)?;
        anyhow::Ok(())
    };
    // SAFETY: the closure below owns all that the step uses, and no step but the graph's is taken any more.
    let mut graph = unsafe { Graph::capture(&device, body) }?;
    Ok(Box::new(move || {
        // The whole of it: a closure takes no more than the fields that it names, and the others would be freed.
        let trainer = &mut trainer;
        fixed.images.slice_set(&batch.images, 0, 0)?;
        fixed.labels.slice_set(&batch.labels, 0, 0)?;
        fixed.teacher_logits.slice_set(&batch.teacher_logits, 0, 0)?;
        let scalars = trainer.adam.next_step();
        graph.launch(trainer.step, scalars)?;
        loss.to_vec1::<f32>()?;
        trainer.step += 1;
        Ok(())
    }))
}

#[cfg(not(feature = "cuda"))]
fn captured(_: Trainer, _: Batch) -> anyhow::Result<Step> {
    anyhow::bail!("CUDA graphs need the feature cuda")
}
