//! The steps that `kd train` and `kd distill` take.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use kd_loss::{
    Inputs, KdConfig, MethodConfig, Objective, Shapes, Weighted, alpha_weights, kd_with_labels,
};
use kd_models::{Architecture, Classifier, Mode, ModelConfig};
use kd_ops::DropoutKey;
use kd_ops::adam::{Adam, AdamConfig};

use crate::Precision;
use crate::work::{ALPHA, Batch, CLASSES, Logits, Step, TEMPERATURE, Work};

pub(crate) fn prepare(work: Work, batch: Batch, precision: Precision) -> anyhow::Result<Step> {
    Ok(match work {
        Work::TeacherStep => training(Architecture::Teacher, precision, batch, Soft::None)?,
        Work::StudentStep => training(Architecture::Student, precision, batch, Soft::None)?,
        Work::KdStep => training(Architecture::Student, precision, batch, Soft::Given)?,
        Work::KdStepWithTeacher => {
            let teacher = teacher(batch.images.device())?;
            training(Architecture::Student, precision, batch, Soft::Live(teacher))?
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
        let kd = kd_loss::build(&kd, &Shapes::default(), kd_models::frozen(&BTreeMap::new()))?;
        Objective::new(labels_weight, vec![Weighted::new(kd_weight, kd)])?
    };
    let mut adam = Adam::new(AdamConfig::default());
    let mut step = 0;
    let none = BTreeMap::new();
    let indices: Vec<u32> = (0..batch.labels.elem_count() as u32).collect();
    Ok(Box::new(move || {
        let live = match &soft {
            Soft::Live(teacher) => Some(logits(&**teacher, &batch.images)?),
            Soft::None | Soft::Given => None,
        };
        let mode = Mode::Train(DropoutKey { seed: 0, step });
        allow_tf32(precision == Precision::Tf32);
        let images = match precision {
            Precision::Bf16 => batch.images.to_dtype(DType::BF16)?,
            Precision::F32 | Precision::Tf32 => batch.images.clone(),
        };
        let logits = network.forward_t(&images, mode, &[])?.logits.to_dtype(DType::F32)?;
        let loss = objective.loss(&Inputs {
            student_logits: &logits,
            teacher_logits: Some(live.as_ref().unwrap_or(&batch.teacher_logits)),
            labels: &batch.labels,
            student_features: &none,
            teacher_features: &none,
            epoch: 0,
            epochs: 1,
            seed: 0,
            step,
            steps: step + 1,
            indices: &indices,
        })?;
        let gradients = loss.total.backward()?;
        allow_tf32(false);
        adam.step(&parameters, &gradients)?;
        // Last: on a GPU it waits for the step.
        loss.total.to_scalar::<f32>()?;
        step += 1;
        Ok(())
    }))
}
