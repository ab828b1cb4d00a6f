//! `cargo xtask compare`: recipes on the same seeds, arm beside arm.

pub mod jobs;
pub mod plan;
pub mod record;
pub mod statistics;
pub mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;
use serde::Deserialize;
use serde_json::Value;

use crate::reproduce::{Device, features};
use crate::{data, process, workspace};
use jobs::{Job, part_name};
use plan::{Overrides, Planned};
use record::{Arm, Dataset, Record, Run, TeacherSays};
use table::{Baselines, Table};

#[derive(clap::Args)]
pub struct Args {
    /// Recipes; every run in them is an arm, and a run that several have is done once
    #[arg(required_unless_present = "from", value_name = "RECIPE")]
    pub recipes: Vec<PathBuf>,
    /// Seeds from 0 up; six are the fewest whose p-value can come below 0.05
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=statistics::MOST as u64))]
    pub seeds: u64,
    /// Make the table from raw figures alone; nothing is trained
    #[arg(long, value_name = "FILE", conflicts_with = "recipes")]
    pub from: Option<PathBuf>,
    /// Where runs and report go [default: runs/compare, runs/compare-held-out with --held-out]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Raw figures of every run: read first, what it has is not run again [default: figures.json in --out]
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// The table in Markdown [default: comparison.md in --out]
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Choose settings: take so many training images out and test on them, not on the test images
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one())]
    pub held_out: Option<u64>,
    /// The arm of the student on the labels alone [default: the first without a method]
    #[arg(long, value_name = "ARM")]
    pub alone: Option<String>,
    /// The arm of KD [default: kd, or the first with that method alone]
    #[arg(long, value_name = "ARM")]
    pub kd: Option<String>,
    /// The arm whose gap to the student is to be closed [default: the first that teaches]
    #[arg(long, value_name = "ARM")]
    pub teacher: Option<String>,
    /// Where data sets lie [default: data/ in the checkout]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The images [default: what the recipes say]
    #[arg(long, value_name = "NAME")]
    pub dataset: Option<String>,
    /// Epochs of each run [default: what the recipes say]
    #[arg(long, value_parser = at_least_one())]
    pub epochs: Option<u64>,
    /// Images in a step [default: what the recipes say]
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one())]
    pub batch_size: Option<u64>,
    /// Train on this many images, balanced over the classes
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one())]
    pub train_limit: Option<u64>,
    /// Test on this many images, balanced over the classes
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one())]
    pub test_limit: Option<u64>,
    /// What to compute on
    #[arg(long, value_enum)]
    pub device: Option<Device>,
    /// With --device cuda: convolutions through cuDNN, which must be installed
    #[arg(long)]
    pub cudnn: bool,
    /// Runs side by side; small networks use several cores best that way
    #[arg(long, value_name = "RUNS", default_value_t = 1, value_parser = at_least_one())]
    pub jobs: u64,
    /// Threads of each run [default: the cores, shared among --jobs]
    #[arg(long, value_parser = at_least_one())]
    pub threads: Option<u64>,
    /// Most memory for outputs of the teacher that are kept instead of computed in each step [default: 2048]
    #[arg(long, value_name = "MIB")]
    pub cache_memory: Option<u64>,
}

fn at_least_one() -> RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(1..)
}

pub fn command(args: &Args) -> anyhow::Result<()> {
    if let Some(path) = &args.from {
        let table = table::table(&Record::read(path)?, &baselines(args))?;
        if let Some(markdown) = &args.markdown {
            record::write_whole(markdown, &table.markdown())?;
        }
        print!("{}", table.terminal());
        return Ok(());
    }

    let kd = workspace::build("kd-run", "kd", features(args.device, args.cudnn)?)?;
    let resolved: anyhow::Result<Vec<_>> =
        args.recipes.iter().map(|path| Ok((path.clone(), resolve(&kd, path)?))).collect();
    let overrides = Overrides {
        dataset: args.dataset.clone(),
        epochs: args.epochs,
        batch_size: args.batch_size,
        train_limit: args.train_limit,
        test_limit: args.test_limit,
        held_out: args.held_out,
    };
    let plan = plan::plan(&resolved?, &overrides)?;
    let work = Work { kd, out: out(args), data: data_folder(args), overrides, args };
    let json = args.json.clone().unwrap_or_else(|| work.out.join("figures.json"));
    let mut record = Record::read_or_new(&json)?;
    for planned in &plan {
        record.add_arm(Arm::of(planned), &json)?;
    }

    let recorded = |arm: &str, seed| record.has(arm, seed);
    let jobs = jobs::jobs(&plan, args.seeds, recorded, |name, seed| work.at_hand(name, seed));
    // How many jobs of each seed are still to do.
    let left = |seed| jobs.iter().filter(|job| job.seed == seed).count();
    let left: Vec<usize> = (0..args.seeds).map(left).collect();
    // Every arm of such a seed is done: nobody asks its teacher again.
    let clear = |seed: u64| remove_folder(&work.seed_folder(seed).join("cache"));
    for (seed, _) in (0..).zip(&left).filter(|(_, left)| **left == 0) {
        clear(seed)?;
    }
    let progress = Mutex::new((record, left));
    jobs::run(&jobs, args.jobs as usize, |job| {
        let planned = &plan[job.arm];
        let failed = || format!("{}, seed {}", part_name(&planned.name, job.part), job.seed);
        work.start(planned, job).with_context(failed)?;
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        let (record, left) = &mut *progress;
        // A teacher that had to be trained again has its figures already.
        if job.part.is_none() && !record.has(&planned.name, job.seed) {
            let (run, dataset) = work.figures(planned, job.seed)?;
            record.add_run(run, dataset)?;
            record.write(&json)?;
        }
        left[job.seed as usize] -= 1;
        if left[job.seed as usize] == 0 {
            clear(job.seed)?;
        }
        Ok(())
    })?;
    let (record, _) = progress.into_inner().unwrap_or_else(PoisonError::into_inner);

    let table = table::table(&record, &baselines(args))?;
    let markdown = args.markdown.clone().unwrap_or_else(|| work.out.join("comparison.md"));
    record::write_whole(&markdown, &table.markdown())?;
    work.report(&table)?;
    println!("\n{}", table.terminal());
    println!("Raw figures: {}", workspace::short(&json));
    println!("Markdown: {}", workspace::short(&markdown));
    Ok(())
}

fn baselines(args: &Args) -> Baselines<'_> {
    Baselines {
        alone: args.alone.as_deref(),
        kd: args.kd.as_deref(),
        teacher: args.teacher.as_deref(),
    }
}

fn out(args: &Args) -> PathBuf {
    let name = if args.held_out.is_some() { "compare-held-out" } else { "compare" };
    args.out.clone().unwrap_or_else(|| workspace::root().join("runs").join(name))
}

fn data_folder(args: &Args) -> PathBuf {
    args.data.clone().unwrap_or_else(data::default_folder)
}

/// The recipe with every default filled in, as kd reads it.
fn resolve(kd: &Path, recipe: &Path) -> anyhow::Result<Value> {
    let mut command = Command::new(kd);
    command.args(["recipe", "--json"]).arg(recipe).stdout(Stdio::piped());
    let text = process::run_with(&mut command, |child| {
        let mut text = String::new();
        let stdout = child.stdout.as_mut().context("kd's output is not at hand")?;
        std::io::Read::read_to_string(stdout, &mut text).context("kd's output can't be read")?;
        Ok(text)
    })?;
    serde_json::from_str(&text).context("`kd recipe --json` printed no JSON")
}

struct Work<'a> {
    kd: PathBuf,
    out: PathBuf,
    data: PathBuf,
    overrides: Overrides,
    args: &'a Args,
}

impl Work<'_> {
    fn seed_folder(&self, seed: u64) -> PathBuf {
        self.out.join(format!("seed-{seed}"))
    }

    /// Whether a run has ended and its weights are there.
    fn at_hand(&self, name: &str, seed: u64) -> bool {
        let folder = self.seed_folder(seed);
        folder.join(format!("{name}.safetensors")).exists()
            && folder.join(name).join("evaluation.json").exists()
    }

    /// Trains it; what is done already, kd passes over.
    fn start(&self, planned: &Planned, job: &Job) -> anyhow::Result<()> {
        println!("\n== {}, seed {}", part_name(&planned.name, job.part), job.seed);
        process::run(&mut self.kd_run(planned, job))
    }

    fn kd_run(&self, planned: &Planned, job: &Job) -> Command {
        let &Job { seed, part, .. } = job;
        let out = self.seed_folder(seed);
        let mut command = Command::new(&self.kd);
        command.arg(if planned.distilled { "distill" } else { "train" });
        command.arg("--recipe").arg(&planned.recipe).args(["--run", &planned.run]);
        command.args(["--name", &part_name(&planned.name, part)]);
        if let Some((part, of)) = part {
            command.args(["--part", &format!("{part}/{of}")]);
        }
        if let Some(teacher) = &planned.teacher {
            command.arg("--teacher").arg(out.join(format!("{teacher}.safetensors")));
        }
        if let Some(init) = &planned.init {
            command.arg("--init").arg(out.join(format!("{init}.safetensors")));
        }
        command.arg("--out").arg(&out).args(["--seed", &seed.to_string()]);
        command.arg("--data").arg(&self.data).args(self.overrides.flags());
        if let Some(threads) = self.threads() {
            command.args(["--threads", &threads.to_string()]);
        }
        if self.args.jobs > 1 {
            // Two dashboards would draw over each other.
            command.arg("--plain");
        }
        if let (Some(memory), true) = (self.args.cache_memory, planned.distilled) {
            command.args(["--cache-memory", &memory.to_string()]);
        }
        if let Some(device) = self.args.device.and_then(|device| device.to_possible_value()) {
            command.args(["--device", device.get_name()]);
        }
        command
    }

    /// Of each run; `None` where kd takes all cores by itself.
    fn threads(&self) -> Option<u64> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let shared = || (self.args.jobs > 1).then(|| (cores() / self.args.jobs).max(1));
        self.args.threads.or_else(shared)
    }

    /// What a finished run's folder says.
    fn figures(&self, planned: &Planned, seed: u64) -> anyhow::Result<(Run, Dataset)> {
        let folder = self.seed_folder(seed).join(&planned.name);
        let held_out = !planned.settings["data"]["held_out"].is_null();
        read_run(&folder, &planned.name, seed, held_out)
    }

    /// `report.html` of all seeds, with the table first.
    fn report(&self, table: &Table) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(table)? + "\n";
        record::write_whole(&self.out.join("comparison.json"), &json)?;
        let any = (0..self.args.seeds).any(|seed| self.seed_folder(seed).exists());
        if !any {
            return Ok(());
        }
        let mut command = Command::new(&self.kd);
        command.arg("report").arg(&self.out).stdout(Stdio::null());
        process::run(&mut command)?;
        println!("\nReport: {}", workspace::short(&self.out.join("report.html")));
        Ok(())
    }
}

fn remove_folder(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: can't be removed", path.display()))
        }
        _ => Ok(()),
    }
}

fn read_run(folder: &Path, arm: &str, seed: u64, held_out: bool) -> anyhow::Result<(Run, Dataset)> {
    #[derive(Deserialize)]
    struct Evaluation {
        accuracy: f64,
        loss: f64,
    }
    #[derive(Deserialize)]
    struct Images {
        name: String,
        sha256: String,
        test: u64,
        #[serde(default)]
        warning: Option<String>,
    }
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).with_context(|| format!("{}: can't be read", path.display()))
    };
    let evaluation: Evaluation =
        serde_json::from_str(&read("evaluation.json")?).with_context(|| {
            format!("{}: not an evaluation", folder.join("evaluation.json").display())
        })?;
    let mut run = Run {
        arm: arm.to_owned(),
        seed,
        accuracy: evaluation.accuracy,
        loss: evaluation.loss,
        test_accuracy: Vec::new(),
        train_loss: Vec::new(),
        train_accuracy: Vec::new(),
        seconds: 0.0,
        teacher: None,
    };
    let mut images = None;
    for (index, line) in read("events.jsonl")?.lines().enumerate() {
        let bad = || {
            format!("{}, line {}: not an event", folder.join("events.jsonl").display(), index + 1)
        };
        let event: Value = serde_json::from_str(line).with_context(bad)?;
        let number = |key: &str| event[key].as_f64().with_context(bad);
        match event["event"].as_str() {
            Some("start") => {
                images = Some(Images::deserialize(&event["dataset"]).with_context(bad)?);
            }
            Some("teacher") => {
                if let (Some(accuracy), Some(entropy)) =
                    (event["accuracy"].as_f64(), event["entropy"].as_f64())
                {
                    run.teacher = Some(TeacherSays { accuracy, entropy });
                }
            }
            Some("epoch") => {
                run.test_accuracy.push(short(number("test_accuracy")?));
                run.train_loss.push(short(number("train_loss")?));
                run.train_accuracy.push(short(number("train_accuracy")?));
                run.seconds += number("seconds")?;
            }
            _ => {}
        }
    }
    run.seconds = short(run.seconds);
    ensure!(!run.test_accuracy.is_empty(), "{}: no epochs", folder.display());
    let images = images.with_context(|| format!("{}: no start event", folder.display()))?;
    let Images { name, sha256, test, warning } = images;
    Ok((run, Dataset { name, sha256, test, held_out, warning }))
}

/// Six decimals are more than the figures mean, and keep the file small.
fn short(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}
