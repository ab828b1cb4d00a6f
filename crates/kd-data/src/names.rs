//! The names by which pictures are known outside: those of their files, or their numbers in a data set that has no files for them.

use std::path::Path;
use std::sync::Arc;

use crate::Result;
use crate::source::{Block, Picture, Source};

/// The name of a picture's file, as seen from the data set's folder `dir`, with `/` between folders on every system.
pub(crate) fn name_below(file: &Path, dir: &Path) -> String {
    let below = file.strip_prefix(dir).unwrap_or(file).iter();
    below.map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// A source with names for its pictures.
pub(crate) struct Named {
    source: Arc<dyn Source>,
    names: Names,
}

/// How a picture's name is found.
enum Names {
    /// The part of the data set, `train` or `test`, and the picture's number there, from 0: `train/17`.
    Numbers(&'static str),
    /// A name for each picture.
    Each(Vec<String>),
}

impl Named {
    /// The pictures of a whole part of a data set, `train` or `test`, which are known by their numbers there: `train/17`.
    pub(crate) fn by_number(part: &'static str, source: Arc<dyn Source>) -> Arc<dyn Source> {
        Arc::new(Self { source, names: Names::Numbers(part) })
    }

    /// The same with a name for each picture.
    pub(crate) fn by_name(names: Vec<String>, source: Arc<dyn Source>) -> Arc<dyn Source> {
        Arc::new(Self { source, names: Names::Each(names) })
    }

    /// Copies of the pictures of `of` with these numbers, known by the same names.
    pub(crate) fn chosen(
        copies: Arc<dyn Source>,
        of: &dyn Source,
        indices: &[u32],
    ) -> Arc<dyn Source> {
        let names: Option<Vec<String>> = indices.iter().map(|&index| of.name(index)).collect();
        names.map_or(Arc::clone(&copies), |names| Self::by_name(names, copies))
    }
}

impl Source for Named {
    fn len(&self) -> usize {
        self.source.len()
    }

    fn shape(&self) -> [usize; 3] {
        self.source.shape()
    }

    fn label(&self, index: u32) -> Option<u32> {
        self.source.label(index)
    }

    fn read(&self, index: u32, into: &mut Picture) -> Result<()> {
        self.source.read(index, into)
    }

    fn read_whole(&self, index: u32, into: &mut Picture) -> Result<()> {
        self.source.read_whole(index, into)
    }

    fn identity(&self) -> String {
        self.source.identity()
    }

    fn memory(&self) -> u64 {
        self.source.memory()
    }

    fn block(&self) -> Option<Block<'_>> {
        self.source.block()
    }

    fn check(&self) -> Result<()> {
        self.source.check()
    }

    fn name(&self, index: u32) -> Option<String> {
        match &self.names {
            Names::Numbers(part) => {
                ((index as usize) < self.len()).then(|| format!("{part}/{index}"))
            }
            Names::Each(names) => names.get(index as usize).cloned(),
        }
    }
}
