//! `relay doctor`: examines the way from this machine to a relay, step by step, and says what to do about the step that fails.

mod calls;
mod network;
mod step;

use clap::Args;
use relay_bridge::contract::QueueName;
use serde_json::json;
use step::Report;

use super::exit::{CliError, Exit};
use super::output;
use super::remote::ServerArgs;

/// Steps in their order.
const STEPS: [&str; 6] = ["name", "tcp", "caller", "packets", "round-trip", "payload"];

/// Which server to examine, and how far.
#[derive(Debug, Args)]
#[command(after_help = "\
Run it where clients run: it finds out whether names, security groups, the endpoint, the balancer, keys
and clocks are as they should be, in this order. Nothing is kept at relay unless a queue is given.

  name        the server's name leads to private addresses
  tcp         each address takes a connection
  caller      relay lets this caller in; the VPC endpoint it sees; how far clocks are apart
  packets     a body of 16 KiB goes there and back, so large packets do
  round-trip  20 small bodies there and back
  payload     the largest payload of each queue
  job         with --queue: a job is submitted, done by a worker, and its result comes back

Exit code 0: every step passed. 69: the server can't be reached. 1: it is reached, and something else is wrong.

Examples:
  relay doctor --server https://relay.example --api-key \"$KEY\"
  relay doctor --context prod --queue mail --json")]
pub(crate) struct DoctorArgs {
    /// Have a job done in this queue as well
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// `relay doctor`
pub(crate) async fn run(args: DoctorArgs) -> Result<Exit, CliError> {
    let client = args.server.client()?;
    let mut report = Report::new(args.json);
    let server = client.server().clone();
    let (host, port) = (server.host_str().unwrap_or_default(), server.port_or_known_default().unwrap_or(443));
    if !args.json {
        output::line(format_args!("The way from here to {server}"))?;
    }
    let reached = examine(&mut report, (host, port), &client, args.queue.as_ref()).await?;
    let mut left: Vec<_> =
        STEPS.into_iter().filter(|name| !report.steps.iter().any(|step| step.step == *name)).collect();
    if args.queue.is_some() && !report.steps.iter().any(|step| step.step == "job") {
        left.push("job");
    }
    report.unreached(&left)?;
    if args.json {
        output::json(&json!({ "server": server.as_str(), "healthy": report.is_healthy(), "steps": report.steps }))?;
    }
    Ok(match (report.is_healthy(), reached) {
        (true, _) => Exit::Done,
        (false, false) => Exit::Unavailable,
        (false, true) => Exit::Failed,
    })
}

/// Takes the steps until one fails without which the next ones can't be taken. Whether the server was reached.
async fn examine(
    report: &mut Report,
    (host, port): (&str, u16),
    client: &crate::client::Client,
    queue: Option<&QueueName>,
) -> Result<bool, CliError> {
    let Some(addresses) = report.end("name", network::resolve(host, port).await)? else { return Ok(false) };
    let Some(connection) = report.end("tcp", network::connect(&addresses).await)? else { return Ok(false) };
    // It says nothing, and nothing is to wait for it.
    drop(connection);
    let Some(who) = report.end("caller", calls::caller(client).await)? else { return Ok(true) };
    report.end("packets", calls::packets(client).await)?;
    report.end("round-trip", calls::round_trip(client).await)?;
    let is_there = report.end("payload", calls::payload(&who, queue))?.is_some();
    if let Some(queue) = queue.filter(|_| is_there) {
        report.end("job", calls::job(client, queue).await)?;
    }
    Ok(true)
}
