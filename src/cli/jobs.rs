//! `relay jobs`: a client's own jobs. Looked at, listed, cancelled, run again, erased.

use clap::{Args, Subcommand};
use relay_bridge::contract::{JobId, JobState, QueueName};

use super::exit::{CliError, Exit};
use super::remote::{ServerArgs, known};
use super::{output, values};
use crate::api::receipt::state_text;
use crate::api::{JobView, JobsPage};
use crate::client::{JobsFilter, Patience};

/// Jobs asked for in one call.
const PAGE: u32 = 100;

/// The jobs, and the action to take on them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  relay jobs list --state failed                            the newest 50 that failed
  relay jobs list --all --json | jq -r .job_id              every job, one line of JSON each
  relay jobs show 018f6f6e-0000-7000-8000-000000000000
  relay jobs list --key-prefix order-                       those of one's own keys, after a crash
  relay jobs show --queue mail --key order-4711             by its idempotency key
  relay jobs rerun 018f6f6e-0000-7000-8000-000000000000     a finished job once more")]
pub(crate) struct JobsArgs {
    #[command(subcommand)]
    command: JobsCommand,
}

#[derive(Debug, Subcommand)]
enum JobsCommand {
    /// List jobs, newest first
    List(ListArgs),
    /// Show where a job stands
    Show(ShowArgs),
    /// End a job that has not finished; one that has stays as it is
    Cancel(OneArgs),
    /// Start a finished job again, with the same payload
    Rerun {
        /// The generation it starts from; repeating the call is harmless then [default: the job's own now]
        #[arg(long, value_name = "N")]
        from: Option<u32>,
        #[command(flatten)]
        one: OneArgs,
    },
    /// Remove the payload and the result of a finished job for good; its outcome and its key stay
    Erase(OneArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only jobs of this queue
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Only jobs in this state: queued, leased, succeeded, failed, exhausted, expired, cancelled
    #[arg(long, value_name = "STATE", value_parser = state)]
    state: Option<JobState>,
    /// Only jobs whose key begins so
    #[arg(long, value_name = "PREFIX")]
    key_prefix: Option<String>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 50, conflicts_with = "all")]
    limit: usize,
    /// Every job that is kept
    #[arg(long)]
    all: bool,
    /// Print one line of JSON per job
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The job's id, as `relay submit` printed it
    #[arg(value_name = "JOB_ID", required_unless_present = "key")]
    id: Option<JobId>,
    /// The idempotency key that it was submitted under, instead of its id
    #[arg(long, value_name = "KEY", conflicts_with = "id", requires = "queue")]
    key: Option<String>,
    /// The queue that goes with the key
    #[arg(long, value_name = "NAME", requires = "key")]
    queue: Option<QueueName>,
    /// Print the job as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
struct OneArgs {
    /// The job's id, as `relay submit` printed it
    #[arg(value_name = "JOB_ID")]
    id: JobId,
    /// Print the job as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// `relay jobs`
pub(crate) async fn run(args: JobsArgs) -> Result<Exit, CliError> {
    match args.command {
        JobsCommand::List(args) => list(args).await,
        JobsCommand::Show(args) => {
            let client = args.server.reader()?;
            let job = match (args.id, args.key, args.queue) {
                (Some(id), ..) => client.status(id).await?,
                (None, Some(key), Some(queue)) => client.by_key(&queue, &key).await?,
                _ => return Err(CliError::usage("no job is named").hint("give its id, or --queue and --key")),
            };
            show(&job, args.json)
        }
        JobsCommand::Cancel(args) => {
            let client = args.server.client()?;
            let job = client.cancel(args.id).await?;
            show(&job, args.json)
        }
        JobsCommand::Rerun { from, one } => rerun(from, one).await,
        JobsCommand::Erase(args) => {
            let client = args.server.client()?;
            client.erase(args.id).await?;
            if args.json {
                output::json(&serde_json::json!({ "erased": args.id }))?;
            } else {
                output::note(format_args!("Payload and result of job {} are gone.", args.id));
            }
            Ok(Exit::Done)
        }
    }
}

async fn rerun(from: Option<u32>, args: OneArgs) -> Result<Exit, CliError> {
    let client = args.server.client()?;
    let from = match from {
        Some(from) => from,
        None => client.clone().patient(Patience::reading()).status(args.id).await?.receipt.generation,
    };
    // It names the generation it starts from, so a try that got lost can be repeated.
    let receipt = client.rerun(args.id, from).await?;
    if args.json {
        output::json(&receipt)?;
    } else {
        output::line(receipt.job_id)?;
        output::note(format_args!("Job {} is in generation {}.", receipt.job_id, receipt.generation));
    }
    Ok(Exit::Done)
}

async fn list(args: ListArgs) -> Result<Exit, CliError> {
    let client = args.server.reader()?;
    let mut left = if args.all { usize::MAX } else { args.limit };
    let ListArgs { queue, state, key_prefix, .. } = args;
    let mut filter = JobsFilter { queue, state, key_prefix, after: None, limit: PAGE };
    let mut rows = Vec::new();
    let mut none = true;
    while left > 0 {
        filter.limit = PAGE.min(u32::try_from(left).unwrap_or(PAGE));
        let JobsPage { jobs, next } = client.jobs(&filter).await?;
        left -= jobs.len().min(left);
        none &= jobs.is_empty();
        for job in jobs {
            if args.json {
                output::json(&job)?;
            } else {
                rows.push(row(&job));
            }
        }
        if !args.json && rows.len() >= 1_000 {
            print(&mut rows)?;
        }
        let Some(next) = next else { break };
        filter.after = Some(next);
    }
    if none && let Some(queue) = &filter.queue {
        known(&client, queue).await?;
    }
    if !rows.is_empty() {
        print(&mut rows)?;
    }
    Ok(Exit::Done)
}

fn row(job: &JobView) -> [String; 7] {
    let receipt = &job.receipt;
    let size = job.size.map_or_else(String::new, values::show_size);
    let (id, queue) = (receipt.job_id.to_string(), receipt.queue.to_string());
    let key = receipt.key.as_ref().map_or_else(String::new, ToString::to_string);
    [id, queue, receipt.state.to_string(), attempts(job), size, receipt.accepted_at.to_string(), key]
}

fn print(rows: &mut Vec<[String; 7]>) -> Result<(), CliError> {
    let header = ["job", "queue", "state", "attempt", "size", "accepted", "key"];
    output::line(output::table(&header, &[4], std::mem::take(rows)))
}

fn attempts(job: &JobView) -> String {
    match job.max_attempts {
        Some(max) => format!("{} of {max}", job.attempt),
        None => job.attempt.to_string(),
    }
}

fn show(job: &JobView, json: bool) -> Result<Exit, CliError> {
    if json {
        output::json(job)?;
        return Ok(Exit::Done);
    }
    let receipt = &job.receipt;
    let mut rows = vec![
        ("job", receipt.job_id.to_string()),
        ("queue", receipt.queue.to_string()),
        ("state", receipt.state.to_string()),
        ("attempt", attempts(job)),
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
    rows.extend(receipt.key.as_ref().map(|key| ("key", key.to_string())));
    rows.extend((receipt.generation > 1).then(|| ("generation", receipt.generation.to_string())));
    for (name, value) in rows {
        output::line(format_args!("{name:<13} {value}"))?;
    }
    for (name, value) in &receipt.meta {
        output::line(format_args!("{:<13} {name}={value}", "meta"))?;
    }
    Ok(Exit::Done)
}

fn state(text: &str) -> Result<JobState, String> {
    state_text::parse(text).ok_or_else(|| {
        format!("`{text}` is no state: write queued, leased, succeeded, failed, exhausted, expired or cancelled")
    })
}
