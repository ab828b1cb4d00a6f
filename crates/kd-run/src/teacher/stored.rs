//! A teacher that is a file of its logits, by the pictures' names: one that can't leave the machine that it runs on.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use kd_data::{Portions, Source};
use kd_models::classes::{ClassChoice, match_classes};
use kd_record::PictureLogits;
use kd_record::hash::sha256;

use super::{Cached, LOGITS, Prepared};
use crate::{Error, Result};

/// How many names an error lists.
const NAMED: usize = 5;

/// The logits of a teacher for all training images, from a file.
pub struct StoredLogits {
    /// The file; see [`kd_record::picture_logits`].
    pub path: PathBuf,
    /// SHA-256 of the file, in hexadecimal digits.
    pub sha256: String,
    /// The logits of the training images in the data's order, f32 `[N, C]` on the CPU.
    pub logits: Tensor,
    /// Those of the test images, where the file has them all.
    pub test_logits: Option<Tensor>,
    /// Sentences about the file's classes, and about pictures that it has besides the training images.
    pub notes: Vec<String>,
}

impl StoredLogits {
    /// Loads the file at `path` for these images, with its classes brought into the order of theirs.
    ///
    /// # Errors
    /// When the file is missing or no such file, is of other classes, or lacks training images, or when two of these
    /// have one name.
    pub fn load(path: &Path, data: &Portions, choice: &ClassChoice) -> Result<Self> {
        let sha256 = sha256(path)?;
        let file = PictureLogits::read(path)?;
        let (names, count) = (Some(&file.classes[..]), file.classes.len());
        let matched = match_classes(path, names, count, &data.classes, choice)?;
        let mut notes: Vec<String> = matched.note.into_iter().collect();
        let columns = matched.rows.unwrap_or_else(|| (0..count).collect());
        let rows = file.rows();
        let named = names_of(&*data.train).ok_or_else(|| {
            Error::unfit(format!(
                "{}: the training images have no names, by which the file's logits could be found; expected pictures in files, or a data set of kd",
                path.display()
            ))
        })?;
        let mut seen = HashSet::new();
        if let Some(twice) = named.iter().find(|name| !seen.insert(name.as_str())) {
            return Err(Error::unfit(format!(
                "{}: two training pictures have the name {twice}; expected a name for each, by which the file's logits are found: rename one of them",
                path.display()
            )));
        }
        let gather = |named: &[String]| -> Result<Tensor> {
            let of = |name: &String| {
                let row = &file.logits[rows.get(name.as_str()).copied()? * count..][..count];
                Some(columns.iter().map(|&column| row[column]))
            };
            let values: Vec<f32> = named.iter().filter_map(of).flatten().collect();
            Ok(Tensor::from_vec(values, (named.len(), columns.len()), &Device::Cpu)?)
        };
        let missing: Vec<&String> =
            named.iter().filter(|name| !rows.contains_key(name.as_str())).collect();
        if !missing.is_empty() {
            let first: Vec<&str> = missing.iter().take(NAMED).map(|name| name.as_str()).collect();
            let more = if missing.len() > NAMED { ", ..." } else { "" };
            let there = file.names.first().map_or("", String::as_str);
            return Err(Error::unfit(format!(
                "{}: the file lacks {} of the {} training images: {}{more}; it has {} pictures, the first {there}: make it of the training images, with names as seen from the data's folder (`kd eval --on train --logits FILE` does)",
                path.display(),
                missing.len(),
                named.len(),
                first.join(", "),
                file.names.len()
            )));
        }
        let besides = file.names.len().saturating_sub(named.len());
        if besides > 0 {
            notes.push(format!(
                "{}: the file has {besides} pictures besides the {} training images",
                path.display(),
                named.len()
            ));
        }
        let test = names_of(&*data.test);
        let test = test.filter(|names| names.iter().all(|name| rows.contains_key(name.as_str())));
        Ok(Self {
            path: path.to_owned(),
            sha256,
            logits: gather(&named)?,
            test_logits: test.map(|names| gather(&names)).transpose()?,
            notes,
        })
    }

    /// Zeros in place of the logits, to plan a run by.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn blank(path: &Path, data: &Portions) -> Result<Self> {
        let shape = (data.train.len(), data.classes.len());
        Ok(Self {
            path: path.to_owned(),
            sha256: String::new(),
            logits: Tensor::zeros(shape, DType::F32, &Device::Cpu)?,
            test_logits: None,
            notes: Vec::new(),
        })
    }

    /// The teacher that answers with these logits.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn teacher(&self, device: &Device) -> Result<Cached> {
        let rows = self.logits.to_device(device)?;
        Ok(Cached::new(BTreeMap::from([(LOGITS.to_owned(), rows)]), None))
    }

    /// The same, ready for a run.
    pub(crate) fn prepared(&self, device: &Device) -> Result<Prepared> {
        Ok(Prepared {
            teacher: Box::new(self.teacher(device)?),
            logits: Some(self.logits.clone()),
            cached: vec![LOGITS.to_owned()],
            computed: Vec::new(),
            kept: None,
        })
    }
}

/// The names of a source's pictures, in order; `None` where they have none.
pub fn names_of(source: &dyn Source) -> Option<Vec<String>> {
    (0..source.len() as u32).map(|index| source.name(index)).collect()
}
