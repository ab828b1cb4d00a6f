//! What computes a convolution's products: cuDNN, where the crate was built with the feature `cudnn`, or cuBLAS on
//! columns of windows. Which of them is a choice of the process, so that one binary can run and compare both.

use std::sync::OnceLock;

use candle_core::{CudaStorage, Result, bail};

#[cfg(feature = "cudnn")]
use super::cudnn;
use super::{Array, columns};
use crate::conv::geometry::Geometry;

/// The library that computes a convolution's products.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Products {
    /// Directly on the maps, as NCHW.
    #[cfg(feature = "cudnn")]
    Cudnn,
    /// By `columns`; the products come as CNHW.
    Cublas,
}

impl Products {
    /// The library that the environment variable `KD_CONVOLUTIONS` names, `cudnn` or `cublas`; without it cuDNN, if it is
    /// built in. The variable is read once in a process.
    ///
    /// # Errors
    /// When the variable names something else, or cuDNN in a build without it.
    pub(super) fn chosen() -> Result<Self> {
        static CHOSEN: OnceLock<std::result::Result<Products, String>> = OnceLock::new();
        let read = || Self::named(std::env::var("KD_CONVOLUTIONS").ok().as_deref());
        match CHOSEN.get_or_init(read) {
            Ok(products) => Ok(*products),
            Err(error) => bail!("{error}"),
        }
    }

    fn named(name: Option<&str>) -> std::result::Result<Self, String> {
        match name {
            Some("cublas") => Ok(Self::Cublas),
            #[cfg(feature = "cudnn")]
            None | Some("cudnn") => Ok(Self::Cudnn),
            #[cfg(not(feature = "cudnn"))]
            None => Ok(Self::Cublas),
            #[cfg(not(feature = "cudnn"))]
            Some("cudnn") => Err("the environment variable KD_CONVOLUTIONS is `cudnn`, but this program was built without \
                cuDNN: build it with the feature `cudnn`, or set the variable to `cublas`"
                .to_owned()),
            Some(other) => Err(format!(
                "the environment variable KD_CONVOLUTIONS is `{other}`, expected `cudnn` or `cublas`"
            )),
        }
    }

    /// Whether the products come as NCHW, an image's together, or as CNHW.
    pub(super) fn is_nchw(self) -> bool {
        self != Self::Cublas
    }

    pub(super) fn forward(
        self,
        x: Array<'_>,
        weight: Array<'_>,
        geometry: &Geometry,
    ) -> Result<CudaStorage> {
        match self {
            #[cfg(feature = "cudnn")]
            Self::Cudnn => cudnn::forward(x, weight, geometry),
            Self::Cublas => columns::forward(x, weight, geometry),
        }
    }

    /// The gradient of x; `dz` lies in the products' order.
    pub(super) fn data_gradient(
        self,
        weight: Array<'_>,
        dz: Array<'_>,
        geometry: &Geometry,
    ) -> Result<CudaStorage> {
        match self {
            #[cfg(feature = "cudnn")]
            Self::Cudnn => cudnn::data_gradient(weight, dz, geometry),
            Self::Cublas => columns::data_gradient(weight, dz, geometry),
        }
    }

    /// The gradient of the weight; `dz` lies in the products' order.
    pub(super) fn weight_gradient(
        self,
        x: Array<'_>,
        dz: Array<'_>,
        geometry: &Geometry,
    ) -> Result<CudaStorage> {
        match self {
            #[cfg(feature = "cudnn")]
            Self::Cudnn => cudnn::weight_gradient(x, dz, geometry),
            Self::Cublas => columns::weight_gradient(x, dz, geometry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_chooses_the_library() {
        assert_eq!(Products::named(Some("cublas")), Ok(Products::Cublas));
        assert!(!Products::Cublas.is_nchw());
        let error = Products::named(Some("mkl")).unwrap_err();
        assert!(error.contains("`mkl`, expected `cudnn` or `cublas`"), "{error}");
        let built_in = Products::named(Some("cudnn"));
        assert_eq!(built_in.is_ok(), cfg!(feature = "cudnn"), "{built_in:?}");
        assert_eq!(Products::named(None).ok(), built_in.ok().or(Some(Products::Cublas)));
    }
}
