//! The arithmetic of training on a GPU.

use anyhow::ensure;
use candle_core::{DType, Device, Tensor};
use kd_models::Output;
use serde::{Deserialize, Serialize};

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

    /// Whether a device has it.
    pub(crate) fn check(self, device: &Device) -> anyhow::Result<()> {
        let name = self.name();
        ensure!(
            self == Self::F32 || device.is_cuda(),
            "precision {name} is for NVIDIA GPUs, and this run computes on the CPU: use --device cuda, or precision f32"
        );
        Ok(())
    }

    /// What a network in training is given.
    pub(crate) fn images(self, images: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::F32 | Self::Tf32 => Ok(images.clone()),
            Self::Bf16 => images.to_dtype(DType::BF16),
        }
    }

    /// What the losses are given: f32, from which the gradient goes on in the maps' own type.
    pub(crate) fn output(self, output: Output) -> candle_core::Result<Output> {
        if self != Self::Bf16 {
            return Ok(output);
        }
        let Output { logits, features } = output;
        let features =
            features.into_iter().map(|(name, map)| Ok((name, map.to_dtype(DType::F32)?)));
        Ok(Output {
            logits: logits.to_dtype(DType::F32)?,
            features: features.collect::<candle_core::Result<_>>()?,
        })
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
