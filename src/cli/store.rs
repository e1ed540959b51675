//! `relay store`: checks, measures, backs up and restores a store.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_embedded::store;
use serde_json::json;

use super::exit::{CliError, Exit};
use super::serve::{STORE_FILE, prepare_store};
use super::{output, values};

/// The action to take on a store.
#[derive(Debug, Args)]
#[command(after_help = "\
All of these but restore may run while a server has the store open.

Examples:
  relay store stats --data ./data
  relay store backup --data ./data relay-2026-11-23.db
  relay store check --data ./data --json

To go back to a backup, or on with a file that a server refuses, stop the server and restore it:
  relay store restore --data ./data relay-2026-11-23.db")]
pub(crate) struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Args)]
struct Place {
    /// The directory that `relay serve --data` was given
    #[arg(long, value_name = "DIR", env = "RELAY_DATA")]
    data: PathBuf,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

impl Place {
    fn file(&self) -> PathBuf {
        self.data.join(STORE_FILE)
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.data.join(format!("{STORE_FILE}{suffix}"))
    }

    /// Removes a folder that a restore made and put no store into. One with a marker waits for its store.
    fn forget(&self) {
        if self.beside(".marker").exists() {
            return;
        }
        for suffix in [".lock", ".partial", ".partial-wal", ".partial-shm", ".partial-journal"] {
            std::fs::remove_file(self.beside(suffix)).ok();
        }
        // It stays if anything else is in it.
        std::fs::remove_dir(&self.data).ok();
    }
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Read everything and say what is wrong; exit code 1 if something is. Minutes on a large store
    Check {
        #[command(flatten)]
        place: Place,
    },
    /// Count what is in the store
    Stats {
        #[command(flatten)]
        place: Place,
    },
    /// Copy the store to a new file as it is at one moment
    Backup {
        #[command(flatten)]
        place: Place,
        /// The new file; it must not be there
        #[arg(value_name = "FILE")]
        to: PathBuf,
    },
    /// Put a backup, or a copy of a store, in the store's place; the old store is kept in relay.db.replaced. Repeat a restore
    /// that failed
    Restore {
        #[command(flatten)]
        place: Place,
        /// A backup or a store's file; it stays as it is
        #[arg(value_name = "FILE")]
        from: PathBuf,
    },
}

/// `relay store`
pub(crate) fn run(args: StoreArgs) -> Result<Exit, CliError> {
    match args.command {
        StoreCommand::Check { place } => check(&place),
        StoreCommand::Stats { place } => stats(&place),
        StoreCommand::Backup { place, to } => {
            let bytes = store::backup(&place.file(), &to).map_err(of_store)?;
            if place.json {
                output::json(&json!({ "backup": to.display().to_string(), "bytes": bytes }))?;
            } else {
                output::note(format_args!("{} holds the store, {}", to.display(), values::show_size(bytes)));
            }
            Ok(Exit::Done)
        }
        StoreCommand::Restore { place, from } => {
            let is_new = !place.data.exists();
            // A store's own file was moved away, if a restore from it was interrupted.
            if !from.exists() && !place.beside(".replaced").exists() {
                return Err(CliError::usage(format!("there is no file {}", from.display()))
                    .hint("name a backup that `relay store backup` made, or a copy of a store's file"));
            }
            let to = prepare_store(place.data.clone())?;
            let bytes = relay_embedded::restore(&from, &to).map_err(|error| {
                if is_new {
                    place.forget();
                }
                of_store(error)
            })?;
            if place.json {
                output::json(&json!({ "restored": to.display().to_string(), "bytes": bytes }))?;
            } else {
                let size = values::show_size(bytes);
                output::note(format_args!("{} holds {}, {size}", to.display(), from.display()));
            }
            Ok(Exit::Done)
        }
    }
}

fn check(place: &Place) -> Result<Exit, CliError> {
    let report = store::check(&place.file()).map_err(of_store)?;
    if place.json {
        output::json(&report)?;
    } else {
        for problem in &report.problems {
            output::line(problem)?;
        }
        output::note(format_args!("{} jobs checked, {} problems", report.jobs, report.problems.len()));
    }
    Ok(if report.problems.is_empty() { Exit::Done } else { Exit::Failed })
}

fn stats(place: &Place) -> Result<Exit, CliError> {
    let stats = store::stats(&place.file()).map_err(of_store)?;
    if place.json {
        output::json(&stats)?;
        return Ok(Exit::Done);
    }
    let header = ["queue", "waiting", "parked", "leased", "finished", "attempts"];
    let rows = stats.queues.iter().map(|queue| {
        let numbers = [queue.waiting, queue.parked, queue.leased, queue.finished, queue.attempts];
        std::iter::once(queue.queue.clone()).chain(numbers.map(|number| number.to_string()))
    });
    output::line(output::table(&header, &[1, 2, 3, 4, 5], rows))?;
    for (name, value) in [
        ("jobs", stats.jobs.to_string()),
        ("results", format!("{} ({} ever recorded)", stats.results, stats.results_recorded)),
        ("dead letters", stats.dead_letters.to_string()),
        ("size", format!("{} + {} log", values::show_size(stats.file_bytes), values::show_size(stats.log_bytes))),
        ("format", stats.version),
    ] {
        output::line(format_args!("{name:<13} {value}"))?;
    }
    Ok(Exit::Done)
}

/// A store that is not there, or is somebody else's, is a mistake in the arguments; a busy one is not.
fn of_store(error: BrokerError) -> CliError {
    match error.kind() {
        BrokerErrorKind::Unavailable => CliError::unavailable(error.to_string()),
        BrokerErrorKind::Corrupt => CliError::failed(error.to_string()),
        _ => CliError::usage(error.to_string()),
    }
}
