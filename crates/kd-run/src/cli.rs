//! The command line.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use kd_models::Architecture;
use tracing_subscriber::EnvFilter;

mod help;

use crate::commands;
use crate::compile::Compile;
use crate::device::DeviceChoice;
use crate::recipe::{DatasetName, Precision};
use crate::run::Every;
use crate::signals::Interrupted;

/// Knowledge distillation: train a teacher, distil it into a student, and see what it was worth.
#[derive(Debug, Parser)]
#[command(name = "kd", version, after_help = help::KD)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a network on the labels
    Train(Train),
    /// Train a student with a teacher's help
    Distill(Distill),
    /// Accuracy, loss and confusion matrix of weights on the test images
    Eval(Eval),
    /// What pictures show: class and confidence, of a student and its teacher
    Predict(Predict),
    /// A network for other programs, as an ONNX file
    Export(Export),
    /// Table and HTML page of the runs below output folders
    Report(Report),
    /// Every distillation method with its options
    Methods(ShowMethods),
    /// Check a recipe and print it with every default filled in
    Recipe(ShowRecipe),
    /// Completions for a shell, on standard output
    Completions(Completions),
    /// The manual page, on standard output, or a page for each command as files
    Man(Man),
}

#[derive(Debug, Args)]
#[command(after_help = help::TRAIN)]
pub(crate) struct Train {
    /// The network
    #[arg(long, value_name = "MODEL", value_parser = architecture)]
    pub(crate) model: Option<Architecture>,
    /// Leave out part I of K of the training images: a teacher for a run with cross_fit = K
    #[arg(long, value_name = "I/K", value_parser = part)]
    pub(crate) part: Option<Part>,
    #[command(flatten)]
    pub(crate) run: RunFlags,
}

/// Part `.0` of `.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part(pub(crate) usize, pub(crate) usize);

#[derive(Debug, Args)]
#[command(after_help = help::DISTILL)]
pub(crate) struct Distill {
    /// The teacher's weights [default: what the recipe says, in the output folder]
    #[arg(long, value_name = "FILE")]
    pub(crate) teacher: Option<PathBuf>,
    /// The teacher's network, for files that don't say it [default: teacher]
    #[arg(long, value_name = "MODEL", value_parser = architecture)]
    pub(crate) teacher_model: Option<Architecture>,
    /// What the student takes from the teacher; `kd methods` lists them
    #[arg(long)]
    pub(crate) method: Option<String>,
    /// The student's network [default: student]
    #[arg(long, value_name = "MODEL", value_parser = architecture)]
    pub(crate) model: Option<Architecture>,
    /// What logits are divided by to soften them (methods kd, dkd, dist)
    #[arg(long, value_name = "T", value_parser = positive)]
    pub(crate) temperature: Option<f64>,
    /// The labels' share of the loss; the method has the rest
    #[arg(long, value_name = "A", value_parser = share)]
    pub(crate) alpha: Option<f64>,
    /// Most memory for outputs of the teacher that are kept instead of computed in each step
    #[arg(long, value_name = "MIB", default_value_t = crate::teacher::DEFAULT_MEMORY >> 20)]
    pub(crate) cache_memory: u64,
    #[command(flatten)]
    pub(crate) run: RunFlags,
}

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
    /// Weights to start from; the last layer starts fresh where they tell another number of classes apart
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
    #[arg(long, value_enum)]
    pub(crate) precision: Option<Precision>,
    /// How steps reach a GPU: piece by piece, or captured once as a CUDA graph, which spares the host; the result is the same
    #[arg(long, value_enum, default_value_t)]
    pub(crate) compile: Compile,
    /// Of initial weights, batch order and dropout
    #[arg(long, value_parser = seed)]
    pub(crate) seed: Option<u64>,
    /// Train on this many images, balanced over the classes
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one)]
    pub(crate) train_limit: Option<usize>,
    /// Choose settings: take so many training images out and test on them instead
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one)]
    pub(crate) held_out: Option<usize>,
    /// A checkpoint every so many steps ("200") or epochs ("2epochs")
    #[arg(long, value_name = "N[epochs]", value_parser = every)]
    pub(crate) checkpoint_every: Option<Every>,
    /// How many checkpoints are kept
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

#[derive(Debug, Args)]
pub(crate) struct DataFlags {
    /// The folder with the data set's files, or its parent
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub(crate) data: PathBuf,
    /// The images [default: what the recipe says]
    #[arg(long, value_enum)]
    pub(crate) dataset: Option<DatasetName>,
    /// Test on this many images, balanced over the classes
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one)]
    pub(crate) test_limit: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct ComputeFlags {
    /// What to compute on
    #[arg(long, value_enum, default_value_t)]
    pub(crate) device: DeviceChoice,
    /// Threads to compute with [default: all cores]; the result is the same with any number
    #[arg(long, value_name = "N", value_parser = threads)]
    threads: Option<usize>,
}

#[derive(Debug, Args)]
#[command(after_help = help::EVAL)]
pub(crate) struct Eval {
    /// The weights
    #[arg(long, value_name = "FILE")]
    pub(crate) weights: PathBuf,
    /// The network, for files that don't say it [default: teacher]
    #[arg(long, value_name = "MODEL", value_parser = architecture)]
    pub(crate) model: Option<Architecture>,
    /// A recipe, for data set and normalisation [default: the built-in tutorial]
    #[arg(long, value_name = "FILE")]
    pub(crate) recipe: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) data: DataFlags,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Also write the logits of all test images, and their labels, as safetensors
    #[arg(long, value_name = "FILE")]
    pub(crate) logits: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) compute: ComputeFlags,
}

#[derive(Debug, Args)]
#[command(after_help = help::PREDICT)]
pub(crate) struct Predict {
    /// PNG or JPEG files, or folders of them
    #[arg(required = true, value_name = "PICTURE")]
    pub(crate) images: Vec<PathBuf>,
    /// The weights
    #[arg(long, value_name = "FILE")]
    pub(crate) weights: PathBuf,
    /// The network, for files that don't say it [default: teacher]
    #[arg(long, value_name = "MODEL", value_parser = architecture)]
    pub(crate) model: Option<Architecture>,
    /// A teacher, whose answer stands beside
    #[arg(long, value_name = "FILE")]
    pub(crate) teacher: Option<PathBuf>,
    /// The teacher's network, for files that don't say it [default: teacher]
    #[arg(long, value_name = "MODEL", value_parser = architecture)]
    pub(crate) teacher_model: Option<Architecture>,
    /// Print JSON, with the probabilities of all classes
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) compute: ComputeFlags,
}

#[derive(Debug, Args)]
#[command(after_help = help::EXPORT)]
pub(crate) struct Export {
    /// The weights
    #[arg(long, value_name = "FILE")]
    pub(crate) weights: PathBuf,
    /// The network, for files that don't say it [default: teacher]
    #[arg(long, value_name = "MODEL", value_parser = architecture)]
    pub(crate) model: Option<Architecture>,
    /// The number of classes [default: what the file says]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) classes: Option<usize>,
    /// Where the ONNX file goes; it takes RGB bytes `[batch, 3, 32, 32]`, normalises them itself and gives logits
    #[arg(long, value_name = "FILE")]
    pub(crate) onnx: PathBuf,
    /// Take floats from 0 to 1 instead of bytes
    #[arg(long)]
    pub(crate) float: bool,
    /// Weights as signed bytes: a quarter of the size
    #[arg(long)]
    pub(crate) int8: bool,
}

#[derive(Debug, Args)]
#[command(after_help = help::REPORT)]
pub(crate) struct Report {
    /// Output folders of training runs; of several, each gets its report, and the first a comparison
    #[arg(required = true)]
    pub(crate) out: Vec<PathBuf>,
    /// Print JSON: an array with each folder's summary.json
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowMethods {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = help::RECIPE)]
pub(crate) struct ShowRecipe {
    /// The recipe [default: the built-in tutorial]
    #[arg(value_name = "FILE")]
    pub(crate) recipe: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = help::COMPLETIONS)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
#[command(after_help = help::MAN)]
pub(crate) struct Man {
    /// Write a page for `kd` and for each of its commands into this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

/// A command line that can't be right: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Some of what was asked for is done, some could not be: exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Incomplete(pub(crate) String);

/// Runs `kd` with the process's arguments. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done in part, 130 and 143
/// stopped by Ctrl-C and by SIGTERM, with a checkpoint to go on from.
///
/// Call it from `main`, before any other thread exists.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    log();
    let threads = match &cli.command {
        Command::Train(train) => train.run.compute.threads,
        Command::Distill(distill) => distill.run.compute.threads,
        Command::Eval(eval) => eval.compute.threads,
        Command::Predict(predict) => predict.compute.threads,
        _ => None,
    };
    let done = set_threads(threads).and_then(|()| match cli.command {
        Command::Train(train) => commands::train(&train),
        Command::Distill(distill) => commands::distill(&distill),
        Command::Eval(eval) => commands::eval(&eval),
        Command::Predict(predict) => commands::predict(&predict),
        Command::Export(export) => commands::export(&export),
        Command::Report(report) => commands::report(&report),
        Command::Methods(methods) => commands::methods(&methods),
        Command::Recipe(recipe) => commands::recipe(&recipe),
        Command::Completions(Completions { shell }) => commands::completions(shell, Cli::command()),
        Command::Man(man) => commands::man(&man, Cli::command()),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => {
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::from(error.downcast_ref().map_or(1, Interrupted::exit_code))
        }
        Err(error) => {
            // Where even that can't be said, the exit code says it.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match () {
        () if error.is::<Usage>() => 2,
        () if error.is::<Incomplete>() => 3,
        () => 1,
    }
}

/// Warnings go to standard error, or what RUST_LOG says.
fn log() {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) => EnvFilter::try_new(&directives).map_err(|error| {
            let _ = writeln!(std::io::stderr(), "warning: RUST_LOG is {directives:?}: {error}");
        }),
        Err(_) => Err(()),
    };
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|()| EnvFilter::new("warn")))
        .with_writer(|| crate::progress::Messages)
        .with_ansi(std::io::stderr().is_terminal() && !no_color)
        .without_time()
        .with_target(false)
        .init();
}

fn set_threads(threads: Option<usize>) -> anyhow::Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    // SAFETY: no other thread runs yet (see `run`'s documentation), so none reads the environment.
    unsafe {
        // candle and gemm take their number of threads from here.
        std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
    }
    Ok(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?)
}

fn architecture(text: &str) -> Result<Architecture, String> {
    text.parse().map_err(|error: kd_models::Error| error.to_string())
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number >= 1 => Ok(number),
        _ => Err("expected a whole number, at least 1".into()),
    }
}

/// TOML, and so a recipe, has no larger integers.
fn seed(text: &str) -> Result<u64, String> {
    let seed = text.parse().ok().and_then(|seed: i64| u64::try_from(seed).ok());
    seed.ok_or_else(|| format!("expected a whole number from 0 to {}", i64::MAX))
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (1..=1024).contains(&number) => Ok(number),
        _ => Err("expected a whole number from 1 to 1024".into()),
    }
}

fn part(text: &str) -> Result<Part, String> {
    let parts = text.split_once('/').and_then(|(i, k)| Some((i.parse().ok()?, k.parse().ok()?)));
    match parts {
        Some((i, k)) if k >= 2 && (1..=k).contains(&i) => Ok(Part(i, k)),
        _ => Err("expected I/K with I from 1 to K, and K at least 2".into()),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("expected a number above 0".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        _ => Err("expected a number from 0 to 1".into()),
    }
}

fn every(text: &str) -> Result<Every, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: u64 = at_least_one(digits)? as u64;
    match &text[digits.len()..] {
        "" | "step" | "steps" => Ok(Every::Steps(number)),
        "epoch" | "epochs" => Ok(Every::Epochs(number as usize)),
        _ => Err("expected a number of steps (\"200\") or epochs (\"2epochs\")".into()),
    }
}

impl ValueEnum for DeviceChoice {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::Cpu, Self::Cuda]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }))
    }
}

impl ValueEnum for Precision {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.name()))
    }
}

impl ValueEnum for Compile {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Off, Self::Graph]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(match self {
            Self::Off => "off",
            Self::Graph => "graph",
        }))
    }
}

impl ValueEnum for DatasetName {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Cifar10, Self::Cifar100, Self::Synthetic, Self::Folder]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_examples_of_the_help_are_command_lines_that_parse() {
        let texts = [help::KD, help::TRAIN, help::DISTILL, help::EVAL, help::PREDICT, help::EXPORT];
        let more = [help::REPORT, help::RECIPE, help::COMPLETIONS, help::MAN];
        let examples = texts.iter().chain(&more).flat_map(|text| text.lines());
        for line in examples.filter(|line| line.starts_with("  kd ") && !line.contains("--help")) {
            // Up to a pipe, a redirection or a remark.
            let words = line.trim_start().split(['|', '>']).next().unwrap_or_default();
            let words = words.split("  ").next().unwrap_or_default().split_whitespace();
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn checkpoints_come_every_so_many_steps_or_epochs() {
        assert_eq!(every("200"), Ok(Every::Steps(200)));
        assert_eq!(every("1epoch"), Ok(Every::Epochs(1)));
        assert_eq!(every("3epochs"), Ok(Every::Epochs(3)));
        for wrong in ["", "0", "epochs", "-1", "3 weeks", "3weeks"] {
            assert!(every(wrong).is_err(), "{wrong}");
        }
    }
}
