//! The dashboard on the terminal's ordinary screen, each drawing over the one before.
//!
//! It uses neither the alternate screen nor raw mode nor a hidden cursor. So whatever ends the process, a second Ctrl-C and a kill
//! included, leaves the terminal as it was, with the last drawing above the prompt, and Ctrl-C stays a signal.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier};

/// Whether something else was written to standard error since the last drawing.
static DISTURBED: AtomicBool = AtomicBool::new(false);

/// Standard error for messages that may come while the dashboard is shown: it is then drawn anew below them.
pub(crate) struct Messages;

impl Write for Messages {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        DISTURBED.store(true, Ordering::Relaxed);
        std::io::stderr().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Whether a message has come since this was asked last.
pub(super) fn was_disturbed() -> bool {
    DISTURBED.swap(false, Ordering::Relaxed)
}

/// Where the last drawing stands.
#[derive(Default)]
pub(super) struct Screen {
    /// Columns and rows that the terminal had then.
    size: (u16, u16),
    /// Number of rows of the drawing; the cursor is in the row below it.
    drawn: u16,
}

impl Screen {
    /// The text that draws `area` of a terminal of `size` (columns, rows) over the drawing before, or below what has been written since
    /// if that was `disturbed`.
    pub(super) fn frame(
        &mut self,
        size: (u16, u16),
        area: Rect,
        (colours, disturbed): (bool, bool),
        draw: impl FnOnce(Rect, &mut Buffer),
    ) -> String {
        let mut buffer = Buffer::empty(area);
        draw(area, &mut buffer);
        let mut text = String::new();
        if disturbed {
            self.drawn = 0;
        }
        if self.drawn > 0 && self.size != size {
            // Terminals wrap long lines anew in a new width, so where the drawing begins is not known: clear everything.
            text.push_str("\x1b[2J\x1b[H");
        } else if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A", self.drawn));
        }
        (self.size, self.drawn) = (size, area.height);
        for row in buffer.content().chunks(usize::from(area.width.max(1))) {
            text.push('\r');
            let blank = |cell: &ratatui::buffer::Cell| cell.symbol() == " ";
            let end = row.iter().rposition(|cell| !blank(cell)).map_or(0, |last| last + 1);
            let mut style = (Color::Reset, Modifier::empty());
            for cell in &row[..end] {
                let wanted = (cell.fg, cell.modifier);
                if colours && wanted != style {
                    text.push_str(&codes(wanted));
                    style = wanted;
                }
                text.push_str(cell.symbol());
            }
            if style != (Color::Reset, Modifier::empty()) {
                text.push_str("\x1b[0m");
            }
            text.push_str("\x1b[K\n");
        }
        text
    }
}

/// The escape sequence of a colour and a modifier, for those that the dashboard uses.
fn codes((colour, modifier): (Color, Modifier)) -> String {
    let mut codes = String::from("\x1b[0");
    if modifier.contains(Modifier::BOLD) {
        codes.push_str(";1");
    }
    if modifier.contains(Modifier::DIM) {
        codes.push_str(";2");
    }
    match colour {
        Color::Cyan => codes.push_str(";36"),
        Color::Yellow => codes.push_str(";33"),
        _ => {}
    }
    codes.push('m');
    codes
}

#[cfg(test)]
mod tests {
    use ratatui::style::Style;

    use super::*;

    #[test]
    fn a_picture_goes_over_the_one_before() {
        let mut screen = Screen::default();
        let area = Rect::new(0, 0, 6, 2);
        let mut frame = |size, colours, disturbed| {
            screen.frame(size, area, (colours, disturbed), |_, buffer| {
                buffer.set_string(0, 0, "ab", Style::new().fg(Color::Cyan));
                buffer.set_string(2, 0, "c", Style::new());
            })
        };
        assert_eq!(frame((80, 24), false, false), "\rabc\x1b[K\n\r\x1b[K\n");
        let coloured = "\x1b[2A\r\x1b[0;36mab\x1b[0mc\x1b[K\n\r\x1b[K\n";
        assert_eq!(frame((80, 24), true, false), coloured);
        assert_eq!(frame((70, 24), false, false), "\x1b[2J\x1b[H\rabc\x1b[K\n\r\x1b[K\n");
        // A message came between: it stays, and the drawing stands below it.
        assert_eq!(frame((70, 24), false, true), "\rabc\x1b[K\n\r\x1b[K\n");
    }
}
