//! Text as people are shown it. Handlers and clients choose parts of it: a control character would let them write over other
//! lines of a terminal, set its title, or type into it. And the password of a URL is nobody's business.

use std::fmt::{self, Display, Write};

use relay_bridge::support::without_passwords;

/// Text that is written with its control characters escaped and the passwords of its URLs as `***`.
pub(super) struct Shown<T> {
    text: T,
    one_line: bool,
}

impl<T: Display> Shown<T> {
    /// Text of any number of lines: line ends and tabs stay.
    pub(super) fn text(text: T) -> Self {
        Self { text, one_line: false }
    }

    /// A line, or a part of one: tabs stay.
    pub(super) fn line(text: T) -> Self {
        Self { text, one_line: true }
    }
}

impl<T: Display> Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text.to_string();
        escape(&without_passwords(&text), self.one_line, f)
    }
}

/// Writes text with its control characters as JSON writes them, so that JSON stays what it is.
pub(super) fn escape(text: &str, one_line: bool, to: &mut impl Write) -> fmt::Result {
    let keep = |c: char| !c.is_control() || c == '\t' || c == '\n' && !one_line;
    let mut rest = text;
    while let Some(at) = rest.find(|c| !keep(c)) {
        to.write_str(&rest[..at])?;
        let mut left = rest[at..].chars();
        match left.next() {
            Some('\n') => to.write_str("\\n")?,
            Some('\r') => to.write_str("\\r")?,
            Some(c) => write!(to, "\\u{:04x}", u32::from(c))?,
            None => {}
        }
        rest = left.as_str();
    }
    to.write_str(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_done() {
        let text = "a\tb\nc\r\x1b]0;title\x07\u{9b}2Jä\x7f http://u:hush@host/";
        let shown = "a\tb\nc\\r\\u001b]0;title\\u0007\\u009b2Jä\\u007f http://u:***@host/";
        assert_eq!(Shown::text(text).to_string(), shown);
        assert_eq!(Shown::line(text).to_string(), shown.replace('\n', "\\n"));
        let json = serde_json::to_string(text).unwrap();
        let mut escaped = String::new();
        escape(&json, false, &mut escaped).unwrap();
        assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text, "JSON stays what it is: {escaped}");
        assert!(!escaped.contains(char::is_control));
    }
}
