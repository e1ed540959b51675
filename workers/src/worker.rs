//! The lease loop: asks for as many jobs as there are free slots, sees each through, and drains on shutdown.
//!
//! There is a task per running job and none per waiting one; one lease call is out at a time.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use relay_bridge::backoff::away;
use relay_bridge::clock::Clock;
use relay_bridge::contract::trace::TRACEPARENT;
use relay_bridge::contract::{QueueName, TraceParent};
use relay_bridge::error::BrokerError;
use relay_bridge::leasing::{Delivery, LEASE_BATCH_MAX, LeaseRequest, Leasing};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use crate::config::{QUEUES_MAX, WorkerConfig};
use crate::delivery::{Runtime, attend};
use crate::handler::Handler;
use crate::order::Order;
use crate::policies::Policies;
use crate::retry::{CALL_MAX, answered};
use crate::room::Room;
use crate::starts::{StartGate, StartReport};
use crate::stats::{WorkerReport, WorkerStats, count};

/// The longest one lease call waits for a job.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// How long handing back may take after the drain and the handler's grace.
const SETTLE_MAX: Duration = Duration::from_secs(30);
/// The pause after an answer without jobs that came before its time.
const EMPTY_PAUSE: Duration = Duration::from_millis(100);

/// A worker: leases jobs from its queues and runs one handler on each.
pub struct Worker {
    config: WorkerConfig,
    runtime: Arc<Runtime>,
}

impl Worker {
    /// A worker that has not started. `leasing` gives it jobs; `clock` stamps its results.
    #[must_use]
    pub fn new(leasing: Arc<dyn Leasing>, handler: Arc<dyn Handler>, clock: Clock, config: WorkerConfig) -> Self {
        let stats = Arc::<WorkerStats>::default();
        let runtime = Runtime {
            policies: Policies::new(leasing.clone()),
            leasing,
            handler,
            clock,
            starts: Arc::new(StartGate::new(stats.clone())),
            stats,
            room: Room::default(),
            drain_over: CancellationToken::new(),
        };
        Self { config, runtime: Arc::new(runtime) }
    }

    /// The worker's counts, while it runs and after.
    #[must_use]
    pub fn stats(&self) -> Arc<WorkerStats> {
        self.runtime.stats.clone()
    }

    /// Works until `shutdown`, then drains: no new leases; running handlers have `config.drain` to finish; the rest are
    /// cancelled and handed back without spending an attempt. Returns when every task has ended, which takes at most
    /// the drain, the handler's grace and 30 s to settle in.
    ///
    /// A broker that is away is waited for, with backoff, and so is a handler that can't be started on this host
    /// ([`Attempt::NotStarted`](crate::Attempt::NotStarted)). Dropping the future stops everything at once: handlers are
    /// dropped, commands killed, and their jobs come again when their leases end.
    pub async fn run(self, shutdown: CancellationToken) -> WorkerReport {
        let Self { config, runtime } = self;
        let mut deliveries = JoinSet::new();
        if config.queues.is_empty() || config.queues.len() > QUEUES_MAX {
            tracing::error!(
                worker = %config.id, queues = config.queues.len(), "a worker serves 1 to {QUEUES_MAX} queues"
            );
        }
        lease_until(&shutdown, &config, &runtime, &mut deliveries).await;

        tracing::info!(worker = %config.id, running = deliveries.len(), "draining");
        tokio::select! {
            biased;
            () = join_all(&mut deliveries) => {}
            () = sleep(config.drain) => {
                runtime.drain_over.cancel();
                let limit = runtime.handler.grace().saturating_add(SETTLE_MAX);
                if timeout(limit, join_all(&mut deliveries)).await.is_err() {
                    tracing::warn!(running = deliveries.len(), "broker away: the rest comes again when its leases end");
                    deliveries.shutdown().await;
                }
            }
        }
        runtime.stats.report()
    }
}

/// Leases and starts deliveries until `shutdown`.
async fn lease_until(
    shutdown: &CancellationToken,
    config: &WorkerConfig,
    runtime: &Arc<Runtime>,
    deliveries: &mut JoinSet<()>,
) {
    let mut order = Order::new(config.order, &config.queues);
    let most = usize::try_from(config.slots.get()).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
    let slots = Arc::new(Semaphore::new(most));
    let mut failures: u32 = 0;
    loop {
        // Nothing while the handler can't be started here, and then one job to see whether it can.
        let probe = match attending(shutdown, deliveries, runtime.starts.open(), false).await {
            Turn::Shutdown => return,
            Turn::Answered(probe) => probe,
            Turn::Freed => continue,
        };
        // At most as many settlements as slots are on their way.
        let room = most.saturating_mul(2).saturating_sub(deliveries.len());
        let free = u32::try_from(slots.available_permits().min(room)).unwrap_or(u32::MAX).min(LEASE_BATCH_MAX);
        let free = if probe { free.min(1) } else { free };
        let queues = order.draw();
        let Some(max) = NonZeroU32::new(free).filter(|_| !queues.is_empty()) else {
            let freed = async {
                match room > 0 && !config.queues.is_empty() {
                    true => drop(slots.acquire().await),
                    false => std::future::pending().await,
                }
            };
            match attending(shutdown, deliveries, freed, true).await {
                Turn::Shutdown => return,
                Turn::Freed | Turn::Answered(()) => continue,
            }
        };
        let asked_at = Instant::now();
        let call = lease(config, runtime, queues, max);
        let pause = match attending(shutdown, deliveries, call, false).await {
            Turn::Shutdown => return,
            Turn::Answered(Ok((leased, wait))) => {
                if failures > 0 {
                    tracing::info!(worker = %config.id, failures, "leasing again");
                    failures = 0;
                }
                let early = leased.is_empty() && asked_at.elapsed() < wait;
                start(runtime, deliveries, leased, &slots, asked_at);
                early.then_some(EMPTY_PAUSE)
            }
            Turn::Answered(Err(error)) => {
                failures = failures.saturating_add(1);
                if failures == 1 || failures.is_multiple_of(10) {
                    tracing::warn!(worker = %config.id, failures, %error, "leasing failed, trying again");
                }
                Some(away(failures))
            }
            Turn::Freed => None,
        };
        if let Some(pause) = pause
            && matches!(attending(shutdown, deliveries, sleep(pause), false).await, Turn::Shutdown)
        {
            return;
        }
    }
}

enum Turn<T> {
    Shutdown,
    /// A delivery ended; only with `until_freed`.
    Freed,
    Answered(T),
}

/// Awaits `future` while deliveries that end are joined; stops early on shutdown and, with `until_freed`, when a slot
/// is free. The future is kept while slots become free: dropping a lease call costs more than asking again later.
async fn attending<T>(
    shutdown: &CancellationToken,
    deliveries: &mut JoinSet<()>,
    future: impl Future<Output = T>,
    until_freed: bool,
) -> Turn<T> {
    tokio::pin!(future);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Turn::Shutdown,
            Some(joined) = deliveries.join_next() => {
                joined_well(joined);
                if until_freed {
                    return Turn::Freed;
                }
            }
            answer = &mut future => return Turn::Answered(answer),
        }
    }
}

/// One lease call, and how long it waited at most. It waits less than a third of the shortest lease, because a lease
/// counts from the moment it was asked for.
async fn lease(
    config: &WorkerConfig,
    runtime: &Runtime,
    queues: Vec<QueueName>,
    max: NonZeroU32,
) -> Result<(Vec<Delivery>, Duration), BrokerError> {
    let mut wait = WAIT_MAX;
    for queue in &queues {
        wait = wait.min(runtime.policies.last_known(queue).await?.lease / 3);
    }
    // However short the lease: a wait of nothing would be a busy loop.
    let wait = wait.max(EMPTY_PAUSE);
    let request = LeaseRequest { worker: config.id.clone(), queues, max, wait };
    let leased = answered("lease", wait + CALL_MAX, runtime.leasing.lease(&request)).await?;
    Ok((leased, wait))
}

fn start(
    runtime: &Arc<Runtime>,
    deliveries: &mut JoinSet<()>,
    leased: Vec<Delivery>,
    slots: &Arc<Semaphore>,
    asked_at: Instant,
) {
    let taken_at = Instant::now();
    for delivery in leased {
        let Ok(slot) = Arc::clone(slots).try_acquire_owned() else {
            tracing::error!("the broker leased more than asked for; the rest is left to it");
            return;
        };
        count(&runtime.stats.leased);
        let parent = delivery.job.headers.get(TRACEPARENT).and_then(|parent| parent.parse::<TraceParent>().ok());
        let span = parent.map_or_else(Span::none, |parent| tracing::info_span!("delivery", trace_id = parent.trace()));
        let start = StartReport::new(runtime.starts.clone());
        deliveries.spawn(attend(runtime.clone(), delivery, (asked_at, taken_at), slot, start).instrument(span));
    }
}

async fn join_all(deliveries: &mut JoinSet<()>) {
    while let Some(joined) = deliveries.join_next().await {
        joined_well(joined);
    }
}

fn joined_well(joined: Result<(), tokio::task::JoinError>) {
    if let Err(error) = joined {
        tracing::error!(%error, "a delivery's task ended badly; the job comes again when its lease ends");
    }
}
