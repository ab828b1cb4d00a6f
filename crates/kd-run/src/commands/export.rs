//! `kd export`.

use crate::cli::Export;
use crate::export::{Input, OnnxConfig, onnx};
use crate::files;

/// `kd export`.
pub(crate) fn export(flags: &Export) -> anyhow::Result<()> {
    let weights = super::weights::load(&flags.weights, flags.model, flags.classes)?;
    let options = OnnxConfig {
        input: if flags.float { Input::Float } else { Input::Uint8 },
        int8: flags.int8,
        mean: weights.normalization.mean,
        std: weights.normalization.std,
        class_names: weights.class_names,
    };
    files::write_whole(&flags.onnx, &onnx(&weights.config, &weights.tensors, &options)?)?;
    super::say(&format!("{}\n", flags.onnx.display()))
}
