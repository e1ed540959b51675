//! `relay doctor`: examines the way from this machine to a relay, or from relay's own side to its broker, step by step, and says
//! what to do about the step that fails.

mod broker;
mod calls;
mod idle;
mod nats;
mod network;
mod refused;
mod step;
mod tls;
mod zones;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use relay_bridge::contract::QueueName;
use relay_remote::RemoteTls;
use serde_json::json;
use step::Report;
use zones::ZoneId;

use super::exit::{CliError, Exit};
use super::output;
use super::remote::{Known, ServerArgs};
use super::values;
use crate::client::{Client, Patience};
use crate::config::settings::Settings;

/// Steps in their order. `tls` is one where the server's address has it.
const STEPS: [&str; 7] = ["name", "tcp", "tls", "caller", "packets", "round-trip", "payload"];

/// The longest time for which a connection is kept idle.
const IDLE_MAX: Duration = Duration::from_secs(3_600);

/// Which server to examine, and how far.
#[derive(Debug, Args)]
#[command(after_help = "\
Run it where clients run: it finds out whether names, security groups, the endpoint, the balancer,
keys and clocks are as they should be, in this order. Nothing is kept at relay unless a queue is
given.

  name        the server's name leads to private addresses
  tcp         each address takes a connection
  tls         who signed the server's certificate, its names, how long it is good (https and relays)
  caller      relay lets this caller in; the VPC endpoint it sees; how far clocks are apart
  packets     a body of 16 KiB goes there and back, so large packets do (http and https)
  round-trip  20 small bodies there and back; over TCP 20 questions who calls
  payload     the largest payload of each queue
  job         with --queue: a job is submitted, done by a worker, and its result comes back
  nats        with --nats: relay answers this client over NATS too
  idle        with --idle: a connection on which nothing was said for so long works, or who ended it

With --broker, from where relay itself runs, with its own settings; nothing is changed:

  broker       NATS, or SQS and DynamoDB, answer
  provisioned  all that relay needs is there, or the queue of --queue
  round-trip   20 questions to it
  durability   an accepted job survives more than the process

With --refused it passes if nobody is answered on this way, and fails if somebody is.

Exit code 0: every step passed. 69: the server can't be reached. 1: it is reached, and something
else is wrong.

Examples:
  relay doctor --server https://relay.example --api-key \"$KEY\"
  relay doctor --context prod --queue mail --json
  relay doctor --context prod --idle 350s --zone-id euw1-az2
  relay doctor --broker --config relay.toml
  relay doctor --broker --sqs --queue mail")]
pub(crate) struct DoctorArgs {
    /// Have a job done in this queue as well; with --broker, see that this queue is there
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Examine the broker instead, with the settings that relay itself has
    #[arg(long, conflicts_with_all = ["context", "server", "api_key", "client"])]
    broker: bool,
    /// Pass if nobody is answered there, as past a load balancer whose header relay requires
    #[arg(long, conflicts_with_all = ["queue", "broker"])]
    refused: bool,
    /// Keep a connection without a word for this long, 1 h at most, and then use it: 350s is what a network load balancer allows
    #[arg(long, value_name = "DURATION", value_parser = idle, conflicts_with_all = ["broker", "refused"])]
    idle: Option<Duration>,
    /// The id of the availability zone that this host is in, such as euw1-az2: it is compared with the server's name
    #[arg(long, value_name = "ID", value_parser = ZoneId::parse, conflicts_with_all = ["broker", "refused"])]
    zone_id: Option<ZoneId>,
    /// Read settings from this file; flags and variables take precedence. See `relay config`
    #[arg(long, value_name = "FILE", env = "RELAY_CONFIG", help_heading = "Configuration")]
    config: Option<PathBuf>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Reads how long a connection is to be idle.
///
/// # Errors
/// A sentence: no duration, or more than an hour.
fn idle(text: &str) -> Result<Duration, String> {
    let idle = values::duration(text)?;
    if idle > IDLE_MAX { Err(format!("`{text}` is more than an hour")) } else { Ok(idle) }
}

/// `relay doctor`
pub(crate) async fn run(args: DoctorArgs, settings: Settings) -> Result<Exit, CliError> {
    let mut report = Report::new(args.json);
    let (what, reached, steps) = if args.broker {
        let config = broker::configured(&settings)?;
        told(args.json, "The broker, from here")?;
        let reached = broker::examine(&mut report, config, args.queue.as_ref()).await?;
        ("broker".to_owned(), reached, broker::STEPS.to_vec())
    } else if args.refused {
        let server = args.server.client()?.server().clone();
        told(args.json, &format!("The way from here to {server}, on which nobody is to be answered"))?;
        (server.to_string(), refused::examine(&mut report, &server).await?, refused::STEPS.to_vec())
    } else {
        // Each step is tried once: it is to fail where something is wrong.
        let known = args.server.resolve()?;
        let client = known.client(Patience::NONE)?;
        let server = client.server().clone();
        told(args.json, &format!("The way from here to {server}"))?;
        let is_left_out = |step: &&str| *step == "tls" && tls::protocols(&server).is_none();
        let asked =
            [("job", args.queue.is_some()), ("nats", !settings.nats.servers.is_empty()), ("idle", args.idle.is_some())];
        let asked = asked.into_iter().filter_map(|(step, is_asked)| is_asked.then_some(step));
        let steps = STEPS.into_iter().filter(|step| !is_left_out(step)).chain(asked).collect();
        let wanted = Wanted { queue: args.queue.as_ref(), idle: args.idle, zone: args.zone_id.as_ref() };
        let reached = examine(&mut report, &client, &known, wanted, &settings).await?;
        (server.to_string(), reached, steps)
    };
    let left: Vec<_> = steps.into_iter().filter(|name| !report.steps.iter().any(|step| step.step == *name)).collect();
    report.unreached(&left)?;
    if args.json {
        output::json(&json!({ "server": what, "healthy": report.is_healthy(), "steps": report.steps }))?;
    }
    Ok(match (report.is_healthy(), reached) {
        (true, _) => Exit::Done,
        (false, false) => Exit::Unavailable,
        (false, true) => Exit::Failed,
    })
}

fn told(json: bool, what: &str) -> Result<(), CliError> {
    if json { Ok(()) } else { output::line(what) }
}

/// The steps that are taken on request, and what this host is said to be.
struct Wanted<'a> {
    queue: Option<&'a QueueName>,
    idle: Option<Duration>,
    zone: Option<&'a ZoneId>,
}

/// Takes the steps until one fails without which the next ones can't be taken. Whether the server was reached.
async fn examine(
    report: &mut Report,
    client: &Client,
    known: &Known,
    wanted: Wanted<'_>,
    settings: &Settings,
) -> Result<bool, CliError> {
    let Wanted { queue, idle, zone } = wanted;
    let server = client.server().clone();
    let (host, port) = (server.host_str().unwrap_or_default(), server.port_or_known_default().unwrap_or(443));
    let Some(addresses) = report.end("name", network::resolve(host, port, zone).await)? else { return Ok(false) };
    let Some(connection) = report.end("tcp", network::connect(&addresses).await)? else { return Ok(false) };
    let files = RemoteTls { ca: known.tls.ca.clone(), identity: known.tls.identity.clone() };
    match tls::protocols(&server) {
        Some(protocols) => {
            let ended = tls::examine(&server, connection, &files, protocols).await;
            if report.end("tls", ended)?.is_none() {
                return Ok(true);
            }
        }
        // It says nothing, and nothing is to wait for it.
        None => drop(connection),
    }
    let Some(who) = report.end("caller", calls::caller(client).await)? else { return Ok(true) };
    report.end("packets", calls::packets(client).await)?;
    report.end("round-trip", calls::round_trip(client).await)?;
    let is_there = report.end("payload", calls::payload(&who, queue))?.is_some();
    if let Some(queue) = queue.filter(|_| is_there) {
        report.end("job", calls::job(client, queue).await)?;
    }
    if let Some(config) = settings.nats.broker("relay-doctor", &format!("_INBOX_{}", who.client))? {
        report.end("nats", nats::asked(config, who.client.as_str()).await)?;
    }
    if let Some(idle) = idle {
        report.end("idle", idle::examine(&server, &addresses, &files, &known.headers(), idle).await)?;
    }
    Ok(true)
}
