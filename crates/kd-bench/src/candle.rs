//! The same networks from candle-nn's layers, losses and optimiser, as one would write them with candle alone.
//! The max-pool's gradient is a quarter of the right one there, which costs no time.

use candle_core::{DType, Device, Tensor};
use candle_nn::ops::{dropout, log_softmax};
use candle_nn::{
    AdamW, Conv2d, Conv2dConfig, Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap,
};

use kd_models::Architecture;

use crate::work::{ALPHA, Batch, CLASSES, Logits, Sized, Step, TEMPERATURE, Work};

pub(crate) fn prepare(work: Work, batch: Batch) -> anyhow::Result<Step> {
    Ok(match work {
        Work::Step(of) => training(plan(of)?, batch, Soft::None)?,
        Work::KdStep => training(&STUDENT, batch, Soft::Given)?,
        Work::KdStepWithTeacher => {
            let teacher = Network::frozen(&TEACHER, batch.images.device())?;
            training(&STUDENT, batch, Soft::Live(teacher))?
        }
        Work::Eval(of) => {
            let network = Network::frozen(plan(of)?, batch.images.device())?;
            Box::new(move || {
                network.forward(&batch.images, false)?;
                Ok(())
            })
        }
        Work::Loss { batch: rows, classes, dtype } => {
            let logits = Logits::new(rows, classes, dtype, batch.images.device())?;
            Box::new(move || {
                let Logits { student, teacher, labels } = &logits;
                loss(student, Some(teacher), labels)?.backward()?;
                Ok(())
            })
        }
    })
}

/// Where the soft targets come from.
enum Soft {
    None,
    Given,
    Live(Network),
}

struct Plan {
    /// Channels in and out, and whether a max-pool follows.
    convs: &'static [(usize, usize, bool)],
    flat: usize,
    hidden: usize,
}

const TEACHER: Plan = Plan {
    convs: &[(3, 128, false), (128, 64, true), (64, 64, false), (64, 32, true)],
    flat: 2048,
    hidden: 512,
};
const STUDENT: Plan = Plan { convs: &[(3, 16, true), (16, 16, true)], flat: 1024, hidden: 256 };

/// The plan of one of the tutorial's networks.
fn plan(of: Sized) -> anyhow::Result<&'static Plan> {
    match of {
        Sized { network: Architecture::TUTORIAL_TEACHER, input: [3, 32, 32] } => Ok(&TEACHER),
        Sized { network: Architecture::TUTORIAL_STUDENT, input: [3, 32, 32] } => Ok(&STUDENT),
        Sized { network, input } => anyhow::bail!(
            "candle's side has the tutorial's networks on 32x32 pixels alone, not {} on {input:?}",
            network.name()
        ),
    }
}

struct Network {
    convs: Vec<(Conv2d, bool)>,
    hidden: Linear,
    output: Linear,
}

impl Network {
    fn new(plan: &Plan, vb: VarBuilder<'_>) -> candle_core::Result<Self> {
        let config = Conv2dConfig { padding: 1, ..Conv2dConfig::default() };
        let conv = |(i, &(inputs, outputs, pool)): (usize, &(usize, usize, bool))| {
            Ok((candle_nn::conv2d(inputs, outputs, 3, config, vb.pp(i))?, pool))
        };
        Ok(Self {
            convs: plan.convs.iter().enumerate().map(conv).collect::<candle_core::Result<_>>()?,
            hidden: candle_nn::linear(plan.flat, plan.hidden, vb.pp("hidden"))?,
            output: candle_nn::linear(plan.hidden, CLASSES, vb.pp("output"))?,
        })
    }

    /// One that takes no part in training: its weights are plain tensors.
    fn frozen(plan: &Plan, device: &Device) -> candle_core::Result<Self> {
        let variables = VarMap::new();
        let mut network = Self::new(plan, VarBuilder::from_varmap(&variables, DType::F32, device))?;
        let linear =
            |layer: &Linear| Linear::new(layer.weight().detach(), layer.bias().map(Tensor::detach));
        for (conv, _) in &mut network.convs {
            *conv = Conv2d::new(
                conv.weight().detach(),
                conv.bias().map(Tensor::detach),
                *conv.config(),
            );
        }
        network.hidden = linear(&network.hidden);
        network.output = linear(&network.output);
        Ok(network)
    }

    fn forward(&self, images: &Tensor, train: bool) -> candle_core::Result<Tensor> {
        let mut x = images.clone();
        for (conv, pool) in &self.convs {
            x = conv.forward(&x)?.relu()?;
            if *pool {
                x = x.max_pool2d(2)?;
            }
        }
        x = self.hidden.forward(&x.flatten_from(1)?)?.relu()?;
        if train {
            x = dropout(&x, 0.1)?;
        }
        self.output.forward(&x)
    }
}

fn training(plan: &Plan, batch: Batch, soft: Soft) -> anyhow::Result<Step> {
    let variables = VarMap::new();
    let device = batch.images.device();
    let network = Network::new(plan, VarBuilder::from_varmap(&variables, DType::F32, device))?;
    let settings = ParamsAdamW { lr: 1e-3, weight_decay: 0.0, ..ParamsAdamW::default() };
    let mut adam = AdamW::new(variables.all_vars(), settings)?;
    Ok(Box::new(move || {
        let soft_targets = match &soft {
            Soft::None => None,
            Soft::Given => Some(batch.teacher_logits.clone()),
            Soft::Live(teacher) => Some(teacher.forward(&batch.images, false)?),
        };
        let logits = network.forward(&batch.images, true)?;
        let loss = loss(&logits, soft_targets.as_ref(), &batch.labels)?;
        loss.to_scalar::<f32>()?;
        adam.backward_step(&loss)?;
        Ok(())
    }))
}

/// Cross-entropy, with a teacher's logits weighted and added to the soft targets' loss.
fn loss(logits: &Tensor, teacher: Option<&Tensor>, labels: &Tensor) -> candle_core::Result<Tensor> {
    let hard = candle_nn::loss::cross_entropy(logits, labels)?;
    match teacher {
        Some(teacher) => (hard * ALPHA)? + (kl(logits, teacher)? * (1.0 - ALPHA))?,
        None => Ok(hard),
    }
}

/// `T² · KL(teacher || student)`, averaged over the batch.
fn kl(student: &Tensor, teacher: &Tensor) -> candle_core::Result<Tensor> {
    let student = log_softmax(&(student / TEMPERATURE)?, 1)?;
    let teacher = log_softmax(&(teacher / TEMPERATURE)?, 1)?;
    let sum = (teacher.exp()? * (&teacher - student)?)?.sum_all()?;
    sum * (TEMPERATURE * TEMPERATURE / teacher.dim(0)? as f64)
}
