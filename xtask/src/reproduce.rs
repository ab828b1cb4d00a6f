//! `cargo xtask reproduce`: the whole experiment, by starting `kd` stage after stage.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;
use kd_record::layout::seed_of;
use kd_record::{Compile, DeviceChoice, OutFolder, Precision};

use crate::data::{self, Network, Origin};
use crate::published::Dataset;
use crate::{process, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// auto: CIFAR-10 if it is there or can be downloaded, else the synthetic set
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    pub dataset: Choice,
    /// Two minutes at most: fewer images and epochs, the same networks
    #[arg(long)]
    pub quick: bool,
    /// Where the results go [default: a folder in runs/, named for the experiment]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Where data sets lie [default: data/ in the checkout]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The `kd` to start [default: one built for this, in release]
    #[arg(long, value_name = "FILE", conflicts_with = "cudnn")]
    pub kd: Option<PathBuf>,
    /// What to compute on
    #[arg(long, value_enum)]
    pub device: Option<DeviceChoice>,
    /// With --device cuda: convolutions through cuDNN, which must be installed
    #[arg(long)]
    pub cudnn: bool,
    /// With --device cuda: the arithmetic of training [default: f32]
    #[arg(long, value_enum)]
    pub precision: Option<Precision>,
    /// With --device cuda: training steps captured as CUDA graphs; the result is the same
    #[arg(long, value_enum)]
    pub compile: Option<Compile>,
    /// Threads to compute with [default: one per core]
    #[arg(long, value_parser = at_least_one())]
    pub threads: Option<u64>,
    /// Seed of every random draw [default: 0]
    #[arg(long, conflicts_with = "seeds")]
    pub seed: Option<u64>,
    /// Everything this many times, with seeds from 0 up: mean and spread in the table
    #[arg(long, value_parser = at_least_one())]
    pub seeds: Option<u64>,
    /// Epochs of each run [default: the recipe's 10; fewer for the synthetic set and --quick]
    #[arg(long, value_parser = at_least_one())]
    pub epochs: Option<u64>,
    /// Train on this many images, balanced over the classes
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one())]
    pub train_limit: Option<u64>,
    /// Test on this many images, balanced over the classes
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one())]
    pub test_limit: Option<u64>,
    #[command(flatten)]
    pub network: Network,
}

fn at_least_one() -> RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(1..)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Choice {
    Auto,
    Cifar10,
    Cifar100,
    Synthetic,
}

/// The features that `kd` is built with; only a GPU needs any.
pub(crate) fn features(
    device: Option<DeviceChoice>,
    cudnn: bool,
) -> anyhow::Result<&'static [&'static str]> {
    match (device, cudnn) {
        (Some(DeviceChoice::Cuda), false) => Ok(&["cuda"]),
        (Some(DeviceChoice::Cuda), true) => Ok(&["cuda", "cudnn"]),
        (_, false) => Ok(&[]),
        (_, true) => bail!("--cudnn is for a GPU: add --device cuda"),
    }
}

/// What is trained on, once that is decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Images {
    Published(Dataset),
    Synthetic,
}

impl fmt::Display for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Images::Published(dataset) => dataset.archive().name,
            Images::Synthetic => "synthetic",
        })
    }
}

/// How much of the recipe is done; `None` is what the recipe says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Extent {
    epochs: Option<u64>,
    /// Epochs of the teacher of [`BEST`], where they are others.
    better_teacher_epochs: Option<u64>,
    batch_size: Option<u64>,
    train_limit: Option<u64>,
    test_limit: Option<u64>,
}

impl Extent {
    /// Chosen by the time that two cores need.
    fn of(images: Images, quick: bool) -> Self {
        match (images, quick) {
            (Images::Published(_), false) => Self::default(),
            (Images::Synthetic, false) => Self {
                // Teacher 65 %, student alone 59 % with seed 0.
                epochs: Some(5),
                // docs/first-run.md: 75 to 80 %.
                better_teacher_epochs: Some(10),
                batch_size: Some(64),
                train_limit: Some(6_000),
                test_limit: Some(2_000),
            },
            // Small batches: more steps from the same images, so that even a hundred classes
            // are told apart better than by chance.
            (_, true) => Self {
                epochs: Some(4),
                better_teacher_epochs: None,
                batch_size: Some(32),
                train_limit: Some(2_000),
                test_limit: Some(1_000),
            },
        }
    }
}

/// The lecture's five runs in the order of the experiment, then a student that is taught as well as is known here, and before it
/// its teacher.
pub const RUNS: [&str; 7] =
    ["teacher", "student", "kd", "cosine", "regressor", BETTER_TEACHER, BEST];

/// The lecture's student, taught with DIST by [`BETTER_TEACHER`]; docs/first-run.md has the criterion that both were chosen by.
const BEST: &str = "best";

/// A ResNet-8, of recipes/teachers/resnet8.toml.
const BETTER_TEACHER: &str = "resnet8";

pub fn command(args: &Args) -> anyhow::Result<()> {
    let mut times = Vec::new();

    let kd = match &args.kd {
        // With its folder: a bare name would be looked for on PATH.
        Some(kd) => std::fs::canonicalize(kd)
            .with_context(|| format!("--kd: cannot find {}", kd.display()))?,
        None => {
            announce("build");
            let features = features(args.device, args.cudnn)?;
            timed(&mut times, "build".into(), || workspace::build("kd-run", "kd", features))?
        }
    };
    announce("data");
    let data_folder = args.data.clone().unwrap_or_else(data::default_folder);
    let images =
        timed(&mut times, "data".into(), || obtain(args.dataset, &data_folder, &args.network))?;
    let out = args.out.clone().unwrap_or_else(|| default_out(images, args));

    let seeds: Vec<u64> = match args.seeds {
        None | Some(1) => vec![args.seed.unwrap_or(0)],
        Some(count) => (0..count).collect(),
    };
    check_layout(&out, seeds.len() as u64)?;
    for &seed in &seeds {
        let (folder, of_seed) = match seeds.len() {
            1 => (out.clone(), String::new()),
            _ => (OutFolder::new(&out).seed(seed).path, format!(", seed {seed}")),
        };
        for run in RUNS {
            let stage = format!("{run}{of_seed}");
            announce(&stage);
            let mut command = kd_run(&kd, run, &folder, &data_folder, images, seed, args);
            timed(&mut times, stage, || process::run(&mut command))?;
        }
    }
    announce("report");
    let mut command = Command::new(&kd);
    command.arg("report").arg(&out);
    timed(&mut times, "report".into(), || process::run(&mut command))?;

    print_times(&times);
    println!("Results: {}", workspace::short(&out));
    Ok(())
}

/// One seed lies in the folder itself, several in a folder each: with both, or with seeds of another time, a report would show
/// runs that nobody asked for, or leave out those that were.
fn check_layout(out: &Path, seeds: u64) -> anyhow::Result<()> {
    let several = seeds > 1;
    let entries = match std::fs::read_dir(out) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("{}: can't be read", out.display()))?,
    };
    for entry in entries {
        let name = entry.with_context(|| format!("{}: can't be read", out.display()))?.file_name();
        let name = name.to_string_lossy();
        let foreign = match seed_of(&name) {
            Some(seed) => !several || seed >= seeds,
            None => several && RUNS.contains(&&*name),
        };
        ensure!(
            !foreign,
            "{}: holds {name}, of an experiment with other seeds; choose another --out, or remove the folder",
            out.display()
        );
    }
    Ok(())
}

fn announce(stage: &str) {
    println!("\n== {stage}");
}

fn timed<T>(
    times: &mut Vec<(String, Duration)>,
    stage: String,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    let result = work().with_context(|| format!("stage {stage}"));
    times.push((stage, start.elapsed()));
    result
}

fn print_times(times: &[(String, Duration)]) {
    let total = times.iter().map(|(_, time)| *time).sum();
    let width = times.iter().map(|(stage, _)| stage.len()).max().unwrap_or(0).max("total".len());
    println!("\nTimes");
    for (stage, time) in times {
        println!("  {stage:width$}  {:>9}", clock(*time));
    }
    println!("  {:width$}  {:>9}", "total", clock(total));
}

/// `1 m 05.2 s`
pub fn clock(time: Duration) -> String {
    let tenths = (time.as_secs_f64() * 10.0).round() as u64;
    let (minutes, seconds, tenth) = (tenths / 600, tenths / 10 % 60, tenths % 10);
    match minutes {
        0 => format!("{seconds}.{tenth} s"),
        _ => format!("{minutes} m {seconds:02}.{tenth} s"),
    }
}

/// Makes sure of the images that were asked for.
fn obtain(choice: Choice, folder: &Path, network: &Network) -> anyhow::Result<Images> {
    let dataset = match choice {
        Choice::Synthetic => {
            println!("Drawing the synthetic set: nothing to download.");
            return Ok(Images::Synthetic);
        }
        Choice::Cifar100 => Dataset::Cifar100,
        Choice::Auto | Choice::Cifar10 => Dataset::Cifar10,
    };
    // An absent network may answer, as a gateway with a server's error; ten seconds are enough to notice.
    let network = Network { dispensable: choice == Choice::Auto, ..network.clone() };
    let obtained = data::obtain(dataset, folder, &Origin::Download(network), None);
    match obtained {
        Ok(_) => Ok(Images::Published(dataset)),
        Err(error) if choice == Choice::Auto => {
            let title = dataset.archive().title;
            println!(
                "No {title} in {} and none to be had: {error:#}.\nGoing on with the SYNTHETIC set, \
                 smaller and shorter: its figures say nothing about {title}.",
                workspace::short(folder)
            );
            Ok(Images::Synthetic)
        }
        Err(error) => Err(error),
    }
}

/// Experiments that differ do not share a folder: `kd` refuses to mix them.
fn default_out(images: Images, args: &Args) -> PathBuf {
    let mut name = match images {
        Images::Published(Dataset::Cifar10) => "tutorial".to_owned(),
        other => other.to_string(),
    };
    if args.quick {
        name += "-quick";
    }
    match (args.seed, args.seeds) {
        (Some(seed), _) if seed != 0 => name += &format!("-seed-{seed}"),
        (_, Some(seeds)) if seeds > 1 => name += "-seeds",
        _ => {}
    }
    workspace::root().join("runs").join(name)
}

/// `kd train` or `kd distill` for one of [`RUNS`].
fn kd_run(
    kd: &Path,
    run: &str,
    out: &Path,
    data: &Path,
    images: Images,
    seed: u64,
    args: &Args,
) -> Command {
    let mut command = Command::new(kd);
    match run {
        "teacher" | "student" => command.args(["train", "--model", run]),
        BETTER_TEACHER => command
            .args(["train", "--recipe"])
            .arg(workspace::root().join("recipes/teachers/resnet8.toml"))
            .args(["--run", BETTER_TEACHER]),
        BEST => command
            .args(["distill", "--method", "dist", "--name", BEST, "--teacher"])
            .arg(OutFolder::new(out).weights(BETTER_TEACHER)),
        method => command
            .args(["distill", "--method", method, "--teacher"])
            .arg(OutFolder::new(out).weights("teacher")),
    };
    command.arg("--out").arg(out);
    let images_name = images.to_string();
    command.args(["--dataset", &images_name, "--seed", &seed.to_string()]);
    if images != Images::Synthetic {
        command.arg("--data").arg(data);
    }
    let extent = Extent::of(images, args.quick);
    let own_epochs = extent.better_teacher_epochs.filter(|_| run == BETTER_TEACHER);
    let options = [
        ("--epochs", args.epochs.or(own_epochs).or(extent.epochs)),
        ("--batch-size", extent.batch_size),
        ("--train-limit", args.train_limit.or(extent.train_limit)),
        ("--test-limit", args.test_limit.or(extent.test_limit)),
        ("--threads", args.threads),
    ];
    for (flag, value) in options {
        if let Some(value) = value {
            command.arg(flag).arg(value.to_string());
        }
    }
    if let Some(device) = args.device {
        command.args(["--device", device.name()]);
    }
    if let Some(precision) = args.precision {
        command.args(["--precision", precision.name()]);
    }
    if args.compile == Some(Compile::Graph) {
        command.args(["--compile", "graph"]);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn line(run: &str, images: Images, flags: &[&str]) -> String {
        let flags = ["reproduce"].iter().chain(flags);
        let args = Line::try_parse_from(flags).unwrap().args;
        let (out, data) = (Path::new("o"), Path::new("d"));
        process::shown(&kd_run(Path::new("/b/kd"), run, out, data, images, 7, &args))
    }

    const CIFAR10: Images = Images::Published(Dataset::Cifar10);

    #[test]
    fn only_a_gpu_needs_features() {
        for device in [None, Some(DeviceChoice::Auto), Some(DeviceChoice::Cpu)] {
            assert!(features(device, false).is_ok_and(<[_]>::is_empty));
            assert!(features(device, true).is_err());
        }
        assert_eq!(features(Some(DeviceChoice::Cuda), true).ok(), Some(&["cuda", "cudnn"][..]));
    }

    #[test]
    fn cifar_is_trained_as_the_recipe_says() {
        assert_eq!(
            line("teacher", CIFAR10, &[]),
            "kd train --model teacher --out o --dataset cifar10 --seed 7 --data d"
        );
        assert_eq!(
            line(
                "teacher",
                CIFAR10,
                &["--device", "cuda", "--precision", "bf16", "--compile", "graph"]
            ),
            "kd train --model teacher --out o --dataset cifar10 --seed 7 --data d --device cuda --precision bf16 --compile graph"
        );
        assert_eq!(
            line("cosine", CIFAR10, &["--device", "cpu", "--threads", "2"]),
            "kd distill --method cosine --teacher o/teacher.safetensors --out o --dataset cifar10 \
             --seed 7 --data d --threads 2 --device cpu"
        );
    }

    #[test]
    fn flags_go_before_what_quick_and_synthetic_set() {
        let quick = line("student", Images::Synthetic, &["--quick", "--epochs", "9"]);
        assert!(quick.contains("--epochs 9") && quick.contains("--train-limit"), "{quick}");
        assert!(line(BEST, Images::Synthetic, &[]).contains("--epochs 5 "));
        assert!(line(BETTER_TEACHER, Images::Synthetic, &[]).contains("--epochs 10 "));
        assert!(
            line(BETTER_TEACHER, Images::Synthetic, &["--epochs", "3"]).contains("--epochs 3 ")
        );
        let limited = line("student", Images::Synthetic, &["--train-limit", "10"]);
        assert!(limited.contains("--train-limit 10 "), "{limited}");
        assert!(!limited.contains("--data "), "{limited}");
    }

    #[test]
    fn different_experiments_have_different_folders() {
        let name = |images, flags: &[&str]| {
            let flags = ["reproduce"].iter().chain(flags);
            let out = default_out(images, &Line::try_parse_from(flags).unwrap().args);
            out.file_name().unwrap().to_string_lossy().into_owned()
        };
        assert_eq!(name(CIFAR10, &[]), "tutorial");
        assert_eq!(name(CIFAR10, &["--quick"]), "tutorial-quick");
        assert_eq!(name(CIFAR10, &["--seeds", "3"]), "tutorial-seeds");
        assert_eq!(name(Images::Synthetic, &["--seed", "4"]), "synthetic-seed-4");
        assert_eq!(name(Images::Published(Dataset::Cifar100), &[]), "cifar100");
    }

    #[test]
    fn times_read_as_minutes_and_seconds() {
        assert_eq!(clock(Duration::from_millis(4_249)), "4.2 s");
        assert_eq!(clock(Duration::from_millis(59_960)), "1 m 00.0 s");
        assert_eq!(clock(Duration::from_secs(365)), "6 m 05.0 s");
    }
}
