//! Logs go to stderr: text on a terminal, JSON lines for a log collector.

use std::io;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::JsonFields;

use super::exit::CliError;
use crate::config::settings::LogFormat;

mod json;
mod stderr;
#[cfg(test)]
mod testing;
mod text;

/// Starts logging for this process. `filter` is what `RELAY_LOG` says (`info`, `relay=debug,warn`); without it
/// `default` holds.
///
/// # Errors
/// A usage error if the filter can't be read.
pub(crate) fn start(filter: Option<&str>, default: &str, format: LogFormat) -> Result<(), CliError> {
    let filter = read(filter.unwrap_or(default))?;
    let colour = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
    let told = match format {
        LogFormat::Text => text::lost,
        LogFormat::Json => json::lost,
    };
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr::Lines::new(io::stderr(), told))
        .with_ansi(colour)
        // An event that can't be formatted is lost. It would be told on stderr, which panics if nobody reads that any more,
        // in whatever task logs: the one that waits for signals, too.
        .log_internal_errors(false);
    // Fails only if this process logs already: then it stays as it is.
    match format {
        LogFormat::Text => logs.with_target(false).fmt_fields(text::fields()).try_init().ok(),
        LogFormat::Json => logs.fmt_fields(JsonFields::new()).event_format(json::Flat).try_init().ok(),
    };
    Ok(())
}

/// The message of such a line.
fn lost(lines: u64) -> String {
    format!("{lines} lines of the log before this one are lost: whatever reads stderr did not read them")
}

/// The target of the library of HTTP/2.
const HTTP_2: &str = "h2";

/// Reads a filter; lines of the library of HTTP/2 have to be named in it (`h2=debug`). A word alone is a level: to the library any other
/// one is a target, of which everything is logged and of all others nothing, so that a slip of the pen would leave no line, not even of an error.
///
/// # Errors
/// A usage error if it can't be read.
pub(crate) fn read(filter: &str) -> Result<EnvFilter, CliError> {
    let wrong = |why: &str| {
        CliError::usage(format!("the log filter can't be read: {why}"))
            .hint("use a level (error, warn, info, debug, trace) or TARGET=LEVEL, with commas in between")
    };
    let words = filter.split(',').map(str::trim).filter(|word| !word.is_empty() && !word.contains(['=', '[']));
    for word in words {
        word.parse::<LevelFilter>().map_err(|_| wrong(&format!("`{word}` is no level")))?;
    }
    // Every peer, of whom nobody knows anything, could have the library of HTTP/2 write as many lines as it sends wrong frames.
    let filter = match filter.trim() {
        "" => filter.to_owned(),
        _ => format!("{HTTP_2}=off,{filter}"),
    };
    EnvFilter::try_new(filter).map_err(|error| wrong(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_alone_is_a_level() {
        for filter in ["info", "WARN", "off", "info,async_nats=off", "relay=debug, info", "warn,[job]=trace", ""] {
            assert!(read(filter).is_ok(), "{filter}");
        }
        for (filter, named) in
            [("verbose", "`verbose`"), ("debgu,audit=off", "`debgu`"), ("relay=loud", "level filter")]
        {
            let said = read(filter).unwrap_err().to_string();
            assert!(said.contains(named), "{filter}: {said}");
        }
    }
}
