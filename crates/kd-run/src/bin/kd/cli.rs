//! The list of commands.

use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::{
    compare, completions, distill, eval, export, keep, man, methods, networks, plan, predict,
    prepare, profile, quantize, recipe, report, train,
};
use crate::failure::Failure;

/// What stands below the commands in `kd --help`, and on the manual page.
const HELP: &str = "\
Examples:
  kd train --model teacher --out runs/mine                 train a teacher on CIFAR-10 in data/
  kd distill --method kd --out runs/mine                   distil it into a student
  kd predict --weights runs/mine/kd.safetensors cat.jpg    classify a picture
  kd report runs/mine                                      show a table and write report.html
  kd train --help                                          show flags and examples of a command

Exit codes:
  0    everything is done
  1    the command failed; standard error says why
  2    the command line is wrong
  3    done in part: some of the given files could not be read
  130  stopped by Ctrl-C; 143: stopped by SIGTERM

Environment:
  RUST_LOG           what is logged to standard error [default: warn], such as debug or kd_run=info
  NO_COLOR           if set, output has no colours
  RAYON_NUM_THREADS  number of threads to compute with, if --threads is not given";

/// Knowledge distillation: train a teacher, distil it into a student, and measure what that gained.
#[derive(Debug, Parser)]
#[command(name = "kd", version, after_help = HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a network on the labels
    Train(train::Train),
    /// Train a student with the help of a teacher
    Distill(distill::Distill),
    /// Make the teacher's answers about a run's augmented pictures ahead of training, or check them
    #[command(after_help = keep::Keep::HELP)]
    Keep(keep::Keep),
    /// Decode and scale pictures once, into shards for training in many epochs
    Prepare(prepare::Prepare),
    /// Measure weights on the test images: accuracy, loss and confusion matrix
    Eval(eval::Eval),
    /// Classify pictures with a network, and with its teacher beside it
    Predict(predict::Predict),
    /// Fetch weights from the web or a model hub into a cache
    #[cfg(feature = "hub")]
    Fetch(crate::commands::fetch::Fetch),
    /// Measure networks side by side: size, multiply-adds, memory, latency, and accuracy where it is known
    Profile(profile::Profile),
    /// Write a network as an ONNX file for other programs
    Export(export::Export),
    /// Write a network as an ONNX file that computes in eight bits, and say what that costs
    Quantize(quantize::Quantize),
    /// Show a table of the runs below output folders, and write an HTML page of them
    Report(report::Report),
    /// Train recipes on the same seeds and compare them: differences, intervals, p-values
    Compare(compare::Compare),
    /// List every distillation method with its options
    Methods(methods::Methods),
    /// List every network with its size and its feature places
    Networks(networks::Networks),
    /// Say what each run of a recipe takes: memory, multiply-adds, time
    Plan(plan::Plan),
    /// Check a recipe and print it with every default filled in
    Recipe(recipe::ShowRecipe),
    /// Print completions for a shell
    Completions(completions::Completions),
    /// Print the manual page, or write a page for each command into a folder
    Man(man::Man),
}

impl Command {
    /// Does what the command says.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Train(flags) => train::run(flags),
            Self::Distill(flags) => distill::run(flags),
            Self::Keep(flags) => keep::run(flags),
            Self::Prepare(flags) => prepare::run(flags),
            Self::Eval(flags) => eval::run(flags),
            Self::Predict(flags) => predict::run(flags),
            #[cfg(feature = "hub")]
            Self::Fetch(flags) => crate::commands::fetch::run(flags),
            Self::Profile(flags) => profile::run(flags),
            Self::Export(flags) => export::run(flags),
            Self::Quantize(flags) => quantize::run(flags),
            Self::Report(flags) => report::run(flags),
            Self::Compare(flags) => compare::run(flags),
            Self::Methods(flags) => methods::run(flags),
            Self::Networks(flags) => networks::run(flags),
            Self::Plan(flags) => plan::run(flags),
            Self::Recipe(flags) => recipe::run(flags),
            Self::Completions(flags) => completions::run(flags, Cli::command()),
            Self::Man(flags) => man::run(flags, Cli::command()),
        }
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
        let kd = Cli::command();
        let texts = std::iter::once(&kd).chain(kd.get_subcommands());
        let texts = texts.filter_map(|command| Some(command.get_after_help()?.to_string()));
        let texts: Vec<String> = texts.collect();
        let examples = texts.iter().flat_map(|text| text.lines());
        let examples =
            examples.filter(|line| line.starts_with("  kd ") && !line.contains("--help"));
        let mut count = 0;
        for line in examples {
            // Up to a pipe, a redirection or a remark.
            let words = line.trim_start().split(['|', '>']).next().unwrap_or_default();
            let words = words.split("  ").next().unwrap_or_default().split_whitespace();
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
            count += 1;
        }
        assert!(count >= 25, "{count} examples");
    }
}
