//! Operations on one image at a time, NHWC in memory: what a planned network is made of.
//!
//! A *map* is one image's values `[height, width, channels]`, channels side by side. Its channels are rounded up to whole
//! vectors ([`Map::new`]); the channels beyond a layer's own are zeros in every map and every gradient. A vector `[F]` is a
//! map of one pixel. A [`Frame`] is a map with room around it, in which a convolution reads and writes.
//!
//! Nothing here allocates on an image's way, none of it knows candle, and every sum over pixels has an order that depends on
//! the sizes alone. Functions check their slices' lengths and panic where these don't fit: their caller is a plan, not a user.

mod conv;
mod depthwise;
mod elementwise;
mod layout;
mod memory;
mod pointwise;
mod pool;
mod read;
mod spatial;
mod statistics;
mod tensors;
#[cfg(test)]
mod tests;

pub use conv::{
    Backward, Conv, ConvSizes, Forward, Incoming, Input, NormSums, Outgoing, Output, WeightSums,
};
pub use elementwise::{activate, activation, add, mask_by_value};
pub use layout::{Frame, Map, from_nchw, to_nchw};
pub use memory::{Memory, Place};
pub use pool::{
    Windows, global_average, global_average_gradient, max_pool, max_pool_gradient, subsample,
    subsample_gradient,
};
pub use read::{Activation, Affine, Read};
pub use statistics::{Moments, NormGradient, add_gradient_sums, norm_gradient};
pub use tensors::{blend, dropout, with_values};

pub use crate::conv::Pads;
pub use crate::cpu::with_scratch;
pub use crate::matmul::{View, matmul};
pub use crate::simd::Isa;
