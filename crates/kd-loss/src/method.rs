//! What a distillation method is, and the list of them.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::attention::AttentionConfig;
use crate::congruence::CongruenceConfig;
use crate::cosine::CosineConfig;
use crate::crd::CrdConfig;
use crate::cross_entropy::LabelSmoothingConfig;
use crate::dist::DistConfig;
use crate::dkd::DkdConfig;
use crate::fitnet::FitNetConfig;
use crate::fsp::FspConfig;
use crate::kd::KdConfig;
use crate::nst::NstConfig;
use crate::pkt::PktConfig;
use crate::regressor::RegressorConfig;
use crate::rkd::{RkdAngleConfig, RkdDistanceConfig};
use crate::similarity::SimilarityConfig;
use crate::vid::VidConfig;
use crate::{Error, Inputs, Needs, Result, Setup};

/// A loss that is added to the cross-entropy with the labels.
///
/// It holds what it learns (helper parameters) and gets the rest with each batch.
pub trait Method: Send + Sync {
    /// What the trainer must provide in [`Inputs`]. An [`Objective`](crate::Objective) shows the method nothing from the host
    /// that is not asked for here.
    fn needs(&self) -> Needs;
    /// The temperature, when the loss is [`kd`](crate::kd) of the two networks' logits and nothing else: an
    /// [`Objective`](crate::Objective) then makes one operation of it and the labels' cross-entropy.
    fn plain_kd(&self) -> Option<f64> {
        None
    }
    /// The loss of a batch, a scalar, before its weight. The teacher gets no gradient.
    ///
    /// # Errors
    /// When shapes don't fit, or something that the method needs is missing.
    fn loss(&self, inputs: &Inputs<'_>) -> Result<Tensor>;
}

/// A method's options, as a recipe's table holds them, and how the method is made of them.
pub trait Options: Clone + Default + PartialEq + Serialize + DeserializeOwned {
    /// What the list of methods says of it.
    const ABOUT: About;

    /// Checks the options that don't depend on the networks.
    ///
    /// # Errors
    /// When one makes no sense.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// Fills in the feature places that were left out.
    ///
    /// # Errors
    /// When a place does not exist.
    fn resolve(&mut self, shapes: &Setup) -> Result<()> {
        let _ = shapes;
        Ok(())
    }

    /// The tensors that the method needs besides the networks'.
    ///
    /// # Errors
    /// When a place does not exist or shapes don't fit.
    fn helper_parameters(&self, shapes: &Setup) -> Result<Vec<HelperParameter>> {
        let _ = shapes;
        Ok(Vec::new())
    }

    /// The method.
    ///
    /// # Errors
    /// When a place does not exist, shapes don't fit, or `vb` lacks a helper parameter.
    fn build(&self, shapes: &Setup, vb: VarBuilder<'_>) -> Result<Box<dyn Method>>;
}

/// A method in the list.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct About {
    /// Where its knowledge lies.
    pub kind: Kind,
    /// What it does, in a line.
    pub summary: &'static str,
    /// Where it comes from.
    pub paper: &'static str,
    /// The customary weight of the method.
    pub weight: f64,
    /// The labels' customary weight beside it.
    pub labels: f64,
    /// Each option with its meaning.
    pub options: &'static [(&'static str, &'static str)],
}

/// Where a method looks for the teacher's knowledge (Gou et al., "Knowledge Distillation: A Survey", 2021, section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It has no teacher: what others are compared with.
    Control,
    /// In its logits.
    Response,
    /// In its feature maps.
    Feature,
    /// In relations between images, or between layers.
    Relation,
}

/// One line of the list of methods.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MethodInfo {
    /// The name in recipes.
    pub name: &'static str,
    /// The rest.
    #[serde(flatten)]
    pub about: About,
}

/// Makes the list of methods: a line is the name in recipes, a variant, and the method's options.
macro_rules! methods {
    ($($name:literal $variant:ident($options:ty),)*) => {
        /// A method and its options, as a recipe's table gives them; `name` chooses the variant.
        ///
        /// Options that are left out have the defaults of their struct; an unknown option is an error.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "name")]
        #[non_exhaustive]
        pub enum MethodConfig {
            $(
                #[doc = concat!("\"", $name, "\".")]
                #[serde(rename = $name)]
                $variant($options),
            )*
        }

        /// Every method.
        pub const METHODS: &[MethodInfo] =
            &[$(MethodInfo { name: $name, about: <$options as Options>::ABOUT },)*];

        impl MethodConfig {
            /// The method's default options.
            ///
            /// # Errors
            /// When there is no method of this name; the error lists those that there are.
            pub fn from_name(name: &str) -> Result<Self> {
                match name {
                    $($name => Ok(Self::$variant(<$options>::default())),)*
                    _ => {
                        let known: Vec<_> = METHODS.iter().map(|method| method.name).collect();
                        let known = known.join(", ");
                        Err(Error::UnknownMethod { name: name.to_string(), known })
                    }
                }
            }

            /// The name in recipes.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                }
            }

            /// Checks the options that don't depend on the networks.
            ///
            /// # Errors
            /// When one makes no sense.
            pub fn validate(&self) -> Result<()> {
                match self {
                    $(Self::$variant(options) => options.validate(),)*
                }
            }

            /// The same with feature places that were left out filled in, so that a record of a run
            /// says all of it.
            ///
            /// # Errors
            /// When a place does not exist.
            pub fn resolve(&self, shapes: &Setup) -> Result<Self> {
                let mut resolved = self.clone();
                match &mut resolved {
                    $(Self::$variant(options) => options.resolve(shapes)?,)*
                }
                Ok(resolved)
            }
        }

        /// The tensors that a method needs besides the networks'; most need none.
        ///
        /// # Errors
        /// When a place does not exist or shapes don't fit.
        pub fn helper_parameters(
            config: &MethodConfig,
            shapes: &Setup,
        ) -> Result<Vec<HelperParameter>> {
            match config {
                $(MethodConfig::$variant(options) => options.helper_parameters(shapes),)*
            }
        }

        /// Makes a method. `vb` gives its [helper parameters](helper_parameters); with several methods,
        /// give each a prefix of its own.
        ///
        /// # Errors
        /// When an option makes no sense, a place does not exist, shapes don't fit, or `vb` lacks a weight.
        pub fn build(
            config: &MethodConfig,
            shapes: &Setup,
            vb: VarBuilder<'_>,
        ) -> Result<Box<dyn Method>> {
            config.validate()?;
            match config {
                $(MethodConfig::$variant(options) => options.build(shapes, vb),)*
            }
        }
    };
}

methods! {
    "kd" Kd(KdConfig),
    "dkd" Dkd(DkdConfig),
    "dist" Dist(DistConfig),
    "cosine" Cosine(CosineConfig),
    "regressor" Regressor(RegressorConfig),
    "fitnet" FitNet(FitNetConfig),
    "attention-transfer" Attention(AttentionConfig),
    "nst" Nst(NstConfig),
    "fsp" Fsp(FspConfig),
    "vid" Vid(VidConfig),
    "rkd-distance" RkdDistance(RkdDistanceConfig),
    "rkd-angle" RkdAngle(RkdAngleConfig),
    "similarity-preserving" Similarity(SimilarityConfig),
    "correlation-congruence" Congruence(CongruenceConfig),
    "pkt" Pkt(PktConfig),
    "crd" Crd(CrdConfig),
    "label-smoothing" LabelSmoothing(LabelSmoothingConfig),
}

/// A tensor that belongs to a method and is no part of the student.
#[derive(Clone, Debug, PartialEq)]
pub struct HelperParameter {
    /// The name that [`build`] asks its `VarBuilder` for.
    pub name: String,
    /// The shape.
    pub shape: Vec<usize>,
    /// What it starts from.
    pub init: HelperInit,
}

/// What a helper parameter starts from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HelperInit {
    /// Uniform in ±the bound, as PyTorch's layers do.
    Uniform(f64),
    /// Everywhere the same.
    Constant(f64),
}

/// Weight and bias of a linear layer or 1x1 convolution, `[outputs, inputs]` and `[outputs]`.
pub(crate) fn linear_parameters(name: &str, inputs: usize, outputs: usize) -> [HelperParameter; 2] {
    let init = HelperInit::Uniform(1.0 / (inputs as f64).sqrt());
    [
        HelperParameter { name: format!("{name}.weight"), shape: vec![outputs, inputs], init },
        HelperParameter { name: format!("{name}.bias"), shape: vec![outputs], init },
    ]
}

/// The layer of [`linear_parameters`].
pub(crate) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    pub(crate) fn new(inputs: usize, outputs: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self { weight: vb.get((outputs, inputs), "weight")?, bias: vb.get(outputs, "bias")? })
    }

    /// `[B, inputs]` to `[B, outputs]`.
    pub(crate) fn rows(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)
    }

    /// A 1x1 convolution: `[B, inputs, H, W]` to `[B, outputs, H, W]`.
    pub(crate) fn map(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (batch, _, height, width) = x.dims4()?;
        let outputs = self.bias.dims1()?;
        // A product for each image, as its map lies: turning maps to pixels and back takes longer than the products.
        let weight = self.weight.broadcast_left(batch)?.contiguous()?;
        let y = weight.matmul(&x.flatten_from(2)?.contiguous()?)?;
        let y = y.broadcast_add(&self.bias.reshape((1, outputs, 1))?)?;
        y.reshape((batch, outputs, height, width))
    }
}
