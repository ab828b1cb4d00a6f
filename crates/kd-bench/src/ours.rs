//! kd's own steps: training steps are those of [`kd_run::trainer::Trainer`], which `kd train` and `kd distill` take.

use std::collections::BTreeMap;

use candle_core::Tensor;
use kd_loss::{KdConfig, MethodConfig, Objective, Setup, Weighted, alpha_weights, kd_with_labels};
use kd_models::{Architecture, ModelConfig};
use kd_ops::groups::ParameterGroups;
use kd_record::{Compile, Precision};
use kd_run::at::At;
use kd_run::figures::{Sums, Unread};
use kd_run::recipe::OptimizerConfig;
use kd_run::step::StepConfig;
use kd_run::task::{Learner, Supervised};
use kd_run::teacher::{Cached, Network, NetworkTeacher, Teacher};
use kd_run::trainer::Trainer;

use crate::work::{ALPHA, Batch, CLASSES, Logits, Step, TEMPERATURE, Work};

pub(crate) fn prepare(
    work: Work,
    batch: Batch,
    precision: Precision,
    compile: Compile,
) -> anyhow::Result<Step> {
    let training = |architecture, batch: Batch, teacher: Option<Box<dyn Teacher>>| {
        training(architecture, batch, teacher, precision, compile)
    };
    Ok(match work {
        Work::Step(of) => training(of.network, batch, None)?,
        Work::KdStep => {
            let outputs = BTreeMap::from([("logits".to_string(), batch.teacher_logits.clone())]);
            let teacher = Box::new(Cached::new(outputs, None));
            training(Architecture::TUTORIAL_STUDENT, batch, Some(teacher))?
        }
        Work::KdStepWithTeacher => {
            let teacher = untrained(Architecture::TUTORIAL_TEACHER, &batch.images)?;
            let teacher = Box::new(NetworkTeacher::new(teacher));
            training(Architecture::TUTORIAL_STUDENT, batch, Some(teacher))?
        }
        Work::Eval(_) | Work::Loss { .. } if compile == Compile::Graph => {
            anyhow::bail!("only training steps are captured")
        }
        Work::Eval(of) => {
            let network = untrained(of.network, &batch.images)?;
            Box::new(move || {
                network.evaluate(&batch.images, &[])?;
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

/// A network for such images `[B, C, H, W]`.
fn config(architecture: Architecture, images: &Tensor) -> anyhow::Result<ModelConfig> {
    let (_, channels, height, width) = images.dims4()?;
    let input = [channels, height, width];
    Ok(ModelConfig { input, ..ModelConfig::new(architecture, CLASSES) })
}

/// A network that takes no part in training.
fn untrained(architecture: Architecture, images: &Tensor) -> anyhow::Result<Network> {
    let config = config(architecture, images)?;
    let parameters = kd_models::init(&config, 1, images.device())?;
    let weights: BTreeMap<String, Tensor> =
        parameters.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
    Ok(kd_models::build(&config, kd_models::frozen(&weights))?)
}

/// Steps of a network that learns from labels and, where there is one, from a teacher's logits, with the default Adam.
fn training(
    architecture: Architecture,
    batch: Batch,
    teacher: Option<Box<dyn Teacher>>,
    precision: Precision,
    compile: Compile,
) -> anyhow::Result<Step> {
    kd_run::device::check(batch.images.device(), precision, compile)?;
    let config = config(architecture, &batch.images)?;
    let parameters = kd_models::init(&config, 0, batch.images.device())?;
    let network = kd_models::build(&config, kd_models::var_builder(&parameters))?;
    let objective = match &teacher {
        None => Objective::new(1.0, Vec::new())?,
        Some(_) => {
            let (labels_weight, kd_weight) = alpha_weights(ALPHA)?;
            let kd = KdConfig { temperature: TEMPERATURE, ..KdConfig::default() };
            let none = kd_models::frozen(&BTreeMap::new());
            let kd = kd_loss::build(&MethodConfig::Kd(kd), &Setup::default(), none)?;
            Objective::new(labels_weight, vec![Weighted::new("kd", kd_weight, kd)])?
        }
    };
    let optimizer = OptimizerConfig::default();
    let learning_rate = optimizer.lr();
    let optimizer = ParameterGroups::one(optimizer.optimizer(), &parameters);
    let task =
        Supervised::new(Learner { network, parameters, optimizer, average: None }, objective);
    let step_config = StepConfig { precision, ..StepConfig::default() };
    let mut trainer = Trainer::new(Box::new(task), teacher, step_config);
    let batch = batch.for_training()?;
    if let Some(why) = trainer.compile(compile, batch.indices.len()) {
        anyhow::bail!("the step can't be captured: {why}");
    }
    let mut step = 0;
    let mut take = move || {
        let (epoch, epochs, steps) = (0, 1, step + 1);
        let at = At { seed: 0, epoch, epochs, step, steps, learning_rate, part: 0 };
        let mut unread = Unread::default();
        unread.push(step, &batch.indices, trainer.step(&batch, &at)?);
        // Last: on a GPU it waits for the step.
        if let Err(found) = unread.read(&mut Sums::default())? {
            anyhow::bail!("{}; expected a finite number", found.found);
        }
        step += 1;
        Ok(trainer.is_captured())
    };
    if compile == Compile::Graph {
        // The steps that warm up and the one that captures.
        for _ in 0..2 {
            take()?;
        }
        anyhow::ensure!(take()?, "the step could not be captured; the warnings say why");
    }
    Ok(Box::new(move || take().map(drop)))
}
