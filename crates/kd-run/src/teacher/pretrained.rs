//! A network's weights from a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use kd_data::{Normalization, Portions, Renormalize, Scaling};
use kd_loss::Combination;
use kd_models::classes::{ClassChoice, Matched, match_classes, select_rows};
use kd_models::preprocessing::{self, Preprocessing, timm};
use kd_models::weights::{self, LeftOut, Loaded, Scaled};
use kd_models::{Architecture, Classifier, ModelConfig};
use sha2::{Digest, Sha256};

use super::onnx;
use crate::error::other;
use crate::{Error, Result};
use kd_record::hash::{hex, sha256};

/// A network that is built and ready to answer.
pub type Network = Box<dyn Classifier + Send + Sync>;

/// A network's weights from a file.
pub struct Pretrained {
    /// The weights file.
    pub path: PathBuf,
    /// SHA-256 of the file, in hexadecimal digits.
    pub sha256: String,
    /// The teacher's network, without its weights. Of one that is [foreign](Self::foreign) only the number of classes and the images' shape
    /// mean anything.
    pub config: ModelConfig,
    /// The network itself, where it is none of kd's: it is in an ONNX file.
    pub foreign: Option<Arc<dyn Classifier + Send + Sync>>,
    /// The weights by name, on the CPU.
    pub tensors: BTreeMap<String, Tensor>,
    /// The part of the training images that the network has not seen, if its file names one.
    pub left_out: Option<LeftOut>,
    /// The weights of the network for each part, where the targets are cross-fitted; otherwise empty. `tensors` are the
    /// first part's.
    pub parts: Vec<BTreeMap<String, Tensor>>,
    /// The teachers of an [ensemble](Pretrained::ensemble); otherwise empty. `config` and `tensors` are the first one's.
    pub members: Vec<Self>,
    /// How the logits of an ensemble's teachers become those of one.
    pub combination: Combination,
    /// How the images were normalised that the network was trained on.
    pub normalization: Normalization,
    /// What the network does to the images that it is given, where those are normalised otherwise.
    pub renormalize: Option<Renormalize>,
    /// A text that tells these outputs from those of other weights, another order of classes or another normalisation: the
    /// file's SHA-256 where the file is taken as it is.
    pub identity: String,
    /// Sentences about what was done to read the file, and about what was mapped, changed or assumed.
    pub notes: Vec<String>,
}

/// What [`Pretrained::load`] has to know besides the file.
#[derive(Clone, Copy, Debug)]
pub struct PretrainedConfig<'a> {
    /// The network, for files that don't say theirs (PyTorch's); `None` then means `teacher`.
    pub architecture: Option<Architecture>,
    /// The names of the data's classes, by label.
    pub classes: &'a [String],
    /// The shape of the data's images, `[C, H, W]`.
    pub input: [usize; 3],
    /// What is known of the file's classes besides what the file says.
    pub choice: &'a ClassChoice,
    /// How the images are normalised that the network is given.
    pub normalization: Normalization,
    /// How those were normalised that it was trained on, for a file that doesn't say. Not given: like those that it is given.
    pub stated: Option<Normalization>,
    /// The output of an ONNX file that holds the logits, by name or number.
    pub output: Option<&'a str>,
    /// The tensors of an ONNX file that methods learn from, by name.
    pub places: &'a [String],
    /// How the data's pictures are brought to the size of `input`; `None` where they are not scaled, or nothing is to be said of it.
    pub scaling: Option<Scaling>,
}

impl<'a> PretrainedConfig<'a> {
    /// For weights of these classes, images of this shape, and weights that were trained on images of this normalisation.
    pub fn new(classes: &'a [String], input: [usize; 3], normalization: Normalization) -> Self {
        const NOTHING: &ClassChoice = &ClassChoice::NONE;
        Self {
            architecture: None,
            classes,
            input,
            choice: NOTHING,
            normalization,
            stated: None,
            output: None,
            places: &[],
            scaling: None,
        }
    }
}

/// The normalisation of a network's own images: what its file says, what is stated for it, what is known of its family (and in which
/// words), or that of the images it is given.
pub(super) fn own_normalization(
    path: &Path,
    said: Option<Normalization>,
    stated: Option<Normalization>,
    unsaid: Option<(Preprocessing, String)>,
    given: Normalization,
    notes: &mut Vec<String>,
) -> Result<Normalization> {
    let path = path.display();
    let shown = |n: Normalization| format!("mean {:?} and std {:?}", n.mean, n.std);
    if let (Some(said), Some(stated)) = (said, stated)
        && said != stated
    {
        return Err(Error::unfit(format!(
            "{path}: the file says that its network was trained on images normalised with {}; teacher_mean and teacher_std (--teacher-mean, --teacher-std) are {:?} and {:?}: remove them from the recipe or the command line, for the file's own are used",
            shown(said),
            stated.mean,
            stated.std
        )));
    }
    if let (None, None, Some((Preprocessing { mean, std, .. }, source))) = (said, stated, unsaid) {
        let own = Normalization { mean, std };
        notes.push(format!(
            "{path}: its network is given images normalised with {}, {source}; the data's are {}; others are stated with teacher_mean and teacher_std (--teacher-mean, --teacher-std)",
            shown(own),
            shown(given)
        ));
        return Ok(own);
    }
    let Some(own) = said.or(stated) else {
        notes.push(format!(
            "{path}: the file does not say how the images of its network's training were normalised; the data's {} are taken, unless a recipe states others as teacher_mean and teacher_std",
            shown(given)
        ));
        return Ok(given);
    };
    if own != given {
        notes.push(format!(
            "{path}: its network is given images normalised with {}, as in its own training; the data's are {}",
            shown(own),
            shown(given)
        ));
    }
    Ok(own)
}

/// The names of the classes of a weights file; the numbers of those of a file that names none. An ONNX file, whose logits are
/// its output `output`, is opened for images of the shape `input`, `[C, H, W]`.
///
/// # Errors
/// When the file is missing, damaged, or of a network that is not known and that `architecture` does not say.
pub fn classes_of(
    path: &Path,
    architecture: Option<Architecture>,
    output: Option<&str>,
    input: [usize; 3],
) -> Result<Vec<String>> {
    if onnx::is_onnx(path) {
        return onnx::classes_of(path, output, input);
    }
    let header = weights::peek(path)?;
    let (timm, _) = timm::beside(path, header.metadata.as_ref())?;
    let known = architecture.or(timm.as_ref().and_then(|timm| timm.architecture));
    let count = header.config(known, None)?.classes;
    let named = match (header.metadata, &timm) {
        (Some(metadata), _) => metadata.class_names,
        (None, Some(timm)) => timm.names(count)?.map(<[String]>::to_vec),
        (None, None) => None,
    };
    Ok(named.unwrap_or_else(|| (0..count).map(|class| class.to_string()).collect()))
}

impl Pretrained {
    /// Loads a weights file for data of these classes and this normalisation. The rows of its last layer are brought into the order
    /// of the data's classes, and a network that was trained with another normalisation changes that of its images.
    ///
    /// # Errors
    /// When the file is missing, damaged, of another network or for other classes, or contradicts `stated`.
    pub fn load(path: &Path, config: &PretrainedConfig<'_>) -> Result<Self> {
        if onnx::is_onnx(path) {
            return Self::load_onnx(path, config);
        }
        let PretrainedConfig {
            architecture,
            classes,
            input,
            choice,
            normalization,
            stated,
            scaling,
            ..
        } = *config;
        let sha256 = sha256(path)?;
        // A class map may choose among more classes than the data's.
        let count = choice.map.is_none().then_some(classes.len());
        let header = weights::peek(path)?;
        let (timm, aside) = timm::beside(path, header.metadata.as_ref())?;
        let known = architecture.or(timm.as_ref().and_then(|timm| timm.architecture));
        let network = header.config(known, count)?;
        let unsaid = preprocessing::unsaid(timm.as_ref(), network.architecture)?;
        let mut network = ModelConfig { input, ..network };
        let Loaded { mut tensors, metadata, mut notes } = weights::load(path, &network)?;
        notes.extend(aside);
        let names = match (&metadata, &timm) {
            (Some(metadata), _) => metadata.class_names.as_deref(),
            (None, Some(timm)) => timm.names(network.classes)?,
            (None, None) => None,
        };
        let Matched { rows, note } = match_classes(path, names, network.classes, classes, choice)?;
        notes.extend(note);
        if let Some(rows) = &rows {
            select_rows(&network, &mut tensors, rows)?;
            network.classes = classes.len();
        }
        if let (Some(about), Some(scaling)) = (&metadata, scaling) {
            let Scaling { size, resize, interpolation } = scaling;
            notes.extend(about.scaled_otherwise(path, size, Scaled { resize, interpolation }));
        }
        let said = metadata.as_ref().map(|m| Normalization { mean: m.mean, std: m.std });
        let own = own_normalization(path, said, stated, unsaid, normalization, &mut notes)?;
        let renormalize = Renormalize::between(normalization, own);
        let identity = match (&rows, renormalize) {
            (None, None) => sha256.clone(),
            changes => hex(Sha256::new_with_prefix(format!("{sha256} {changes:?}"))),
        };
        Ok(Self {
            path: path.to_owned(),
            sha256,
            config: network,
            foreign: None,
            tensors,
            left_out: metadata.and_then(|metadata| metadata.left_out),
            parts: Vec::new(),
            members: Vec::new(),
            combination: Combination::default(),
            normalization: own,
            renormalize,
            identity,
            notes,
        })
    }

    /// Several networks that together teach as one: each answers for the part of the images that it has not seen.
    ///
    /// # Errors
    /// When one was not trained without its part of these training images, or is of another architecture.
    pub fn cross_fitted(path: &Path, parts: Vec<Self>, data: &Portions) -> Result<Self> {
        let (of, images) = (parts.len(), data.train.len());
        let mut notes = Vec::new();
        let (mut hash, mut identity) = (Sha256::new(), Sha256::new());
        for (index, part) in parts.iter().enumerate() {
            let left_out = part.left_out.as_ref();
            if left_out.map(|it| (it.part, it.of, it.images)) != Some((index + 1, of, images)) {
                let found = left_out.map_or("without any part left out".into(), |found| {
                    format!(
                        "without part {} of {} of {} images",
                        found.part, found.of, found.images
                    )
                });
                return Err(Error::unfit(format!(
                    "{}: this teacher was trained {found}; cross-fitted targets here need one that was trained without part {} of {of} of {images} images: `kd train --part {}/{of}`",
                    part.path.display(),
                    index + 1,
                    index + 1
                )));
            }
            let expected = data.part_sha256(index + 1, of)?;
            match left_out.and_then(|found| found.sha256.as_ref()) {
                Some(found) if *found != expected => {
                    return Err(Error::unfit(format!(
                        "{}: this teacher was trained without part {} of {of} of other images (SHA-256 {found}; of the part here {expected}), so it may have been trained on images that it is to answer for: train it on this data with `kd train --part {}/{of}`",
                        part.path.display(),
                        index + 1,
                        index + 1
                    )));
                }
                Some(_) => {}
                None => notes.push(format!(
                    "{}: the file does not say which images it was trained without; they are taken to be part {} of {of} of this data",
                    part.path.display(),
                    index + 1
                )),
            }
            hash.update(&part.sha256);
            identity.update(&part.identity);
        }
        let Some(first) = parts.first() else {
            return Err(other!("cross-fitted targets need at least one part"));
        };
        let config = first.config;
        let other = parts.iter().find(|part| part.config.architecture != config.architecture);
        if let Some(other) = other {
            return Err(Error::unfit(format!(
                "{}: this teacher is a {}, that of the first part a {}",
                other.path.display(),
                other.config.architecture,
                config.architecture
            )));
        }
        let (normalization, renormalize) = (first.normalization, first.renormalize);
        if let Some(other) = parts.iter().find(|part| part.normalization != normalization) {
            return Err(Error::unfit(format!(
                "{}: this teacher was trained on images normalised with mean {:?} and std {:?}, that of the first part with mean {:?} and std {:?}; expected the same for all parts: train them with one recipe",
                other.path.display(),
                other.normalization.mean,
                other.normalization.std,
                normalization.mean,
                normalization.std
            )));
        }
        notes.splice(0..0, parts.iter().flat_map(|part| part.notes.clone()));
        let parts: Vec<_> = parts.into_iter().map(|part| part.tensors).collect();
        Ok(Self {
            path: path.to_owned(),
            sha256: hex(hash),
            config,
            foreign: None,
            tensors: parts[0].clone(),
            left_out: None,
            parts,
            members: Vec::new(),
            combination: Combination::default(),
            normalization,
            renormalize,
            identity: hex(identity),
            notes,
        })
    }

    /// The feature places of the network from input to output, each with the shape of one image's values.
    ///
    /// # Errors
    /// When the network does not take the images.
    pub fn places(&self) -> Result<Vec<(String, Vec<usize>)>> {
        let places = match &self.foreign {
            Some(network) => network.places(),
            None => self.config.graph()?.places(),
        };
        Ok(places.into_iter().map(|place| (place.name, place.shape)).collect())
    }

    /// The network, which no gradient reaches.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn network(&self, device: &Device) -> Result<Network> {
        self.network_of(&self.tensors, device)
    }

    /// The same network with other weights.
    pub(super) fn network_of(
        &self,
        tensors: &BTreeMap<String, Tensor>,
        device: &Device,
    ) -> Result<Network> {
        let tensors = tensors.iter();
        let tensors = tensors.map(|(name, tensor)| Ok((name.clone(), tensor.to_device(device)?)));
        let tensors = tensors.collect::<candle_core::Result<BTreeMap<_, _>>>()?;
        let network: Network = match &self.foreign {
            Some(network) => Box::new(Arc::clone(network)),
            None => kd_models::build(&self.config, kd_models::frozen(&tensors))?,
        };
        match self.renormalize {
            None => Ok(network),
            Some(Renormalize { scale, shift }) => {
                Ok(kd_models::rescaled(network, scale, shift, device)?)
            }
        }
    }
}
