//! Weights on disk. Written are safetensors files under PyTorch's names, which PyTorch loads with
//! `load_state_dict(safetensors.torch.load_file(path))`; read are these and what `torch.save` writes.
//!
//! Running statistics are among them. PyTorch also counts batches (`num_batches_tracked`, an integer that only
//! an average with `momentum=None` uses): it is passed over when a file has it and never written. A `load_state_dict`,
//! `strict=True` or not, keeps PyTorch's own count then.

mod check;
mod contents;
mod fit;
mod header;
mod kind;
mod metadata;
mod names;
mod pickle;
mod read;
mod torch;
mod torch_legacy;
mod values;
mod write;

pub use metadata::{LeftOut, Metadata, Scaled};
pub use read::{Header, Loaded, Start, load, load_start, parse, peek};
pub use write::save;
