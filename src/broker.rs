//! The broker that a process works on: the embedded store, NATS, or SQS. Opened, looked at before anything is served, closed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use relay_bridge::broker::{Broker, Durability};
use relay_bridge::clock::Clock;
use relay_bridge::contract::QueueName;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::Leasing;
use relay_bridge::newer_jobs::NewerJobs;
use relay_bridge::provision::{Wanted, policy_changes, provision_queues};
use relay_embedded::{Embedded, EmbeddedConfig};
use relay_nats::config::NatsConfig;
use relay_nats::connection::Wait;
use relay_nats::{Nats, Settings, StreamSettings};
use relay_sqs::{Sqs, config::SqsConfig};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::admin::sampler::Check;
use crate::admin::{Admin, collect};
use crate::app::{AppError, QueueSetup};

/// Which broker, and where.
pub enum BrokerConfig {
    /// The store in this process.
    Embedded {
        /// The database file; `None` for one in memory that ends with the process.
        path: Option<PathBuf>,
        /// As [`EmbeddedConfig::disk_reserve`].
        disk_reserve: u64,
    },
    /// NATS JetStream.
    Nats(Box<NatsBroker>),
    /// SQS with DynamoDB.
    Sqs {
        /// How to reach both.
        config: Box<SqsConfig>,
        /// As [`NatsBroker::provision`].
        provision: bool,
    },
}

/// NATS as the broker.
pub struct NatsBroker {
    /// How to reach it.
    pub config: NatsConfig,
    /// The settings of streams that are created.
    pub streams: StreamSettings,
    /// Whether what is missing is created and what differs is changed. Otherwise it is looked for, and its absence is an
    /// error: creating streams takes rights that a server need not have.
    pub provision: bool,
}

/// An open broker.
#[derive(Clone)]
pub(crate) enum Opened {
    Embedded(Embedded),
    Nats { nats: Nats, provision: bool },
    Sqs { sqs: Sqs, provision: bool },
}

impl Opened {
    /// Opens it. NATS is waited for until it is there.
    ///
    /// # Errors
    /// As [`Embedded::open`], [`Nats::connect`] and `Sqs::connect`.
    pub(crate) async fn open(config: BrokerConfig, clock: &Clock) -> Result<Self, BrokerError> {
        match config {
            BrokerConfig::Embedded { path, disk_reserve } => {
                let config = EmbeddedConfig { path, clock: clock.clone(), disk_reserve, ..EmbeddedConfig::default() };
                Ok(Self::Embedded(Embedded::open(config).await?))
            }
            BrokerConfig::Nats(broker) => {
                let NatsBroker { config, streams, provision } = *broker;
                let settings = Settings { clock: clock.clone(), streams, ..Settings::default() };
                Ok(Self::Nats { nats: Nats::connect(config, Wait::Forever, settings).await?, provision })
            }
            BrokerConfig::Sqs { config, provision } => {
                let settings = relay_sqs::Settings { clock: clock.clone(), ..relay_sqs::Settings::default() };
                Ok(Self::Sqs { sqs: Sqs::connect(*config, settings).await?, provision })
            }
        }
    }

    /// Its capabilities.
    pub(crate) fn broker(&self) -> Broker {
        match self {
            Self::Embedded(store) => store.broker(),
            Self::Nats { nats, .. } => nats.broker(),
            Self::Sqs { sqs, .. } => sqs.broker(),
        }
    }

    /// Leasing for a worker whose handlers end with this process.
    pub(crate) fn leasing_here(&self) -> Arc<dyn Leasing> {
        match self {
            Self::Embedded(store) => store.leasing_here(),
            _ => self.broker().leasing,
        }
    }

    /// The jobs that it hands back because a newer relay wrote them.
    pub(crate) fn newer_jobs(&self) -> Arc<NewerJobs> {
        match self {
            Self::Embedded(store) => store.newer_jobs(),
            Self::Nats { nats, .. } => nats.newer_jobs(),
            Self::Sqs { sqs, .. } => sqs.newer_jobs(),
        }
    }

    /// Finds that the queues that were named, and what all queues share, are still as needed; `None` where the list of
    /// queues says it all.
    pub(crate) fn check(&self, setup: &QueueSetup) -> Option<Check> {
        let Self::Nats { nats, .. } = self else { return None };
        let named = if setup.are_named { setup.queues.as_slice() } else { &[] };
        let (nats, queues) = (nats.clone(), Arc::<[QueueName]>::from(named));
        Some(Box::new(move || {
            let (nats, queues) = (nats.clone(), Arc::clone(&queues));
            Box::pin(async move { nats.check_provisioned(&queues).await })
        }))
    }

    /// Adds what is known of it to the metrics.
    pub(crate) fn describe(&self, admin: &Admin) {
        match self {
            Self::Embedded(store) => {
                let commits = store.commits();
                admin.collect(move |text| collect::commits(text, &commits));
            }
            Self::Nats { nats, .. } => {
                let connection = nats.connection().clone();
                admin.collect(move |text| collect::nats_link(text, &connection));
            }
            // It has no connection of its own, and no store in this process.
            Self::Sqs { .. } => {}
        }
    }

    /// Creates or changes the queues of `setup`, or finds that they are there; and says what an accepted job survives. The
    /// queues that there are to be from now on.
    ///
    /// # Errors
    /// [`AppError::TooLarge`], [`AppError::Destructive`] and [`AppError::Unprovisioned`]; [`AppError::Store`] otherwise.
    pub(crate) async fn prepare(&self, setup: &QueueSetup) -> Result<Vec<QueueName>, AppError> {
        let broker = self.broker();
        setup.fits(&broker.capabilities)?;
        let queues = match self {
            Self::Embedded(_) => provision(&broker, setup).await?,
            Self::Nats { nats, provision: create } => {
                let found = async || match create {
                    true => provision(&broker, setup).await,
                    false => find(async |queues| nats.check_provisioned(queues).await, &broker, setup).await,
                };
                patiently("NATS", found).await?
            }
            Self::Sqs { sqs, provision: create } => {
                let found = async || match create {
                    true => provision(&broker, setup).await,
                    false => find(async |queues| sqs.check_provisioned(queues).await, &broker, setup).await,
                };
                patiently("AWS", found).await?
            }
        };
        // Only now: what streams are like is known once they were looked at.
        let capabilities = self.broker().capabilities;
        info!(durability = capabilities.durability.as_str(), adapter = capabilities.adapter, "broker opened");
        if capabilities.durability == Durability::None {
            match self {
                Self::Embedded(_) => {
                    warn!("jobs and results are in memory and end with this process; --data DIR keeps them");
                }
                Self::Nats { .. } => warn!("jobs and results are in the memory of one NATS server, and end with it"),
                Self::Sqs { .. } => {}
            }
        }
        Ok(queues)
    }

    /// Sends results to clients that read them elsewhere, as the broker is told, until `stop`.
    pub(crate) async fn forward(&self, stop: CancellationToken) {
        match self {
            Self::Sqs { sqs, .. } => sqs.forward(Arc::new(crate::api::result::ResultView::message), stop).await,
            _ => stop.cancelled().await,
        }
    }

    /// Closes it. Accepted jobs are durable anyway; messages on their way from SQS are waited for until `until`.
    pub(crate) async fn close(&self, until: Instant) {
        match self {
            Self::Embedded(store) => store.close().await,
            Self::Nats { nats, .. } => nats.close().await,
            Self::Sqs { sqs, .. } => sqs.close_by(until).await,
        }
    }
}

/// The queues as they shall be, made of the policies that are stored now.
async fn wanted(broker: &Broker, queues: &[QueueName], setup: &QueueSetup) -> Result<Vec<Wanted>, BrokerError> {
    Wanted::read(broker, queues, &*setup.policy).await
}

async fn provision(broker: &Broker, setup: &QueueSetup) -> Result<Vec<QueueName>, AppError> {
    match provision_queues(broker, &setup.queues, &*setup.policy, setup.force).await {
        Ok(changes) => {
            for change in changes {
                info!(queue = %change.queue, change = %change.what, "queue provisioned");
            }
            Ok(setup.queues.clone())
        }
        Err(error) if error.kind() == BrokerErrorKind::StateConflict => {
            let changes = broker.provision.plan(&wanted(broker, &setup.queues, setup).await?).await?;
            let destructive = changes.into_iter().filter(|change| change.destructive);
            let texts: Vec<_> = destructive.map(|change| format!("{}: {}", change.queue, change.what)).collect();
            match texts.is_empty() {
                // Others keep changing a queue, or the broker can't make this change.
                true => Err(error.into()),
                false => Err(AppError::Destructive(texts.join("; "))),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Prepares a broker on other machines, waiting for it where it went away.
async fn patiently<T>(what: &str, prepare: impl AsyncFn() -> Result<T, AppError>) -> Result<T, AppError> {
    loop {
        match prepare().await {
            Err(AppError::Store(error)) if error.is_transient() => {
                warn!("waiting for {what}: {error}");
                tokio::time::sleep(AGAIN).await;
            }
            ended => return ended,
        }
    }
}

/// Finds that the queues are there and `check` finds nothing wrong with them, and that what was asked for holds in them.
async fn find(
    check: impl AsyncFn(&[QueueName]) -> Result<(), BrokerError>,
    broker: &Broker,
    setup: &QueueSetup,
) -> Result<Vec<QueueName>, AppError> {
    let queues: Vec<_> = match setup.are_named {
        true => setup.queues.clone(),
        false => broker.policies.policies().await?.into_iter().map(|(queue, _)| queue).collect(),
    };
    if let Err(error) = check(&queues).await {
        return Err(match error.kind() {
            BrokerErrorKind::NotFound | BrokerErrorKind::StateConflict => {
                AppError::Unprovisioned(error.detail().to_owned())
            }
            _ => error.into(),
        });
    }
    let wanted = wanted(broker, &queues, setup).await?;
    let differs: Vec<_> = wanted
        .iter()
        .flat_map(|Wanted { queue, policy, seen }| policy_changes(queue, seen.as_ref(), policy))
        .map(|change| format!("{}: {}", change.queue, change.what))
        .collect();
    if differs.is_empty() {
        let max = broker.capabilities.payload_max;
        for Wanted { queue, policy, .. } in &wanted {
            if policy.payload_max > max || policy.result_max > max {
                warn!(%queue, "the broker takes {max} bytes at most, and the queue's `payload_max` or `result_max` is more");
            }
        }
        if queues.is_empty() {
            warn!("no queue is provisioned: submissions are refused until `relay provision --queue NAME` makes one");
        }
        return Ok(queues);
    }
    Err(AppError::Unprovisioned(format!("queue settings differ from the request: {}", differs.join("; "))))
}

/// Does what time demands: ends what is past its deadline, removes what is past its keeping, and puts in line what is not, in
/// bounded steps, until `stop`. Every process that submits does so; any number of them may.
pub(crate) async fn sweep(broker: &Broker, stop: &CancellationToken) {
    let mut tick = tokio::time::interval(SWEEP_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        loop {
            match broker.jobs.sweep(SWEEP_STEP).await {
                Ok(swept) => {
                    if !swept.expired.is_empty() || swept.removed > 0 {
                        debug!(expired = swept.expired.len(), removed = swept.removed, "swept");
                    }
                    if !swept.more || stop.is_cancelled() {
                        break;
                    }
                    // Jobs first: the sweep takes its turn behind what is already waiting for the writer.
                    tokio::task::yield_now().await;
                }
                Err(error) => {
                    warn!(%error, "the sweep failed and is tried again");
                    break;
                }
            }
        }
    }
}

/// Between two looks at a broker that went away during the start.
const AGAIN: Duration = Duration::from_secs(1);
/// How often deadlines and retention are looked after.
const SWEEP_EVERY: Duration = Duration::from_millis(2_500);
/// Records of one step of a sweep: some milliseconds of the store's writer.
const SWEEP_STEP: u32 = 500;
