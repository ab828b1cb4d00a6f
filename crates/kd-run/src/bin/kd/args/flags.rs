//! The flags that several commands share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use candle_core::Device;
use clap::Args;
use kd_data::Sampler;
use kd_loss::ClassWeights;
use kd_models::classes::{ClassChoice, ClassMap};
use kd_models::preprocessing::{Interpolation, Stated};
use kd_record::read::read_text;
use kd_record::{Compile, DeviceChoice, Precision};
use kd_run::data::{self, DATA_MEMORY};
use kd_run::device;
use kd_run::recipe::{DataConfig, DatasetName};
use kd_run::resolve::Choices;
use kd_run::run::{Every, Settings};

use super::values::{
    at_least_one, channels, class_weights, every, lr_scale, memory_size, one_of, positive, seed,
    threads,
};

/// The flags that `kd train` and `kd distill` share.
#[derive(Debug, Args)]
pub(crate) struct RunFlags {
    /// The recipe [default: the built-in recipe, that of the tutorial]
    #[arg(long, value_name = "FILE")]
    pub(crate) recipe: Option<PathBuf>,
    /// Train the recipe's run of this name
    #[arg(long, value_name = "NAME")]
    pub(crate) run: Option<String>,
    /// Another name for the run, and so for its folder and its weights file
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The folder for results [default: runs/<recipe's name>]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) data: DataFlags,
    /// A weights file to start from; the last layer starts fresh if the file classifies another number of classes
    #[arg(long, value_name = "FILE")]
    pub(crate) init: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) classes: ClassFlags,
    /// A class map for the file of --init, in a run that has a teacher, too
    #[arg(long, value_name = "FILE", conflicts_with = "ignore_class_names")]
    init_class_map: Option<PathBuf>,
    /// Layers to freeze, by name, in place of the recipe's freeze and unfreeze_at: "conv1,layer1"
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    pub(crate) freeze: Vec<String>,
    /// Train the frozen layers, too, after so many epochs
    #[arg(long, value_name = "EPOCHS", value_parser = at_least_one)]
    pub(crate) unfreeze_at: Option<usize>,
    /// Train layers at a share of the learning rate, by names as in --freeze; the longest name counts: "layer1=0.1,layer2=0.3"
    #[arg(long, value_name = "LAYER=SHARE", value_delimiter = ',', value_parser = lr_scale)]
    pub(crate) lr_scale: Vec<(String, f64)>,
    /// Number of passes over the training images
    #[arg(long, value_parser = at_least_one)]
    pub(crate) epochs: Option<usize>,
    /// Number of images in a step
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one)]
    pub(crate) batch_size: Option<usize>,
    /// Compute each step in this many parts, with their gradients added: less memory for the same step
    #[arg(long, value_name = "PARTS", value_parser = at_least_one)]
    pub(crate) accumulate: Option<usize>,
    /// Which images an epoch has: each once ("shuffle"), or as many draws in which each class is equally likely ("balanced")
    #[arg(long, value_parser = one_of::<Sampler>(Sampler::ALL.map(Sampler::name)))]
    pub(crate) sampler: Option<Sampler>,
    /// What each class counts in the labels' cross-entropy: "balanced" (the rarer, the more), numbers in the classes' order ("1,2.5"), or by name ("cat=1,dog=2.5")
    #[arg(long, value_name = "WEIGHTS", value_parser = class_weights)]
    pub(crate) class_weights: Option<ClassWeights>,
    /// Learning rate
    #[arg(long, value_parser = positive)]
    pub(crate) lr: Option<f64>,
    /// Scale the gradients of a step down to this norm if theirs is larger
    #[arg(long, value_name = "NORM", value_parser = positive)]
    pub(crate) clip_grad_norm: Option<f64>,
    /// Precision of products in training on a GPU; weights, losses and evaluation stay f32 [default: f32]
    #[arg(long, value_parser = one_of::<Precision>(Precision::ALL.map(Precision::name)))]
    pub(crate) precision: Option<Precision>,
    /// How a GPU gets its steps: operation by operation, or as one captured CUDA graph, which is less work for the host; the result is the same
    #[arg(long, default_value = Compile::Off.name(), value_parser = one_of::<Compile>(Compile::ALL.map(Compile::name)))]
    pub(crate) compile: Compile,
    /// Seed of initial weights, batch order, augmentation and dropout
    #[arg(long, value_parser = seed)]
    pub(crate) seed: Option<u64>,
    /// Train on this many images, balanced over the classes
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one)]
    pub(crate) train_limit: Option<usize>,
    /// To choose settings: hold this many training images out, and test on them instead of the test images
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one)]
    pub(crate) held_out: Option<usize>,
    /// Write a checkpoint every so many steps ("200") or epochs ("2epochs")
    #[arg(long, value_name = "N[epochs]", value_parser = every)]
    pub(crate) checkpoint_every: Option<Every>,
    /// Number of latest checkpoints that stay on disk, besides the best
    #[arg(long, value_name = "N", default_value = "2", value_parser = at_least_one)]
    pub(crate) keep_checkpoints: usize,
    /// Refuse to begin a run that takes more memory than this: "8GiB", "500MB" [default: what the machine has free]
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub(crate) memory: Option<u64>,
    /// Also write the measurements as a file for TensorBoard: `tensorboard --logdir OUT`
    #[arg(long)]
    pub(crate) tensorboard: bool,
    /// Show plain lines instead of the dashboard that a terminal gets
    #[arg(long)]
    pub(crate) plain: bool,
    #[command(flatten)]
    pub(crate) compute: ComputeFlags,
}

/// The flags that choose the images.
#[derive(Debug, Args)]
pub(crate) struct DataFlags {
    /// The folder with the data set's files, or its parent
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub(crate) data: PathBuf,
    /// The data set [default: that of the recipe]
    #[arg(long, value_parser = one_of::<DatasetName>(DatasetName::ALL.map(DatasetName::name)))]
    pub(crate) dataset: Option<DatasetName>,
    /// Leave out pictures that can't be read, and list them (data sets "folder" and "shards")
    #[arg(long)]
    pub(crate) skip_broken: bool,
    /// Test on this many images, balanced over the classes
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one)]
    pub(crate) test_limit: Option<usize>,
    /// Height and width of the images that the network gets, 1 to 4096: pictures of any size are scaled to it, and those in a folder read as they are wanted [default: the recipe's, or the data set's own, 32]
    #[arg(long, value_name = "PIXELS", value_parser = at_least_one)]
    pub(crate) size: Option<usize>,
    /// The tar archives to train on (data set "shards"), in the folder of --data: "train-{000..015}.tar"
    #[arg(long, value_name = "PATTERN")]
    pub(crate) train_shards: Option<String>,
    /// The tar archives to test on
    #[arg(long, value_name = "PATTERN")]
    pub(crate) test_shards: Option<String>,
    /// Keep at most this much of decoded pictures in memory: "2GiB" [default: 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub(crate) data_memory: Option<u64>,
}

impl DataFlags {
    /// Lays what the flags say of the data set over a recipe's data.
    pub(crate) fn lay_over(&self, config: &mut DataConfig) {
        let (train_shards, test_shards) = (&self.train_shards, &self.test_shards);
        data::choose(config, self.dataset, train_shards.as_deref(), test_shards.as_deref());
        config.skip_broken |= self.skip_broken;
        config.test_limit = self.test_limit.or(config.test_limit);
        config.size = self.size.or(config.size);
    }
}

/// The flags that say what is meant where a weights file names other classes than the data.
#[derive(Debug, Args)]
pub(crate) struct ClassFlags {
    /// A TOML file that says which class of the weights file (the teacher's, or that of --init) is meant by each class of the data, by name or number from 0: `boat = "ship"` or `boat = 8`
    #[arg(long, value_name = "FILE", conflicts_with = "ignore_class_names")]
    pub(crate) class_map: Option<PathBuf>,
    /// Ignore the class names of weights files: take their classes in the data's order
    #[arg(long)]
    ignore_class_names: bool,
}

impl ClassFlags {
    /// What the flags say.
    ///
    /// # Errors
    /// When the file with the class map can't be read.
    pub(crate) fn choice(&self) -> anyhow::Result<ClassChoice> {
        let map = self.class_map.as_deref().map(read_map).transpose()?;
        Ok(ClassChoice { map, ignore_names: self.ignore_class_names, ..ClassChoice::default() })
    }
}

/// The most bytes of a class map: two names of 1 KiB for each of 256 classes, twice over.
const LONGEST_MAP: u64 = 1 << 20;

/// Reads a class map: a TOML file with a line such as `boat = "ship"` or `boat = 8` for each class of the data.
fn read_map(path: &Path) -> anyhow::Result<ClassMap> {
    let text = read_text(path, LONGEST_MAP).context("the class map can't be read")?;
    toml::from_str(&text).with_context(|| {
        format!(
            "{}: this is no class map; expected lines such as `boat = \"ship\"`: a class of the data, and the file's class that stands for it, by name or by number from 0",
            path.display()
        )
    })
}

/// The flags that choose device and threads.
#[derive(Debug, Args)]
pub(crate) struct ComputeFlags {
    /// The device to compute on
    #[arg(long, default_value = DeviceChoice::Auto.name(), value_parser = one_of::<DeviceChoice>(DeviceChoice::ALL.map(DeviceChoice::name)))]
    pub(crate) device: DeviceChoice,
    /// Number of threads to compute with [default: one for each core]; the result does not depend on it
    #[arg(long, value_name = "N", value_parser = threads)]
    threads: Option<usize>,
}

impl ComputeFlags {
    /// Sets the number of threads and gives the device. A command must call this before anything computes or starts a thread.
    pub(crate) fn device(&self) -> anyhow::Result<Device> {
        if let Some(threads) = self.threads {
            // SAFETY: no other thread runs yet, so none reads the environment.
            unsafe {
                // candle and gemm take their number of threads from here.
                std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
            }
            rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
        }
        Ok(device::choose(self.device)?)
    }
}

impl RunFlags {
    /// The same as choices of the library. Only the device is left at its default: a command finds it with
    /// [`ComputeFlags::device`].
    ///
    /// # Errors
    /// When the file with the class map can't be read.
    pub(crate) fn choices(&self) -> anyhow::Result<Choices> {
        let ClassChoice { map, ignore_names, .. } = self.classes.choice()?;
        let mut settings = Settings {
            keep_checkpoints: self.keep_checkpoints,
            tensorboard: self.tensorboard,
            compile: self.compile,
            memory: self.memory,
            ..Settings::default()
        };
        if let Some(every) = self.checkpoint_every {
            settings.checkpoint_every = every;
        }
        let mut scales = BTreeMap::new();
        for (layer, scale) in &self.lr_scale {
            let twice = scales.insert(layer.clone(), *scale).is_some();
            anyhow::ensure!(!twice, "--lr-scale: `{layer}` has two shares; expected one");
        }
        Ok(Choices {
            name: self.name.clone(),
            out: self.out.clone(),
            recipe_folder: self.recipe.as_deref().and_then(Path::parent).map(PathBuf::from),
            data: self.data.data.clone(),
            dataset: self.data.dataset,
            skip_broken: self.data.skip_broken,
            size: self.data.size,
            train_shards: self.data.train_shards.clone(),
            test_shards: self.data.test_shards.clone(),
            data_memory: self.data.data_memory.unwrap_or(DATA_MEMORY),
            train_limit: self.train_limit,
            test_limit: self.data.test_limit,
            held_out: self.held_out,
            init: self.init.clone(),
            freeze: (!self.freeze.is_empty()).then(|| self.freeze.clone()),
            unfreeze_at: self.unfreeze_at,
            lr_scale: scales,
            epochs: self.epochs,
            batch_size: self.batch_size,
            accumulate: self.accumulate,
            sampler: self.sampler,
            class_weights: self.class_weights.clone(),
            lr: self.lr,
            clip_grad_norm: self.clip_grad_norm,
            precision: self.precision,
            seed: self.seed,
            settings,
            class_map: map,
            init_class_map: self.init_class_map.as_deref().map(read_map).transpose()?,
            ignore_class_names: ignore_names,
            ..Choices::default()
        })
    }
}

/// The flags that say what is done to pictures before a network whose weights file doesn't say it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Pictures")]
pub(crate) struct PictureFlags {
    /// Height and width of the network's images in pixels [default: what the weights file or a config.json beside it says, or else the network's own]
    #[arg(long, value_name = "PIXELS", value_parser = at_least_one)]
    size: Option<usize>,
    /// Scale the shorter side of a picture to this before the middle is cut out [default: likewise]
    #[arg(long, value_name = "PIXELS", value_parser = at_least_one)]
    resize: Option<usize>,
    /// How a picture is scaled [default: likewise]
    #[arg(long, value_parser = one_of::<Interpolation>(["bilinear", "bicubic"]))]
    interpolation: Option<Interpolation>,
    /// What is subtracted from red, green and blue, on a scale from 0 to 1: "0.5,0.5,0.5" [default: likewise]
    #[arg(long, value_name = "R,G,B", value_parser = channels)]
    mean: Option<[f32; 3]>,
    /// What they are then divided by [default: likewise]
    #[arg(long, value_name = "R,G,B", value_parser = channels)]
    std: Option<[f32; 3]>,
}

impl PictureFlags {
    /// What they say.
    pub(crate) fn stated(&self) -> Stated {
        let Self { size, resize, interpolation, mean, std } = *self;
        Stated { size, resize, interpolation, mean, std }
    }
}
