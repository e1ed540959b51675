//! `relay submit`: files, lines or stdin become jobs. A submission is repeated under its key until it is confirmed, and still is one
//! job. A key is made where none is given.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use relay_bridge::contract::job::DEFAULT_CONTENT_TYPE;
use relay_bridge::contract::{IdempotencyKey, Outcome, QueueName};
use serde_json::json;
use tokio::task::JoinSet;

use super::exit::{CliError, Exit};
use super::inputs::{self, Inputs};
use super::remote::{ServerArgs, noted};
use super::result;
use super::{output, values};
use crate::client::{Client, ClientError, NewJob, Patience, RunResult, Submitted};

/// The jobs to submit, and how.
#[derive(Debug, Args)]
#[command(after_help = "\
Each job's id is printed on a line of its own, in the order of the files. With --wait the results
are printed instead, the only one byte by byte, several with an end of line after each. Where one
does not come in time, the exit code is 75 and nothing is printed for it, or with --json its
receipt with `error`. All files are opened, and their lines read, before the first job is
submitted; those of stdin as they come. With --ndjson each line of a file, or of stdin, is a job:
an object with one of `payload` (JSON), `payload_base64` and `text`, and with `key`,
`content_type`, `delay`, `expires_in` and `meta` where they are wanted. A FILE with * or ? in it
that is no file stands for those that match.

Examples:
  echo hello | relay submit --wait                      a job, and its result
  relay submit *.csv --key-from content                 repeat it: the same bytes are one job
  relay submit --ndjson jobs.ndjson --key import-7      lines: {\"key\": \"a\", \"payload\": {\"n\": 1}}
  relay submit order.json --key order-4711 --json       the receipt as JSON")]
pub(crate) struct SubmitArgs {
    /// Files, each one a job; `-` or none at all reads one job from stdin
    #[arg(value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,
    /// Each line is a job, written as an entry of a batch
    #[arg(long)]
    pub(super) ndjson: bool,
    /// The queue
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(super) queue: QueueName,
    /// The idempotency key: submitting again under it gives the same job. For a single job, or with --ndjson for
    /// all lines: line i, counted from 0, that has no key gets KEY/i
    #[arg(long, value_name = "KEY", conflicts_with = "key_from")]
    pub(super) key: Option<String>,
    /// Make each job's key out of its file's path, or out of its content
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(super) key_from: Option<KeyFrom>,
    /// Wait for the results and print them: for this long, or without a limit
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, value_parser = values::duration)]
    wait: Option<Option<Duration>>,
    /// The payload's content type, as the handler shall see it
    #[arg(long, value_name = "TYPE", default_value = DEFAULT_CONTENT_TYPE)]
    pub(super) content_type: String,
    /// No attempt before this has passed; at most 7d
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub(super) delay: Option<Duration>,
    /// The job expires this long after its delay; the queue's limit caps it
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub(super) expires_in: Option<Duration>,
    /// A note for the handler, which finds it beside the payload; repeat it for more
    #[arg(long = "meta", value_name = "NAME=VALUE", value_parser = meta)]
    pub(super) meta: Vec<(String, String)>,
    /// How many submissions are under way at once
    #[arg(long, value_name = "N", default_value = "16")]
    concurrency: NonZeroUsize,
    /// How long to keep trying while the server is away or overloaded; `0s` tries once
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = values::duration)]
    retry_for: Duration,
    /// Print one line of JSON per job
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// The source of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum KeyFrom {
    /// The path as given; with --ndjson the line's number behind it.
    Name,
    /// SHA-256 of the content.
    Content,
}

/// `relay submit`
pub(crate) async fn run(args: SubmitArgs) -> Result<Exit, CliError> {
    let patience = Patience { give_up_after: args.retry_for, ..Patience::default() };
    let client = args.server.clone().patient_client(patience)?;
    let concurrency = args.concurrency.get();
    let Inputs { count, mut jobs } = inputs::open(&args).await?;
    let form = Form { json: args.json, one_of_several: count != Some(1) };
    let bar = output::jobs_progress(count);
    let mut exit = Exit::Done;
    // Printed in the order they came: what finished out of turn waits in `done`, bounded by the concurrency.
    let (mut running, mut done, mut began, mut next, mut more) = (JoinSet::new(), BTreeMap::new(), 0, 0, true);
    while more || !running.is_empty() || !done.is_empty() {
        tokio::select! {
            input = jobs.recv(), if more && running.len() + done.len() < concurrency => match input {
                None => more = false,
                Some((name, job)) => {
                    let (client, wait, at) = (client.clone(), args.wait, began);
                    began += 1;
                    let is_one = count == Some(1);
                    running.spawn(async move {
                        let ended = match (job, wait) {
                            (Ok(job), Some(limit)) if is_one => {
                                let submitted = submit(&client, &job, wait);
                                noted(&format!("the result of {}", shown(&name)), limit, submitted).await
                            }
                            (Ok(job), _) => submit(&client, &job, wait).await,
                            (Err(error), _) => Err(error),
                        };
                        (at, name, ended)
                    });
                }
            },
            Some(joined) = running.join_next() => {
                let (at, name, ended) =
                    joined.map_err(|error| CliError::failed(format!("a submission panicked: {error}")))?;
                done.insert(at, (name, ended));
            }
        }
        while let Some((name, ended)) = done.remove(&next) {
            bar.inc(1);
            exit = worse(exit, bar.suspend(|| show(&name, ended, form))?);
            next += 1;
        }
    }
    bar.finish_and_clear();
    Ok(exit)
}

/// The outcome of one submission.
enum Sent {
    /// It is in line; waiting for its result was not asked for.
    Accepted(Submitted),
    /// It is in line; its result did not come in time.
    Pending(Submitted),
    /// The result was waited for.
    Finished(Box<RunResult>),
}

async fn submit(client: &Client, job: &NewJob, wait: Option<Option<Duration>>) -> Result<Sent, CliError> {
    // Here and not in the library, so that the key can be told.
    let job = job.with_key();
    let unsubmitted = |error| unsubmitted(error, job.key.as_ref());
    let Some(limit) = wait else {
        return client.submit(&job).await.map(Sent::Accepted).map_err(unsubmitted);
    };
    match client.run(&job, limit.unwrap_or(Duration::MAX)).await.map_err(unsubmitted)? {
        Submitted::Finished(result) => Ok(Sent::Finished(result)),
        pending @ Submitted::Accepted(_) => Ok(Sent::Pending(pending)),
    }
}

/// How a job's input is called in a sentence.
fn shown(name: &str) -> &str {
    if name == "-" { "the job from stdin" } else { name }
}

/// How jobs are printed.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// One object a line.
    json: bool,
    /// Results follow each other, so that each has to end its line. A single one is printed byte by byte.
    one_of_several: bool,
}

fn show(name: &str, ended: Result<Sent, CliError>, form: Form) -> Result<Exit, CliError> {
    let Form { json, one_of_several } = form;
    match ended {
        Ok(Sent::Finished(result)) if json => {
            let mut line = result::describe(&result);
            line["file"] = json!(name);
            line["replayed"] = json!(result.replayed);
            output::json(&line)?;
            Ok(if result.outcome == Outcome::Succeeded { Exit::Done } else { Exit::Failed })
        }
        Ok(Sent::Finished(result)) => {
            let exit = result::show(&result, false)?;
            if one_of_several && exit == Exit::Done && result.payload.last() != Some(&b'\n') {
                output::bytes(b"\n")?;
            }
            Ok(exit)
        }
        Ok(Sent::Pending(submitted)) => {
            let pending = CliError::pending(submitted.job_id());
            pending.report();
            if json {
                output::json(&json!({ "file": name, "job_id": submitted.job_id(), "error": pending.to_string() }))?;
            }
            Ok(pending.exit())
        }
        Ok(Sent::Accepted(submitted)) => {
            match (&submitted, json) {
                (Submitted::Accepted(receipt), true) => {
                    let mut line = json!(receipt);
                    line["file"] = json!(name);
                    output::json(&line)?;
                }
                _ => output::line(submitted.job_id())?,
            }
            Ok(Exit::Done)
        }
        Err(error) => {
            error.report();
            if json {
                output::json(&json!({ "file": name, "error": error.to_string() }))?;
            } else {
                output::note(format_args!("  while submitting {name}"));
            }
            Ok(error.exit())
        }
    }
}

fn unsubmitted(error: ClientError, key: Option<&IdempotencyKey>) -> CliError {
    let unknown = error.may_repeat(true) && !error.may_repeat(false);
    let told = CliError::from(error);
    match key.filter(|_| unknown) {
        Some(key) => {
            told.hint(format!("the job may have been taken: under the key `{key}`, submitting again is the same job"))
        }
        None => told,
    }
}

/// The share of one of several jobs in the exit code: the server being away says more than a failed job, and a failed job more
/// than one that goes on.
fn worse(one: Exit, other: Exit) -> Exit {
    let rank = |exit| match exit {
        Exit::Done => 0,
        Exit::Pending => 1,
        exit => 1 + exit as u8,
    };
    if rank(other) > rank(one) { other } else { one }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").ok();
        text
    })
}

fn meta(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not NAME=VALUE"))?;
    let valid = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !valid {
        return Err(format!("the name in `{text}` may have letters, digits and hyphens only"));
    }
    Ok((name.to_ascii_lowercase(), value.to_owned()))
}
