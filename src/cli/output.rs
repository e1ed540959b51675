//! Output for people and programs: data on stdout, everything else on stderr. Colour only on a terminal (`NO_COLOR` is
//! honoured by `anstream`). Text is [`Shown`], since handlers and clients choose parts of it; bytes are, too, on a terminal.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::exit::CliError;
use super::shown::{Shown, escape};

const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const HINT: Style = AnsiColor::Cyan.on_default().bold();

/// Writes a line of data.
pub(crate) fn line(text: impl Display) -> Result<(), CliError> {
    let mut out = anstream::stdout().lock();
    writeln!(out, "{}", Shown::text(text))?;
    Ok(out.flush()?)
}

/// Writes raw bytes of data: a result as the handler left it. On a terminal control characters are shown instead of done, except
/// line ends and tabs.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), CliError> {
    // Not through anstream, which would strip escape sequences out of the data.
    let mut out = io::stdout().lock();
    if out.is_terminal() {
        let mut text = String::with_capacity(bytes.len());
        escape(&String::from_utf8_lossy(bytes), false, &mut text).map_err(io::Error::other)?;
        out.write_all(text.as_bytes())?;
    } else {
        out.write_all(bytes)?;
    }
    Ok(out.flush()?)
}

/// Writes one JSON value as one line of data.
pub(crate) fn json(value: &impl Serialize) -> Result<(), CliError> {
    let mut text = serde_json::to_vec(value).map_err(|error| CliError::failed(format!("cannot encode: {error}")))?;
    text.push(b'\n');
    bytes(&text)
}

/// A table of data with a header; columns in `numbers` are right-aligned.
pub(crate) fn table<R>(header: &[&str], numbers: &[usize], rows: impl IntoIterator<Item = R>) -> String
where
    R: IntoIterator<Item = String>,
{
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.into_iter().map(|cell| Shown::line(cell).to_string()).collect::<Vec<_>>());
    }
    for &at in numbers {
        if let Some(column) = table.column_mut(at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let table = table.to_string();
    table.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// Tells people how it goes, on stderr.
pub(crate) fn note(text: impl Display) {
    to_stderr(format_args!("{}", Shown::text(text)));
}

/// Tells people what they should know before it goes on, on stderr.
pub(crate) fn warning(text: impl Display) {
    to_stderr(format_args!("{WARNING}warning:{WARNING:#} {}", Shown::text(text)));
}

/// Tells people what went wrong, on stderr.
pub(crate) fn error(text: impl Display) {
    to_stderr(format_args!("{ERROR}error:{ERROR:#} {}", Shown::text(text)));
}

/// Tells people what to do about it, on a line of its own, on stderr.
pub(crate) fn hint(text: impl Display) {
    to_stderr(format_args!("{HINT}hint:{HINT:#} {}", Shown::text(text)));
}

/// A bar that moves on stderr where a person watches, and nothing where nobody does.
pub(crate) fn progress(what: &'static str, length: usize) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length as u64).with_prefix(what);
    match ProgressStyle::with_template("{prefix:>12} [{bar:40}] {pos}/{len}") {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// The same for jobs, with their rate, and with the time that is left where their number is known. Nothing for a single
/// one.
pub(crate) fn jobs_progress(count: Option<usize>) -> ProgressBar {
    if count == Some(1) || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match count {
        Some(count) => (ProgressBar::new(count as u64), "{prefix:>12} [{bar:40}] {pos}/{len}, {per_sec}, {eta} left"),
        None => (ProgressBar::no_length(), "{prefix:>12} {pos}, {per_sec}, {elapsed}"),
    };
    let bar = bar.with_prefix("jobs");
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// A reader of stderr that went away is no reason to stop.
fn to_stderr(text: std::fmt::Arguments<'_>) {
    writeln!(anstream::stderr().lock(), "{text}").ok();
}
