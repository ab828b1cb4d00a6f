//! The command line of kd: see [`kd_run::cli`].

fn main() -> std::process::ExitCode {
    kd_ops::keep_freed_memory();
    kd_run::cli::run()
}
