//! `relay status` and `relay cancel`: where a job stands, and ending it.

use clap::Args;
use relay_bridge::contract::JobId;

use super::exit::{CliError, Exit};
use super::output;
use super::remote::ServerArgs;
use crate::api::JobView;
use crate::client::retry::Patience;

/// One job.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  relay status 018f6f6e-0000-7000-8000-000000000000 --json")]
pub(crate) struct JobArgs {
    /// The job's id, as `relay submit` printed it
    #[arg(value_name = "JOB_ID")]
    id: JobId,
    /// Print the job as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// `relay status`
pub(crate) async fn status(args: JobArgs) -> Result<Exit, CliError> {
    let client = args.server.client()?;
    let job = Patience::default().repeat(true, || client.status(args.id), |_| {}).await?;
    show(&job, args.json)
}

/// `relay cancel`
pub(crate) async fn cancel(args: JobArgs) -> Result<Exit, CliError> {
    let client = args.server.client()?;
    let job = Patience::default().repeat(true, || client.cancel(args.id), |_| {}).await?;
    show(&job, args.json)
}

fn show(job: &JobView, json: bool) -> Result<Exit, CliError> {
    if json {
        output::json(job)?;
        return Ok(Exit::Done);
    }
    let receipt = &job.receipt;
    let attempts = match job.max_attempts {
        Some(max) => format!("{} of {max}", job.attempt),
        None => job.attempt.to_string(),
    };
    let mut rows = vec![
        ("job", receipt.job_id.to_string()),
        ("queue", receipt.queue.to_string()),
        ("state", receipt.state.to_string()),
        ("attempt", attempts),
        ("accepted", receipt.accepted_at.to_string()),
    ];
    for (name, at) in [
        ("started", job.started_at),
        ("finished", job.finished_at),
        ("next attempt", job.next_attempt_at),
        ("expires", receipt.expires_at.filter(|_| job.outcome.is_none())),
    ] {
        rows.extend(at.map(|at| (name, at.to_string())));
    }
    for (name, value) in rows {
        output::line(format_args!("{name:<13} {value}"))?;
    }
    Ok(Exit::Done)
}
