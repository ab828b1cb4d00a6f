//! Recipes: what an experiment is, as a TOML file.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use kd_data::{Augment, Normalization};
use kd_loss::{Kind, MethodConfig, Term};
use kd_models::Architecture;
use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};

use crate::files;
pub use crate::optimizer::OptimizerConfig;
pub use crate::precision::Precision;
pub use crate::schedule::LrSchedule;

/// The recipe format that this version reads and writes.
pub const FORMAT: u32 = 1;

/// No recipe that people write comes near this size; a larger file is not read.
pub(crate) const MAX_BYTES: u64 = 1 << 20;

/// Most epochs, and most images in a step: far more than anybody trains with.
const MOST: usize = 1_000_000;
const AT_LEAST_ONE: &str = "at least 1, at most 1000000";

/// The built-in recipe: PyTorch's tutorial on knowledge distillation. It is `recipes/tutorial.toml` of the
/// repository, copied because a published crate has its own folder's files alone.
pub const TUTORIAL: &str = include_str!("tutorial.toml");

/// An experiment: data and settings that all its runs share, and the runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// [`FORMAT`].
    pub format: u32,
    /// The experiment's name.
    pub name: String,
    /// The images.
    #[serde(default)]
    pub data: DataConfig,
    /// How long, in what steps, from which seed.
    #[serde(default)]
    pub training: TrainingConfig,
    /// The optimiser.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// The networks to train.
    #[serde(rename = "run")]
    pub runs: Vec<RunConfig>,
}

/// Which images, and what is done to them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// The data set.
    pub dataset: DatasetName,
    /// Subtracted from each colour, on inputs from 0 to 1.
    pub mean: [f32; 3],
    /// What each colour is then divided by.
    pub std: [f32; 3],
    /// Train on at most this many images, balanced over the classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_limit: Option<usize>,
    /// Test on at most this many images, balanced over the classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_limit: Option<usize>,
    /// Choose settings: take this many training images out (balanced over the classes, the same in
    /// every run) and test on them; the test images are not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<usize>,
    /// SHA-256 of the data; other data is then an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Random changes to the training images.
    pub augment: AugmentConfig,
}

/// The data sets by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatasetName {
    /// CIFAR-10.
    Cifar10,
    /// CIFAR-100, the hundred fine labels.
    Cifar100,
    /// Pictures drawn by program.
    Synthetic,
    /// One's own pictures: `train/CLASS/*.png` and `test/CLASS/*.png`.
    Folder,
}

impl DatasetName {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cifar10, Self::Cifar100, Self::Synthetic, Self::Folder];

    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cifar10 => "cifar10",
            Self::Cifar100 => "cifar100",
            Self::Synthetic => "synthetic",
            Self::Folder => "folder",
        }
    }
}

impl std::str::FromStr for DatasetName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|dataset| dataset.name() == name);
        let known = Self::ALL.map(Self::name).join(", ");
        found.ok_or_else(|| format!("there is no data set {name:?}; expected one of {known}"))
    }
}

/// Random changes to training images; all off by default. See [`kd_data::Augment`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// Shift by up to this many pixels.
    pub crop_padding: usize,
    /// Mirror every other image.
    pub flip: bool,
    /// Side of a square that is cut out, in pixels; 0 is off.
    pub cutout: usize,
}

/// How long and in what steps a network is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingConfig {
    /// Passes over the training images.
    pub epochs: usize,
    /// Images in a step; the last step of an epoch may have fewer.
    pub batch_size: usize,
    /// Of initial weights, batch order, augmentation and dropout.
    pub seed: u64,
    /// Scale a step's gradients down to this norm where they have a larger one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_grad_norm: Option<f64>,
    /// The arithmetic; all but f32 is for a GPU.
    #[serde(skip_serializing_if = "Precision::is_f32")]
    pub precision: Precision,
    /// How the learning rate goes.
    #[serde(skip_serializing_if = "LrSchedule::is_constant")]
    pub schedule: LrSchedule,
}

/// One network to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The run's name: its folder and its weights file.
    pub name: String,
    /// The network.
    pub model: Architecture,
    /// Share of the hidden layer that is dropped in training; none in a ResNet. What is left out is
    /// filled in with the network's default when a recipe is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// The teacher: a run of the same recipe, or a weights file (relative to the recipe's folder).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// The teacher's network, where its weights file doesn't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_model: Option<Architecture>,
    /// SHA-256 of the teacher's weights file; another one is then an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_sha256: Option<String>,
    /// Targets from teachers that have not seen the image (Dao et al., 2021): this many, each trained
    /// without one part of the images, answer for that part. Their weights are those of `teacher` with
    /// `-part-<i>-of-<k>` behind the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cross_fit: Option<usize>,
    /// Train without part i of k of the training images, as `[i, k]`: a teacher for `cross_fit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<[usize; 2]>,
    /// Passes over the training images, instead of `[training]`'s: a teacher that stops early, or a student that
    /// takes longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Train without this many images, and end with the weights of the epoch that is best on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select_on: Option<usize>,
    /// Weights to start from instead of fresh ones: a run of the same recipe, or a weights file (relative
    /// to the recipe's folder). Its last layer is left out where it tells another number of classes apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// SHA-256 of that file; another one is then an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_sha256: Option<String>,
    /// Layers that stay as they are, by name: `features.0`, or `layer1` for all below it. A frozen batch
    /// normalisation keeps its running statistics and trains with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
    /// Weight of the cross-entropy with the labels.
    #[serde(default = "default_labels")]
    pub labels: f64,
    /// What is added to it.
    #[serde(default, rename = "method", skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<Term>,
}

fn default_labels() -> f64 {
    1.0
}

impl Default for DataConfig {
    fn default() -> Self {
        let Normalization { mean, std } = Normalization::default();
        Self {
            dataset: DatasetName::Cifar10,
            mean,
            std,
            train_limit: None,
            test_limit: None,
            held_out: None,
            sha256: None,
            augment: AugmentConfig::default(),
        }
    }
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            epochs: 10,
            batch_size: 128,
            seed: 0,
            clip_grad_norm: None,
            precision: Precision::default(),
            schedule: LrSchedule::default(),
        }
    }
}

impl DataConfig {
    /// For `kd-data`.
    pub fn normalization(&self) -> Normalization {
        Normalization { mean: self.mean, std: self.std }
    }

    /// For `kd-data`.
    pub fn augment(&self) -> Augment {
        let AugmentConfig { crop_padding, flip, cutout } = self.augment;
        Augment { crop_padding, flip, cutout }
    }
}

impl RunConfig {
    /// A network trained on the labels alone.
    pub fn on_labels(name: &str, model: Architecture) -> Self {
        Self {
            name: name.to_string(),
            model,
            dropout: model.default_dropout(),
            teacher: None,
            teacher_model: None,
            teacher_sha256: None,
            cross_fit: None,
            part: None,
            epochs: None,
            select_on: None,
            init: None,
            init_sha256: None,
            freeze: Vec::new(),
            labels: default_labels(),
            methods: Vec::new(),
        }
    }

    /// Makes it another network, with that network's dropout where this one's does not fit.
    pub fn set_model(&mut self, model: Architecture) {
        self.model = model;
        let default = model.default_dropout();
        self.dropout = default.map(|default| self.dropout.unwrap_or(default));
    }

    /// Whether any method asks a teacher.
    pub fn needs_teacher(&self) -> bool {
        self.methods.iter().any(|term| needs_teacher(&term.method))
    }

    /// The methods' names, joined by "+"; `None` without one.
    pub fn method_name(&self) -> Option<String> {
        let names: Vec<_> = self.methods.iter().map(|term| term.method.name()).collect();
        (!names.is_empty()).then(|| names.join("+"))
    }
}

/// Whether a method asks a teacher.
pub fn needs_teacher(method: &MethodConfig) -> bool {
    let about = kd_loss::METHODS.iter().find(|info| info.name == method.name());
    about.is_none_or(|info| info.about.kind != Kind::Control)
}

/// A recipe of exactly one run: what a run's folder records, and what is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRecipe {
    /// The experiment's name.
    pub name: String,
    /// The images.
    pub data: DataConfig,
    /// How long, in what steps, from which seed.
    pub training: TrainingConfig,
    /// The optimiser.
    pub optimizer: OptimizerConfig,
    /// The run.
    pub run: RunConfig,
}

impl RunRecipe {
    /// The same as a recipe.
    pub fn to_recipe(&self) -> Recipe {
        let Self { name, data, training, optimizer, run } = self.clone();
        Recipe { format: FORMAT, name, data, training, optimizer, runs: vec![run] }
    }

    /// The recipe's file.
    ///
    /// # Errors
    /// When a value can't be written as TOML.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        toml::to_string(&self.to_recipe()).context("the recipe can't be written as TOML")
    }

    /// Checks every value.
    ///
    /// # Errors
    /// When one makes no sense; it is named.
    pub fn validate(&self) -> anyhow::Result<()> {
        self.to_recipe().check().map_err(|invalid| anyhow::anyhow!("{invalid}"))
    }
}

/// What is wrong with a recipe and where.
#[derive(Debug, thiserror::Error)]
pub struct RecipeError {
    /// The file, or what else it is.
    pub file: String,
    /// The line, from 1.
    pub line: Option<usize>,
    /// What was found and what was expected.
    pub message: String,
}

impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// A value that makes no sense.
#[derive(Debug)]
pub(crate) struct Invalid {
    /// Keys and positions down to the value.
    path: Vec<Step>,
    message: String,
}

/// One step towards a value in a recipe.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Key(&'static str),
    Index(usize),
}

impl Recipe {
    /// Reads a recipe file.
    ///
    /// # Errors
    /// When it can't be read, is no TOML, has an unknown key or a value that makes no sense; with
    /// file and line.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = files::read_text(path, MAX_BYTES)
            .with_context(|| format!("{}: the recipe can't be read", path.display()))?;
        Ok(Self::parse(&text, &path.display().to_string())?)
    }

    /// Parses a recipe; `file` is its name for messages.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn parse(text: &str, file: &str) -> Result<Self, RecipeError> {
        let error = |line, message| RecipeError { file: file.to_string(), line, message };
        let toml_error = |found: toml::de::Error| {
            let line = found.span().map(|span| line_of(text, span.start));
            error(line, in_words(&with_suggestion(found.message().trim())))
        };
        let root = DeTable::parse(text).map_err(toml_error)?;
        let root = root.into_inner();
        // Read first: another format may differ in everything else.
        let format = root.get("format").and_then(|format| match format.get_ref() {
            DeValue::Integer(number) => number.as_str().parse::<u32>().ok(),
            _ => None,
        });
        if format != Some(FORMAT) {
            let found = root.get("format").map(|format| &text[format.span()]);
            return Err(error(
                root.get("format").map(|format| line_of(text, format.span().start)),
                match found {
                    Some(found) => format!(
                        "format is {found}; this version of kd reads format {FORMAT}: use the version that wrote the recipe, or write it anew"
                    ),
                    None => format!("format is missing; expected a first line `format = {FORMAT}`"),
                },
            ));
        }
        let mut recipe: Self = toml::from_str(text).map_err(toml_error)?;
        for run in &mut recipe.runs {
            run.dropout = run.dropout.or(run.model.default_dropout());
        }
        recipe.check().map_err(|invalid| {
            error(Some(line_of(text, offset_of(&root, &invalid.path))), invalid.to_string())
        })?;
        Ok(recipe)
    }

    fn check(&self) -> Result<(), Invalid> {
        self.data.check().map_err(|invalid| invalid.below(&[Step::Key("data")]))?;
        let training = &self.training;
        for (key, value) in [("epochs", training.epochs), ("batch_size", training.batch_size)] {
            let path = [Step::Key("training"), Step::Key(key)];
            require((1..=MOST).contains(&value), &path, value, AT_LEAST_ONE)?;
        }
        let clip = training.clip_grad_norm.unwrap_or(1.0);
        let path = [Step::Key("training"), Step::Key("clip_grad_norm")];
        require(clip > 0.0 && clip.is_finite(), &path, clip, "a number above 0")?;
        training
            .schedule
            .check()
            .map_err(|invalid| invalid.below(&[Step::Key("training"), Step::Key("schedule")]))?;
        self.optimizer.check().map_err(|invalid| invalid.below(&[Step::Key("optimizer")]))?;
        require(!self.runs.is_empty(), &[Step::Key("run")], "empty", "at least one [[run]]")?;
        for (index, run) in self.runs.iter().enumerate() {
            let place = [Step::Key("run"), Step::Index(index)];
            run.check().map_err(|invalid| invalid.below(&place))?;
            if self.runs[..index].iter().any(|other| other.name == run.name) {
                let mut path = place.to_vec();
                path.push(Step::Key("name"));
                let message = format!("{:?} is the name of two runs; names must differ", run.name);
                return Err(Invalid { path, message });
            }
        }
        Ok(())
    }
}

impl DataConfig {
    fn check(&self) -> Result<(), Invalid> {
        let finite = self.mean.iter().all(|mean| mean.is_finite());
        let mean = format!("{:?}", self.mean);
        require(finite, &[Step::Key("mean")], mean, "three finite numbers")?;
        let positive = self.std.iter().all(|std| std.is_finite() && *std > 0.0);
        let std = format!("{:?}", self.std);
        require(positive, &[Step::Key("std")], std, "three numbers above 0")?;
        let limits = [
            ("train_limit", self.train_limit),
            ("test_limit", self.test_limit),
            ("held_out", self.held_out),
        ];
        for (key, limit) in limits {
            require(limit != Some(0), &[Step::Key(key)], 0, "at least 1")?;
        }
        let augment = [Step::Key("augment"), Step::Key("crop_padding")];
        require(self.augment.crop_padding < 32, &augment, self.augment.crop_padding, "0 to 31")?;
        let augment = [Step::Key("augment"), Step::Key("cutout")];
        require(self.augment.cutout <= 64, &augment, self.augment.cutout, "0 to 64")
    }
}

impl RunConfig {
    fn check(&self) -> Result<(), Invalid> {
        check_name(&self.name).map_err(|message| Invalid {
            path: vec![Step::Key("name")],
            message: message.to_string(),
        })?;
        let epochs = self.epochs.unwrap_or(1);
        require((1..=MOST).contains(&epochs), &[Step::Key("epochs")], epochs, AT_LEAST_ONE)?;
        if let Some(dropout) = self.dropout {
            let path = [Step::Key("dropout")];
            require((0.0..1.0).contains(&dropout), &path, dropout, "a number from 0 to below 1")?;
            let has = self.model.default_dropout().is_some();
            require(has, &path, dropout, "none: a ResNet has no dropout")?;
        }
        let weight = |value: f64, path: &[Step]| {
            let good = value >= 0.0 && value.is_finite();
            require(good, path, value, "a number that is not negative")
        };
        weight(self.labels, &[Step::Key("labels")])?;
        for (index, term) in self.methods.iter().enumerate() {
            let place = [Step::Key("method"), Step::Index(index)];
            weight(term.weight, &[place[0].clone(), place[1].clone(), Step::Key("weight")])?;
            let name = term.method.name();
            (term.method.validate())
                .and_then(|()| term.schedule.validate(name))
                .map_err(|error| Invalid { path: place.to_vec(), message: error.to_string() })?;
        }
        let something = self.labels > 0.0 || self.methods.iter().any(|term| term.weight > 0.0);
        require(something, &[Step::Key("labels")], 0, "a weight above 0 here or in a method")?;
        if let Some(parts) = self.cross_fit {
            let path = [Step::Key("cross_fit")];
            require(parts >= 2, &path, parts, "at least 2")?;
            require(
                self.needs_teacher(),
                &path,
                parts,
                "none: no method of this run asks a teacher",
            )?;
        }
        if let Some([part, of]) = self.part {
            let good = of >= 2 && (1..=of).contains(&part);
            let found = format!("[{part}, {of}]");
            require(
                good,
                &[Step::Key("part")],
                found,
                "[i, k] with i from 1 to k, and k at least 2",
            )?;
        }
        let select_on = self.select_on.unwrap_or(1);
        require(select_on >= 1, &[Step::Key("select_on")], 0, "at least 1")?;
        for (key, set) in [("part", self.part.is_some()), ("select_on", self.select_on.is_some())] {
            let expected = "none in a run with a teacher: the student sees all training images";
            require(!(set && self.needs_teacher()), &[Step::Key(key)], "set", expected)?;
        }
        let teacher = self.teacher.as_deref().unwrap_or_default();
        let used = self.teacher.is_none() || self.needs_teacher();
        require(
            used,
            &[Step::Key("teacher")],
            teacher,
            "none: no method of this run asks a teacher",
        )
    }
}

/// Whether a run can have this name: it becomes a folder and a file.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_name(name: &str) -> anyhow::Result<()> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    anyhow::ensure!(
        first && name.bytes().all(known) && name.len() <= 100 && name != "cache",
        "run name {name:?} can't be a folder's; expected letters, digits, '-', '_' and '.', a letter or digit first, and not \"cache\""
    );
    Ok(())
}

pub(crate) fn require(
    good: bool,
    path: &[Step],
    found: impl fmt::Display,
    expected: &str,
) -> Result<(), Invalid> {
    if good {
        return Ok(());
    }
    let message = format!("is {found}; expected {expected}");
    Err(Invalid { path: path.to_vec(), message })
}

impl Invalid {
    fn below(mut self, place: &[Step]) -> Self {
        self.path.splice(0..0, place.iter().cloned());
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.path.iter().enumerate() {
            match step {
                Step::Key(key) if index == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                // Counted from 1, as people count the tables.
                Step::Index(index) => write!(f, "[{}]", index + 1)?,
            }
        }
        write!(f, ": {}", self.message)
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// Where the value is; where the nearest table above it is, when the value has been left out.
fn offset_of(root: &DeTable<'_>, path: &[Step]) -> usize {
    let [Step::Key(first), rest @ ..] = path else { return 0 };
    let Some((key, mut value)) = root.get_key_value(*first) else { return 0 };
    let mut offset = key.span().start;
    for step in rest {
        let (at, below) = match (step, value.get_ref()) {
            (Step::Key(key), DeValue::Table(table)) => match table.get_key_value(*key) {
                Some((key, below)) => (key.span().start, below),
                None => break,
            },
            (Step::Index(index), DeValue::Array(array)) => match array.get(*index) {
                Some(below) => (below.span().start, below),
                None => break,
            },
            _ => break,
        };
        offset = at;
        value = below;
    }
    offset
}

/// Adds the nearest of the names that serde lists, for a misspelt one.
fn with_suggestion(message: &str) -> String {
    let mut names = message.split('`').skip(1).step_by(2);
    let is_unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let (true, Some(found)) = (is_unknown, names.next()) else { return message.to_string() };
    match nearest(found, names) {
        Some(name) => format!("{message}; did you mean `{name}`?"),
        None => message.to_string(),
    }
}

/// The one of these names that was probably meant by `found`, if any is near it.
pub fn nearest<'a>(found: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, name) = names.map(|name| (edit_distance(found, name), name)).min()?;
    (distance <= 1 + found.len() / 4).then_some(name)
}

/// What serde calls by Rust's types, in words.
fn in_words(message: &str) -> String {
    let types = [
        ("expected usize", "expected a whole number, not negative"),
        ("expected u64", "expected a whole number, not negative"),
        ("expected u32", "expected a whole number, not negative"),
        ("expected f64", "expected a number"),
        ("expected f32", "expected a number"),
    ];
    for (name, words) in types {
        if let Some(start) = message.strip_suffix(name) {
            return format!("{start}{words}");
        }
    }
    message.to_string()
}

/// Letters to insert, delete or change (Levenshtein, 1966).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The keys in which two recipes of one run differ, each with both values. The paths of
/// weights files are left out: their hashes say whether they are the same.
pub fn differences(there: &toml::Table, asked: &toml::Table) -> Vec<String> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    flatten("", &toml::Value::Table(there.clone()), &mut a);
    flatten("", &toml::Value::Table(asked.clone()), &mut b);
    let mut keys: Vec<&String> = a.iter().chain(&b).map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    let value = |of: &[(String, String)], key: &str| {
        of.iter()
            .find(|(other, _)| other == key)
            .map_or("not set".into(), |(_, value)| value.clone())
    };
    keys.into_iter()
        .filter(|key| !["run.teacher", "run.init"].contains(&key.as_str()))
        .filter(|key| value(&a, key) != value(&b, key))
        .map(|key| format!("{key} ({} there, {} asked for)", value(&a, key), value(&b, key)))
        .collect()
}

/// [`differences`] of recipes as texts, `file` being the name of the first: a setting that is not written counts with its
/// default, so that a recipe of an earlier version is still the same.
pub(crate) fn differences_in_text(
    there: &str,
    file: &str,
    asked: &str,
) -> anyhow::Result<Vec<String>> {
    let whole = |text: &str, file: &str| {
        let recipe = Recipe::parse(text, file)?;
        let text = toml::to_string(&recipe).context("the recipe can't be written as TOML")?;
        anyhow::Ok(text.parse::<toml::Table>()?)
    };
    Ok(differences(&whole(there, file)?, &whole(asked, "the run's recipe")?))
}

fn flatten(prefix: &str, value: &toml::Value, out: &mut Vec<(String, String)>) {
    let below = |key: &str| match prefix {
        "" => key.to_string(),
        _ => format!("{prefix}.{key}"),
    };
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                flatten(&below(key), value, out);
            }
        }
        toml::Value::Array(array) if array.iter().all(toml::Value::is_table) => match &array[..] {
            // The one [[run]], and a method that is alone.
            [one] => flatten(prefix, one, out),
            several => {
                for (index, value) in several.iter().enumerate() {
                    flatten(&below(&(index + 1).to_string()), value, out);
                }
            }
        },
        other => out.push((prefix.to_string(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Recipe::parse(text, "r.toml").unwrap_err().to_string()
    }

    fn changed(from: &str, to: &str) -> String {
        assert!(TUTORIAL.contains(from), "{from}");
        error(&TUTORIAL.replacen(from, to, 1))
    }

    fn line(of: &str) -> usize {
        line_of(TUTORIAL, TUTORIAL.find(of).unwrap())
    }

    #[test]
    fn the_built_in_recipe_is_the_tutorials() {
        let recipe = Recipe::parse(TUTORIAL, "tutorial").unwrap();
        assert_eq!(recipe.data, DataConfig::default());
        assert_eq!(recipe.training, TrainingConfig::default());
        assert_eq!(recipe.optimizer, OptimizerConfig::default());
        let names: Vec<_> = recipe.runs.iter().map(|run| run.name.as_str()).collect();
        assert_eq!(names, ["teacher", "student", "kd", "cosine", "regressor"]);
        assert!(recipe.runs.iter().all(|run| run.dropout == Some(0.1)));
        assert_eq!(recipe.runs[0].labels, 1.0);
        assert_eq!((recipe.runs[2].labels, recipe.runs[2].methods[0].weight), (0.75, 0.25));
    }

    #[test]
    fn a_resolved_recipe_reads_back_the_same() {
        let recipe = Recipe::parse(TUTORIAL, "tutorial").unwrap();
        for run in &recipe.runs {
            let one = RunRecipe {
                name: recipe.name.clone(),
                data: recipe.data.clone(),
                training: recipe.training.clone(),
                optimizer: recipe.optimizer.clone(),
                run: run.clone(),
            };
            let again = Recipe::parse(&one.to_toml().unwrap(), "again").unwrap();
            assert_eq!(again.runs, std::slice::from_ref(run));
            assert_eq!(again.data, one.data);
            assert_eq!(again.optimizer, one.optimizer);
        }
    }

    #[test]
    fn an_optimiser_has_its_own_settings_alone() {
        let adam = "name = \"adam\"\nlr = 1e-3\nbeta1 = 0.9\nbeta2 = 0.999\neps = 1e-8\nweight_decay = 0.0";
        let with = |table: &str| TUTORIAL.replacen(adam, table, 1);
        let sgd = with("name = 'sgd'\nlr = 0.1\nmomentum = 0.9\nnesterov = true");
        let recipe = Recipe::parse(&sgd, "r").unwrap();
        let expected =
            "name = \"sgd\"\nlr = 0.1\nmomentum = 0.9\nnesterov = true\nweight_decay = 0.0\n";
        assert_eq!(toml::to_string(&recipe.optimizer).unwrap(), expected);
        let adam = toml::to_string(&OptimizerConfig::default()).unwrap();
        assert_eq!(
            adam,
            "name = \"adam\"\nlr = 0.001\nbeta1 = 0.9\nbeta2 = 0.999\neps = 0.00000001\nweight_decay = 0.0\n"
        );
        for (table, expected) in [
            ("momentum = 0.9", "optimizer.momentum is a setting of sgd; this one has lr, beta1"),
            (
                "name = 'sgd'\nbeta1 = 0.9",
                "optimizer.beta1 is a setting of adam; this one has lr, mom",
            ),
            (
                "name = 'sgd'\nnesterov = true",
                "optimizer.nesterov: is true; expected false without",
            ),
            ("name = 'sgd'\nmomentum = 1.0", "optimizer.momentum: is 1; expected a number from 0"),
            ("name = 'sgd'\nmomentun = 0.9", "did you mean `momentum`?"),
        ] {
            let message = error(&with(table));
            let line = line("[optimizer]");
            let found = message.strip_prefix("r.toml, line ").and_then(|rest| rest.split_once(':'));
            let (found, _) = found.unwrap_or_else(|| panic!("{message}"));
            assert!((line..line + 3).contains(&found.parse().unwrap()), "{message}, {line}");
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_schedule_is_a_line_and_a_mistake_in_it_is_named() {
        let with = |line: &str| {
            TUTORIAL.replacen("epochs = 10", &format!("epochs = 10\nschedule = {line}"), 1)
        };
        let recipe = Recipe::parse(&with("{ name = 'cosine', warmup_epochs = 2 }"), "r").unwrap();
        let text = toml::to_string(&recipe).unwrap();
        assert_eq!(Recipe::parse(&text, "again").unwrap(), recipe, "{text}");
        assert!(
            !toml::to_string(&Recipe::parse(TUTORIAL, "r").unwrap()).unwrap().contains("schedule")
        );
        let at = line("epochs = 10") + 1;
        for (line, expected) in [
            (
                "{ name = 'cosine', warmup_epochs = -1 }",
                "training.schedule.warmup_epochs: is -1; expected",
            ),
            ("{ name = 'cosin' }", "did you mean `cosine`?"),
            ("{ name = 'cosine', downto = 1 }", "unknown field `downto`"),
        ] {
            let message = error(&with(line));
            assert!(message.starts_with(&format!("r.toml, line {at}: ")), "{message}");
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_resnet_has_no_dropout() {
        let resnet = TUTORIAL.replacen("model = \"teacher\"", "model = \"resnet20\"", 1);
        let recipe = Recipe::parse(&resnet, "r").unwrap();
        assert_eq!((recipe.runs[0].dropout, recipe.runs[1].dropout), (None, Some(0.1)));
        let mut run = recipe.runs[1].clone();
        run.set_model(Architecture::ResNet20);
        assert_eq!(run.dropout, None);
        run.set_model(Architecture::Teacher);
        assert_eq!(run.dropout, Some(0.1));
        let message = error(&resnet.replacen("\"resnet20\"", "\"resnet20\"\ndropout = 0.1", 1));
        assert!(message.contains("a ResNet has no dropout"), "{message}");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_a_suggestion() {
        let message = changed("epochs = 10", "epoch = 10");
        let line = line("epochs = 10");
        assert!(
            message.starts_with(&format!("r.toml, line {line}: unknown field `epoch`")),
            "{message}"
        );
        assert!(message.ends_with("did you mean `epochs`?"), "{message}");
        let message = changed("temperature = 2.0", "temprature = 2.0");
        assert!(message.contains("did you mean `temperature`?"), "{message}");
    }

    #[test]
    fn wrong_types_and_names_are_named_with_their_line() {
        let message = changed("batch_size = 128", "batch_size = \"many\"");
        assert!(message.contains(&format!("line {}", line("batch_size"))), "{message}");
        assert!(message.contains("expected a whole number, not negative"), "{message}");
        let message = changed("lr = 1e-3", "lr = \"small\"");
        assert!(
            message.ends_with("invalid type: string \"small\", expected a number"),
            "{message}"
        );
        let message = changed("flip = false", "flip = 3");
        assert!(message.contains("expected a boolean"), "{message}");
        let message = changed("std = [0.229, ", "std = [");
        assert!(message.contains(&format!("line {}", line("std = ["))), "{message}");
        assert!(message.contains("expected an array of length 3"), "{message}");
        let message = changed("name = \"teacher\"\nmodel = \"teacher\"", "name = \"teacher\"");
        assert!(message.contains("missing field `model`"), "{message}");
        let message = changed("model = \"teacher\"", "model = \"teachr\"");
        assert!(message.contains("did you mean `teacher`?"), "{message}");
        let message = changed("epochs = 10", "precision = \"fp16\"");
        assert!(message.contains("expected one of `f32`, `tf32`, `bf16`"), "{message}");
        let message = changed("name = \"cosine\"\nweight", "name = \"cosin\"\nweight");
        assert!(message.contains("did you mean `cosine`?"), "{message}");
    }

    #[test]
    fn impossible_values_are_named_with_their_line() {
        let values = [
            ("epochs = 10", "epochs = 0", "training.epochs: is 0; expected at least 1"),
            ("epochs = 10", "epochs = 1000001", "expected at least 1, at most 1000000"),
            ("model = \"teacher\"", "epochs = 0\nmodel = \"teacher\"", "run[1].epochs: is 0"),
            ("seed = 0", "clip_grad_norm = -1.0", "training.clip_grad_norm: is -1"),
            ("seed = 0", "clip_grad_norm = inf", "training.clip_grad_norm: is inf"),
            ("crop_padding = 0", "crop_padding = 40", "data.augment.crop_padding: is 40"),
            ("lr = 1e-3", "lr = -1.0", "optimizer.lr: is -1"),
            ("beta2 = 0.999", "beta2 = 1.0", "optimizer.beta2"),
            ("temperature = 2.0", "temperature = 0.0", "temperature is 0"),
            ("labels = 0.75", "labels = -0.5", "run[3].labels"),
            ("weight = 0.25", "weight = nan", "run[3].method[1].weight"),
            ("std = [0.229", "std = [0.0", "data.std"),
            ("name = \"student\"", "name = \"../x\"", "run[2].name"),
            ("name = \"student\"", "name = \"teacher\"", "the name of two runs"),
        ];
        for (from, to, expected) in values {
            let message = changed(from, to);
            assert!(message.contains(expected), "{message}");
            // A method's own options are found by their table.
            let line = if from.starts_with("temperature") { line(from) - 3 } else { line(from) };
            assert!(message.contains(&format!("line {line}:")), "{line}: {message}");
        }
    }

    #[test]
    fn another_format_says_what_to_do() {
        let message = changed("format = 1", "format = 7");
        assert!(
            message.contains("line 4: format is 7; this version of kd reads format 1"),
            "{message}"
        );
        assert!(error("name = \"x\"").contains("format is missing"));
    }

    #[test]
    fn differing_keys_are_named_with_both_values() {
        let there: toml::Table = TUTORIAL.parse().unwrap();
        let text = TUTORIAL.replace("epochs = 10", "epochs = 20").replace("lr = 1e-3\n", "");
        let differing = differences(&there, &text.parse().unwrap());
        assert_eq!(
            differing,
            [
                "optimizer.lr (0.001 there, not set asked for)",
                "training.epochs (10 there, 20 asked for)"
            ]
        );
        assert!(differences(&there, &there).is_empty());
    }
}
