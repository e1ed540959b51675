//! The flags of `relay bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, value_parser};
use relay_bridge::contract::{ClientId, QueueName};

use super::knee::{Limit, RATE_MAX};
use super::local::{Broker, Over};
use super::workload::{Operation, Sizes};
use crate::cli::exit::CliError;
use crate::cli::tls::TlsArgs;
use crate::config::values;

/// The longest run.
const DURATION_MAX: Duration = Duration::from_secs(3_600);
/// The shortest run, and the shortest timeout.
const DURATION_LEAST: Duration = Duration::from_millis(100);
/// The longest run of each step of a search.
const STEP_MAX: Duration = Duration::from_secs(60);
/// Unanswered calls at most, on all connections together.
pub(super) const SLOTS_MAX: usize = 16_384;

/// Which server to load, and how.
#[derive(Debug, Args)]
#[command(after_help = "\
A closed loop makes the next call when the answer is there: it finds how much a server does. With
--rate calls are made at their time, whatever the server does, and latency counts from the time
when a call was due: it finds how long callers wait. --find-max looks for the highest rate that
keeps a promise.

  submit   a job, until its receipt
  wait     a job, until its result is the answer; a worker has to take the queue's jobs, or --worker
  batch    --batch jobs in one request, until their receipts (HTTP and TCP)
  follow   a job, until its result is pushed to a follower; over NATS with NATS as the broker alone

Jobs have keys and stay in the queue, and their results in the client's log, until they expire:
bench a queue of its own. Errors are counted by their slug and do not end the run; a server that
is away does.

Examples:
  relay bench --local embedded                                  a server of its own for the run
  relay bench --local nats --over tcp --operation wait
  relay bench --server http://127.0.0.1:7410 --rate 500 --duration 30s
  relay bench --server relay://127.0.0.1:7413 --connections 4 --in-flight 64 --size 64..4KiB
  relay bench --nats nats://127.0.0.1:4222 --client me --find-max 'p99<50ms'
  relay bench --server https://relay.example --i-own-this --json | jq .measured.latency_ms")]
pub(crate) struct BenchArgs {
    /// The calls to make
    #[arg(long, value_enum, value_name = "WHAT", default_value = "submit")]
    pub(super) operation: Operation,
    /// The queue
    #[arg(long, value_name = "NAME", default_value = "bench")]
    pub(super) queue: QueueName,
    /// Calls a second; without it each call waits for the answer before it
    #[arg(long, value_name = "N", value_parser = rate)]
    pub(super) rate: Option<f64>,
    /// Look for the highest rate at which a quantile of the latencies stays below this, such as p99<50ms, with an error in a
    /// thousand at most. Begins at --rate [default: 100]
    #[arg(long, value_name = "LIMIT")]
    pub(super) find_max: Option<Limit>,
    /// Connections
    #[arg(long, value_name = "N", default_value = "8", value_parser = value_parser!(u16).range(1..=1024))]
    pub(super) connections: u16,
    /// Unanswered calls on each connection. More than 1 over HTTP is HTTP/2 [default: 1 over HTTP and for batches, else 16]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=4096))]
    pub(super) in_flight: Option<u16>,
    /// Bytes of each payload, such as 256, 4KiB or 64..4KiB
    #[arg(long, value_name = "SIZE", default_value = "256")]
    pub(super) size: Sizes,
    /// Jobs of a batch
    #[arg(long, value_name = "N", default_value = "100", value_parser = value_parser!(u16).range(1..=1000))]
    pub(super) batch: u16,
    /// How long calls are made and counted; at most 1h, and 60s for each step of --find-max
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = values::duration)]
    pub(super) duration: Duration,
    /// How long calls are made before that and not counted
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = values::duration)]
    pub(super) warm_up: Duration,
    /// How long an answer may take. A call with `wait` asks for its result within half of it
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = values::duration)]
    pub(super) timeout: Duration,
    /// Print one line of JSON with everything, also the histogram
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) server: ServerOf,
    #[command(flatten)]
    pub(super) here: Here,
}

/// The server that is there.
#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
pub(super) struct ServerOf {
    /// Its address: http(s)://HOST:PORT, relay(s)://HOST:PORT or nats://HOST:PORT [default: that of --nats, else the current
    /// context's, else http://127.0.0.1:7410]
    #[arg(long, value_name = "URL", env = "RELAY_SERVER")]
    pub(super) server: Option<String>,
    /// The server and its key, as `relay context add` stored them
    #[arg(long, value_name = "NAME", env = "RELAY_CONTEXT", conflicts_with = "server")]
    pub(super) context: Option<String>,
    /// The API key; a server without authentication needs none
    #[arg(long, value_name = "KEY", env = "RELAY_API_KEY", hide_env_values = true)]
    pub(super) api_key: Option<String>,
    /// The client's name, for a server without authentication and for NATS [default: dev]
    #[arg(long, value_name = "NAME", env = "RELAY_CLIENT", conflicts_with = "api_key")]
    pub(super) client: Option<ClientId>,
    /// Load a server that is not this machine: it is yours, and so is all that it shares with others
    #[arg(long)]
    pub(super) i_own_this: bool,
    #[command(flatten)]
    pub(super) tls: TlsArgs,
}

/// Processes of this machine.
#[derive(Debug, Args)]
#[command(next_help_heading = "On this machine")]
pub(super) struct Here {
    /// Start a server with this broker and a worker for the run, in a temporary directory
    #[arg(long, value_enum, value_name = "BROKER", conflicts_with_all = ["server", "context", "api_key", "client", "worker", "pid", "broker_pid", "store"])]
    pub(super) local: Option<Broker>,
    /// How to call such a server
    #[arg(long, value_enum, value_name = "PROTOCOL", default_value = "http", requires = "local")]
    pub(super) over: Over,
    /// Be a worker as well, which answers each job with its payload: at this worker listener
    #[arg(long, value_name = "ADDR")]
    pub(super) worker: Option<String>,
    /// Jobs that this worker has at once
    #[arg(long, value_name = "N", default_value = "64", value_parser = value_parser!(u32).range(1..=1024))]
    pub(super) slots: u32,
    /// The server's process, whose CPU time and memory are shown [default: the one that listens at the address; Linux only]
    #[arg(long, value_name = "PID")]
    pub(super) pid: Option<u32>,
    /// The broker's process, such as that of nats-server [default: over NATS the one that listens at the address]
    #[arg(long, value_name = "PID")]
    pub(super) broker_pid: Option<u32>,
    /// The directory of the broker's files, whose growth is shown
    #[arg(long, value_name = "DIR")]
    pub(super) store: Option<PathBuf>,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| (0.01..=RATE_MAX).contains(rate));
    rate.ok_or_else(|| format!("`{text}` is not a rate from 0.01 to {RATE_MAX:.0} calls a second"))
}

impl BenchArgs {
    /// Finds that its durations and its width are within bounds.
    ///
    /// # Errors
    /// A usage error about the first that is not.
    pub(super) fn judge(&self) -> Result<(), CliError> {
        let most = if self.find_max.is_some() { STEP_MAX } else { DURATION_MAX };
        for (flag, value, least, most) in [
            ("--duration", self.duration, DURATION_LEAST, most),
            ("--warm-up", self.warm_up, Duration::ZERO, STEP_MAX),
            ("--timeout", self.timeout, DURATION_LEAST, STEP_MAX),
        ] {
            if !(least..=most).contains(&value) {
                let (least, most) = (values::show_duration(least), values::show_duration(most));
                return Err(CliError::usage(format!("{flag}: from {least} to {most}")));
            }
        }
        let slots = usize::from(self.connections) * usize::from(self.in_flight.unwrap_or(1));
        if slots > SLOTS_MAX {
            return Err(CliError::usage(format!(
                "--connections times --in-flight is {slots}, and at most {SLOTS_MAX} calls may be unanswered"
            )));
        }
        let entries = slots * if self.operation == Operation::Batch { usize::from(self.batch) } else { 1 };
        let bytes = entries.saturating_mul(self.size.most);
        if bytes > BYTES_MAX {
            return Err(CliError::usage(format!(
                "{entries} payloads in flight of up to {} bytes are more than 1GiB: lower --size, --connections, --in-flight or --batch",
                self.size.most
            )));
        }
        Ok(())
    }
}

/// Bytes of payloads in flight at most.
const BYTES_MAX: usize = 1024 * 1024 * 1024;
