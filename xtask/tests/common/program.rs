//! Programs that tests write and start.

use std::path::Path;
use std::process::Command;

/// Writes a program, by a process of its own. Were this process to write it, a child that another thread is just starting would have
/// the file open for writing until its own program begins, and a file that is being written can't be started ("Text file busy").
pub fn write(path: &Path, text: &str) {
    let script = "cat > \"$0\" && chmod 755 \"$0\"";
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script]).arg(path).stdin(std::process::Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    std::io::Write::write_all(&mut shell.stdin.take().unwrap(), text.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success(), "{}", path.display());
}
