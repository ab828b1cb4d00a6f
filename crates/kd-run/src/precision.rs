//! The arithmetic of training on a GPU.

use candle_core::{DType, Device};
use kd_data::Batch;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::error::other;

/// What the factors of convolutions and matrix products are in training; sums, losses, weights and optimiser are f32.
///
/// Evaluation and the teacher's answers are f32 always, so that figures of different precisions can be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// f32 numbers, rounded to 10 bits of mantissa when multiplied. Cards before compute capability 8.0 have none and
    /// multiply f32.
    Tf32,
    /// Maps are stored as bf16 and weights rounded to it, from f32 weights that the optimiser changes ("mixed
    /// precision"). bf16 has the range of f32, so no loss scaling is needed.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::Tf32, Self::Bf16];

    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }

    pub(crate) fn is_f32(&self) -> bool {
        *self == Self::F32
    }

    /// Checks that a device has it.
    ///
    /// # Errors
    /// When it is not f32 and the device is no NVIDIA GPU.
    pub(crate) fn check(self, device: &Device) -> Result<()> {
        match self == Self::F32 || device.is_cuda() {
            true => Ok(()),
            false => Err(other!(
                "precision {} is for NVIDIA GPUs, and this run computes on the CPU: use --device cuda, or precision f32",
                self.name()
            )),
        }
    }

    /// A batch as a network in training takes it: with bf16 images where maps are bf16.
    pub(crate) fn batch(self, batch: &Batch) -> candle_core::Result<Batch> {
        let mut batch = batch.clone();
        if self == Self::Bf16 {
            batch.images = batch.images.to_dtype(DType::BF16)?;
        }
        Ok(batch)
    }

    /// From here until the value is dropped products on a GPU are of this precision.
    pub(crate) fn begin(self) -> Products {
        let tf32 = self == Self::Tf32;
        if tf32 {
            allow_tf32(true);
        }
        Products { tf32 }
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|precision| precision.name() == name);
        let known = Self::ALL.map(Self::name).join(", ");
        found.ok_or_else(|| format!("there is no precision {name:?}; expected one of {known}"))
    }
}

/// See [`Precision::begin`].
pub(crate) struct Products {
    tf32: bool,
}

impl Drop for Products {
    fn drop(&mut self) {
        if self.tf32 {
            allow_tf32(false);
        }
    }
}

#[cfg(feature = "cuda")]
use kd_ops::cuda::allow_tf32;

#[cfg(not(feature = "cuda"))]
fn allow_tf32(_: bool) {}
