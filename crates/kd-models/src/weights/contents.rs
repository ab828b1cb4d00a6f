//! What a weights file holds, whatever its format: dicts of named tensors.

use std::collections::BTreeMap;
use std::fmt;

use super::metadata::Metadata;

/// The type of a stored tensor's elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Type {
    F16,
    BF16,
    F32,
    F64,
    /// A type that no weight of a network here has, by the name that the file gives it.
    Other(String),
}

impl Type {
    /// The bytes of one element; `None` for a type that isn't read.
    pub(super) fn size(&self) -> Option<usize> {
        match self {
            Self::F16 | Self::BF16 => Some(2),
            Self::F32 => Some(4),
            Self::F64 => Some(8),
            Self::Other(_) => None,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F16 => f.write_str("F16"),
            Self::BF16 => f.write_str("BF16"),
            Self::F32 => f.write_str("F32"),
            Self::F64 => f.write_str("F64"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// A tensor of a file: what it is and where its elements lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) shape: Vec<usize>,
    pub(super) dtype: Type,
    /// The archive's member that has the elements; empty in a safetensors file.
    pub(super) member: String,
    /// Where the first element lies in the member or file, in bytes.
    pub(super) offset: u64,
    /// How many elements lie between neighbours of each dimension.
    pub(super) strides: Vec<usize>,
}

/// The strides of a tensor whose elements lie one after another, row-major; `None` where its size overflows.
pub(super) fn contiguous(shape: &[usize]) -> Option<Vec<usize>> {
    let mut strides = vec![1usize; shape.len()];
    for at in (1..shape.len()).rev() {
        strides[at - 1] = strides[at].checked_mul(shape[at])?;
    }
    Some(strides)
}

/// Named tensors that lie beside each other in a file.
#[derive(Clone, Debug)]
pub(super) struct Dict {
    /// The keys on the way to it from the file's outermost dict, with dots between; empty for that dict itself.
    pub(super) key: String,
    pub(super) tensors: BTreeMap<String, Stored>,
}

/// What a file holds.
#[derive(Clone, Debug)]
pub(super) struct Contents {
    /// The file's own description, which only this project's files have.
    pub(super) metadata: Option<Metadata>,
    /// All dicts that have tensors.
    pub(super) dicts: Vec<Dict>,
}
