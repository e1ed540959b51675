//! A server of this binary for one run: a process of its own on free ports of this machine, with its store in a temporary directory,
//! and NATS beside it where that is asked for. Also the worker that answers each job with its payload.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{Job, QueueName};
use relay_bridge::leasing::Leasing;
use relay_remote::{Remote, RemoteConfig};
use relay_workers::handler::function::{HandlerError, function};
use relay_workers::{Context, Output, QueueOrder, Worker, WorkerConfig};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::child::Process;
use crate::cli::exit::CliError;

/// The broker of a server that is started for a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Broker {
    /// The embedded one, in a file.
    Embedded,
    /// NATS: `nats-server` has to be in the path.
    Nats,
}

/// How clients of such a server come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Over {
    /// HTTP.
    Http,
    /// Relay's TCP protocol.
    Tcp,
    /// NATS, with that as the broker.
    Nats,
}

/// The name of the program that is NATS.
const NATS_SERVER: &str = "nats-server";
/// How long NATS may take until it says its port, and how often that is looked for.
const NATS_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the worker may take to hand back what it has.
const DRAIN: Duration = Duration::from_secs(5);

/// The server, with all that it stands on.
pub(super) struct Local {
    server: Process,
    nats: Option<Child>,
    dir: TempDir,
    /// The address to call.
    pub(super) url: String,
    /// Where workers connect.
    pub(super) workers: String,
}

impl Local {
    /// Starts it with the queue `queue`.
    ///
    /// # Errors
    /// A process does not start.
    pub(super) async fn start(broker: Broker, over: Over, queue: &QueueName) -> Result<Self, CliError> {
        if (broker, over) == (Broker::Embedded, Over::Nats) {
            return Err(CliError::usage("--over nats needs NATS").hint("add --local nats"));
        }
        let dir = tempfile::Builder::new()
            .prefix("relay-bench-")
            .tempdir()
            .map_err(|error| CliError::failed(format!("cannot create a temporary directory: {error}")))?;
        let store = dir.path().join("store");
        let mut args = words(&["serve", "--no-auth", "--drain-delay", "0s", "--drain", "5s", "--json"]);
        args.extend(words(&["--listen", "127.0.0.1:0", "--tcp", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0"]));
        args.extend(words(&["--queue", queue.as_str()]));
        let nats = match broker {
            Broker::Embedded => {
                args.extend([OsString::from("--data"), store.into()]);
                None
            }
            Broker::Nats => {
                let (nats, url) = start_nats(dir.path(), &store).await?;
                args.extend(words(&["--provision", "--nats-replicas", "1", "--nats", &url]));
                Some((nats, url))
            }
        };
        let (server, ready) = Process::start("serve", dir.path(), args).await?;
        let listening = |which: &str| ready["listening"][which].as_str().unwrap_or_default().to_owned();
        let (nats, nats_url) = nats.unzip();
        let url = match over {
            Over::Http => format!("http://{}", listening("http")),
            Over::Tcp => format!("relay://{}", listening("tcp")),
            Over::Nats => nats_url.unwrap_or_default(),
        };
        Ok(Self { server, nats, dir, url, workers: listening("workers") })
    }

    /// The process of the server.
    pub(super) fn server_id(&self) -> Option<u32> {
        self.server.id()
    }

    /// The process of the broker, if it is another one.
    pub(super) fn broker_id(&self) -> Option<u32> {
        self.nats.as_ref().and_then(Child::id)
    }

    /// The directory of the broker's files.
    pub(super) fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Ends it and removes its files.
    ///
    /// # Errors
    /// The server does not drain.
    pub(super) async fn stop(self) -> Result<(), CliError> {
        let stopped = self.server.stop().await;
        if let Some(mut nats) = self.nats {
            // Nobody needs its files any more.
            nats.kill().await.ok();
        }
        stopped
    }
}

/// Starts NATS with JetStream on a free port of this machine, and gives its address.
async fn start_nats(dir: &Path, store: &Path) -> Result<(Child, String), CliError> {
    let failed = |why: String| {
        CliError::failed(format!("cannot start {NATS_SERVER}: {why}"))
            .hint("install nats-server 2.12 or newer, or bench the embedded broker with --local embedded")
    };
    let log = dir.join("nats.log");
    let mut command = Command::new(NATS_SERVER);
    command.args(["-a", "127.0.0.1", "-p", "-1", "-js", "-sd"]).arg(store).arg("-l").arg(&log);
    command.arg("--ports_file_dir").arg(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.kill_on_drop(true).spawn().map_err(|error| failed(error.to_string()))?;
    let file = dir.join(format!("{NATS_SERVER}_{}.ports", child.id().unwrap_or_default()));
    let port = async {
        loop {
            // It is written at once, so that it is there as a whole or not.
            let text = tokio::fs::read(&file).await.unwrap_or_default();
            let ports: Value = serde_json::from_slice(&text).unwrap_or_default();
            if let Some(url) = ports["nats"][0].as_str() {
                return Ok(url.to_owned());
            }
            if let Ok(Some(status)) = child.try_wait() {
                let said = tokio::fs::read_to_string(&log).await.unwrap_or_default();
                return Err(failed(format!("it ended with {status}: {}", said.lines().last().unwrap_or_default())));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let url = tokio::time::timeout(NATS_MAX, port).await.map_err(|_| failed("it says no port".to_owned()))??;
    Ok((child, url))
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// A worker in this process whose handler answers with the payload.
pub(super) struct Echo {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Echo {
    /// Takes jobs of `queue` from the worker listener at `address`, `slots` at a time.
    ///
    /// # Errors
    /// The listener is away, or asks for a key.
    pub(super) async fn start(address: &str, queue: &QueueName, slots: u32) -> Result<Self, CliError> {
        let id = "bench".parse().map_err(|error| CliError::failed(format!("a worker's name: {error}")))?;
        let config = WorkerConfig {
            id,
            queues: vec![(queue.clone(), 1)],
            order: QueueOrder::Strict,
            slots: std::num::NonZeroU32::new(slots).unwrap_or(std::num::NonZeroU32::MIN),
            drain: DRAIN,
        };
        let remote = Remote::connect(RemoteConfig::new(address, config.id.clone())).await.map_err(|error| {
            CliError::unavailable(format!("no worker can connect to {address}: {error}"))
                .hint("name the server's --worker-listen; where it asks for a key, run `relay worker` yourself")
        })?;
        let remote = Arc::new(remote);
        let leasing: Arc<dyn Leasing> = Arc::<Remote>::clone(&remote);
        let worker = Worker::new(leasing, Arc::new(function(echo)), Clock::system(), config);
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let stopped = stop.clone();
        tasks.spawn(async move {
            worker.run(stopped).await;
            remote.close().await;
        });
        Ok(Self { stop, tasks })
    }

    /// Hands back what it has, and ends.
    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn echo(job: Job, _context: Context) -> Result<Output, HandlerError> {
    Ok(Output::new(job.content_type, job.payload))
}
