//! `relay dead`: jobs that ended badly. Looked at, started again, removed. At the admin port.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use relay_bridge::contract::{JobId, QueueName};
use serde_json::json;

use super::exit::{CliError, Exit};
use super::remote::{OperatorArgs, operate};
use super::{output, values};
use crate::api::operator::{DeadLetterView, DeadLettersPage};
use crate::client::retry::Patience;
use crate::client::{LettersFilter, Operator};

/// Letters asked for in one call.
const PAGE: u32 = 200;

/// The dead letters, and the action to take on them.
#[derive(Debug, Args)]
#[command(after_help = "\
A dead letter is a job whose run ended `failed` or `exhausted`, with its payload and the reason,
kept for the queue's `dead_retention`. These ask the admin port of `relay serve --admin`, which
clients can't reach.

Examples:
  relay dead list --queue mail
  relay dead show 018f6f6e-0000-7000-8000-000000000000 --payload > payload
  relay dead redrive --queue mail --all        the cause is mended: all of them once more
  relay dead purge 018f6f6e-0000-7000-8000-000000000000")]
pub(crate) struct DeadArgs {
    #[command(subcommand)]
    command: DeadCommand,
}

#[derive(Debug, Subcommand)]
enum DeadCommand {
    /// List dead letters, newest first
    List {
        /// Only those of this queue
        #[arg(long, value_name = "NAME")]
        queue: Option<QueueName>,
        /// Only those of jobs whose key begins so
        #[arg(long, value_name = "PREFIX")]
        key_prefix: Option<String>,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
        /// Print one line of JSON per letter
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: OperatorArgs,
    },
    /// Show the newest dead letter of a job
    Show {
        /// The job's id
        #[arg(value_name = "JOB_ID")]
        id: JobId,
        /// Print the payload instead, byte by byte, up to 64 KiB
        #[arg(long, conflicts_with = "json")]
        payload: bool,
        /// Print one line of JSON, with the payload in base64
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: OperatorArgs,
    },
    /// Start the job's next run, with its whole time before it
    Redrive(WhichArgs),
    /// Remove dead letters for good
    Purge(WhichArgs),
}

#[derive(Debug, Args)]
struct WhichArgs {
    /// The jobs' ids
    #[arg(value_name = "JOB_ID", required_unless_present = "all")]
    ids: Vec<JobId>,
    /// Every dead letter, of one queue with --queue; those that come meanwhile are left alone
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// With --all: only those of this queue
    #[arg(long, value_name = "NAME", requires = "all")]
    queue: Option<QueueName>,
    /// With --all: only those of jobs whose key begins so
    #[arg(long, value_name = "PREFIX", requires = "all")]
    key_prefix: Option<String>,
    /// Print one line of JSON per job
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: OperatorArgs,
}

#[derive(Clone, Copy)]
enum Action {
    Redrive,
    Purge,
}

/// `relay dead`
pub(crate) async fn run(args: DeadArgs) -> Result<Exit, CliError> {
    match args.command {
        DeadCommand::List { queue, key_prefix, limit, json, server } => {
            let filter = LettersFilter { queue, key_prefix, before: None, limit: PAGE };
            list(&server.operator()?, filter, limit, json).await
        }
        DeadCommand::Show { id, payload, json, server } => {
            let operator = server.operator()?;
            let letter = operate(Patience::reading(), || operator.letter(id)).await?;
            show(&letter, payload, json)
        }
        DeadCommand::Redrive(args) => each(args, Action::Redrive).await,
        DeadCommand::Purge(args) => each(args, Action::Purge).await,
    }
}

async fn list(operator: &Operator, mut filter: LettersFilter, limit: usize, json: bool) -> Result<Exit, CliError> {
    let mut letters = Vec::new();
    while letters.len() < limit {
        filter.limit = PAGE.min(u32::try_from(limit - letters.len()).unwrap_or(PAGE));
        let page = operate(Patience::reading(), || operator.letters(&filter)).await?;
        letters.extend(page.letters);
        let Some(next) = page.next else { break };
        filter.before = Some(next);
    }
    if letters.is_empty() {
        known(operator, filter.queue.as_ref()).await?;
    }
    if json {
        letters.iter().try_for_each(output::json)?;
        return Ok(Exit::Done);
    }
    let rows = letters.iter().map(|letter| {
        let DeadLetterView { job_id, client, queue, key, outcome, attempt, failure, at, .. } = letter;
        [
            at.to_string(),
            job_id.to_string(),
            client.to_string(),
            queue.to_string(),
            outcome.to_string(),
            attempt.to_string(),
            failure.reason.clone(),
            key.as_ref().map_or_else(String::new, ToString::to_string),
        ]
    });
    let header = ["ended", "job", "client", "queue", "outcome", "attempt", "reason", "key"];
    output::line(output::table(&header, &[5], rows))?;
    Ok(Exit::Done)
}

fn show(letter: &DeadLetterView, payload: bool, json: bool) -> Result<Exit, CliError> {
    if json {
        output::json(letter)?;
        return Ok(Exit::Done);
    }
    if payload {
        let bytes = STANDARD.decode(letter.payload_base64.as_deref().unwrap_or_default());
        let bytes = bytes.map_err(|error| CliError::failed(format!("cannot decode the payload: {error}")))?;
        output::bytes(&bytes)?;
        if (bytes.len() as u64) < letter.size {
            output::warning(format_args!("these are the first {} of {} bytes", bytes.len(), letter.size));
        }
        return Ok(Exit::Done);
    }
    let key = letter.key.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    for (name, value) in [
        ("job", letter.job_id.to_string()),
        ("run", format!("{} (generation {})", letter.run_id, letter.generation)),
        ("client", letter.client.to_string()),
        ("queue", letter.queue.to_string()),
        ("key", key),
        ("outcome", format!("{} at attempt {}", letter.outcome, letter.attempt)),
        ("ended", letter.at.to_string()),
        ("payload", format!("{}, {}", letter.content_type, values::show_size(letter.size))),
        ("reason", letter.failure.reason.clone()),
        ("detail", letter.failure.detail.trim_end().to_owned()),
    ] {
        output::line(format_args!("{name:<13} {value}"))?;
    }
    for (name, value) in &letter.meta {
        output::line(format_args!("{:<13} {name}={value}", "meta"))?;
    }
    Ok(Exit::Done)
}

/// Does it to each letter. One that is gone meanwhile is told, and the others go on.
async fn each(args: WhichArgs, action: Action) -> Result<Exit, CliError> {
    let operator = args.server.operator()?;
    let (mut done, mut failed) = (0_u64, 0_u64);
    if args.all {
        let mut filter = LettersFilter { queue: args.queue, key_prefix: args.key_prefix, before: None, limit: PAGE };
        loop {
            // Newest first and always behind the last one: letters that come meanwhile are not seen.
            let DeadLettersPage { letters, next } = operate(Patience::reading(), || operator.letters(&filter)).await?;
            for letter in letters {
                count(one(&operator, &letter, action, args.json).await, &mut done, &mut failed)?;
            }
            let Some(next) = next else { break };
            filter.before = Some(next);
        }
        if done + failed == 0 {
            known(&operator, filter.queue.as_ref()).await?;
        }
    }
    for id in args.ids {
        let acted = match operate(Patience::reading(), || operator.letter(id)).await {
            Ok(letter) => one(&operator, &letter, action, args.json).await,
            Err(error) => Err(error),
        };
        count(acted, &mut done, &mut failed)?;
    }
    let what = match action {
        Action::Redrive => "started again",
        Action::Purge => "removed",
    };
    output::note(format_args!("{done} {what}, {failed} not."));
    Ok(if failed == 0 { Exit::Done } else { Exit::Failed })
}

/// Refuses a queue that is not there: a slip in its name would look like a queue without dead letters. Letters of a queue
/// that was removed are found without this question.
async fn known(operator: &Operator, queue: Option<&QueueName>) -> Result<(), CliError> {
    let Some(queue) = queue else { return Ok(()) };
    operate(Patience::reading(), || operator.queue(queue)).await.map(drop)
}

/// A letter that could not be seen to is reported; a server that is away ends it all.
fn count(acted: Result<(), CliError>, done: &mut u64, failed: &mut u64) -> Result<(), CliError> {
    match acted {
        Ok(()) => *done += 1,
        Err(error) if error.exit() == Exit::Failed => {
            error.report();
            *failed += 1;
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

async fn one(operator: &Operator, letter: &DeadLetterView, action: Action, json: bool) -> Result<(), CliError> {
    let (job, run) = (letter.job_id, letter.run_id);
    match action {
        Action::Redrive => {
            let receipt = operate(Patience::default(), || operator.redrive(job, run)).await?;
            if json { output::json(&receipt) } else { output::line(job) }
        }
        Action::Purge => {
            operate(Patience::default(), || operator.purge(job, run)).await?;
            if json { output::json(&json!({ "purged": job, "run_id": run })) } else { output::line(job) }
        }
    }
}
