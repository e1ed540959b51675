//! `relay queues`: how much waits, who may have what, and stopping and resuming the taking of jobs. At the admin port.

use clap::{Args, Subcommand};
use relay_bridge::contract::QueueName;
use relay_bridge::policy::ClientPolicy;

use super::exit::{CliError, Exit};
use super::remote::{OperatorArgs, operate};
use super::{output, values};
use crate::api::operator::QueueView;
use crate::client::retry::Patience;

/// The queue, and the action to take on it.
#[derive(Debug, Args)]
#[command(after_help = "\
These ask the admin port of `relay serve --admin`, which clients can't reach.

Examples:
  relay queues list
  relay queues show mail --exact   how many jobs there are, counted one by one
  relay queues pause mail          workers get no more of its jobs; submitting goes on
  relay queues resume mail")]
pub(crate) struct QueuesArgs {
    #[command(subcommand)]
    command: QueuesCommand,
}

#[derive(Debug, Subcommand)]
enum QueuesCommand {
    /// List the queues with what waits in them
    List {
        /// Print one line of JSON per queue
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: OperatorArgs,
    },
    /// Show a queue and what holds for it
    Show(ShowArgs),
    /// Stop giving out its jobs, until it is resumed
    Pause(OneArgs),
    /// Give out its jobs again
    Resume(OneArgs),
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// Count its jobs one by one, now; on SQS a look otherwise says about how many there are
    #[arg(long)]
    exact: bool,
    #[command(flatten)]
    one: OneArgs,
}

#[derive(Debug, Args)]
struct OneArgs {
    /// The queue
    #[arg(value_name = "QUEUE")]
    queue: QueueName,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: OperatorArgs,
}

/// `relay queues`
pub(crate) async fn run(args: QueuesArgs) -> Result<Exit, CliError> {
    match args.command {
        QueuesCommand::List { json, server } => list(json, server).await,
        QueuesCommand::Show(ShowArgs { exact, one: args }) => {
            let operator = args.server.operator()?;
            let queue = match exact {
                true => operate(Patience::reading(), || operator.count_queue(&args.queue)).await?,
                false => operate(Patience::reading(), || operator.queue(&args.queue)).await?,
            };
            if args.json {
                output::json(&queue)?
            } else {
                show(&queue)?
            }
            Ok(Exit::Done)
        }
        QueuesCommand::Pause(args) => set_paused(args, true).await,
        QueuesCommand::Resume(args) => set_paused(args, false).await,
    }
}

async fn list(json: bool, server: OperatorArgs) -> Result<Exit, CliError> {
    let operator = server.operator()?;
    let view = operate(Patience::reading(), || operator.queues()).await?;
    if let Some(trouble) = &view.trouble {
        output::warning(format_args!("the broker can't be used now, so this is how it was before: {trouble}"));
    }
    if json {
        view.queues.iter().try_for_each(output::json)?;
        return Ok(Exit::Done);
    }
    let rows = view.queues.iter().map(|queue| {
        let state = if queue.policy.paused { "paused" } else { "running" };
        let numbers = [queue.waiting, queue.parked, queue.leased].map(|number| number.to_string());
        let rates = [queue.submitted_rate, queue.settled_rate].map(|rate| format!("{rate:.1}"));
        [queue.name.to_string(), state.to_owned()].into_iter().chain(numbers).chain(rates).collect::<Vec<_>>()
    });
    let header = ["queue", "state", "waiting", "parked", "leased", "in/s", "ended/s"];
    output::line(output::table(&header, &[2, 3, 4, 5, 6], rows))?;
    Ok(Exit::Done)
}

fn show(queue: &QueueView) -> Result<(), CliError> {
    let policy = &queue.policy;
    let duration = values::show_duration;
    let (retry, client) = (&policy.retry, &policy.client_defaults);
    for (name, value) in [
        ("queue", queue.name.to_string()),
        ("state", if policy.paused { "paused" } else { "running" }.to_owned()),
        ("waiting", queue.waiting.to_string()),
        ("parked", queue.parked.to_string()),
        ("leased", queue.leased.to_string()),
        ("attempts", policy.max_attempts.to_string()),
        ("retry", format!("{} x {} up to {}", duration(retry.base), retry.factor, duration(retry.cap))),
        ("lease", format!("{}, at most {}", duration(policy.lease), duration(policy.lease_max))),
        ("job ttl", duration(policy.job_ttl)),
        ("retention", duration(policy.retention)),
        ("dead letters", duration(policy.dead_retention)),
        ("payload", values::show_size(policy.payload_max)),
        ("result", values::show_size(policy.result_max)),
        ("keep keyless", policy.keep_keyless.to_string()),
        ("fair", policy.fair.to_string()),
        ("content types", names(policy.content_types.iter().map(ToString::to_string))),
        ("clients", names(policy.allowed_clients.iter().map(ToString::to_string))),
        ("a client's", share(client)),
    ] {
        output::line(format_args!("{name:<13} {value}"))?;
    }
    if let Some(oldest) = queue.oldest_seconds {
        output::line(format_args!("{:<13} {oldest:.0}s", "oldest waits"))?;
    }
    for (name, client) in &policy.clients {
        output::line(format_args!("{:<13} {name}: {}", "client", share(client)))?;
    }
    Ok(())
}

fn names(names: impl Iterator<Item = String>) -> String {
    let names: Vec<_> = names.collect();
    if names.is_empty() { "all".to_owned() } else { names.join(", ") }
}

/// The limits of one client.
fn share(client: &ClientPolicy) -> String {
    let running = if client.max_running == u32::MAX { "no limit".to_owned() } else { client.max_running.to_string() };
    let rate = client.rate.map_or_else(String::new, |rate| format!(", {rate} with {} at once", client.burst));
    format!("weight {}, {} waiting, {running} running{rate}", client.weight, client.max_queued)
}

async fn set_paused(args: OneArgs, paused: bool) -> Result<Exit, CliError> {
    let operator = args.server.operator()?;
    let view = operate(Patience::default(), || operator.set_paused(&args.queue, paused)).await?;
    if args.json {
        output::json(&view)?;
    } else if view.paused {
        output::note(format_args!("Queue {} is paused until `relay queues resume {}`.", view.queue, view.queue));
    } else {
        output::note(format_args!("Queue {} gives out its jobs.", view.queue));
    }
    Ok(Exit::Done)
}
