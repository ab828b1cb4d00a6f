//! The table of the published pairs, as recipes/cifar100/pairs.toml holds it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;

/// Networks, pairs and methods, with what was published of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// How every network is trained.
    pub protocol: Protocol,
    /// Where the networks' accuracies on the labels alone stand.
    pub alone: Source,
    #[serde(rename = "network")]
    pub networks: Vec<Network>,
    #[serde(rename = "pair")]
    pub pairs: Vec<Pair>,
    #[serde(rename = "method")]
    pub methods: Vec<Method>,
}

/// How every network is trained, except for its learning rate.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Whose protocol it is: repository and files.
    pub source: String,
    pub epochs: usize,
    pub batch_size: usize,
    /// Epochs after which the learning rate is multiplied by `factor`.
    pub milestones: Vec<usize>,
    pub factor: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    /// Pixels by which a picture is shifted at most; it is mirrored, too.
    pub crop_padding: usize,
    pub mean: [f64; 3],
    pub std: [f64; 3],
}

/// Where figures stand, and of which epoch they are, in the words of a recipe's `published`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub source: String,
    #[serde(default)]
    pub epoch: Option<String>,
}

/// A network of one or several pairs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Its name in pairs, and that of its run.
    pub id: String,
    /// Its name as papers write it.
    pub title: String,
    /// kd's name of it.
    pub model: String,
    /// Published accuracy on the labels alone, in per cent.
    pub alone: f64,
    /// kd's figure beside it, as the page shows it.
    #[serde(default)]
    pub ours: Option<String>,
    pub lr: f64,
    /// The place before the first stage.
    pub stem: String,
    /// The places behind the stages.
    pub stages: Vec<String>,
    /// The same before their ReLU.
    pub before_relu: Vec<String>,
    /// Layers that a first stage of training without labels does not reach.
    pub frozen: Vec<String>,
}

/// What the last layer sees: the place has this name in every network.
pub(super) const VECTOR: &str = "pool";

/// A teacher and a student, by their networks' ids.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    pub teacher: String,
    pub student: String,
}

/// A method with its authors' settings.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// The name of its run.
    pub name: String,
    /// Its name as papers write it.
    pub title: String,
    /// The weight of the labels beside it; 1 where none is given.
    #[serde(default)]
    pub labels: Option<f64>,
    /// Its learning rate where it is not the student's own.
    #[serde(default)]
    pub lr: Option<f64>,
    /// What a recipe has in `[[run.method]]`, but `places`, which says them by what they are.
    pub terms: Vec<toml::Table>,
    /// Epochs of a first stage without labels, from whose weights a run on the labels alone starts.
    #[serde(default)]
    pub first: Option<usize>,
    /// Whose settings these are: repository, file and what stands there.
    pub source: String,
    /// In what kd departs from the code that gave the published figures; empty where nothing is known.
    pub differs: String,
    /// Other settings of single pairs.
    #[serde(default)]
    pub settings: BTreeMap<String, toml::Table>,
    /// The figures that others published, by pair.
    #[serde(default)]
    pub published: Vec<Figures>,
    /// kd's figures by pair, as the page shows them.
    #[serde(default)]
    pub ours: BTreeMap<String, String>,
}

/// Published accuracies of a method that stand in one place.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    pub source: String,
    #[serde(default)]
    pub epoch: Option<String>,
    /// In per cent, by pair.
    pub accuracy: BTreeMap<String, f64>,
}

impl Pair {
    /// The name of its recipe: `resnet56-to-resnet20`.
    pub fn name(&self) -> String {
        format!("{}-to-{}", self.teacher, self.student)
    }

    /// Whether both networks are of one kind, which is what their ids begin with.
    pub fn is_of_one_kind(&self) -> bool {
        let kind = |id: &str| id.find(|c: char| !c.is_alphabetic()).map(|end| id[..end].to_owned());
        kind(&self.teacher) == kind(&self.student)
    }
}

impl Method {
    /// The published accuracy for a pair, with where it stands and its epoch.
    pub fn published_of(&self, pair: &str) -> Option<(f64, &str, Option<&str>)> {
        self.published.iter().find_map(|figures| {
            let accuracy = figures.accuracy.get(pair)?;
            Some((*accuracy, figures.source.as_str(), figures.epoch.as_deref()))
        })
    }
}

impl Table {
    /// The table that a file holds.
    ///
    /// # Errors
    /// When the file can't be read, or holds something else or what makes no sense.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// The table of a text, which messages call `file`.
    ///
    /// # Errors
    /// When it is another table, or names a pair or a network that it has not.
    pub fn parse(text: &str, file: &str) -> anyhow::Result<Self> {
        let table: Self = toml::from_str(text).with_context(|| file.to_owned())?;
        for pair in &table.pairs {
            for id in [&pair.teacher, &pair.student] {
                table.network(id).with_context(|| format!("{file}: pair {}", pair.name()))?;
            }
        }
        for method in &table.methods {
            let of_figures = method.published.iter().flat_map(|figures| figures.accuracy.keys());
            let mut named = of_figures.chain(method.settings.keys()).chain(method.ours.keys());
            let unknown = named.find(|name| table.pairs.iter().all(|pair| pair.name() != **name));
            if let Some(name) = unknown {
                bail!("{file}: method {}: there is no pair {name:?}", method.name);
            }
        }
        Ok(table)
    }

    /// The network of this id.
    ///
    /// # Errors
    /// When there is none.
    pub fn network(&self, id: &str) -> anyhow::Result<&Network> {
        let found = self.networks.iter().find(|network| network.id == id);
        found.with_context(|| format!("there is no network {id:?}"))
    }
}
