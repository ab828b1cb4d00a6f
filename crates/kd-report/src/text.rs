//! Text that comes from files and goes to a terminal.

/// The text with each control character replaced by `?`, so that a name in a file can't steer the terminal that shows it.
pub fn plain(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// As [`plain`], for text of several lines: line ends stay.
pub fn plain_lines(text: &str) -> String {
    text.replace(|letter: char| letter.is_control() && letter != '\n', "?")
}
