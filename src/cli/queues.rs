//! `relay queues`: how much waits, who may have what, and stopping and resuming the taking of jobs. At the admin port.

use clap::{Args, Subcommand};
use relay_bridge::contract::QueueName;

use super::exit::{CliError, Exit};
use super::output;
use super::remote::{OperatorArgs, operate};
use crate::api::operator::QueueView;
use crate::client::retry::Patience;
use crate::config::policy::POLICY;

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
    let mut rows = vec![
        ("queue", queue.name.to_string()),
        ("state", if policy.paused { "paused" } else { "running" }.to_owned()),
        ("waiting", queue.waiting.to_string()),
        ("parked", queue.parked.to_string()),
        ("leased", queue.leased.to_string()),
    ];
    rows.extend(queue.oldest_seconds.map(|oldest| ("oldest waits", format!("{oldest:.0}s"))));
    // By their keys in a file.
    rows.extend(POLICY.iter().map(|setting| (setting.key, setting.show(&setting.get(policy)))));
    for (name, client) in &policy.clients {
        let shares = POLICY.iter().filter_map(|setting| {
            let value = setting.get_for_client(client)?;
            Some(format!("{} {}", setting.key, setting.show(&value)))
        });
        rows.push(("client", format!("{name}: {}", shares.collect::<Vec<_>>().join(", "))));
    }
    for (name, value) in rows {
        output::line(format_args!("{name:<15} {value}"))?;
    }
    Ok(())
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
