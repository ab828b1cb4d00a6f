//! Text from outside on one line of a message, list or terminal.

use std::path::Path;

/// The text with its control characters escaped as in Rust, such as `\n` or `\u{1b}`: a file's name may hold any but 0, and would
/// break the line that names it, or steer the terminal that shows it.
pub(crate) fn on_one_line(text: &str) -> String {
    let escape = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    };
    text.chars().map(escape).collect()
}

/// The path for a message, on one line.
pub(crate) fn shown(path: &Path) -> String {
    on_one_line(&path.display().to_string())
}
