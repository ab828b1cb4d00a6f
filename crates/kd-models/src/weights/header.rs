//! The header of a safetensors file.

use std::io::Read;
use std::path::Path;

use safetensors::tensor::Dtype;

use super::contents::{Contents, Dict, Stored, Type, contiguous};
use super::metadata::Metadata;
use crate::{Error, Result};

/// No network here needs a header near this size; a larger one is not read at all.
const MAX_HEADER: u64 = 1 << 20;

/// Reads a safetensors file's header and checks that the file is as long as it says.
///
/// # Errors
/// When the file is cut off or no safetensors file, or its description can't be understood.
pub(super) fn read(path: &Path, file: &mut impl Read, file_len: u64) -> Result<Contents> {
    let io = |source| Error::Io { path: path.into(), source };
    let malformed = |reason: String| Error::Malformed { path: path.into(), reason };
    if file_len == 0 {
        return Err(malformed(
            "it is empty (0 bytes): it was never written, or its copy failed; copy or download it again".into(),
        ));
    }
    if file_len < 8 {
        return Err(malformed(format!(
            "it has {file_len} bytes, fewer than the 8 of its header's length"
        )));
    }
    let mut header_len = [0; 8];
    file.read_exact(&mut header_len).map_err(io)?;
    let header_len = u64::from_le_bytes(header_len);
    if header_len > file_len - 8 {
        return Err(malformed(format!(
            "it announces a header of {header_len} bytes, but has {file_len} bytes in all; if it is a safetensors file, it is cut off: copy or download it again"
        )));
    }
    if header_len > MAX_HEADER {
        return Err(malformed(format!(
            "it announces a header of {header_len} bytes; no more than {MAX_HEADER} are expected"
        )));
    }
    let mut header = vec![0; header_len as usize];
    file.read_exact(&mut header).map_err(io)?;
    let header: safetensors::tensor::Metadata = serde_json::from_slice(&header)
        .map_err(|error| malformed(format!("its header can't be read: {error}")))?;
    let metadata = Metadata::read(path, header.metadata())?;
    let data_start = 8 + header_len;
    let (in_header, in_file) = (header.data_len() as u64, file_len - data_start);
    if in_header != in_file {
        let cut =
            if in_file < in_header { ": it is cut off; copy or download it again" } else { "" };
        return Err(malformed(format!(
            "its header announces {in_header} bytes of data from offset {data_start}, the file has {in_file}{cut}"
        )));
    }
    let mut dict = Dict { key: String::new(), tensors: Default::default() };
    for (name, info) in header.tensors() {
        let dtype = match info.dtype {
            Dtype::F16 => Type::F16,
            Dtype::BF16 => Type::BF16,
            Dtype::F32 => Type::F32,
            Dtype::F64 => Type::F64,
            other => Type::Other(other.to_string()),
        };
        let shape = info.shape.clone();
        let strides = contiguous(&shape)
            .ok_or_else(|| malformed(format!("the shape of its tensor {name} overflows")))?;
        let (member, offset) = (String::new(), data_start + info.data_offsets.0 as u64);
        dict.tensors.insert(name, Stored { shape, dtype, member, offset, strides });
    }
    Ok(Contents { metadata, dicts: vec![dict] })
}
