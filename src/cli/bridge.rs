//! `relay bridge`: has jobs of one broker done at another, and brings the results back.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, QueueName, WorkerId};
use relay_bridge::nats::config::{Credentials, NatsConfig, Secret};
use relay_workers::{QueueOrder, Worker, WorkerConfig};
use serde_json::json;

use super::exit::{CliError, Exit};
use super::nats::NatsArgs;
use super::output;
use super::signals::Signals;
use super::source::{Source, SourceConfig, provisioned};
use crate::bridge::relay::{Mapping, RelayHandler};
use crate::ingress::nats::{RELAY_INBOX, worker_inbox};

/// From where, to where, and which jobs.
#[derive(Debug, Args)]
#[command(after_help = "\
The bridge is a worker where the jobs come from, and a client where they go: each job is submitted
there under the id of its run as key, so that any number of replicas make one job of it, and its run
ends as it ended there. It needs a worker's rights at the one side and a server's at the other.

Examples:
  relay bridge --from-tcp 127.0.0.1:7411 --queue orders --nats nats://inner:4222
  relay bridge --from-nats nats://outer:4222 --from-nats-creds bridge.creds --queue orders=orders-eu \\
      --nats tls://inner:4222 --nats-creds relay.creds --slots 200

Either side may be away, at the start and later; it is waited for. SIGTERM or SIGINT drains: what is
in hand goes back in line without spending an attempt, and the target goes on with it.")]
pub(crate) struct BridgeArgs {
    /// Take jobs from this server: what its `relay serve --worker-listen` was given
    #[arg(long, value_name = "ADDR", conflicts_with = "from_nats", required_unless_present = "from_nats")]
    from_tcp: Option<String>,
    /// The bridge's key as a worker of that server; one without authentication needs none
    #[arg(long, value_name = "KEY", env = "RELAY_WORKER_KEY", hide_env_values = true)]
    from_key: Option<String>,
    /// Take jobs that are kept on these NATS servers, of one cluster: nats://HOST[:PORT] or tls://HOST[:PORT]
    #[arg(long, value_name = "URL[,URL]", value_delimiter = ',')]
    from_nats: Vec<String>,
    /// Credentials file of the bridge's user there, as `nsc` writes it
    #[arg(long, value_name = "FILE", requires = "from_nats")]
    from_nats_creds: Option<PathBuf>,
    /// File with the seed of the bridge's NKey there
    #[arg(long, value_name = "FILE", requires = "from_nats", conflicts_with = "from_nats_creds")]
    from_nats_nkey: Option<PathBuf>,
    /// PEM file of the authorities that may have signed those servers' certificate [default: the system's]
    #[arg(long, value_name = "FILE", requires = "from_nats")]
    from_nats_ca: Option<PathBuf>,
    /// A queue whose jobs are to be done at the target, and the queue there if it has another name; repeat it for more
    #[arg(long = "queue", value_name = "NAME[=TARGET]", default_value = "default")]
    queues: Vec<BridgedQueue>,
    /// Whose jobs they are at the target [default: the same client's as at the source]
    #[arg(long, value_name = "NAME")]
    client: Option<ClientId>,
    /// Jobs in hand at once: submitted, and waited for
    #[arg(long, value_name = "N", default_value = "64")]
    slots: NonZeroU32,
    /// What this replica is called in logs [default: bridge- and the process id]
    #[arg(long, value_name = "NAME")]
    id: Option<WorkerId>,
    /// Print one line of JSON on stdout when both sides are connected
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: NatsArgs,
}

/// A queue at the source, and the one at the target.
#[derive(Clone, Debug)]
struct BridgedQueue {
    from: QueueName,
    to: QueueName,
}

impl FromStr for BridgedQueue {
    type Err = relay_bridge::contract::ids::InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (from, to) = text.split_once('=').unwrap_or((text, text));
        Ok(Self { from: from.parse()?, to: to.parse()? })
    }
}

/// `relay bridge`
pub(crate) async fn run(args: BridgeArgs) -> Result<Exit, CliError> {
    let json = args.json;
    let plan = args.resolve()?;
    let signals =
        Signals::watch().map_err(|error| CliError::failed(format!("cannot watch for stop signals: {error}")))?;
    let id = plan.id.clone();
    let (from, to) = (plan.from.address(), plan.to.servers.join(","));
    let open = tokio::select! {
        opened = plan.open() => opened?,
        () = signals.stop.drain.cancelled() => return Err(CliError::interrupted()),
    };
    tracing::info!("bridge {id} takes jobs from {from} to {to}");
    if json {
        output::json(&json!({ "bridge": { "id": id, "from": from, "to": to } }))?;
    }
    tokio::select! {
        () = open.run(&signals) => Ok(Exit::Done),
        () = signals.stop.force.cancelled() => Ok(Exit::Interrupted),
    }
}

/// What was typed, as values.
struct Plan {
    id: WorkerId,
    from: SourceConfig,
    to: NatsConfig,
    queues: BTreeMap<QueueName, QueueName>,
    client: Option<ClientId>,
    slots: NonZeroU32,
}

impl BridgeArgs {
    fn resolve(self) -> Result<Plan, CliError> {
        let id = match self.id {
            Some(id) => id,
            None => format!("bridge-{}", std::process::id())
                .parse()
                .map_err(|error: relay_bridge::contract::ids::InvalidId| CliError::failed(error.to_string()))?,
        };
        let to = self.nats.resolve(&format!("relay-{id}"), RELAY_INBOX)?.ok_or_else(|| {
            CliError::usage("where to is not said").hint("name the NATS servers of the other side with --nats")
        })?;
        let from = match self.from_tcp {
            Some(address) => SourceConfig::Tcp { address, key: self.from_key },
            None => {
                // Of a name that a user of NATS can have as well; others have no inbox of their own.
                let user = id.as_str().parse::<ClientId>().ok();
                let creds = self.from_nats_creds.map(|file| Credentials::Creds(Secret::File(file)));
                let nkey = self.from_nats_nkey.map(|file| Credentials::NKey(Secret::File(file)));
                let mut config = NatsConfig {
                    credentials: creds.or(nkey).unwrap_or_default(),
                    inbox_prefix: user.map(|user| worker_inbox(&user)),
                    name: format!("relay-{id}"),
                    ..NatsConfig::new(self.from_nats)
                };
                config.tls.ca = self.from_nats_ca;
                config.check().map_err(|invalid| {
                    let problems = invalid.problems().iter().map(|problem| format!("--from-nats: {problem}"));
                    CliError::usage(problems.collect::<Vec<_>>().join("; "))
                })?;
                SourceConfig::Nats(Box::new(config))
            }
        };
        let queues: BTreeMap<_, _> = self.queues.into_iter().map(|queue| (queue.from, queue.to)).collect();
        if let SourceConfig::Nats(from) = &from
            && from.servers.iter().any(|server| to.servers.contains(server))
            && let Some((queue, _)) = queues.iter().find(|(from, to)| from == to)
        {
            return Err(CliError::usage(format!("--queue {queue}: it is the same queue at both sides"))
                .hint("name another one of the target with --queue NAME=TARGET, or other servers with --nats"));
        }
        Ok(Plan { id, from, to, queues, client: self.client, slots: self.slots })
    }
}

impl Plan {
    /// Connects to both sides, waiting for them, and finds that the queues are there.
    async fn open(self) -> Result<Open, CliError> {
        let Self { id, from, to, queues, client, slots } = self;
        let (sources, targets): (Vec<_>, Vec<_>) = queues.clone().into_iter().unzip();
        let target = provisioned(to, &targets).await?;
        let source = match Source::connect(from, &id, &sources).await {
            Ok(source) => source,
            Err(error) => {
                target.close().await;
                return Err(error);
            }
        };
        let handler = Arc::new(RelayHandler::new(target.broker(), Clock::system(), Mapping { client, queues }));
        let config = WorkerConfig {
            id,
            queues: sources.into_iter().map(|queue| (queue, 1)).collect(),
            order: QueueOrder::Weighted,
            slots,
            // Whoever gets a job next goes on with it: nothing is gained by waiting.
            drain: Duration::ZERO,
        };
        let worker = Worker::new(source.leasing(), Arc::clone(&handler) as _, Clock::system(), config);
        Ok(Open { source, target, worker, handler })
    }
}

/// A bridge with both sides open.
struct Open {
    source: Source,
    target: relay_bridge::nats::Nats,
    worker: Worker,
    handler: Arc<RelayHandler>,
}

impl Open {
    /// Works until the first signal, then hands back and closes.
    async fn run(self, signals: &Signals) {
        let stats = self.handler.stats();
        drop(self.handler);
        let report = self.worker.run(signals.stop.drain.clone()).await;
        self.source.close().await;
        self.target.close().await;
        let calls = stats.report();
        tracing::info!(
            started = report.started,
            succeeded = report.succeeded,
            failed = report.failed,
            exhausted = report.exhausted,
            expired = report.expired,
            cancelled = report.cancelled,
            handed_back = report.handed_back,
            leases_lost = report.leases_lost,
            created = calls.created,
            found = calls.found,
            refused = calls.refused,
            "bridge ended"
        );
    }
}
