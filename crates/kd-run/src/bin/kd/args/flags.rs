//! The flags that several commands share.

use std::path::{Path, PathBuf};

use candle_core::Device;
use clap::Args;
use kd_run::compile::Compile;
use kd_run::device::{self, DeviceChoice};
use kd_run::recipe::{DatasetName, Precision};
use kd_run::resolve::Choices;
use kd_run::run::{Every, Settings};

use super::values::{at_least_one, every, one_of, positive, seed, threads};

/// What `kd train` and `kd distill` both take.
#[derive(Debug, Args)]
pub(crate) struct RunFlags {
    /// A recipe [default: the built-in tutorial]
    #[arg(long, value_name = "FILE")]
    pub(crate) recipe: Option<PathBuf>,
    /// The recipe's run of this name
    #[arg(long, value_name = "NAME")]
    pub(crate) run: Option<String>,
    /// Another name for the run: its folder and its weights file
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Where results go [default: runs/<recipe's name>]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) data: DataFlags,
    /// Weights to start from; the last layer starts fresh where they classify another number of classes
    #[arg(long, value_name = "FILE")]
    pub(crate) init: Option<PathBuf>,
    /// Layers that stay as they are, by name: "conv1,layer1"
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    pub(crate) freeze: Vec<String>,
    /// Passes over the training images
    #[arg(long, value_parser = at_least_one)]
    pub(crate) epochs: Option<usize>,
    /// Images in a step
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one)]
    pub(crate) batch_size: Option<usize>,
    /// Learning rate
    #[arg(long, value_parser = positive)]
    pub(crate) lr: Option<f64>,
    /// Scale a step's gradients down to this norm where they have a larger one
    #[arg(long, value_name = "NORM", value_parser = positive)]
    pub(crate) clip_grad_norm: Option<f64>,
    /// The arithmetic of training on a GPU; weights, losses and evaluation stay f32 [default: f32]
    #[arg(long, value_parser = one_of::<Precision>(Precision::ALL.map(Precision::name)))]
    pub(crate) precision: Option<Precision>,
    /// How steps reach a GPU: operation by operation, or captured once as a CUDA graph, which spares the host; the result is the same
    #[arg(long, default_value = Compile::Off.name(), value_parser = one_of::<Compile>(Compile::ALL.map(Compile::name)))]
    pub(crate) compile: Compile,
    /// The seed of initial weights, batch order and dropout
    #[arg(long, value_parser = seed)]
    pub(crate) seed: Option<u64>,
    /// Train on this many images, balanced over the classes
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one)]
    pub(crate) train_limit: Option<usize>,
    /// For choosing settings: take this many training images out and test on them instead
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one)]
    pub(crate) held_out: Option<usize>,
    /// Write a checkpoint every so many steps ("200") or epochs ("2epochs")
    #[arg(long, value_name = "N[epochs]", value_parser = every)]
    pub(crate) checkpoint_every: Option<Every>,
    /// How many checkpoints stay on disk
    #[arg(long, value_name = "N", default_value = "2", value_parser = at_least_one)]
    pub(crate) keep_checkpoints: usize,
    /// Also write the measurements for TensorBoard: `tensorboard --logdir OUT`
    #[arg(long)]
    pub(crate) tensorboard: bool,
    /// Plain lines instead of the dashboard that a terminal shows
    #[arg(long)]
    pub(crate) plain: bool,
    #[command(flatten)]
    pub(crate) compute: ComputeFlags,
}

/// Which images.
#[derive(Debug, Args)]
pub(crate) struct DataFlags {
    /// The folder with the data set's files, or its parent
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub(crate) data: PathBuf,
    /// The images [default: what the recipe says]
    #[arg(long, value_parser = one_of::<DatasetName>(DatasetName::ALL.map(DatasetName::name)))]
    pub(crate) dataset: Option<DatasetName>,
    /// Test on this many images, balanced over the classes
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one)]
    pub(crate) test_limit: Option<usize>,
}

/// What to compute with.
#[derive(Debug, Args)]
pub(crate) struct ComputeFlags {
    /// What to compute on
    #[arg(long, default_value = DeviceChoice::Auto.name(), value_parser = one_of::<DeviceChoice>(DeviceChoice::ALL.map(DeviceChoice::name)))]
    pub(crate) device: DeviceChoice,
    /// Threads to compute with [default: all cores]; the result is the same with any number
    #[arg(long, value_name = "N", value_parser = threads)]
    threads: Option<usize>,
}

impl ComputeFlags {
    /// Sets the number of threads and finds the device. A command calls it before anything computes or starts a thread.
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
    /// What the flags say beside the recipe; the device is the command's to find.
    pub(crate) fn choices(&self) -> Choices {
        let mut settings = Settings {
            keep_checkpoints: self.keep_checkpoints,
            tensorboard: self.tensorboard,
            compile: self.compile,
            ..Settings::default()
        };
        if let Some(every) = self.checkpoint_every {
            settings.checkpoint_every = every;
        }
        Choices {
            name: self.name.clone(),
            out: self.out.clone(),
            recipe_folder: self.recipe.as_deref().and_then(Path::parent).map(PathBuf::from),
            data: self.data.data.clone(),
            dataset: self.data.dataset,
            train_limit: self.train_limit,
            test_limit: self.data.test_limit,
            held_out: self.held_out,
            init: self.init.clone(),
            freeze: (!self.freeze.is_empty()).then(|| self.freeze.clone()),
            epochs: self.epochs,
            batch_size: self.batch_size,
            lr: self.lr,
            clip_grad_norm: self.clip_grad_norm,
            precision: self.precision,
            seed: self.seed,
            settings,
            ..Choices::default()
        }
    }
}
