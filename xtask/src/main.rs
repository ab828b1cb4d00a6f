use clap::Parser;

use xtask::{bench, ci, compare, data, doctor, emulated_gpu, pairs, process, reproduce, soak};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Download and check CIFAR-10 or CIFAR-100, or take it from an archive
    Data(data::Args),
    /// Run the whole experiment: data, teacher, student, three distilled students, report
    Reproduce(reproduce::Args),
    /// Train recipes on the same seeds and compare them: differences, intervals, p-values
    Compare(compare::Args),
    /// Measure training steps beside candle's and PyTorch's, in turns
    Bench(bench::Args),
    /// Say what this machine has for kd, and whether the experiment can run on it
    Doctor(doctor::Args),
    /// Write the recipes of the published CIFAR-100 pairs, and their page, from recipes/cifar100/pairs.toml
    Pairs(pairs::Args),
    /// Run the tests that need a GPU on one that is emulated on the host; no timing comes from it
    EmulatedGpu(emulated_gpu::Args),
    /// Do what continuous integration does
    Ci(ci::Args),
    /// Checks of reliability that take minutes: kills, a full disk, fuzzing, AddressSanitizer
    Soak(soak::Args),
}

fn main() {
    let result = match Command::parse() {
        Command::Data(args) => data::command(&args),
        Command::Reproduce(args) => reproduce::command(&args),
        Command::Compare(args) => compare::command(&args),
        Command::Bench(args) => bench::command(&args),
        Command::Doctor(args) => doctor::command(&args),
        Command::Pairs(args) => pairs::command(&args),
        Command::EmulatedGpu(args) => emulated_gpu::command(&args),
        Command::Ci(args) => ci::command(&args),
        Command::Soak(args) => soak::command(&args),
    };
    if let Err(error) = result {
        eprintln!("error: {error:#}");
        let code = match error.downcast_ref() {
            Some(process::Error::Interrupted { code }) => i32::from(*code),
            _ => 1,
        };
        std::process::exit(code);
    }
}
