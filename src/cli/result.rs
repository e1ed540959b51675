//! `relay result`: the result of a job, as the handler left it.

use std::time::Duration;

use clap::Args;
use relay_bridge::contract::{JobId, Outcome};
use serde_json::json;

use super::exit::{CliError, Exit};
use super::remote::{ServerArgs, noted};
use super::{output, values};
use crate::client::{Patience, RunResult};

/// A job whose result is wanted.
#[derive(Debug, Args)]
#[command(after_help = "\
The result goes to stdout byte by byte. The exit code is 0 only if the job succeeded, and 75 if it
has no result yet.

Examples:
  relay result $ID --wait > out.bin       wait for it as long as it takes
  relay result $ID --wait=30s             wait for half a minute at most
  relay result $ID --json                 outcome and attempt instead of the bytes")]
pub(crate) struct ResultArgs {
    /// The job's id, as `relay submit` printed it
    #[arg(value_name = "JOB_ID")]
    id: JobId,
    /// Wait while the job is not finished: for this long, or without a limit
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, value_parser = values::duration)]
    wait: Option<Option<Duration>>,
    /// Print outcome, attempt, type and size as one line of JSON instead of the result itself
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// `relay result`
pub(crate) async fn run(args: ResultArgs) -> Result<Exit, CliError> {
    let patience = if args.wait.is_some() { Patience::default() } else { Patience::reading() };
    let client = args.server.patient_client(patience)?;
    let within = args.wait.map_or(Duration::ZERO, |limit| limit.unwrap_or(Duration::MAX));
    let fetched = client.wait(args.id, within);
    let found = match args.wait {
        Some(limit) => noted(&format!("the result of job {}", args.id), limit, fetched).await?,
        None => fetched.await?,
    };
    match found {
        Some(result) => show(&result, args.json),
        None => Err(CliError::pending(args.id)),
    }
}

/// Prints a result; the exit code says whether the job succeeded.
pub(crate) fn show(result: &RunResult, json: bool) -> Result<Exit, CliError> {
    if json {
        output::json(&describe(result))?;
    } else if result.outcome == Outcome::Succeeded {
        output::bytes(&result.payload)?;
    } else {
        let failure = serde_json::from_slice::<serde_json::Value>(&result.payload).unwrap_or_default();
        let reason = failure["reason"].as_str().unwrap_or_default();
        let detail = failure["detail"].as_str().unwrap_or_default().trim_end();
        output::error(format_args!("job {} {} at attempt {}: {reason}", result.job_id, result.outcome, result.attempt));
        if !detail.is_empty() {
            output::note(detail);
        }
    }
    Ok(if result.outcome == Outcome::Succeeded { Exit::Done } else { Exit::Failed })
}

/// A result without its payload, as JSON.
pub(crate) fn describe(result: &RunResult) -> serde_json::Value {
    json!({
        "job_id": result.job_id,
        "run_id": result.run_id,
        "key": result.key,
        "meta": result.meta,
        "outcome": result.outcome,
        "attempt": result.attempt,
        "content_type": result.content_type,
        "size": result.payload.len(),
        "failure": if result.outcome == Outcome::Succeeded { None } else {
            serde_json::from_slice::<serde_json::Value>(&result.payload).ok()
        },
        "cursor": result.cursor,
    })
}
