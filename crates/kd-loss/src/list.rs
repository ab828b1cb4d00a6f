//! The list of methods: one line each. Where a method's loss is, the last column says.

use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::control::{self, LabelSmoothingConfig};
use crate::features::{self, BoundariesConfig, FactorConfig};
use crate::logits::{self, DistConfig, DkdConfig, KdConfig, MlkdConfig, TtmConfig, WttmConfig};
use crate::method::{About, Definition, HelperParameter, Method};
use crate::pairs::{PairConfig, PairListConfig};
use crate::relations::{self, CongruenceConfig, CrdConfig};
use crate::{Error, Result, Setup};

/// A method in the list.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MethodInfo {
    /// The name in recipes.
    pub name: &'static str,
    /// All else that the list says of it.
    #[serde(flatten)]
    pub about: About,
}

/// Makes [`MethodConfig`], [`METHODS`] and the functions on them from lines
/// `NAME IN RECIPES, VARIANT(OPTIONS) = DEFINITION`. Errors get the method's name here.
macro_rules! methods {
    ($($name:literal $variant:ident($options:ty) = $definition:ty,)*) => {
        /// A method and its options, as a recipe's table gives them; `name` chooses the variant.
        ///
        /// Options that are left out have the defaults of their struct; an unknown option is an error.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "name")]
        #[non_exhaustive]
        pub enum MethodConfig {
            $(
                #[doc = concat!("\"", $name, "\" in recipes.")]
                #[serde(rename = $name)]
                $variant($options),
            )*
        }

        /// Every method, in the order in which `kd methods` shows them.
        pub const METHODS: &[MethodInfo] =
            &[$(MethodInfo { name: $name, about: <$definition as Definition>::ABOUT },)*];

        impl MethodConfig {
            /// The method of this name with its default options.
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

            /// The method's name in recipes.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                }
            }

            /// Whether the method's loss goes by the images' labels, so that it can't be had of images without any.
            pub fn needs_labels(&self) -> bool {
                match self {
                    $(Self::$variant(_) => <$definition>::NEEDS_LABELS,)*
                }
            }

            /// Checks the options that don't depend on the networks.
            ///
            /// # Errors
            /// When an option makes no sense.
            pub fn validate(&self) -> Result<()> {
                match self {
                    $(Self::$variant(options) => <$definition>::validate(options),)*
                }
                .map_err(|error| error.in_method(self.name()))
            }

            /// The same method with the feature places that were left out filled in, so that the record of a run
            /// is complete.
            ///
            /// # Errors
            /// When a place does not exist.
            pub fn resolve(&self, setup: &Setup) -> Result<Self> {
                let mut resolved = self.clone();
                match &mut resolved {
                    $(Self::$variant(options) => <$definition>::resolve(options, setup),)*
                }
                .map_err(|error| error.in_method(self.name()))?;
                Ok(resolved)
            }
        }

        /// The tensors that a method needs besides the networks'; most need none.
        ///
        /// # Errors
        /// When a place does not exist or shapes don't fit.
        pub fn helper_parameters(
            config: &MethodConfig,
            setup: &Setup,
        ) -> Result<Vec<HelperParameter>> {
            match config {
                $(MethodConfig::$variant(options) => {
                    <$definition>::helper_parameters(options, setup)
                })*
            }
            .map_err(|error| error.in_method(config.name()))
        }

        /// Makes a method. `vb` holds its [helper parameters](helper_parameters); with several methods,
        /// give each a prefix of its own.
        ///
        /// # Errors
        /// When an option makes no sense, a place does not exist, shapes don't fit, or `vb` lacks a helper parameter.
        pub fn build(
            config: &MethodConfig,
            setup: &Setup,
            vb: VarBuilder<'_>,
        ) -> Result<Box<dyn Method>> {
            config.validate()?;
            match config {
                $(MethodConfig::$variant(options) => <$definition>::build(options, setup, vb),)*
            }
            .map_err(|error| error.in_method(config.name()))
        }
    };
}

methods! {
    "kd" Kd(KdConfig) = logits::Kd,
    "dkd" Dkd(DkdConfig) = logits::Dkd,
    "dist" Dist(DistConfig) = logits::Dist,
    "mlkd" Mlkd(MlkdConfig) = logits::Mlkd,
    "ttm" Ttm(TtmConfig) = logits::Ttm,
    "wttm" Wttm(WttmConfig) = logits::Wttm,
    "cosine" Cosine(PairConfig) = features::Cosine,
    "regressor" Regressor(PairConfig) = features::Regressor,
    "fitnet" FitNet(PairConfig) = features::FitNet,
    "attention-transfer" AttentionTransfer(PairListConfig) = features::AttentionTransfer,
    "nst" Nst(PairListConfig) = features::Nst,
    "fsp" Fsp(PairListConfig) = relations::Fsp,
    "vid" Vid(PairConfig) = features::Vid,
    "factor-transfer" FactorTransfer(FactorConfig) = features::FactorTransfer,
    "activation-boundaries" ActivationBoundaries(BoundariesConfig) = features::ActivationBoundaries,
    "ofd" Ofd(PairListConfig) = features::Ofd,
    "reviewkd" ReviewKd(PairListConfig) = features::ReviewKd,
    "rkd-distance" RkdDistance(PairConfig) = relations::RkdDistance,
    "rkd-angle" RkdAngle(PairConfig) = relations::RkdAngle,
    "similarity-preserving" Similarity(PairConfig) = relations::Similarity,
    "correlation-congruence" Congruence(CongruenceConfig) = relations::Congruence,
    "pkt" Pkt(PairConfig) = relations::Pkt,
    "crd" Crd(CrdConfig) = relations::Crd,
    "label-smoothing" LabelSmoothing(LabelSmoothingConfig) = control::LabelSmoothing,
}
