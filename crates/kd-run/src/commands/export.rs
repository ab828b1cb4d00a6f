//! `kd export`.

use kd_data::Normalization;
use kd_models::{Architecture, ModelConfig, weights};

use crate::cli::Export;
use crate::export::{Input, OnnxConfig, onnx};
use crate::files;

/// `kd export`.
pub(crate) fn export(flags: &Export) -> anyhow::Result<()> {
    let path = &flags.weights;
    let network = |model| ModelConfig::new(model, flags.classes);
    let mut config = network(flags.model.unwrap_or(Architecture::Teacher));
    let (tensors, metadata) = match weights::load(path, &config) {
        // Nobody said which network, but the file does.
        Err(kd_models::Error::WrongArchitecture { found, .. }) if flags.model.is_none() => {
            config = network(found.parse()?);
            weights::load(path, &config)?
        }
        loaded => loaded?,
    };
    // A file from PyTorch doesn't say its normalisation: the tutorial's.
    let Normalization { mut mean, mut std } = Normalization::default();
    let mut class_names = None;
    if let Some(metadata) = metadata {
        (mean, std, class_names) = (metadata.mean, metadata.std, metadata.class_names);
    }
    let input = if flags.float { Input::Float } else { Input::Uint8 };
    let options = OnnxConfig { input, int8: flags.int8, mean, std, class_names };
    files::write_whole(&flags.onnx, &onnx(&config, &tensors, &options)?)?;
    super::say(&format!("{}\n", flags.onnx.display()))
}
