//! What a recipe holds.

use std::collections::BTreeMap;

use kd_data::{
    Augment, ColorJitter, Interpolation, MixConfig, Normalization, Policy, RandAugment,
    RandomErasing, ResizedCrop, Sampler, Scaling, TestOn,
};
use kd_loss::{ClassWeights, Combination, Kind, MethodConfig, Term};
use kd_models::Architecture;
use kd_models::classes::ClassMap;
use serde::{Deserialize, Serialize};

use super::optimizer::OptimizerConfig;
use super::teachers::TeacherNames;
use kd_ops::average::AverageConfig;
use kd_ops::schedule::LrSchedule;
use kd_record::{Keep, Precision};
use kd_report::compare::Published;

/// The recipe format that this version reads and writes.
pub const FORMAT: u32 = 1;

/// An experiment: data and settings that all its runs share, and the runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The format's number, which is [`FORMAT`] in what this version writes.
    pub format: u32,
    /// The experiment's name.
    pub name: String,
    /// Which images are used, and what is done to them.
    #[serde(default)]
    pub data: DataConfig,
    /// For how long, in what steps and from which seed each run trains.
    #[serde(default)]
    pub training: TrainingConfig,
    /// The optimiser and its settings.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// The networks to train.
    #[serde(rename = "run")]
    pub runs: Vec<RunConfig>,
}

/// A name that none of a recipe's runs has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no run {name:?}; the recipe has the runs {}", .known.join(", "))]
pub struct UnknownRun {
    /// The name.
    pub name: String,
    /// The names of the recipe's runs.
    pub known: Vec<String>,
}

impl Recipe {
    /// The run of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn run(&self, name: &str) -> Result<&RunConfig, UnknownRun> {
        let known = || self.runs.iter().map(|run| run.name.clone()).collect();
        let run = self.runs.iter().find(|run| run.name == name);
        run.ok_or_else(|| UnknownRun { name: name.to_owned(), known: known() })
    }
}

/// Which images are used, and what is done to them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// The data set.
    pub dataset: DatasetName,
    /// Height and width in pixels of the images that the network gets, 1 to 4096: pictures of any size are scaled and cut to it. Without it
    /// they are the data set's own, and one's own pictures 32, all in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// What a picture's shorter side is scaled to before the middle square of `size` is cut out; without it, `size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<usize>,
    /// How scaling interpolates.
    #[serde(skip_serializing_if = "Interpolation::is_bilinear")]
    pub interpolation: Interpolation,
    /// The shards to train on, relative to the data's folder, such as `train-{000..015}.tar`; of data set `shards`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_shards: Option<String>,
    /// The shards to test on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_shards: Option<String>,
    /// Of one's own pictures in one folder for each class, or in shards to train on alone: the share of each class's pictures that is
    /// tested on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<f64>,
    /// Which of one's own pictures are tested on where there are both test and validation pictures.
    #[serde(skip_serializing_if = "TestOn::is_test")]
    pub test_on: TestOn,
    /// What is subtracted from each colour channel (red, green, blue) of inputs from 0 to 1.
    pub mean: [f32; 3],
    /// What each colour channel is then divided by.
    pub std: [f32; 3],
    /// Whether pictures of one's own that can't be read are left out, and listed, instead of being an error.
    #[serde(skip_serializing_if = "is_false")]
    pub skip_broken: bool,
    /// Train on at most this many images, balanced over the classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_limit: Option<usize>,
    /// Test on at most this many images, balanced over the classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_limit: Option<usize>,
    /// For choosing settings: take this many training images out (balanced over the classes, the same in every run) and test on
    /// them. The data set's own test images are then not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<usize>,
    /// SHA-256 of the data set. With this given, other data is an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Random changes to the training images.
    pub augment: AugmentConfig,
}

/// A data set, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatasetName {
    /// CIFAR-10.
    Cifar10,
    /// CIFAR-100, the hundred fine labels.
    Cifar100,
    /// Pictures drawn by program.
    Synthetic,
    /// One's own pictures, PNG, JPEG, WebP, BMP or GIF: `train/CLASS/*.png` and `test/CLASS/*.png`.
    Folder,
    /// One's own pictures in tar archives as WebDataset has them: `KEY.jpg` and `KEY.cls` or `KEY.json` for each.
    Shards,
}

impl DatasetName {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Cifar10, Self::Cifar100, Self::Synthetic, Self::Folder, Self::Shards];

    /// Whether it is of pictures of one's own.
    pub fn is_ones_own(self) -> bool {
        matches!(self, Self::Folder | Self::Shards)
    }

    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cifar10 => "cifar10",
            Self::Cifar100 => "cifar100",
            Self::Synthetic => "synthetic",
            Self::Folder => "folder",
            Self::Shards => "shards",
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

/// Random changes to training images; all off by default. See [`kd_data::Augment`] and [`kd_data::MixConfig`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// Cut out a rectangle whose share of the picture's area is drawn between these two, and scale it: torchvision's `RandomResizedCrop`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resized_crop: Option<[f64; 2]>,
    /// The least and the largest width over height of that rectangle; without it, 3/4 and 4/3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop_ratio: Option<[f64; 2]>,
    /// Shift by up to this many pixels.
    pub crop_padding: usize,
    /// Mirror an image left to right with probability 1/2.
    pub flip: bool,
    /// Change brightness, contrast, saturation and hue: torchvision's `ColorJitter`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub color_jitter: Option<ColorJitter>,
    /// Change shape and colours several times, out of a list: torchvision's `RandAugment`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rand_augment: Option<RandAugment>,
    /// Change shape or colours once, out of a list, with any strength: torchvision's `TrivialAugmentWide`.
    #[serde(skip_serializing_if = "is_false")]
    pub trivial_augment_wide: bool,
    /// Set a rectangle to the mean colour: torchvision's `RandomErasing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random_erasing: Option<RandomErasing>,
    /// Side in pixels of a square that is set to the mean colour; 0 cuts nothing out.
    pub cutout: usize,
    /// Mixup's α: a picture becomes a share of itself and the rest of another, the share from Beta(α, α). 0 mixes none so.
    #[serde(skip_serializing_if = "is_zero")]
    pub mixup: f64,
    /// CutMix's α: a rectangle of a picture is another's. 0 mixes none so; beside `mixup` each picture gets either with probability 1/2.
    #[serde(skip_serializing_if = "is_zero")]
    pub cutmix: f64,
    /// The share of pictures that are mixed at all.
    #[serde(skip_serializing_if = "is_one")]
    pub mix_probability: f64,
    /// How many views each picture has in the whole of training: epoch e shows view e modulo this. Without it each epoch draws new ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub views: Option<usize>,
}

/// How long and in what steps a network is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingConfig {
    /// Passes over the training images.
    pub epochs: usize,
    /// Images in a step; the last step of an epoch may have fewer.
    pub batch_size: usize,
    /// The number of parts that a step's images are computed in, one after the other, with their gradients added: a step of
    /// `batch_size` images in the memory of a part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accumulate: Option<usize>,
    /// Leave out the last step of an epoch where it would have fewer images than the others.
    #[serde(skip_serializing_if = "is_false")]
    pub drop_last: bool,
    /// Which images an epoch has: each once, or as many draws in which each class is equally likely.
    #[serde(skip_serializing_if = "Sampler::is_shuffle")]
    pub sampler: Sampler,
    /// The seed of initial weights, batch order, augmentation and dropout.
    pub seed: u64,
    /// The largest norm of all gradients of a step together; larger ones are scaled down to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_grad_norm: Option<f64>,
    /// The arithmetic of convolutions and matrix products; all but f32 needs a GPU.
    #[serde(skip_serializing_if = "Precision::is_f32")]
    pub precision: Precision,
    /// How the learning rate changes over the run.
    #[serde(skip_serializing_if = "LrSchedule::is_constant")]
    pub schedule: LrSchedule,
    /// An average of the weights that is evaluated, chosen from and saved in their place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average: Option<AverageConfig>,
    /// Whether the finished network is also evaluated by the mean of its logits of each test image and of its mirror image; the
    /// figure stands beside the plain one, never in its place.
    #[serde(skip_serializing_if = "is_false")]
    pub test_flip: bool,
}

/// One network to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The run's name: its folder and its weights file.
    pub name: String,
    /// The network to train, by its name.
    pub model: Architecture,
    /// The dropout probability of the hidden layer in training; a ResNet has none. When a recipe is read, a value that it leaves
    /// out is filled in with the network's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// The teacher: the name of a run of the same recipe, or a weights file (relative to the recipe's folder); or a list of these,
    /// whose answers are combined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherNames>,
    /// In place of a teacher a file of its logits by picture ([`kd_record::picture_logits`]), relative to the recipe's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_logits: Option<String>,
    /// How the logits of several teachers become those of one; the mean of the logits where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub combine: Option<Combination>,
    /// The teacher's network, for a weights file that doesn't say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_model: Option<Architecture>,
    /// The output of a teacher in an ONNX file that holds the logits: its name, or its number from 0. Without it, the only one of two
    /// dimensions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_output: Option<String>,
    /// SHA-256 of the teacher's weights file; of several teachers, that of their files' SHA-256s. With this given, another file is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_sha256: Option<String>,
    /// Cross-fitted targets (Dao et al., 2021): the training images are cut into this many parts, and each part is answered for by
    /// a teacher that was trained without it. The teachers' weights files have the name of `teacher` with `-part-<i>-of-<k>` behind
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cross_fit: Option<usize>,
    /// How the teacher's logits of augmented views are kept in a file, to be read when a view comes again; needs `views` in
    /// `[data.augment]`. Without it each step asks the teacher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// The mean of the images that the teacher was trained on, for a weights file that doesn't say it. Without it, the data's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_mean: Option<[f32; 3]>,
    /// Their standard deviation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_std: Option<[f32; 3]>,
    /// Train without part i (from 1) of k of the training images, as `[i, k]`: a teacher for `cross_fit = k`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<[usize; 2]>,
    /// Passes over the training images, in place of the number in `[training]`: for a teacher that stops early, or a student that
    /// trains longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// The learning rate, in place of that of `[optimizer]`: for a student that trains at another rate than its teacher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Train without this many of the training images, and end with the weights of the epoch that has the highest accuracy on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select_on: Option<usize>,
    /// Weights to start from instead of fresh ones: the name of a run of the same recipe, or a weights file (relative to the
    /// recipe's folder). The last layer starts fresh where the file classifies another number of classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// SHA-256 of the file that `init` names. With this given, another file is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_sha256: Option<String>,
    /// Frozen layers, by name: `features.0`, or `layer1` for all layers below it. A frozen batch normalisation is fully frozen: its
    /// running statistics stay fixed, and training normalises with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
    /// The number of epochs after which the layers of `freeze` are trained; without it they stay frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfreeze_at: Option<usize>,
    /// The share of the learning rate at which layers are trained, by names as in `freeze`; of several that mean a layer the longest
    /// counts. Layers that none means are trained at the whole learning rate.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lr_scale: BTreeMap<String, f64>,
    /// The weight of the cross-entropy with the labels in the loss.
    #[serde(default = "default_labels")]
    pub labels: f64,
    /// What each class counts in the cross-entropy with the labels, smoothed labels included; without it, all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<ClassWeights>,
    /// For classes of the data, by name, the class of the weights file that stands for each: the teacher's file, or where the run
    /// has no teacher that of `init`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_map: Option<ClassMap>,
    /// The same for the file of `init`, in a run that has a teacher, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_class_map: Option<ClassMap>,
    /// Whether the class names of the teacher's file and of that of `init` are ignored and the classes taken in the data's order.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ignore_class_names: bool,
    /// The methods, whose weighted losses are added to it.
    #[serde(default, rename = "method", skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<Term>,
    /// What others published of such a run, which `kd compare` shows beside ours. It is no setting, and a run's folder does not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<Published>,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

fn is_one(value: &f64) -> bool {
    *value == 1.0
}

fn default_labels() -> f64 {
    1.0
}

impl Default for DataConfig {
    fn default() -> Self {
        let Normalization { mean, std } = Normalization::default();
        Self {
            dataset: DatasetName::Cifar10,
            size: None,
            resize: None,
            interpolation: Interpolation::default(),
            train_shards: None,
            test_shards: None,
            split: None,
            test_on: TestOn::default(),
            mean,
            std,
            skip_broken: false,
            train_limit: None,
            test_limit: None,
            held_out: None,
            sha256: None,
            augment: AugmentConfig::default(),
        }
    }
}

impl Default for AugmentConfig {
    fn default() -> Self {
        let Augment { crop_padding, flip, cutout, .. } = Augment::default();
        let MixConfig { mixup, cutmix, probability } = MixConfig::default();
        Self {
            resized_crop: None,
            crop_ratio: None,
            crop_padding,
            flip,
            color_jitter: None,
            rand_augment: None,
            trivial_augment_wide: false,
            random_erasing: None,
            cutout,
            mixup,
            cutmix,
            mix_probability: probability,
            views: None,
        }
    }
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            epochs: 10,
            batch_size: 128,
            accumulate: None,
            drop_last: false,
            sampler: Sampler::default(),
            seed: 0,
            clip_grad_norm: None,
            precision: Precision::default(),
            schedule: LrSchedule::default(),
            average: None,
            test_flip: false,
        }
    }
}

impl DataConfig {
    /// The normalisation as `kd-data` takes it.
    pub fn normalization(&self) -> Normalization {
        Normalization { mean: self.mean, std: self.std }
    }

    /// The augmentation as `kd-data` takes it.
    pub fn augment(&self) -> Augment {
        let AugmentConfig { resized_crop, crop_ratio, crop_padding, flip, cutout, .. } =
            self.augment;
        let AugmentConfig { color_jitter, random_erasing, trivial_augment_wide, .. } = self.augment;
        let wide = trivial_augment_wide.then_some(Policy::TrivialAugmentWide);
        let policy = self.augment.rand_augment.map(Policy::RandAugment).or(wide);
        let crop = |scale| {
            let ratio = crop_ratio.unwrap_or(ResizedCrop::default().ratio);
            ResizedCrop { scale, ratio, interpolation: self.interpolation }
        };
        let resized_crop = resized_crop.map(crop);
        Augment { resized_crop, crop_padding, flip, color_jitter, policy, random_erasing, cutout }
    }

    /// How pictures are brought to one size, as `kd-data` takes it; `None` where no size is set.
    pub fn scaling(&self) -> Option<Scaling> {
        let Self { size, resize, interpolation, .. } = *self;
        let size = size?;
        Some(Scaling { size, resize: resize.unwrap_or(size), interpolation })
    }

    /// What a plain training image depends on besides the data, its number and the normalisation.
    pub(crate) fn plain_view(&self) -> String {
        match self.scaling() {
            None => "plain".into(),
            Some(Scaling { size, resize, interpolation }) => {
                format!("plain, size {size}, resize {resize}, {}", interpolation.name())
            }
        }
    }

    /// What an augmented training image depends on besides these and the number of its view.
    pub(crate) fn augmented_view(&self, seed: u64) -> String {
        let AugmentConfig { crop_padding, flip, cutout, mixup, cutmix, mix_probability, .. } =
            self.augment;
        let mut view = format!(
            "seed {seed}, crop_padding {crop_padding}, flip {flip}, cutout {cutout}, mixup {mixup}, cutmix {cutmix}, mix_probability {mix_probability}"
        );
        if let Some(ResizedCrop { scale, ratio, interpolation }) = self.augment().resized_crop {
            view += &format!(
                ", resized_crop {scale:?}, crop_ratio {ratio:?}, {}",
                interpolation.name()
            );
        }
        let Augment { color_jitter, policy, random_erasing, .. } = self.augment();
        view.extend(color_jitter.map(|jitter| format!(", {jitter:?}")));
        view.extend(policy.map(|policy| format!(", {policy:?}")));
        view.extend(random_erasing.map(|erasing| format!(", {erasing:?}")));
        if self.size.is_some() {
            view += &format!(", {}", self.plain_view());
        }
        view
    }

    /// How images are mixed, as `kd-data` takes it.
    pub fn mix(&self) -> MixConfig {
        let AugmentConfig { mixup, cutmix, mix_probability: probability, .. } = self.augment;
        MixConfig { mixup, cutmix, probability }
    }

    /// Whether training images are shown as they are.
    pub fn shows_plain_images(&self) -> bool {
        self.augment().is_off() && self.mix().is_off()
    }
}

impl RunConfig {
    /// A run that trains `model` on the labels alone.
    pub fn on_labels(name: &str, model: Architecture) -> Self {
        Self {
            name: name.to_string(),
            model,
            dropout: model.default_dropout(),
            teacher: None,
            teacher_logits: None,
            combine: None,
            teacher_model: None,
            teacher_output: None,
            teacher_sha256: None,
            cross_fit: None,
            keep: None,
            teacher_mean: None,
            teacher_std: None,
            part: None,
            epochs: None,
            lr: None,
            select_on: None,
            init: None,
            init_sha256: None,
            freeze: Vec::new(),
            unfreeze_at: None,
            lr_scale: BTreeMap::new(),
            labels: default_labels(),
            class_weights: None,
            class_map: None,
            init_class_map: None,
            ignore_class_names: false,
            methods: Vec::new(),
            published: None,
        }
    }

    /// Makes the run train another network. Its dropout stays, unless the network has none, or has some where the run had none: then
    /// the network's default is taken.
    pub fn set_model(&mut self, model: Architecture) {
        self.model = model;
        let default = model.default_dropout();
        self.dropout = default.map(|default| self.dropout.unwrap_or(default));
    }

    /// Whether any of its methods needs a teacher.
    pub fn needs_teacher(&self) -> bool {
        self.methods.iter().any(|term| needs_teacher(&term.method))
    }

    /// The stated normalisation of the images that the teacher was trained on.
    pub fn teacher_normalization(&self) -> Option<Normalization> {
        Some(Normalization { mean: self.teacher_mean?, std: self.teacher_std? })
    }

    /// The names of its methods, joined by "+"; `None` for a run without a method.
    pub fn method_name(&self) -> Option<String> {
        let names: Vec<_> = self.methods.iter().map(|term| term.method.name()).collect();
        (!names.is_empty()).then(|| names.join("+"))
    }
}

/// Whether a method needs a teacher; only the controls do not.
pub fn needs_teacher(method: &MethodConfig) -> bool {
    let about = kd_loss::METHODS.iter().find(|info| info.name == method.name());
    about.is_none_or(|info| info.about.kind != Kind::Control)
}

/// A recipe of exactly one run, which is what is trained and what a run's folder records.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRecipe {
    /// The experiment's name.
    pub name: String,
    /// Which images are used, and what is done to them.
    pub data: DataConfig,
    /// For how long, in what steps and from which seed each run trains.
    pub training: TrainingConfig,
    /// The optimiser and its settings.
    pub optimizer: OptimizerConfig,
    /// The run.
    pub run: RunConfig,
}

impl RunRecipe {
    /// The same settings as a recipe with one run.
    pub fn to_recipe(&self) -> Recipe {
        let Self { name, data, training, optimizer, run } = self.clone();
        Recipe { format: FORMAT, name, data, training, optimizer, runs: vec![run] }
    }
}
