//! Logs go to stderr: text on a terminal, JSON lines for a log collector.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::JsonFields;

use super::exit::CliError;
use crate::config::settings::LogFormat;

mod json;
#[cfg(test)]
mod testing;
mod text;

/// Starts logging for this process. `filter` is what `RELAY_LOG` says (`info`, `relay=debug,warn`); without it
/// `default` holds.
///
/// # Errors
/// A usage error if the filter can't be read.
pub(crate) fn start(filter: Option<&str>, default: &str, format: LogFormat) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(filter.unwrap_or(default)).map_err(|error| {
        CliError::usage(format!("the log filter can't be read: {error}"))
            .hint("use a level (error, warn, info, debug, trace) or TARGET=LEVEL, with commas in between")
    })?;
    let colour = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colour)
        // A line that can't be written is lost. It would be told on stderr, which panics if nobody reads that any more,
        // in whatever task logs: the one that waits for signals, too.
        .log_internal_errors(false);
    // Fails only if this process logs already: then it stays as it is.
    match format {
        LogFormat::Text => logs.with_target(false).fmt_fields(text::fields()).try_init().ok(),
        LogFormat::Json => logs.fmt_fields(JsonFields::new()).event_format(json::Flat).try_init().ok(),
    };
    Ok(())
}
