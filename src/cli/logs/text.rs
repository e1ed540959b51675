//! The fields of a log line for people. A field may hold what a client, a handler or a server said: it stays on its line, and no
//! terminal obeys it. Quoted values are escaped by their quoting already, others and the message here.

use std::fmt::Debug;

use relay_bridge::clock::Clock;
use tracing::field::Field;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::{FormatFields, Writer, debug_fn};

use crate::cli::shown::Shown;

/// Writes the message as it is, and each other field as `name=value`, with a space in between.
pub(super) fn fields() -> impl for<'writer> FormatFields<'writer> + Send + Sync + 'static {
    debug_fn(|writer: &mut Writer<'_>, field: &Field, value: &dyn Debug| {
        let value = Shown::line(format!("{value:?}"));
        match field.name() {
            "message" => write!(writer, "{value}"),
            // In italics, and the sign between both dimmed.
            name if writer.has_ansi_escapes() => write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}"),
            name => write!(writer, "{name}={value}"),
        }
    })
    .delimited(" ")
}

/// The line that says how many are not there.
pub(super) fn lost(lines: u64) -> String {
    format!("{}  WARN {}\n", Clock::system().now(), super::lost(lines))
}

#[cfg(test)]
mod tests {
    use super::super::testing::Lines;
    use super::*;

    #[test]
    fn a_field_stays_on_its_line_and_no_terminal_obeys_it() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .fmt_fields(fields())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("request", path = %"/\x1b[2J");
            let _entered = span.enter();
            tracing::warn!(error = %"no\nINFO all is well\x1b[1A", quoted = "\x07", at = 3, "traces go to {}", "http://u:hush@host\r");
        });
        assert_eq!(
            lines.text(),
            " WARN request{path=/\\u001b[2J}: traces go to http://u:***@host\\r error=no\\nINFO all is well\\u001b[1A \
             quoted=\"\\u{7}\" at=3\n"
        );
    }
}
