//! A `config.json` beside a weights file, in the form that timm writes for a hub
//! (`save_config_for_hf` in timm/models/_hub.py).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::{Interpolation, Preprocessing};
use crate::weights::Metadata;
use crate::{Architecture, Error, Result};

/// What a `config.json` in timm's form says of a network and its pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct TimmConfig {
    /// Where the `config.json` lies, for messages.
    pub path: PathBuf,
    /// The network, where timm's is one of those here.
    pub architecture: Option<Architecture>,
    /// timm's name of the network.
    pub name: String,
    class_names: Option<Vec<String>>,
    cfg: PretrainedCfg,
}

/// The table `pretrained_cfg`; in older files its fields lie in the file's own table.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
struct PretrainedCfg {
    input_size: Option<[usize; 3]>,
    crop_pct: Option<f64>,
    crop_mode: Option<String>,
    interpolation: Option<String>,
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
}

/// The most bytes of a config: names of 21,000 classes take one of them.
const MOST: u64 = 16 << 20;

/// Reads the `config.json` in the folder of the weights file `path`, where there is one in timm's form. One in another form is none
/// of ours, and the second value is a sentence that says so. What a file of kd says about itself, its `metadata`, is all that there is
/// to know; then no config is looked for.
///
/// # Errors
/// When the file can't be read, is no JSON, or a field of timm's form holds something else.
pub fn beside(
    path: &Path,
    metadata: Option<&Metadata>,
) -> Result<(Option<TimmConfig>, Option<String>)> {
    let path = path.with_file_name("config.json");
    if metadata.is_some() || !path.is_file() {
        return Ok((None, None));
    }
    let mut text = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MOST).read_to_end(&mut text))
        .map_err(|source| Error::Io { path: path.clone(), source })?;
    let wrong = |reason: String| Error::TimmConfig { path: path.clone(), reason };
    let json: Value = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    let (Some(name), true) = (
        json.get("architecture").and_then(Value::as_str),
        json.get("pretrained_cfg").is_some() || json.get("input_size").is_some(),
    ) else {
        let note = format!(
            "{}: the file is not in timm's form (architecture and pretrained_cfg), and is left aside",
            path.display()
        );
        return Ok((None, Some(note)));
    };
    let cfg = json.get("pretrained_cfg").unwrap_or(&json);
    let cfg: PretrainedCfg = serde_json::from_value(cfg.clone())
        .map_err(|error| wrong(format!("pretrained_cfg: {error}")))?;
    let names = json.get("label_names").or_else(|| json["pretrained_cfg"].get("label_names"));
    let class_names = match names {
        None | Some(Value::Null) => None,
        Some(names) => Some(
            serde_json::from_value(names.clone())
                .map_err(|error| wrong(format!("label_names: {error}")))?,
        ),
    };
    let name = name.to_owned();
    let architecture = network(&name);
    Ok((Some(TimmConfig { path, architecture, name, class_names, cfg }), None))
}

/// The network here that timm has under this name, which may end in a dot and the weights' name.
fn network(name: &str) -> Option<Architecture> {
    let name = name.split('.').next().unwrap_or(name);
    let own = match name.strip_prefix("mobilenetv2_") {
        Some("100") => "mobilenet_v2".to_owned(),
        Some(width) => format!("mobilenet_v2_{width}"),
        // timm's `efficientnet_lite0` has the same tensors and other paddings: a different network.
        None => match name.strip_prefix("tf_") {
            Some(lite) if lite.starts_with("efficientnet_lite") => lite.to_owned(),
            None if name.starts_with("resnet") => name.to_owned(),
            _ => return None,
        },
    };
    own.parse().ok().filter(|network: &Architecture| network.default_input()[1] >= 224)
}

impl TimmConfig {
    /// Refuses a config of another network than the one that the weights are taken for.
    ///
    /// # Errors
    /// When it is of another one.
    pub fn check(&self, architecture: Architecture) -> Result<()> {
        if self.architecture == Some(architecture) {
            return Ok(());
        }
        let reason = match self.architecture {
            Some(own) => format!(
                "the weights beside it are of timm's {}, which is {own} here, not {architecture}: leave --model out, or give the other weights",
                self.name
            ),
            None if self.name.starts_with("efficientnet_lite") => format!(
                "the weights beside it are of timm's {}, which pads its maps otherwise than tf_{0} ({architecture} here) and would give other logits: give the weights of tf_{0}",
                self.name
            ),
            None => format!(
                "the weights beside it are of timm's {}, which is not {architecture}; `kd networks` lists the networks. If the config belongs to another file, move the weights out of its folder",
                self.name
            ),
        };
        Err(Error::TimmConfig { path: self.path.clone(), reason })
    }

    /// The classes' names by label, where the config has them.
    ///
    /// # Errors
    /// When they are not as many as the weights have classes.
    pub fn names(&self, classes: usize) -> Result<Option<&[String]>> {
        match &self.class_names {
            Some(names) if names.len() != classes => Err(Error::TimmConfig {
                path: self.path.clone(),
                reason: format!(
                    "label_names has {} names; the weights beside it classify {classes} classes",
                    names.len()
                ),
            }),
            names => Ok(names.as_deref()),
        }
    }

    /// The preprocessing that the config says of a network that is none here, with timm's defaults where it says nothing.
    ///
    /// # Errors
    /// When it says what can't be done.
    pub fn preprocessing(&self) -> Result<Preprocessing> {
        let timms =
            Preprocessing { resize: 256, square_first: false, ..Preprocessing::whole_square(224) };
        self.over(&timms)
    }

    /// The preprocessing that the config says, with the family's where it says nothing. As timm's `transforms_imagenet_eval`: the
    /// shorter side is `floor(size / crop_pct)`.
    pub(super) fn over(&self, family: &Preprocessing) -> Result<Preprocessing> {
        let wrong = |reason: String| Err(Error::TimmConfig { path: self.path.clone(), reason });
        let cfg = &self.cfg;
        let size = match cfg.input_size {
            None => family.size,
            Some([3, height, width]) if height == width => height,
            Some(size) => {
                return wrong(format!(
                    "input_size is {size:?}; expected three channels and a square, [3, N, N]"
                ));
            }
        };
        if let Some(mode) = cfg.crop_mode.as_deref().filter(|mode| *mode != "center") {
            return wrong(format!("crop_mode is `{mode}`; expected center, the only one here"));
        }
        let resize = match cfg.crop_pct {
            None if size == family.size => family.resize,
            // timm's DEFAULT_CROP_PCT.
            None => (size as f64 / 0.875).floor() as usize,
            Some(share) if share > 0.0 && share <= 1.0 => (size as f64 / share).floor() as usize,
            Some(share) => {
                return wrong(format!("crop_pct is {share}; expected a number above 0, at most 1"));
            }
        };
        let interpolation = match cfg.interpolation.as_deref() {
            None => family.interpolation,
            Some(name) => match name.parse::<Interpolation>() {
                Ok(interpolation) => interpolation,
                Err(unknown) => return wrong(format!("interpolation: {unknown}")),
            },
        };
        let (mean, std) = (cfg.mean.unwrap_or(family.mean), cfg.std.unwrap_or(family.std));
        Ok(Preprocessing { size, resize, interpolation, square_first: false, mean, std })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocessing::{Stated, find};

    /// What is found with this config beside weights of `network`.
    fn found(json: &str, network: &str) -> Result<Preprocessing> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), json).unwrap();
        let path = dir.path().join("model.safetensors");
        let (config, note) = beside(&path, None)?;
        assert_eq!(config.is_none(), note.is_some());
        let found = find(&path, None, config.as_ref(), network.parse()?, &Stated::default())?;
        Ok(found.0)
    }

    /// As timm 1.0.31 writes it for `tf_efficientnet_lite1`, in the parts that count here; `data.resolve_data_config` and
    /// `create_transform` then make `Resize(272, bicubic)` and `CenterCrop(240)` of it.
    #[test]
    fn a_config_of_timm_says_what_is_done_to_pictures() {
        let json = r#"{"architecture": "tf_efficientnet_lite1", "num_classes": 1000, "pretrained_cfg": {"tag": "in1k",
            "input_size": [3, 240, 240], "fixed_input_size": false, "interpolation": "bicubic", "crop_pct": 0.882,
            "crop_mode": "center", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.25, 0.5]}}"#;
        let expected = Preprocessing {
            size: 240,
            resize: 272,
            interpolation: Interpolation::Bicubic,
            square_first: false,
            mean: [0.5; 3],
            std: [0.5, 0.25, 0.5],
        };
        assert_eq!(found(json, "efficientnet_lite1").unwrap(), expected);
        // What it does not say is the family's; an older config has no table of its own for it.
        let json = r#"{"architecture": "resnet50.a1_in1k", "input_size": [3, 288, 288]}"#;
        let expected =
            Preprocessing { size: 288, resize: 329, ..named("resnet50").preprocessing() };
        assert_eq!(found(json, "resnet50").unwrap(), expected);
        // Another program's config is none.
        let family = named("resnet18").preprocessing();
        assert_eq!(found(r#"{"architectures": ["A"]}"#, "resnet18").unwrap(), family);
    }

    fn named(name: &str) -> Architecture {
        name.parse().unwrap()
    }

    #[test]
    fn a_config_that_is_not_of_these_weights_is_refused() {
        let of = |architecture: &str, more: &str| {
            format!(r#"{{"architecture": "{architecture}", "pretrained_cfg": {{{more}}}}}"#)
        };
        for (json, network, expected) in [
            (of("resnet18", ""), "resnet34", "which is resnet18 here, not resnet34"),
            (of("efficientnet_lite0", ""), "efficientnet_lite0", "tf_efficientnet_lite0"),
            (of("vit_base", ""), "resnet18", "`kd networks`"),
            (of("resnet18", r#""crop_mode": "squash""#), "resnet18", "crop_mode is `squash`"),
            (of("resnet18", r#""crop_pct": 0"#), "resnet18", "crop_pct is 0"),
            (
                of("resnet18", r#""input_size": [3, 224, 200]"#),
                "resnet18",
                "expected three channels",
            ),
            (of("resnet18", r#""interpolation": "lanczos""#), "resnet18", "is no interpolation"),
            (of("resnet18", r#""std": [0, 1, 1]"#), "resnet18", "std is [0.0, 1.0, 1.0]"),
            (of("resnet18", r#""std": [1]"#), "resnet18", "pretrained_cfg"),
            (of("resnet18", r#""input_size": [3, 9999, 9999]"#), "resnet18", "size is 9999"),
            ("{".into(), "resnet18", "config.json"),
        ] {
            let message = found(&json, network).unwrap_err().to_string();
            assert!(message.contains(expected), "{json}: {message}");
        }
    }

    #[test]
    fn timms_names_are_those_of_networks_here() {
        let own = |name| network(name).map(Architecture::name);
        assert_eq!(own("tf_efficientnet_lite0.in1k"), Some("efficientnet_lite0"));
        assert_eq!(own("mobilenetv2_100"), Some("mobilenet_v2"));
        assert_eq!(own("mobilenetv2_050.lamb_in1k"), Some("mobilenet_v2_050"));
        assert_eq!(own("resnet34"), Some("resnet34"));
        for other in ["efficientnet_lite0", "resnet20", "resnet26", "student", "mobilenetv2_110d"] {
            assert_eq!(own(other), None, "{other}");
        }
    }
}
