//! The command line of kd: see [`kd_run::cli`].

fn main() -> std::process::ExitCode {
    // SAFETY: no other thread has been started.
    unsafe { kd_ops::keep_candle_single_threaded() };
    kd_ops::keep_freed_memory();
    kd_run::cli::run()
}
