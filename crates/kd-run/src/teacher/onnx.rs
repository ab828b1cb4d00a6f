//! A teacher that is an ONNX file: a network of any framework.

use std::path::Path;

#[cfg(not(feature = "onnx"))]
use super::pretrained::{Pretrained, PretrainedConfig};
#[cfg(not(feature = "onnx"))]
use crate::Result;

/// Whether a file is an ONNX file by its name.
pub(crate) fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("onnx"))
}

#[cfg(not(feature = "onnx"))]
fn without_feature<T>(path: &Path) -> Result<T> {
    Err(crate::Error::unfit(format!(
        "{}: this kd was built without the feature onnx, which computes ONNX files: install it with `cargo install kd-run --features onnx`",
        path.display()
    )))
}

/// The names of the classes of an ONNX file, or their numbers.
#[cfg(not(feature = "onnx"))]
pub(super) fn classes_of(path: &Path, _: Option<&str>, _: [usize; 3]) -> Result<Vec<String>> {
    without_feature(path)
}

#[cfg(not(feature = "onnx"))]
impl Pretrained {
    /// Loads the network of an ONNX file.
    pub(super) fn load_onnx(path: &Path, _: &PretrainedConfig<'_>) -> Result<Self> {
        without_feature(path)
    }
}

#[cfg(feature = "onnx")]
pub(super) use loaded::classes_of;

#[cfg(feature = "onnx")]
mod loaded {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::Arc;

    use kd_data::{Normalization, Renormalize};
    use kd_loss::Combination;
    use kd_models::classes::{Matched, match_classes};
    use kd_models::onnx_runtime::{OnnxFileConfig, OnnxNetwork};
    use kd_models::preprocessing::timm;
    use kd_models::{Architecture, Classifier, ModelConfig};
    use kd_record::hash::{hex, sha256};
    use sha2::{Digest, Sha256};

    use crate::Result;
    use crate::teacher::pretrained::{Pretrained, PretrainedConfig, own_normalization};

    fn open(
        path: &Path,
        input: [usize; 3],
        output: Option<&str>,
        places: &[String],
    ) -> Result<OnnxNetwork> {
        let config = OnnxFileConfig {
            logits: output.map(str::to_owned),
            places: places.to_vec(),
            threads: rayon::current_num_threads(),
        };
        Ok(OnnxNetwork::open(path, input, &config)?)
    }

    /// The names of the classes of an ONNX file, or their numbers.
    pub(in crate::teacher) fn classes_of(
        path: &Path,
        output: Option<&str>,
        input: [usize; 3],
    ) -> Result<Vec<String>> {
        let network = open(path, input, output, &[])?;
        let (timm, _) = timm::beside(path, None)?;
        let count = network.num_classes();
        let of_timm = timm.as_ref().map(|timm| timm.names(count)).transpose()?.flatten();
        let names = network.class_names.or_else(|| of_timm.map(<[String]>::to_vec));
        Ok(names.unwrap_or_else(|| (0..count).map(|class| class.to_string()).collect()))
    }

    impl Pretrained {
        /// Loads the network of an ONNX file. The classes' names and the normalisation of its images are what kd wrote into the file, or a
        /// `config.json` beside it in timm's form, or what is stated.
        pub(in crate::teacher) fn load_onnx(
            path: &Path,
            config: &PretrainedConfig<'_>,
        ) -> Result<Self> {
            let PretrainedConfig { classes, input, choice, normalization, stated, .. } = *config;
            let sha256 = sha256(path)?;
            let mut network = open(path, input, config.output, config.places)?;
            let (timm, aside) = timm::beside(path, None)?;
            let mut notes: Vec<String> = network.notes.iter().cloned().chain(aside).collect();
            let count = network.num_classes();
            let names = match (&network.class_names, &timm) {
                (Some(names), _) => Some(names.clone()),
                (None, Some(timm)) => timm.names(count)?.map(<[String]>::to_vec),
                (None, None) => None,
            };
            let matched = match_classes(path, names.as_deref(), count, classes, choice)?;
            let Matched { rows, note } = matched;
            notes.extend(note);
            if let Some(rows) = &rows {
                network.select_classes(rows);
            }
            // A network that kd exported normalises its images itself.
            let said = network.is_of_kd.then_some(Normalization { mean: [0.0; 3], std: [1.0; 3] });
            let unsaid = match &timm {
                None => None,
                Some(timm) => {
                    Some((timm.preprocessing()?, format!("as {} says", timm.path.display())))
                }
            };
            let own = own_normalization(path, said, stated, unsaid, normalization, &mut notes)?;
            let renormalize = Renormalize::between(normalization, own);
            let changes = format!("{sha256} {:?} {rows:?} {renormalize:?}", config.output);
            let mut known = ModelConfig::new(Architecture::TUTORIAL_TEACHER, network.num_classes());
            known.input = input;
            Ok(Self {
                path: path.to_owned(),
                identity: hex(Sha256::new_with_prefix(changes)),
                sha256,
                config: known,
                foreign: Some(Arc::new(network)),
                tensors: BTreeMap::new(),
                left_out: None,
                parts: Vec::new(),
                members: Vec::new(),
                combination: Combination::default(),
                normalization: own,
                renormalize,
                notes,
            })
        }
    }
}
