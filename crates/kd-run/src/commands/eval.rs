//! `kd eval`.

use std::path::Path;

use anyhow::Context;
use candle_core::Tensor;
use kd_data::Split;
use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;

use crate::cli::Eval;
use crate::evaluate::{Evaluation, evaluate, logits};
use crate::teacher::Pretrained;
use crate::{data, device, files};

/// What `--json` prints.
#[derive(Serialize)]
struct Printed<'a> {
    model: &'a str,
    weights: String,
    sha256: &'a str,
    dataset: Dataset<'a>,
    #[serde(flatten)]
    evaluation: &'a Evaluation,
}

#[derive(Serialize)]
struct Dataset<'a> {
    name: &'a str,
    test: usize,
    sha256: &'a str,
}

/// `kd eval`.
pub(crate) fn eval(flags: &Eval) -> anyhow::Result<()> {
    let mut config = super::read_recipe(flags.recipe.as_deref())?.data;
    if let Some(dataset) = flags.data.dataset {
        if dataset != config.dataset {
            config.sha256 = None;
        }
        config.dataset = dataset;
    }
    config.test_limit = flags.data.test_limit.or(config.test_limit);
    // What weights are worth is asked of the test images.
    config.held_out = None;
    // Not looked at, so not worth much memory.
    config.train_limit = Some(1);
    let device = device::choose(flags.compute.device)?;
    let data = data::load(&config, &flags.data.data)?;
    let (classes, normalization) = (data.classes.len(), config.normalization());
    let weights = Pretrained::load(&flags.weights, flags.model, classes, normalization)?;
    let network = weights.network(&device)?;
    let evaluation = evaluate(&*network, &data.test, &data.classes, normalization, &device)?;
    if let Some(path) = &flags.logits {
        write_logits(path, &logits(&*network, &data.test, normalization, &device)?, &data.test)?;
    }
    if !flags.json {
        return super::say(&table(&evaluation));
    }
    let printed = Printed {
        model: weights.config.architecture.name(),
        weights: flags.weights.display().to_string(),
        sha256: &weights.sha256,
        dataset: Dataset { name: &data.name, test: data.test.len(), sha256: &data.sha256 },
        evaluation: &evaluation,
    };
    let json = serde_json::to_string(&printed).context("the result can't be written as JSON")?;
    super::say(&format!("{json}\n"))
}

/// Writes `logits` (f32 `[N, classes]`) and `labels` (i64 `[N]`), in the order of the test images.
fn write_logits(path: &Path, logits: &Tensor, test: &Split) -> anyhow::Result<()> {
    let values: Vec<u8> =
        logits.flatten_all()?.to_vec1::<f32>()?.iter().flat_map(|v| v.to_le_bytes()).collect();
    let labels: Vec<u8> =
        test.labels.iter().flat_map(|&label| i64::from(label).to_le_bytes()).collect();
    let tensors = [
        ("logits", TensorView::new(Dtype::F32, logits.dims().to_vec(), &values)?),
        ("labels", TensorView::new(Dtype::I64, vec![test.len()], &labels)?),
    ];
    files::write_whole(path, &safetensors::serialize(tensors, None)?)
}

/// Accuracy and loss.
pub(super) fn one_line(evaluation: &Evaluation) -> String {
    format!("test accuracy {:.2} %, test loss {:.4}", 100.0 * evaluation.accuracy, evaluation.loss)
}

fn table(evaluation: &Evaluation) -> String {
    let mut text = one_line(evaluation) + "\n\n";
    let classes = &evaluation.classes;
    let width = classes.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    text += "class, accuracy, answers (columns in the order of the rows)\n";
    for (index, name) in classes.iter().enumerate() {
        text += &format!("{name:width$} {:6.2} %", 100.0 * evaluation.per_class_accuracy[index]);
        // A hundred columns are no table.
        if classes.len() <= 20 {
            for count in &evaluation.confusion[index] {
                text += &format!(" {count:5}");
            }
        }
        text.push('\n');
    }
    text
}
