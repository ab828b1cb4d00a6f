//! Text that comes from files.

/// For a terminal: a control character in a name must not steer it.
pub(crate) fn plain(text: &str) -> String {
    text.replace(char::is_control, "?")
}
