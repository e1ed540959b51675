//! `relay worker`: takes jobs of a server, of NATS, or of SQS, and runs a command, or calls a local service, for each of them.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, QueueName, WorkerId};
use relay_remote::RemoteTls;
use relay_workers::{QueueOrder, Worker, WorkerConfig};
use serde_json::json;
use tokio::time::Instant;

use super::admin::{self, Access};
use super::configured::variable;
use super::exit::{CliError, Exit};
use super::output;
use super::secured;
use super::signals::{Hangup, Signals};
use super::source::{Source, SourceConfig};
use crate::admin::sampler::Watched;
use crate::admin::{Port, collect};
use crate::app::TRACES_MAX;
use crate::config::settings::{Order, Settings};
use crate::ingress::nats::worker_inbox;
use crate::kubernetes::Account;
use crate::private_file::warn_if_open;
use crate::telemetry::Telemetry;

/// Which server, which queues, and what to run.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  relay worker -- sha256sum
  relay worker --queue urgent=5 --queue bulk --slots 8 -- ./resize --width 640
  relay worker --http http://127.0.0.1:3000/jobs --timeout 20s
  relay worker --nats nats://nats:4222 --queue orders -- ./handle          no server in between
  relay worker --connect tls://relay.example:7411 --ca ca.pem --key-file gpu-1.key -- ./handle
  relay worker --config relay.toml                                         [worker] has the rest

A command gets the payload on stdin; what it prints is the result. Exit code 0 is success; 64, 65
and 66 reject the job for good; every other code is a failed attempt, and the job is tried again.
A command that is not there is refused at the start. One that can't be started later, or a service
that refuses connections, costs no attempt: its jobs go back, and the worker warns and tries one
now and then. What a command started does not outlive it, nor a worker that is killed. A server
that is not up yet, or goes away, is waited for. SIGTERM or SIGINT drains: jobs in hand are
finished, or handed back without spending an attempt.")]
pub(crate) struct WorkerArgs {
    /// Read settings from this file; flags and variables take precedence. See `relay config`
    #[arg(long, value_name = "FILE", env = "RELAY_CONFIG", help_heading = "Configuration")]
    config: Option<PathBuf>,
    /// The worker's key; a server without authentication needs none
    #[arg(
        long,
        value_name = "KEY",
        env = "RELAY_WORKER_KEY",
        hide_env_values = true,
        conflicts_with = "worker.key_file"
    )]
    key: Option<String>,
    /// Print one line of JSON on stdout when the worker is connected
    #[arg(long)]
    json: bool,
}

/// `relay worker`
pub(crate) async fn run(args: WorkerArgs, settings: Settings) -> Result<Exit, CliError> {
    let Settings { worker, .. } = &settings;
    // Of a name that a user of NATS can have as well; others have no inbox of their own in `relay nats permissions`.
    let name = worker.id.as_ref().and_then(|id| id.as_str().parse::<ClientId>().ok());
    let inbox = name.map_or_else(|| "_INBOX".to_owned(), |name| worker_inbox(&name));
    let id = match worker.id.clone() {
        Some(id) => id,
        None => format!("worker-{}", std::process::id())
            .parse()
            .map_err(|error: relay_bridge::contract::ids::InvalidId| CliError::failed(error.to_string()))?,
    };
    let pod = worker
        .kubernetes
        .then(|| Account::of_pod(variable))
        .transpose()
        .map_err(|error| CliError::usage(format!("--kubernetes: {error}")).hint("leave it out where no pod is"))?;
    let keeps_node = worker.do_not_disrupt;
    let handler = worker.handler(settings.sqs.enabled)?;
    let addresses = settings.admin_addresses()?;
    let traces = settings.telemetry.start()?;
    let nats = settings.nats.broker(&format!("relay-{id}"), &inbox)?;
    let sqs = settings.sqs.own()?;
    let key = key(args.key, worker.key_file.as_deref(), nats.is_some() || sqs.is_some())?;
    let names: Vec<_> = worker.queues.iter().map(|queue| queue.name.clone()).collect();
    let queues = worker.queues.iter().map(|queue| (queue.name.clone(), queue.weight)).collect();
    let slots = worker.slots.unwrap_or_else(default_slots);
    let config = worker_config(id.clone(), queues, worker.order, slots, worker.drain.0);
    let signals =
        Signals::watch().map_err(|error| CliError::failed(format!("cannot watch for stop signals: {error}")))?;
    let source = match (nats, sqs) {
        (Some(nats), _) => SourceConfig::Nats(Box::new(nats)),
        (None, Some(sqs)) => SourceConfig::Sqs(Box::new(sqs)),
        (None, None) => {
            let identity = worker.certificate.clone().zip(worker.certificate_key.clone());
            let tls = RemoteTls { ca: worker.ca.clone(), identity };
            SourceConfig::Tcp { address: worker.connect.clone(), key, tls }
        }
    };
    let clock = Clock::system();
    // The process that writes a result to the broker reports it: for a worker behind a server, that is the server.
    let traced = traces.clone().filter(|_| !matches!(source, SourceConfig::Tcp { .. }));
    let (is_asked, watched) = (addresses.are_any(), addresses.are_any() || traces.is_some());
    let telemetry = watched.then(|| Telemetry::new(clock.clone(), traced));
    let mut port = match telemetry.clone().filter(|_| is_asked) {
        Some(telemetry) => {
            let tls = secured::of_admin(&settings)?;
            let (listeners, operators) = addresses.bind(tls.as_ref()).await?;
            let mut port = Port::open(listeners, operators.as_ref().map(Access::tokens), telemetry);
            if let Some(files) = admin::files(tls, operators) {
                signals.at_hangup(Hangup::Reload(Arc::clone(&files)));
                port.reads_again(files);
            }
            Some(port)
        }
        None => None,
    };
    let address = source.address();
    let source = tokio::select! {
        connected = Source::connect(source, &id, &names) => connected?,
        () = signals.stop.drain.cancelled() => return Err(CliError::interrupted()),
    };
    let leasing = telemetry.map_or_else(|| source.leasing(), |telemetry| telemetry.leasing(source.leasing()));
    if let Some(port) = &mut port {
        if let Some(newer_jobs) = source.newer_jobs() {
            port.admin().hands_back(newer_jobs);
        }
        port.watch(Watched::Leasing(Arc::clone(&leasing), names.clone()));
        port.admin().serves_until(signals.stop.drain.clone());
    }
    // Only now: a reader of the line asks `/readyz` at once.
    tracing::info!("worker {id} takes jobs from {address}");
    if args.json {
        let admin = port.as_ref().and_then(Port::address);
        let health = port.as_ref().and_then(Port::health_address);
        output::json(&json!({ "worker": { "id": id, "connected": address, "admin": admin, "health": health } }))?;
    }
    let handler = match &traces {
        Some(traces) => traces.handler(handler),
        None => handler,
    };
    let drain = config.drain;
    let worker = Worker::new(leasing, handler, clock, config);
    if let Some(port) = &port {
        let stats = worker.stats();
        port.admin().collect(move |text| collect::worker(text, &stats.report()));
        if let Some(traces) = traces.clone() {
            port.admin().collect(move |text| traces.report(text));
        }
    }
    let telling = pod.map(|pod| pod.keep_telling(worker.stats(), keeps_node));
    // Until the worker has drained: its pod is going then, whatever is told.
    let telling = async {
        match telling {
            Some(telling) => telling.await,
            None => std::future::pending().await,
        }
    };
    let drained = async {
        let (report, until) = tokio::join!(worker.run(signals.stop.drain.clone()), async {
            signals.stop.drain.cancelled().await;
            Instant::now() + drain
        });
        if let Some(traces) = traces {
            traces.finish(TRACES_MAX).await;
        }
        if let Some(port) = port {
            port.close().await;
        }
        source.close(until).await;
        tracing::info!(
            worker = %id, started = report.started, succeeded = report.succeeded, retried = report.retried,
            failed = report.failed, handed_back = report.handed_back, leases_lost = report.leases_lost, "worker ended"
        );
        Exit::Done
    };
    tokio::select! {
        exit = drained => Ok(exit),
        () = telling => Ok(Exit::Done),
        () = signals.stop.force.cancelled() => Ok(Exit::Interrupted),
    }
}

/// The worker's key. One that was typed counts before the file's.
fn key(typed: Option<String>, file: Option<&Path>, on_broker: bool) -> Result<Option<String>, CliError> {
    match (typed, file) {
        (Some(_), _) if on_broker => {
            Err(CliError::usage("--key: a worker's key is for the server that it connects to")
                .hint("leave it out, or --nats and --sqs"))
        }
        // A variable that is filled from a file has the line end of the file.
        (Some(key), _) => Ok(Some(key.trim().to_owned())),
        (None, file) => file.map(read_key).transpose(),
    }
}

fn read_key(file: &Path) -> Result<String, CliError> {
    let wrong = |what: String| CliError::usage(format!("--key-file {}: {what}", file.display()));
    let key = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    warn_if_open(file, "the worker's key");
    match key.trim() {
        "" => Err(wrong("it is empty".to_owned()).hint("`relay keys new NAME --role worker --out FILE` writes one")),
        key => Ok(key.to_owned()),
    }
}

/// A worker's configuration from what was typed.
pub(crate) fn worker_config(
    id: WorkerId,
    queues: Vec<(QueueName, NonZeroU32)>,
    order: Order,
    slots: NonZeroU32,
    drain: Duration,
) -> WorkerConfig {
    let order = match order {
        Order::Strict => QueueOrder::Strict,
        Order::Weighted => QueueOrder::Weighted,
    };
    let queues = queues.into_iter().map(|(name, weight)| (name, weight.get())).collect();
    WorkerConfig { id, queues, order, slots, drain }
}

/// One handler per processor.
pub(crate) fn default_slots() -> NonZeroU32 {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    u32::try_from(processors).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN)
}
