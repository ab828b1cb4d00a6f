//! What is done to a picture before a network that somebody else trained is given it: size, interpolation, normalisation.
//!
//! Each family's own way is [`Architecture::preprocessing`]. A file may say another: kd's own description of the weights, or a
//! `config.json` beside them in timm's form ([`timm`]). [`find`] decides which counts.

pub mod timm;

use std::path::Path;

pub use kd_record::Interpolation;

use self::timm::TimmConfig;
use crate::weights::{Metadata, Scaled};
use crate::{Architecture, Error, Result};

/// What is done to a picture before the network is given it: its shorter side is scaled to `resize` pixels, the square of `size`
/// pixels in its middle is cut out, and a byte x of a colour becomes `(x / 255 - mean) / std`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preprocessing {
    /// Height and width of the network's images, in pixels.
    pub size: usize,
    /// The shorter side of the picture that they are cut out of, in pixels; `size` for the largest square.
    pub resize: usize,
    /// How the picture is scaled.
    pub interpolation: Interpolation,
    /// Whether the largest square is cut out of the picture before it is scaled, bilinearly, to `size`; `resize` is then `size`, too. So
    /// pictures in memory are brought to 32 pixels; where a size is set, they are scaled first. Of a picture that is not square the two
    /// are up to half a new pixel apart.
    pub square_first: bool,
    /// What is subtracted from red, green and blue, on a scale from 0 to 1.
    pub mean: [f32; 3],
    /// What they are then divided by.
    pub std: [f32; 3],
}

/// What somebody says about a network's images. A field left `None` means what a file says, or else the family's way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stated {
    /// Height and width of the network's images, in pixels.
    pub size: Option<usize>,
    /// The shorter side that the picture is scaled to before the image is cut out of its middle, in pixels.
    pub resize: Option<usize>,
    /// How the picture is scaled to that side.
    pub interpolation: Option<Interpolation>,
    /// What is subtracted from red, green and blue, on a scale from 0 to 1.
    pub mean: Option<[f32; 3]>,
    /// What red, green and blue are divided by after that, each above 0.
    pub std: Option<[f32; 3]>,
}

/// Mean and deviation of ImageNet's pictures, which torchvision's networks and PyTorch's tutorial on distillation use.
const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

impl Preprocessing {
    /// The largest square of a picture, with ImageNet's normalisation: the way of the small networks for CIFAR-10.
    pub fn whole_square(size: usize) -> Self {
        let ((mean, std), interpolation) = (IMAGENET, Interpolation::Bilinear);
        Self { size, resize: size, interpolation, square_first: true, mean, std }
    }
}

impl Architecture {
    /// What the network's authors did to a picture before it:
    ///
    /// - EfficientNet-Lite: the shorter side 32 pixels more than the image, bicubic (Lite3 and Lite4 bilinear, as timm has them),
    ///   and (x - 127) / 128 of a byte (`MEAN_RGB` and `STDDEV_RGB` of TensorFlow's repository tpu,
    ///   `models/official/efficientnet/lite`);
    /// - ResNet and MobileNetV2: 256 pixels for an image of 224, bilinear, ImageNet's mean and deviation (torchvision's
    ///   `ImageClassification` preset of the first weights);
    /// - the small networks: the largest square, with PyTorch's tutorial's normalisation.
    pub fn preprocessing(self) -> Preprocessing {
        let size = self.default_input()[1];
        let square = Preprocessing::whole_square(size);
        match self.family() {
            "efficientnet_lite" => Preprocessing {
                resize: size + 32,
                square_first: false,
                interpolation: match size < 280 {
                    true => Interpolation::Bicubic,
                    false => Interpolation::Bilinear,
                },
                mean: [127.0 / 255.0; 3],
                std: [128.0 / 255.0; 3],
                ..square
            },
            _ if size == 224 => Preprocessing { resize: 256, square_first: false, ..square },
            _ => square,
        }
    }
}

/// What is known of the pictures of a network whose file says nothing of them, and a few words on where it comes from: what `config`
/// says, or the way of a network for pictures of real size. The small networks for CIFAR-10 are trained in many ways; of them
/// nothing is known.
///
/// # Errors
/// When `config` is of another network, or says what can't be done.
pub fn unsaid(
    config: Option<&TimmConfig>,
    architecture: Architecture,
) -> Result<Option<(Preprocessing, String)>> {
    let family = architecture.preprocessing();
    if let Some(config) = config {
        config.check(architecture)?;
        let source = format!("as {} says", config.path.display());
        return Ok(Some((config.over(&family)?, source)));
    }
    let source = format!("as {architecture}'s authors did; the file does not say it");
    Ok((family.resize > family.size).then_some((family, source)))
}

/// Finds what is done to the pictures of the network `architecture` with the weights at `path`. Of each figure the first that is
/// there counts: what is `stated`, what the file says itself (`metadata`), what `config` says (a `config.json` beside it in timm's
/// form), the family's way. Also gives a sentence on where it comes from, unless the file says it all.
///
/// An image of another size than the family's is cut out of a picture that is larger by the same factor.
///
/// # Errors
/// When `config` is of another network or says what can't be done, a size is zero or too large, the picture is smaller than the image
/// cut out of it, or a deviation is not above 0.
pub fn find(
    path: &Path,
    metadata: Option<&Metadata>,
    config: Option<&TimmConfig>,
    architecture: Architecture,
    stated: &Stated,
) -> Result<(Preprocessing, Option<String>)> {
    let (found, source) = match metadata {
        Some(metadata) => {
            // Without a size, training on a folder of pictures cuts out the largest square.
            let square = Preprocessing::whole_square(metadata.input[1]);
            let square = Preprocessing { mean: metadata.mean, std: metadata.std, ..square };
            let found = match metadata.scaled {
                None => square,
                Some(Scaled { resize, interpolation }) => {
                    Preprocessing { resize, interpolation, square_first: false, ..square }
                }
            };
            (found, None)
        }
        None => match unsaid(config, architecture)? {
            Some((found, source)) => (found, Some(source)),
            None => {
                let source = "as PyTorch's tutorial does; the file does not say it".to_owned();
                (architecture.preprocessing(), Some(source))
            }
        },
    };
    let size = stated.size.unwrap_or(found.size);
    let scaled = |size: usize| {
        (size as f64 * found.resize as f64 / found.size.max(1) as f64).round() as usize
    };
    let resize = match (stated.resize, stated.size) {
        (Some(resize), _) => resize,
        (None, Some(size)) => scaled(size),
        (None, None) => found.resize,
    };
    let interpolation = stated.interpolation.unwrap_or(found.interpolation);
    let is_scaled_first = stated.resize.is_some() || stated.interpolation.is_some();
    let result = Preprocessing {
        size,
        resize,
        interpolation,
        square_first: found.square_first && !is_scaled_first,
        mean: stated.mean.unwrap_or(found.mean),
        std: stated.std.unwrap_or(found.std),
    };
    check(&result)?;
    let note = source.map(|source| {
        let Preprocessing { size, resize, interpolation, mean, std, .. } = result;
        let given = if result == found { "" } else { ", but for what was given" };
        format!(
            "{}: pictures are scaled to {resize} pixels ({interpolation}, the shorter side), {size}x{size} of them cut out, and normalised with mean {mean:?} and std {std:?}: {source}{given}",
            path.display()
        )
    });
    Ok((result, note))
}

/// Refuses what no picture can be brought to.
fn check(found: &Preprocessing) -> Result<()> {
    /// A side beyond this takes more memory than a picture may.
    const LARGEST: usize = 4096;
    let wrong =
        |field, found: String, expected: String| Err(Error::Config { field, found, expected });
    let Preprocessing { size, resize, mean, std, .. } = *found;
    if !(1..=LARGEST).contains(&size) {
        return wrong("size", size.to_string(), format!("1 to {LARGEST} pixels"));
    }
    if !(size..=LARGEST).contains(&resize) {
        let expected = format!("{size}, the size of the image cut out of it, to {LARGEST} pixels");
        return wrong("resize", resize.to_string(), expected);
    }
    if !mean.iter().all(|mean| mean.is_finite()) {
        return wrong("mean", format!("{mean:?}"), "three finite numbers".into());
    }
    if !std.iter().all(|std| std.is_finite() && *std > 0.0) {
        return wrong("std", format!("{std:?}"), "three finite numbers above 0".into());
    }
    Ok(())
}
