//! `kd compare`: recipes on the same seeds, arm beside arm. Each run is a `kd train` or `kd distill` of its own.

mod work;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use kd_record::own::{self, Output};
use kd_record::write::{create_folder, write_whole};
use kd_record::{DeviceChoice, OutFolder};
use kd_report::compare::{
    Arm, Baselines, Figure, Figures, Overrides, jobs, plan, statistics, table,
};
use kd_run::recipe::{DatasetName, Recipe};

use super::print;
use crate::args::{at_least_one, one_of};
use crate::failure::Failure;
use work::Work;

const HELP: &str = "\
Examples:
  kd compare mine.toml                                     six seeds of every run of a recipe
  kd compare a.toml b.toml --seeds 3 --jobs 2              the runs of both, two at a time
  kd compare mine.toml --held-out 5000                     choose settings without the test images
  kd compare pair.toml --arms kd,crd                       two arms of a recipe, and what they learn from
  kd compare --from runs/compare/figures.json --kd dkd     another table of the same figures

The same command goes on where it was stopped: what is recorded in --json is not trained again. The report of all
runs, with the table on top, is report.html in --out.";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Compare {
    /// Recipes; every run in them is an arm, and a run that several have is done once
    #[arg(required_unless_present = "from", value_name = "RECIPE")]
    recipes: Vec<PathBuf>,
    /// Number of seeds, from 0 up; six are the fewest whose p-value can come below 0.05
    #[arg(long, default_value_t = 6, value_parser = seeds())]
    seeds: u64,
    /// Train these arms alone, and those whose weights they need: "kd,crd" [default: all]
    #[arg(long, value_name = "ARMS", value_delimiter = ',')]
    arms: Vec<String>,
    /// Make the table from raw figures alone; nothing is trained
    #[arg(long, value_name = "FILE", conflicts_with_all = ["recipes", "arms"])]
    from: Option<PathBuf>,
    /// The folder for runs and report [default: runs/compare, or runs/compare-held-out with --held-out]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Raw figures of every run: read first, and a run that is in it is not done again [default: figures.json in --out]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the table goes as Markdown [default: comparison.md in --out]
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// To choose settings: hold this many training images out, and test on them instead of the test images
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one)]
    held_out: Option<usize>,
    /// The figure to compare
    #[arg(long, default_value = Figure::default().name(), value_parser = one_of::<Figure>(Figure::ALL.map(Figure::name)))]
    figure: Figure,
    /// The arm of the student on the labels alone [default: the first without a method]
    #[arg(long, value_name = "ARM")]
    alone: Option<String>,
    /// The arm of KD [default: kd, or the first with that method alone]
    #[arg(long, value_name = "ARM")]
    kd: Option<String>,
    /// The arm whose gap to the student is to be closed [default: the first that teaches]
    #[arg(long, value_name = "ARM")]
    teacher: Option<String>,
    /// The folder with the data set's files, or its parent
    #[arg(long, value_name = "DIR", default_value = "data")]
    data: PathBuf,
    /// The data set [default: that of the recipes]
    #[arg(long, value_parser = one_of::<DatasetName>(DatasetName::ALL.map(DatasetName::name)))]
    dataset: Option<DatasetName>,
    /// Leave out pictures that can't be read, and list them (data set "folder")
    #[arg(long)]
    skip_broken: bool,
    /// Number of passes over the training images of each run [default: that of the recipes]
    #[arg(long, value_parser = at_least_one)]
    epochs: Option<usize>,
    /// Number of images in a step [default: that of the recipes]
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one)]
    batch_size: Option<usize>,
    /// Train on this many images, balanced over the classes
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one)]
    train_limit: Option<usize>,
    /// Test on this many images, balanced over the classes
    #[arg(long, value_name = "IMAGES", value_parser = at_least_one)]
    test_limit: Option<usize>,
    /// The device to compute on [default: auto]
    #[arg(long, value_parser = one_of::<DeviceChoice>(DeviceChoice::ALL.map(DeviceChoice::name)))]
    device: Option<DeviceChoice>,
    /// Number of runs side by side; small networks use several cores best that way
    #[arg(long, value_name = "RUNS", default_value_t = 1, value_parser = at_least_one)]
    jobs: usize,
    /// Number of threads of each run [default: the cores, shared among --jobs]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    threads: Option<usize>,
    /// Most memory for the cache of the teacher's outputs in each run; what is not cached is computed in each step [default: 2048]
    #[arg(long, value_name = "MIB")]
    cache_memory: Option<u64>,
    /// Replace tables and reports even if kd did not write them
    #[arg(long)]
    force: bool,
}

fn seeds() -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::new().range(1..=statistics::MOST as u64)
}

pub(crate) fn run(flags: &Compare) -> Result<(), Failure> {
    if let Some(path) = &flags.from {
        if let Some(markdown) = &flags.markdown {
            check_markdown(flags, markdown, &[("--from", path)])?;
        }
        let table = table::table(&Figures::read(path)?, &baselines(flags), flags.figure)?;
        if let Some(path) = &flags.markdown {
            write(path, &table::markdown(&table))?;
        }
        return Ok(print(&table::terminal(&table))?);
    }
    let kd = std::env::current_exe().context("the path of this program can't be found")?;
    train_and_compare(flags, &kd)
}

/// Trains what is not recorded yet, by starting the program `kd`, and writes the table and the report.
fn train_and_compare(flags: &Compare, kd: &Path) -> Result<(), Failure> {
    let resolved: anyhow::Result<Vec<_>> =
        flags.recipes.iter().map(|path| Ok((path.clone(), as_json(path)?))).collect();
    let overrides = Overrides {
        dataset: flags.dataset.map(|dataset| dataset.name().to_owned()),
        epochs: flags.epochs,
        batch_size: flags.batch_size,
        train_limit: flags.train_limit,
        test_limit: flags.test_limit,
        held_out: flags.held_out,
        skip_broken: flags.skip_broken,
    };
    let plan = plan::plan(&resolved?, &overrides)?;
    let work = Work { kd: kd.to_owned(), out: out(flags), overrides, flags, plan: &plan };
    let json = flags.json.clone().unwrap_or_else(|| work.out.figures());
    let markdown = flags.markdown.clone().unwrap_or_else(|| work.out.comparison_markdown());
    check_places(flags, &work.out, &json, &markdown)?;
    let mut figures = Figures::read_or_new(&json)?;
    for planned in &plan {
        figures.add_arm(Arm::of(planned), &json)?;
    }

    let known = || plan.iter().map(|planned| planned.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(arm) = flags.arms.iter().find(|arm| plan.iter().all(|one| one.name != **arm)) {
        return Err(Failure::Usage(format!(
            "--arms: there is no arm {arm:?}; the recipes have {}",
            known()
        )));
    }
    let asked = |arm: &str| flags.arms.is_empty() || flags.arms.iter().any(|name| name == arm);
    let recorded = |arm: &str, seed| !asked(arm) || figures.has(arm, seed);
    let jobs = jobs::jobs(&plan, flags.seeds, recorded, |name, seed| work.at_hand(name, seed));
    // How many jobs of each seed are still to do.
    let left = |seed| jobs.iter().filter(|job| job.seed == seed).count();
    let left: Vec<usize> = (0..flags.seeds).map(left).collect();
    for (seed, _) in (0..).zip(&left).filter(|(_, left)| **left == 0) {
        work.remove_cache(seed)?;
    }
    let progress = Mutex::new((figures, left));
    jobs::run(&jobs, flags.jobs, |job| {
        work.train(job)?;
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        let (figures, left) = &mut *progress;
        // A teacher that had to be trained again has its figures already.
        let arm = &plan[job.arm].name;
        if job.part.is_none() && !figures.has(arm, job.seed) {
            let (run, dataset) = work.figures(job)?;
            figures.add_run(run, dataset)?;
            figures.write(&json)?;
        }
        left[job.seed as usize] -= 1;
        match left[job.seed as usize] {
            0 => work.remove_cache(job.seed),
            _ => Ok(()),
        }
    })?;
    let (figures, _) = progress.into_inner().unwrap_or_else(PoisonError::into_inner);

    let table = table::table(&figures, &baselines(flags), flags.figure)?;
    write(&markdown, &table::markdown(&table))?;
    write(&work.out.comparison(), &table.to_json())?;
    // Without a folder of runs there are figures alone, and no report.
    if (0..flags.seeds).any(|seed| work.out.seed(seed).path.exists()) {
        kd_report::write_over(std::slice::from_ref(&work.out.path), Some(flags.force))?;
        print(&format!("\nReport: {}\n", work.out.report().display()))?;
    }
    print(&format!("\n{}\n", table::terminal(&table)))?;
    print(&format!("Raw figures: {}\nMarkdown: {}\n", json.display(), markdown.display()))?;
    Ok(())
}

/// Refuses, before anything is trained, to write over files that are inputs, that are each other, or that kd did not write. What
/// lies in the place of the raw figures is read, and so is checked, anyway.
fn check_places(
    flags: &Compare,
    out: &OutFolder,
    json: &Path,
    markdown: &Path,
) -> Result<(), Failure> {
    let (report, summary, comparison) = (out.report(), out.summary(), out.comparison());
    let mut others: Vec<(&str, &Path)> =
        flags.recipes.iter().map(|recipe| ("a recipe", recipe.as_path())).collect();
    for path in [&report, &summary, &comparison] {
        others.push(("--out", path));
    }
    own::check_others(json, &others)?;
    others.push(("--json", json));
    check_markdown(flags, markdown, &others)?;
    let force = Some(flags.force);
    Output { path: &comparison, kind: own::COMPARISON, others: &[], force }.check()?;
    Ok(kd_report::check_places(std::slice::from_ref(&out.path), force)?)
}

fn check_markdown(flags: &Compare, path: &Path, others: &[(&str, &Path)]) -> Result<(), Failure> {
    Ok(Output { path, kind: own::MARKDOWN, others, force: Some(flags.force) }.check()?)
}

fn baselines(flags: &Compare) -> Baselines<'_> {
    Baselines {
        alone: flags.alone.as_deref(),
        kd: flags.kd.as_deref(),
        teacher: flags.teacher.as_deref(),
    }
}

fn out(flags: &Compare) -> OutFolder {
    let name = if flags.held_out.is_some() { "compare-held-out" } else { "compare" };
    OutFolder::new(flags.out.clone().unwrap_or_else(|| Path::new("runs").join(name)))
}

/// A recipe with every default filled in, as `kd recipe --json` prints it: through text, since a 32-bit number turned into JSON
/// directly gets other digits than the ones that are recorded.
fn as_json(path: &Path) -> anyhow::Result<serde_json::Value> {
    let text = serde_json::to_string(&Recipe::read(path)?);
    text.and_then(|text| serde_json::from_str(&text))
        .with_context(|| format!("{}: the recipe can't be written as JSON", path.display()))
}

/// Writes a file, into a folder that may not be there yet.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        create_folder(folder)?;
    }
    Ok(write_whole(path, text.as_bytes())?)
}

#[cfg(test)]
mod tests;
