//! `relay results`: all results of a client in their order, once or as they come. A read consumes nothing; the cursor
//! says where to read on.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use relay_bridge::contract::{Outcome, QueueName};

use super::exit::{CliError, Exit};
use super::output;
use super::remote::{ServerArgs, known};
use crate::api::{ResultView, ResultsPage};
use crate::client::job::WAIT_MAX;
use crate::client::{Client, Patience, ResultsFilter};
use crate::private_file::PrivateFile;

/// Results asked for in one call.
const PAGE: u32 = 100;
/// The longest cursor that is read from a file, in bytes.
const CURSOR_BYTES_MAX: u64 = 1024;

/// Which results.
#[derive(Debug, Args)]
#[command(after_help = "\
Each line ends with the cursor: --after CURSOR reads on behind it. With --resume FILE the place is
kept in a file, so that a reader that was stopped, with whatever signal, misses nothing; a SIGKILL
may have it read its last page again:
results are the same if their run_id is.

Examples:
  relay results                                    all that are kept
  relay results --follow --after now               those that come from now on
  relay results --key-prefix order-                those of one's own keys, after a crash
  relay results --follow --resume place --json     all of them, across restarts")]
pub(crate) struct ResultsArgs {
    /// Begin after this cursor; `now` begins after the newest result [default: the oldest result that is kept]
    #[arg(long, value_name = "CURSOR", conflicts_with = "resume")]
    after: Option<String>,
    /// Keep the place in this file, and begin there
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Follow new results until stopped; reconnect when the server is back
    #[arg(long, short)]
    follow: bool,
    /// Only results of this queue
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Only results of jobs whose key begins so
    #[arg(long, value_name = "PREFIX")]
    key_prefix: Option<String>,
    /// Print one line of JSON per result, with payloads of up to 16 KiB in base64
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// `relay results`
pub(crate) async fn run(args: ResultsArgs) -> Result<Exit, CliError> {
    // A follower waits as long as it takes; a request that will be refused again ends the wait all the same.
    let patience = if args.follow {
        Patience { give_up_after: Duration::MAX, ..Patience::default() }
    } else {
        Patience::reading()
    };
    let away = Arc::new(AtomicBool::new(false));
    let noticed = Arc::clone(&away);
    let client = args.server.client()?.patient(patience).telling(move |error| {
        if !noticed.swap(true, Ordering::Relaxed) {
            output::warning(format_args!("{error}; trying again"));
        }
    });
    let after = match &args.resume {
        Some(file) => read_place(file)?,
        None => args.after,
    };
    let wait = if args.follow { WAIT_MAX } else { Duration::ZERO };
    let mut filter = ResultsFilter { after, queue: args.queue, key_prefix: args.key_prefix, limit: PAGE, wait };
    if args.follow
        && let Some(queue) = &filter.queue
        && let Err(error) = known(&client, queue).await
    {
        // The queue may be one that is to come.
        output::warning(format_args!("{error}; waiting for its results"));
    }
    let mut none = true;
    loop {
        let page = page(&client, &filter, &away).await?;
        if let Some(reset) = page.reset {
            let why = serde_json::to_string(&reset).unwrap_or_default();
            output::warning(format_args!(
                "reading starts over at the oldest result that is kept: {}",
                why.trim_matches('"')
            ));
        }
        print(&page.entries, args.json)?;
        none &= page.entries.is_empty();
        let moved = filter.after.as_ref() != Some(&page.next);
        if moved && let Some(file) = &args.resume {
            write_place(file, &page.next)?;
        }
        filter.after = Some(page.next);
        // A page without results has moved on if there are some that were not asked for.
        if !args.follow && !moved {
            if none && let Some(queue) = &filter.queue {
                known(&client, queue).await?;
            }
            return Ok(Exit::Done);
        }
    }
}

async fn page(client: &Client, filter: &ResultsFilter, away: &AtomicBool) -> Result<ResultsPage, CliError> {
    let page = client.page(filter).await?;
    if away.swap(false, Ordering::Relaxed) {
        output::note("The server is back.");
    }
    Ok(page)
}

/// The whole page at once: the printed results are flushed before their place is kept.
fn print(entries: &[ResultView], json: bool) -> Result<(), CliError> {
    let mut text = Vec::new();
    for entry in entries {
        if json {
            serde_json::to_writer(&mut text, entry)
                .map_err(|error| CliError::failed(format!("cannot encode: {error}")))?;
            text.push(b'\n');
            continue;
        }
        let why = match &entry.failure {
            Some(failure) if entry.outcome != Outcome::Succeeded => format!(" ({})", failure.reason),
            _ => String::new(),
        };
        let ResultView { finished_at, job_id, queue, attempt, size, outcome, cursor, .. } = entry;
        let key = entry.key.as_ref().map_or_else(String::new, |key| format!(" key {key}"));
        writeln!(text, "{finished_at} {job_id} {queue}{key} attempt {attempt} {size} B {outcome}{why} {cursor}")?;
    }
    output::bytes(&text)
}

fn read_place(file: &Path) -> Result<Option<String>, CliError> {
    let unreadable = |error: std::io::Error| CliError::usage(format!("cannot read {}: {error}", file.display()));
    match std::fs::metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
        Ok(meta) if meta.len() > CURSOR_BYTES_MAX => {
            return Err(CliError::usage(format!("{} holds no cursor: it is too long", file.display()))
                .hint("name a file that this command wrote, or one that is not there"));
        }
        Ok(_) => {}
    }
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
}

fn write_place(file: &Path, cursor: &str) -> Result<(), CliError> {
    let written = PrivateFile::lock(file).and_then(|locked| locked.replace(&format!("{cursor}\n")));
    written.map_err(|error| {
        CliError::failed(format!("cannot keep the place in {}: {error}", file.display()))
            .hint(format!("go on after the last printed result with --after {cursor}"))
    })
}
