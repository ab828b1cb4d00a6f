//! Writing weights files.

use std::collections::HashMap;
use std::path::Path;

use candle_core::DType;
use kd_record::write::write_whole;
use safetensors::tensor::{Dtype, TensorView};

use super::check::check_finite;
use super::metadata::{KEY, Metadata};
use crate::{Error, Result, Tensors};

/// Saves f32 weights. The same weights and metadata give the same bytes. The file is written
/// under another name in the same folder, flushed to disk and renamed: nobody ever sees half of it.
///
/// # Errors
/// When a weight is not f32 or not finite, or the file can't be written.
pub fn save(path: &Path, tensors: &Tensors, metadata: &Metadata) -> Result<()> {
    let mut data = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        if tensor.dtype() != DType::F32 {
            let found = format!("{:?}", tensor.dtype());
            let (name, expected) = (name.clone(), "F32");
            return Err(Error::TensorDtype { path: path.into(), name, found, expected });
        }
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        check_finite(path, name, &values)?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        data.push((name, tensor.dims().to_vec(), bytes));
    }
    let malformed = |reason: String| Error::Malformed { path: path.into(), reason };
    let mut views = Vec::with_capacity(data.len());
    for (name, shape, bytes) in &data {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        views.push((name.as_str(), view.map_err(|error| malformed(error.to_string()))?));
    }
    let metadata = serde_json::to_string(metadata).map_err(|error| malformed(error.to_string()))?;
    let metadata = HashMap::from([(KEY.to_string(), metadata)]);
    let bytes = safetensors::serialize(views, Some(metadata))
        .map_err(|error| malformed(error.to_string()))?;
    write_whole(path, &bytes).map_err(|error| match error {
        kd_record::Error::Io { path, cause, .. } => Error::Io { path, source: cause },
        other => malformed(other.to_string()),
    })
}
