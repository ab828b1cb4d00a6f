//! Names that recipes, flags, records and weights files share: what computes, how precisely, how a step reaches a GPU, and how pictures are
//! scaled.
//!
//! Each type's [`Display`](std::fmt::Display), [`FromStr`](std::str::FromStr) and serde form is the same lower-case name.
//! With the feature `clap` each is a value of a command-line argument too.

use serde::{Deserialize, Serialize};

/// What to compute on, as `--device` says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// A GPU if this build and machine have one, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// The numbers that convolutions and matrix products multiply in training; sums, losses, weights and optimiser are f32.
///
/// Evaluation and the teacher's outputs are always f32, so that figures of different precisions can be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// f32 numbers, rounded to 10 bits of mantissa when multiplied. GPUs before compute capability 8.0 do not have it and
    /// multiply f32.
    Tf32,
    /// Feature maps are stored as bf16 and weights rounded to it, from f32 weights that the optimiser changes ("mixed
    /// precision"). bf16 has the range of f32, so no loss scaling is needed.
    Bf16,
}

/// How a training step reaches a GPU. It does not change the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compile {
    /// Operation by operation.
    #[default]
    Off,
    /// As a CUDA graph, captured once and launched whole: the host, which may be what limits a small network, has far less to
    /// do. The graph keeps memory of its own for a step's tensors.
    Graph,
}

/// How the value of a new pixel is found between old ones when a picture is scaled; both look at the whole area that the new pixel covers
/// (antialiased), as Pillow does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Linearly, a triangle of two pixels' width: `InterpolationMode.BILINEAR` of torchvision with antialiasing.
    #[default]
    Bilinear,
    /// By cubic polynomials, four pixels wide (Keys, 1981, a = -1/2): `InterpolationMode.BICUBIC`.
    Bicubic,
}

/// A name that is none of those expected.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{found:?} is no {what}; expected {expected}")]
pub struct UnknownName {
    found: String,
    what: &'static str,
    expected: String,
}

macro_rules! names {
    ($type:ident, $what:literal, $($variant:ident: $name:literal),+) => {
        impl $type {
            /// All of them.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// The name in recipes, flags and records.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                let found = Self::ALL.into_iter().find(|value| value.name() == text);
                found.ok_or_else(|| UnknownName {
                    found: text.to_owned(),
                    what: $what,
                    expected: [$($name),+].join(", "),
                })
            }
        }

        #[cfg(feature = "clap")]
        impl clap::ValueEnum for $type {
            fn value_variants<'a>() -> &'a [Self] {
                &Self::ALL
            }

            fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
                Some(clap::builder::PossibleValue::new(self.name()))
            }
        }
    };
}

names!(DeviceChoice, "device", Auto: "auto", Cpu: "cpu", Cuda: "cuda");
names!(Precision, "precision", F32: "f32", Tf32: "tf32", Bf16: "bf16");
names!(Compile, "compile mode", Off: "off", Graph: "graph");
names!(Interpolation, "interpolation", Bilinear: "bilinear", Bicubic: "bicubic");

impl Precision {
    /// Whether it is f32, the default, which recipes leave out.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}

impl Interpolation {
    /// Whether it is bilinear, the default, which recipes leave out.
    pub fn is_bilinear(&self) -> bool {
        *self == Self::Bilinear
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_name_is_the_same() {
        fn check<T>(all: &[T])
        where
            T: Copy + PartialEq + std::fmt::Debug + std::fmt::Display + std::str::FromStr,
            T: Serialize + serde::de::DeserializeOwned,
        {
            for value in all {
                let name = value.to_string();
                assert_eq!(name.parse::<T>().ok(), Some(*value));
                let json = serde_json::to_string(value).unwrap();
                assert_eq!(json, format!("{name:?}"));
                assert_eq!(serde_json::from_str::<T>(&json).unwrap(), *value);
            }
        }
        check(&DeviceChoice::ALL);
        check(&Precision::ALL);
        check(&Compile::ALL);
        check(&Interpolation::ALL);
        let message = "f16".parse::<Precision>().unwrap_err().to_string();
        assert_eq!(message, "\"f16\" is no precision; expected f32, tf32, bf16");
    }
}
