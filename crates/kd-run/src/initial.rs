//! What a run starts from besides fresh weights: the weights of a file.

use std::path::Path;

use anyhow::Context;
use kd_data::Normalization;
use kd_models::classes::{ClassChoice, match_classes, select_rows};
use kd_models::preprocessing::{self, timm};
use kd_models::weights::{self, Start};
use kd_models::{ModelConfig, Parameters};

use crate::{Error, Result};
use kd_record::hash::sha256;

/// Weights of a file that a run starts from.
pub struct Initial {
    /// SHA-256 of the file.
    pub sha256: String,
    /// The tensors that are taken from the file, and what is known of it.
    pub start: Start,
    /// A sentence about the file's classes, where they are mapped or don't have the data's names.
    pub note: Option<String>,
}

impl Initial {
    /// Loads a weights file of the network `config` for the classes `classes` of the data. The rows of its last layer are brought
    /// into their order. The file may classify another number of classes; its last layer is then left out.
    ///
    /// # Errors
    /// When the file is missing or damaged, holds another network's weights, names other classes, or says that its network was
    /// trained on images that were normalised otherwise.
    pub fn load(
        path: &Path,
        config: &ModelConfig,
        classes: &[String],
        choice: &ClassChoice,
        normalization: Normalization,
    ) -> Result<Self> {
        let sha256 = sha256(path)?;
        let mut start = weights::load_start(path, config)?;
        if let Some(metadata) = &start.metadata {
            let cure = "the network trains on with the data's: set mean and std in the recipe's [data] table to the file's";
            metadata
                .check_normalization(path, normalization.mean, normalization.std)
                .map_err(|error| Error::from(error).context(cure))?;
        } else {
            let (timm, aside) = timm::beside(path, None)?;
            let unsaid = preprocessing::unsaid(timm.as_ref(), config.architecture)?;
            let Normalization { mean, std } = normalization;
            let other = unsaid.filter(|(own, _)| (own.mean, own.std) != (mean, std));
            start.notes.extend(aside);
            start.notes.extend(other.map(|(own, source)| format!(
                "{}: its network was trained on images normalised with mean {:?} and std {:?}, {source}; it trains on with the data's, mean {mean:?} and std {std:?}: set mean and std in the recipe's [data] table to the file's to start from what it knows",
                path.display(),
                own.mean,
                own.std
            )));
        }
        let mut note = None;
        match start.other_classes {
            Some(other) if choice.map.is_some() || choice.ignore_names => {
                return Err(Error::unfit(format!(
                    "{}: the file classifies {other} classes and the data has {}, so the last layer starts fresh and no class of the file is used: leave out the class map and --ignore-class-names",
                    path.display(),
                    config.classes
                )));
            }
            Some(_) => {}
            None => {
                let names = start.metadata.as_ref().and_then(|about| about.class_names.as_deref());
                let matched = match_classes(path, names, config.classes, classes, choice)?;
                if let Some(rows) = &matched.rows {
                    select_rows(config, &mut start.tensors, rows)?;
                }
                note = matched.note;
            }
        }
        Ok(Self { sha256, start, note })
    }

    /// A sentence about what the run takes from the file at `path` and which layer starts fresh.
    ///
    /// # Errors
    /// When `config` makes no sense.
    pub fn describe(&self, path: &Path, config: &ModelConfig) -> Result<String> {
        let path = path.display();
        Ok(match self.start.other_classes {
            None => format!("starts from {path}"),
            Some(other) => format!(
                "starts from {path}, except for {}, which starts fresh: the file classifies {other} classes; the data has {}",
                config.graph()?.head().name,
                config.classes
            ),
        })
    }

    /// Writes the file's weights over the fresh ones in `parameters`.
    pub(crate) fn set(&self, parameters: &Parameters) -> anyhow::Result<()> {
        for (name, tensor) in &self.start.tensors {
            let var = parameters.get(name).with_context(|| format!("no parameter {name}"))?;
            var.set(&tensor.to_device(var.device())?)?;
        }
        Ok(())
    }
}
