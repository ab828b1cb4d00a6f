//! What the flags of several commands have in common: groups of flags that they share, in `flags`, and how a flag's value is read
//! from its text, in `values`.

mod flags;
mod values;

pub(crate) use flags::{ClassFlags, ComputeFlags, DataFlags, PictureFlags, RunFlags};
pub(crate) use values::{
    Part, architecture, at_least_one, channels, one_of, part, percent, positive, share,
};
