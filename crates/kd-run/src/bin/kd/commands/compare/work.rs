//! Training one run of a comparison.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use kd_record::OutFolder;
use kd_record::process;
use kd_report::compare::document::{Dataset, Run};
use kd_report::compare::{Job, Overrides, Planned, PlannedTeacher};

use super::Compare;
use crate::commands::print;
use crate::failure::Failure;

/// What every run of a comparison needs.
pub(super) struct Work<'a> {
    /// The program to start.
    pub(super) kd: PathBuf,
    /// The folder for all seeds.
    pub(super) out: OutFolder,
    pub(super) overrides: Overrides,
    pub(super) flags: &'a Compare,
    pub(super) plan: &'a [Planned],
}

impl Work<'_> {
    /// Whether a run has ended and its weights are there.
    pub(super) fn at_hand(&self, name: &str, seed: u64) -> bool {
        let run = self.out.seed(seed).run(name);
        run.weights().exists() && run.evaluation().exists()
    }

    /// Trains a run; kd passes over one that is done already.
    pub(super) fn train(&self, job: &Job) -> Result<(), Failure> {
        let name = job.name(self.plan);
        print(&format!("\n== {name}, seed {}\n", job.seed))?;
        process::run(&mut self.command(job)).map_err(|error| match error {
            process::Error::Interrupted { code } => Failure::Stopped(code),
            other => Failure::Failed(
                anyhow::Error::from(other).context(format!("{name}, seed {}", job.seed)),
            ),
        })
    }

    fn command(&self, job: &Job) -> Command {
        let (planned, out) = (&self.plan[job.arm], self.out.seed(job.seed));
        let mut command = Command::new(&self.kd);
        command.arg(if planned.distilled { "distill" } else { "train" });
        command.arg("--recipe").arg(&planned.recipe).args(["--run", &planned.run]);
        command.args(["--name", &job.name(self.plan)]);
        if let Some((part, of)) = job.part {
            command.args(["--part", &format!("{part}/{of}")]);
        }
        // Of a teacher that is a file kd finds the recipe's own, unless another teacher has to be named.
        if planned.teachers.iter().any(|teacher| matches!(teacher, PlannedTeacher::Run(_))) {
            for teacher in &planned.teachers {
                command.arg("--teacher").arg(match teacher {
                    PlannedTeacher::Run(name) => out.weights(name),
                    PlannedTeacher::File(file) => {
                        planned.recipe.parent().unwrap_or(Path::new("")).join(file)
                    }
                });
            }
        }
        if let Some(init) = &planned.init {
            command.arg("--init").arg(out.weights(init));
        }
        command.arg("--out").arg(&out.path).args(["--seed", &job.seed.to_string()]);
        command.arg("--data").arg(&self.flags.data).args(self.overrides.flags());
        if let Some(threads) = self.threads() {
            command.args(["--threads", &threads.to_string()]);
        }
        if self.flags.jobs > 1 {
            // Two dashboards would draw over each other.
            command.arg("--plain");
        }
        if let (Some(memory), true) = (self.flags.cache_memory, planned.distilled) {
            command.args(["--cache-memory", &memory.to_string()]);
        }
        if let Some(device) = self.flags.device {
            command.args(["--device", device.name()]);
        }
        command
    }

    /// Number of threads of each run; `None` where kd takes all cores anyway.
    fn threads(&self) -> Option<usize> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let shared = || (self.flags.jobs > 1).then(|| (cores() / self.flags.jobs).max(1));
        self.flags.threads.or_else(shared)
    }

    /// The figures that a finished run's folder holds.
    pub(super) fn figures(&self, job: &Job) -> Result<(Run, Dataset), Failure> {
        let planned = &self.plan[job.arm];
        let held_out = !planned.settings["data"]["held_out"].is_null();
        let folder = self.out.seed(job.seed).run(&planned.name);
        Ok(Run::read(&folder, &planned.name, job.seed, held_out)?)
    }

    /// Removes the cache of a seed whose arms are all done: nobody asks its teacher again.
    pub(super) fn remove_cache(&self, seed: u64) -> Result<(), Failure> {
        let path = self.out.seed(seed).cache();
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{}: can't be removed", path.display()))?
            }
            _ => Ok(()),
        }
    }
}
