//! Where everything lies: the folder of an experiment (`--out`), and in it a folder for each run.
//!
//! ```text
//! out/
//!   teacher/                     a run's folder: RunFolder
//!     recipe.toml                the recipe of this run alone, every default filled in
//!     events.jsonl               one measurement a line
//!     evaluation.json            accuracy, loss and confusion matrix of the finished network
//!     test-outputs.safetensors   the finished network's logits of every test image
//!     skipped-pictures.txt         of a folder of pictures: those that could not be read and were left out, where there are any
//!     checkpoints/               what an interrupted run goes on from
//!     best.safetensors           while it runs: the weights of the best epoch, where it chooses one
//!   teacher.safetensors          the run's weights, beside its folder
//!   cache/                       outputs of teachers; it can be deleted at any time
//!   report.html, summary.json    written by `kd report`
//!   comparison.html              written by `kd report` of several folders, into the first
//!   comparison.json, comparison.md, figures.json   written by `kd compare`
//!   profile.json                 written by `kd profile`
//! ```
//!
//! With several seeds `out` holds a folder of this kind for each: `seed-0`, `seed-1` and so on. A folder that is locked holds
//! a file `.lock`, and a file that is being written has a name that ends in `.partial`.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

const RECIPE: &str = "recipe.toml";
const EVENTS: &str = "events.jsonl";
const EVALUATION: &str = "evaluation.json";
const SKIPPED_PICTURES: &str = "skipped-pictures.txt";
const TEST_OUTPUTS: &str = "test-outputs.safetensors";
const CHECKPOINTS: &str = "checkpoints";
const BEST_WEIGHTS: &str = "best.safetensors";
const WEIGHTS_ENDING: &str = ".safetensors";
const CACHE: &str = "cache";
const REPORT: &str = "report.html";
const SUMMARY: &str = "summary.json";
const COMPARISON_PAGE: &str = "comparison.html";
const COMPARISON: &str = "comparison.json";
const COMPARISON_MARKDOWN: &str = "comparison.md";
const FIGURES: &str = "figures.json";
const PROFILE: &str = "profile.json";
const LOCK: &str = ".lock";
const SEED: &str = "seed-";
/// What the name of a file ends in while it is written.
pub(crate) const PARTIAL: &str = "partial";

/// The folder of an experiment, which holds a folder and a weights file for each run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutFolder {
    /// The path of the folder.
    pub path: PathBuf,
}

impl OutFolder {
    /// The folder at this path; it need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder of the run of that name.
    pub fn run(&self, name: &str) -> RunFolder {
        RunFolder { path: self.path.join(name) }
    }

    /// The weights file of the run of that name.
    pub fn weights(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}{WEIGHTS_ENDING}"))
    }

    /// The folder of cached teacher outputs.
    pub fn cache(&self) -> PathBuf {
        self.path.join(CACHE)
    }

    /// The report's page.
    pub fn report(&self) -> PathBuf {
        self.path.join(REPORT)
    }

    /// The report for programs: [`Summary`](crate::Summary).
    pub fn summary(&self) -> PathBuf {
        self.path.join(SUMMARY)
    }

    /// The page that shows this folder's runs beside those of other folders.
    pub fn comparison_page(&self) -> PathBuf {
        self.path.join(COMPARISON_PAGE)
    }

    /// The table of `kd compare` as the report reads it: [`Comparison`](crate::Comparison).
    pub fn comparison(&self) -> PathBuf {
        self.path.join(COMPARISON)
    }

    /// The table of `kd compare` in Markdown.
    pub fn comparison_markdown(&self) -> PathBuf {
        self.path.join(COMPARISON_MARKDOWN)
    }

    /// The raw figures of `kd compare`.
    pub fn figures(&self) -> PathBuf {
        self.path.join(FIGURES)
    }

    /// What `kd profile` measured: [`Profile`](crate::Profile).
    pub fn profile(&self) -> PathBuf {
        self.path.join(PROFILE)
    }

    /// The folder of one seed, where there are several.
    pub fn seed(&self, seed: u64) -> Self {
        Self { path: self.path.join(format!("{SEED}{seed}")) }
    }

    /// The folders of the seeds that are there, in the order of their names.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn seeds(&self) -> Result<Vec<Self>> {
        let of_seed = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            seed_of(&name).is_some()
        };
        let folders = folders(&self.path)?.into_iter().filter(of_seed);
        Ok(folders.map(|path| Self { path }).collect())
    }

    /// The folders of the runs that have begun, in the order of their names.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn runs(&self) -> Result<Vec<RunFolder>> {
        let folders = folders(&self.path)?.into_iter().map(|path| RunFolder { path });
        Ok(folders.filter(RunFolder::has_begun).collect())
    }

    /// A file as seen from a run's folder in here, if it lies below this folder too, so that both can be moved together;
    /// otherwise its whole path. Both must exist.
    ///
    /// # Errors
    /// When the file or this folder can't be found.
    pub fn from_a_run(&self, file: &Path) -> Result<PathBuf> {
        let whole = |path: &Path| path.canonicalize().map_err(Error::io(path, "can't be found"));
        let file = whole(file)?;
        Ok(match file.strip_prefix(whole(&self.path)?) {
            Ok(below) => Path::new("..").join(below),
            Err(_) => file,
        })
    }
}

/// The folder of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFolder {
    /// The folder; its name is the run's.
    pub path: PathBuf,
}

impl RunFolder {
    /// The folder at this path; it need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder of the run that left this weights file, if a run left it: the one beside it with the same name.
    pub fn of_weights(weights: &Path) -> Self {
        Self { path: weights.with_extension("") }
    }

    /// The recipe of this run alone, with every default filled in.
    pub fn recipe(&self) -> PathBuf {
        self.path.join(RECIPE)
    }

    /// The run's measurements: [`Events`](crate::Events).
    pub fn events(&self) -> PathBuf {
        self.path.join(EVENTS)
    }

    /// What stands in the place of [`evaluation`](Self::evaluation) in a run that has no test images with labels: a sentence that says so.
    pub fn not_tested(&self) -> PathBuf {
        self.path.join("not-tested.txt")
    }

    /// The finished network's figures: [`Evaluation`](crate::Evaluation).
    pub fn evaluation(&self) -> PathBuf {
        self.path.join(EVALUATION)
    }

    /// The finished network's logits of every test image: [`TestOutputs`](crate::TestOutputs).
    pub fn test_outputs(&self) -> PathBuf {
        self.path.join(TEST_OUTPUTS)
    }

    /// The list of the pictures that could not be read and were left out, a line each with the reason.
    pub fn skipped_pictures(&self) -> PathBuf {
        self.path.join(SKIPPED_PICTURES)
    }

    /// The folder of what an interrupted run goes on from.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// The weights of the best epoch, while a run that chooses one goes on.
    pub fn best_weights(&self) -> PathBuf {
        self.path.join(BEST_WEIGHTS)
    }

    /// The weights that the run ended with, beside the folder.
    pub fn weights(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!("{name}{WEIGHTS_ENDING}"))
    }

    /// Whether a run has left any measurement here.
    pub fn has_begun(&self) -> bool {
        self.events().exists()
    }
}

/// The file by which a folder is locked.
pub(crate) fn lock(folder: &Path) -> PathBuf {
    folder.join(LOCK)
}

/// The seed whose folder has this name: 3 for `seed-3`.
pub fn seed_of(folder_name: &str) -> Option<u64> {
    folder_name.strip_prefix(SEED)?.parse().ok()
}

/// Whether a run of this name would collide with another folder beside it.
pub fn is_reserved(run: &str) -> bool {
    run == CACHE
}

/// The name of the run that trains without part `part` of `of` of the images; a student with cross-fitted targets looks for
/// its teachers' weights under these names.
pub fn part_name(name: &str, part: usize, of: usize) -> String {
    format!("{name}-part-{part}-of-{of}")
}

/// The folders directly below one, in the order of their names.
fn folders(above: &Path) -> Result<Vec<PathBuf>> {
    let failed = |cause| Error::io(above, "can't be read")(cause);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(above).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runs_weights_lie_beside_its_folder_and_lead_back_to_it() {
        let out = OutFolder::new("out");
        // A run's name may hold dots.
        for name in ["kd", "v1.2"] {
            let run = out.run(name);
            assert_eq!(run.weights(), out.weights(name));
            assert_eq!(RunFolder::of_weights(&run.weights()), run);
        }
    }

    #[test]
    fn seeds_and_runs_are_found_by_what_lies_there() {
        let folder = tempfile::tempdir().unwrap();
        let out = OutFolder::new(folder.path());
        for name in ["seed-10", "seed-2", "seed-x", "seed-", "kd", "cache"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        std::fs::write(folder.path().join("seed-3"), "a file").unwrap();
        std::fs::write(out.run("kd").events(), "").unwrap();
        assert_eq!(out.seeds().unwrap(), [out.seed(10), out.seed(2)]);
        assert_eq!(out.runs().unwrap(), [out.run("kd")]);
        let message = OutFolder::new(folder.path().join("absent")).runs().unwrap_err().to_string();
        assert!(message.contains("absent: can't be read: "), "{message}");
    }

    #[test]
    fn a_file_below_the_same_folder_is_found_from_a_run_wherever_both_are_moved() {
        let folder = tempfile::tempdir().unwrap();
        let out = OutFolder::new(folder.path().join("out"));
        std::fs::create_dir(&out.path).unwrap();
        let (inside, outside) = (out.weights("teacher"), folder.path().join("t.safetensors"));
        std::fs::write(&inside, "").unwrap();
        std::fs::write(&outside, "").unwrap();
        assert_eq!(out.from_a_run(&inside).unwrap(), Path::new("../teacher.safetensors"));
        assert_eq!(out.from_a_run(&outside).unwrap(), outside.canonicalize().unwrap());
        assert!(out.from_a_run(&folder.path().join("none")).is_err());
    }
}
