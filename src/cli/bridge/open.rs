//! A bridge at work: both sides connected, run until the first signal, closed.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use relay_bridge::backoff::random;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, QueueName, WorkerId};
use relay_bridge::error::BrokerError;
use relay_bridge::error::BrokerErrorKind;
use relay_nats::Nats;
use relay_nats::config::NatsConfig;
use relay_nats::connection::{Connection, Wait};
use relay_remote::RemoteTls;
use relay_sqs::{Sqs, plain::PlainQueue};
use relay_workers::{QueueOrder, Worker, WorkerConfig};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bridge::config::ForeignSqs;
use crate::bridge::config::{BridgeConfig, Destination, ForeignStream, Origin, RelaySource};
use crate::bridge::foreign::intake::Intake;
use crate::bridge::foreign::mapping::JobMapping;
use crate::bridge::foreign::nats::NatsQueue;
use crate::bridge::foreign::replies::Replies;
use crate::bridge::metrics::Counters;
use crate::bridge::relay::{Mapping, RelayHandler};
use crate::broker::sweep;
use crate::cli::exit::CliError;
use crate::cli::provision::from_broker;
use crate::cli::source::provisioned_on_sqs;
use crate::cli::source::{Source, SourceConfig, provisioned};
use crate::ingress::nats::{RELAY_INBOX, worker_inbox};

/// The longest wait between two looks at a side that is away.
const AGAIN_MAX: Duration = Duration::from_secs(4);
/// How long the last receive from relay on SQS may take once a bridge is asked to stop.
const LAST_RECEIVE: Duration = Duration::from_secs(20);

/// A bridge with both sides open.
pub(super) struct Open {
    target: Target,
    work: Work,
}

/// The broker that jobs go to.
enum Target {
    Nats(Nats),
    Sqs(Sqs),
}

impl Target {
    /// Connects, waiting for it, and finds that `queues` are there.
    async fn open(to: Destination, queues: &[QueueName]) -> Result<Self, CliError> {
        match to {
            Destination::Nats(to) => {
                let inbox_prefix = to.inbox_prefix.clone().or_else(|| Some(RELAY_INBOX.to_owned()));
                Ok(Self::Nats(provisioned(NatsConfig { inbox_prefix, ..*to }, queues).await?))
            }
            Destination::Sqs(to) => Ok(Self::Sqs(provisioned_on_sqs(*to, queues).await?)),
        }
    }

    fn broker(&self) -> Broker {
        match self {
            Self::Nats(nats) => nats.broker(),
            Self::Sqs(sqs) => sqs.broker(),
        }
    }

    async fn close(&self) {
        match self {
            Self::Nats(nats) => nats.close().await,
            Self::Sqs(sqs) => sqs.close().await,
        }
    }
}

enum Work {
    Relay {
        source: Source,
        worker: Worker,
        handler: Arc<RelayHandler>,
    },
    Stream {
        connection: Connection,
        queue: Arc<NatsQueue>,
        intake: Arc<Intake>,
        slots: NonZeroU32,
        replies: Option<Replies>,
    },
    Sqs {
        queue: Arc<PlainQueue>,
        intake: Arc<Intake>,
        slots: NonZeroU32,
    },
}

impl Open {
    /// Connects to both sides, waiting for them, and finds that what the bridge needs is there.
    ///
    /// # Errors
    /// A problem that waiting does not mend, with what to do.
    pub(super) async fn open(config: BridgeConfig, to: Destination) -> Result<Self, CliError> {
        let BridgeConfig { name, slots, from, to: _ } = config;
        let queues = match &from {
            Origin::Relay { queues, .. } => queues.values().cloned().collect(),
            Origin::Stream(stream) => fixed(&stream.job),
            Origin::Sqs(queue) => fixed(&queue.job),
        };
        let target = Target::open(to, &queues).await?;
        let work = match from {
            Origin::Relay { source, queues, client } => open_relay(&name, slots, source, queues, client, &target).await,
            Origin::Stream(stream) => open_stream(slots, *stream, &target).await,
            Origin::Sqs(queue) => open_sqs(slots, *queue, &target).await,
        };
        match work {
            Ok(work) => Ok(Self { target, work }),
            Err(error) => {
                target.close().await;
                Err(error)
            }
        }
    }

    /// The bridge's counters.
    pub(super) fn counters(&self) -> Counters {
        match &self.work {
            Work::Relay { worker, handler, .. } => Counters::Relay { worker: worker.stats(), calls: handler.stats() },
            Work::Stream { intake, .. } => Counters::Stream(intake.stats()),
            Work::Sqs { intake, .. } => Counters::Stream(intake.stats()),
        }
    }

    /// Works until `drain`, then settles or hands back what is in hand, and closes. There may be no server at the target, so
    /// meanwhile it does there what time demands.
    pub(super) async fn run(self, name: ClientId, drain: CancellationToken) {
        let (broker, ended) = (self.target.broker(), CancellationToken::new());
        let working = async {
            self.work.run(name, drain).await;
            ended.cancel();
        };
        tokio::join!(working, sweep(&broker, &ended));
        self.target.close().await;
    }
}

impl Work {
    async fn run(self, name: ClientId, drain: CancellationToken) {
        match self {
            Self::Relay { source, worker, handler } => {
                let stats = handler.stats();
                drop(handler);
                let worked = worker.run(drain).await;
                source.close(Instant::now() + LAST_RECEIVE).await;
                tracing::info!(bridge = %name, worker = ?worked, calls = ?stats.report(), "bridge ended");
            }
            Self::Stream { connection, queue, intake, slots, replies } => {
                let stats = intake.stats();
                let replying = async {
                    if let Some(replies) = replies {
                        replies.run(drain.clone()).await;
                    }
                };
                tokio::join!(intake.run(queue, slots, drain.clone()), replying);
                connection.close().await;
                tracing::info!(bridge = %name, messages = ?stats.report(), "bridge ended");
            }
            Self::Sqs { queue, intake, slots } => {
                let stats = intake.stats();
                intake.run(Arc::clone(&queue), slots, drain).await;
                queue.close().await;
                tracing::info!(bridge = %name, messages = ?stats.report(), "bridge ended");
            }
        }
    }
}

/// The queue of the target, if it is the same for all messages.
fn fixed(job: &JobMapping) -> Vec<QueueName> {
    job.queue.fixed().and_then(|name| name.parse().ok()).into_iter().collect()
}

async fn open_sqs(slots: NonZeroU32, queue: ForeignSqs, target: &Target) -> Result<Work, CliError> {
    let ForeignSqs { connection, url, put_aside, reply, job } = queue;
    let opened = patiently(|| PlainQueue::open(&connection, &url, &put_aside, reply.as_deref())).await;
    let queue = opened.map_err(|error| match error.kind() {
        BrokerErrorKind::NotFound => CliError::usage(format!("from.sqs: {error}")).hint("are all of its queues there?"),
        _ => CliError::usage(format!("from.sqs: {error}")),
    })?;
    let intake = Arc::new(Intake::new(target.broker(), Clock::system(), job));
    Ok(Work::Sqs { queue: Arc::new(queue), intake, slots })
}

async fn open_relay(
    name: &ClientId,
    slots: NonZeroU32,
    source: RelaySource,
    queues: BTreeMap<QueueName, QueueName>,
    client: Option<ClientId>,
    target: &Target,
) -> Result<Work, CliError> {
    let id: WorkerId = format!("{name}-{}", std::process::id())
        .parse()
        .map_err(|error: relay_bridge::contract::ids::InvalidId| CliError::failed(error.to_string()))?;
    let source = match source {
        RelaySource::Tcp { address, key, ca, identity } => {
            let key = key.map(|key| key.read_now()).transpose().map_err(CliError::usage)?;
            SourceConfig::Tcp { address, key, tls: RemoteTls { ca, identity } }
        }
        RelaySource::Nats(nats) => {
            let inbox_prefix = nats.inbox_prefix.clone().or_else(|| Some(worker_inbox(name)));
            SourceConfig::Nats(Box::new(NatsConfig { inbox_prefix, ..*nats }))
        }
        RelaySource::Sqs(sqs) => SourceConfig::Sqs(sqs),
    };
    let names: Vec<_> = queues.keys().cloned().collect();
    let source = Source::connect(source, &id, &names).await?;
    let handler = Arc::new(RelayHandler::new(target.broker(), Clock::system(), Mapping { client, queues }));
    let config = WorkerConfig {
        id,
        queues: names.into_iter().map(|queue| (queue, 1)).collect(),
        order: QueueOrder::Weighted,
        slots,
        // The next worker that gets a job goes on with it: nothing is gained by waiting.
        drain: Duration::ZERO,
    };
    let worker = Worker::new(source.leasing(), Arc::clone(&handler) as _, Clock::system(), config);
    Ok(Work::Relay { source, worker, handler })
}

async fn open_stream(slots: NonZeroU32, stream: ForeignStream, target: &Target) -> Result<Work, CliError> {
    let ForeignStream { connection, source, job, reply } = stream;
    let connection = Connection::open(connection, Wait::Forever).await.map_err(from_broker)?;
    let opened = async {
        let queue = patiently(|| NatsQueue::open(connection.clone(), source.clone())).await?;
        let intake = Arc::new(Intake::new(target.broker(), Clock::system(), job));
        let replies = match reply {
            None => None,
            Some((client, queue, subject)) => {
                let open = || {
                    let whose = (client.clone(), queue.clone());
                    Replies::open(target.broker(), connection.clone(), whose, subject.clone(), intake.stats())
                };
                Some(patiently(open).await?)
            }
        };
        Ok((queue, intake, replies))
    };
    match opened.await {
        Ok((queue, intake, replies)) => {
            Ok(Work::Stream { connection: connection.clone(), queue: Arc::new(queue), intake, slots, replies })
        }
        Err(error) => {
            connection.close().await;
            Err(from_broker(error))
        }
    }
}

/// Repeats `open` while a side is away.
async fn patiently<T, F>(open: impl Fn() -> F) -> Result<T, BrokerError>
where
    F: Future<Output = Result<T, BrokerError>>,
{
    let mut ceiling = Duration::from_millis(100);
    loop {
        match open().await {
            Err(error) if error.is_transient() => tracing::warn!("waiting: {error}"),
            ended => return ended,
        }
        tokio::time::sleep(ceiling.mul_f64(random())).await;
        ceiling = (ceiling * 2).min(AGAIN_MAX);
    }
}
