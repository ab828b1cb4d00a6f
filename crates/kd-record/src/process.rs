//! Runs as child processes that are told of Ctrl-C once and finish in their own time (feature `process`).

use std::process::{Child, Command, ExitStatus};

/// Why a child process did not do what it was started for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be started.
    #[error("cannot start `{command}`: {cause}")]
    Start {
        /// The command as one would type it.
        command: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The child's end could not be waited for.
    #[error("cannot wait for `{command}`: {cause}")]
    Wait {
        /// The command as one would type it.
        command: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The child failed, or was killed or crashed.
    #[error("`{command}` failed ({status})")]
    Failed {
        /// The command as one would type it.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// The child ended because the user, or the system, asked it to.
    #[error("stopped; the same command goes on from here")]
    Interrupted {
        /// The customary exit code: 128 and the signal's number.
        code: u8,
    },
}

/// Runs a command to its end. A signal to end that reaches this process is passed on to the child, which writes its checkpoint
/// first; this process outlives it.
///
/// # Errors
/// When the command can't be started, fails, or is asked to end.
pub fn run(command: &mut Command) -> Result<(), Error> {
    run_with(command, |_| Ok(()))
}

/// The same, with `work` done (reading what the child writes) while the child runs.
///
/// # Errors
/// When the command can't be started, fails, or is asked to end; otherwise what `work` returns.
pub fn run_with<T, E: From<Error>>(
    command: &mut Command,
    work: impl FnOnce(&mut Child) -> Result<T, E>,
) -> Result<T, E> {
    let name = shown(command);
    let mut child = match signals::spawn(command) {
        Ok(child) => child,
        Err(cause) => return Err(Error::Start { command: name, cause }.into()),
    };
    let worked = work(&mut child);
    let ended = child.wait();
    signals::ended(&child);
    let status = match ended {
        Ok(status) => status,
        Err(cause) => return Err(Error::Wait { command: name, cause }.into()),
    };
    match exit_code(status) {
        0 => worked,
        // SIGHUP, SIGINT, SIGTERM: somebody asked for it. Killed for memory or crashed is a failure.
        code @ (129 | 130 | 143) => Err(Error::Interrupted { code: code as u8 }.into()),
        _ => Err(Error::Failed { command: name, status }.into()),
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return 128 + signal;
    }
    status.code().unwrap_or(1)
}

/// The command as one would type it.
pub fn shown(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program()).to_string_lossy();
    let arguments = command.get_args().map(|argument| {
        let text = argument.to_string_lossy();
        let plain = !text.is_empty() && !text.contains(char::is_whitespace);
        if plain { text.into_owned() } else { format!("'{text}'") }
    });
    std::iter::once(name.into_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}

#[cfg(unix)]
mod signals {
    use std::io;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};
    use std::sync::{Mutex, Once, PoisonError};

    use rustix::process::{Pid, Signal, kill_process_group};
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
    use signal_hook::iterator::Signals;
    use signal_hook::low_level::emulate_default_handler;

    /// The children's process groups. A terminal sends Ctrl-C to all of its foreground group; with a
    /// group of its own a child gets exactly those signals that are passed on, each once.
    static GROUPS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());
    static LISTENING: Once = Once::new();

    pub(super) fn spawn(command: &mut Command) -> io::Result<Child> {
        let mut failed = None;
        LISTENING.call_once(|| failed = listen().err());
        if let Some(error) = failed {
            return Err(error);
        }
        // Held over the start, so that no signal finds the child running and not known.
        let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.process_group(0).spawn()?;
        groups.push(Pid::from_child(&child));
        Ok(child)
    }

    pub(super) fn ended(child: &Child) {
        let ended = Pid::from_child(child);
        GROUPS.lock().unwrap_or_else(PoisonError::into_inner).retain(|group| *group != ended);
    }

    fn listen() -> io::Result<()> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP])?;
        std::thread::spawn(move || {
            for number in signals.forever() {
                let groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner).clone();
                pass_on(number, &groups);
            }
        });
        Ok(())
    }

    /// A child that has just ended takes no signal; that is no error.
    fn pass_on(number: i32, groups: &[Pid]) {
        let send = |signal| {
            for group in groups {
                let _ = kill_process_group(*group, signal);
            }
        };
        match (number, groups) {
            // Ctrl-Z: the child stops with this process and goes on with it.
            (SIGTSTP, _) => {
                send(Signal::STOP);
                let _ = emulate_default_handler(SIGTSTP);
                send(Signal::CONT);
            }
            (_, []) => {
                let _ = emulate_default_handler(number);
            }
            (SIGTERM, _) => send(Signal::TERM),
            (SIGHUP, _) => send(Signal::HUP),
            (SIGQUIT, _) => send(Signal::QUIT),
            _ => send(Signal::INT),
        }
    }
}

/// Elsewhere a console tells all of its processes itself.
#[cfg(not(unix))]
mod signals {
    use std::io;
    use std::process::{Child, Command};

    pub(super) fn spawn(command: &mut Command) -> io::Result<Child> {
        command.spawn()
    }

    pub(super) fn ended(_: &Child) {}
}
