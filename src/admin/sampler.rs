//! Looks at the broker now and then, so that what readers ask is answered from memory: one look at a time, whoever asks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use relay_bridge::broker::Broker;
use relay_bridge::contract::QueueName;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Depth;
use relay_bridge::leasing::Leasing;
use relay_bridge::policy::QueuePolicy;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Admin;
use crate::telemetry::Counts;

/// The shortest time between two looks.
const EVERY: Duration = Duration::from_secs(2);
/// A look that takes long is followed by a pause of so many times as long: looking costs at most a tenth of the time.
const PAUSE_FACTOR: u32 = 10;
/// A broker that takes longer is away.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Queues that are looked at.
const QUEUES_MAX: usize = 1_000;
/// Depths that are remembered of each queue.
const HISTORY: usize = 60;

/// Where a process's jobs come from.
pub enum Watched {
    /// A server: every queue of its broker.
    Broker(Broker),
    /// A worker: whether it can ask for the policies of its queues.
    Leasing(Arc<dyn Leasing>, Vec<QueueName>),
}

/// What the last look found.
#[derive(Debug, Default)]
pub struct Sample {
    /// When it was taken, on the monotonic clock; `None` before the first one.
    pub taken_at: Option<Duration>,
    /// Why the broker can't be used, if it can't. What is below is then from the last look that went well.
    pub trouble: Option<String>,
    /// Every queue, in the order of names, [`QUEUES_MAX`] at most.
    pub queues: Vec<QueueSample>,
}

/// One queue.
#[derive(Clone, Debug)]
pub struct QueueSample {
    /// Its name.
    pub name: QueueName,
    /// What holds for it.
    pub policy: QueuePolicy,
    /// How much waits and runs.
    pub depth: Depth,
    /// How long the job waits that waits longest, if the broker can say it cheaply and one waits.
    pub oldest: Option<Duration>,
    /// What this process counted of it.
    pub counts: Counts,
    /// Jobs accepted a second, since the look before.
    pub submitted_rate: f64,
    /// Runs ended a second, since the look before.
    pub settled_rate: f64,
    /// How much waited at the last looks, oldest first.
    pub history: VecDeque<u64>,
}

/// Looks until `stop`.
pub(super) async fn watch(admin: Arc<Admin>, watched: Watched, stop: CancellationToken) {
    stop.run_until_cancelled(async {
        loop {
            let before = Arc::clone(&admin.sample.borrow());
            let began = Instant::now();
            let looked = timeout(LOOK_MAX, look(&admin, &watched, &before)).await;
            let sample = match looked {
                Ok(Ok(queues)) => Sample { taken_at: Some(admin.telemetry.clock().monotonic()), trouble: None, queues },
                Ok(Err(error)) => troubled(&before, error.to_string()),
                Err(_) => troubled(&before, format!("the broker did not answer within {LOOK_MAX:?}")),
            };
            if sample.trouble != before.trouble {
                match &sample.trouble {
                    Some(trouble) => tracing::warn!(error = %trouble, "not ready: the broker can't be used"),
                    None => tracing::info!("ready again"),
                }
            }
            admin.sample.send_replace(Arc::new(sample));
            // Whoever changed something wants to see it.
            let pause = sleep(EVERY.max(began.elapsed() * PAUSE_FACTOR));
            tokio::select! {
                () = pause => {}
                () = admin.look_now.notified() => {}
            }
        }
    })
    .await;
}

fn troubled(before: &Sample, trouble: String) -> Sample {
    Sample { taken_at: before.taken_at, trouble: Some(trouble), queues: before.queues.clone() }
}

async fn look(admin: &Admin, watched: &Watched, before: &Sample) -> Result<Vec<QueueSample>, BrokerError> {
    let broker = match watched {
        Watched::Broker(broker) => broker,
        Watched::Leasing(leasing, queues) => {
            for queue in queues {
                leasing.queue_policy(queue).await?;
            }
            return Ok(Vec::new());
        }
    };
    let elapsed = before.taken_at.map(|taken_at| admin.telemetry.clock().monotonic().saturating_sub(taken_at));
    let seconds = elapsed.unwrap_or_default().as_secs_f64();
    let mut known: BTreeMap<&QueueName, &QueueSample> =
        before.queues.iter().map(|queue| (&queue.name, queue)).collect();
    let flows = admin.telemetry.flows().by_queue();
    let mut queues = Vec::new();
    for (name, policy) in broker.policies.policies().await?.into_iter().take(QUEUES_MAX) {
        let depth = match broker.jobs.depth(&name).await {
            Ok(depth) => depth,
            // Removed since the policies were read.
            Err(error) if error.kind() == BrokerErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let since = if depth.waiting > 0 { broker.jobs.oldest(&name).await? } else { None };
        let counts = flows.get(&name).copied().unwrap_or_default();
        let last = known.remove(&name);
        let rate = |of: fn(&Counts) -> u64| {
            let more = of(&counts).saturating_sub(last.map_or(0, |last| of(&last.counts)));
            #[expect(clippy::cast_precision_loss, reason = "a rate is rounded for people")]
            let rate = more as f64 / seconds;
            if last.is_some() && rate.is_finite() { rate } else { 0.0 }
        };
        let mut history = last.map(|last| last.history.clone()).unwrap_or_default();
        if history.len() >= HISTORY {
            history.pop_front();
        }
        history.push_back(depth.waiting + depth.parked);
        queues.push(QueueSample {
            submitted_rate: rate(|counts| counts.submitted),
            settled_rate: rate(|counts| counts.settled.iter().sum()),
            name,
            policy,
            depth,
            oldest: since.map(|since| admin.telemetry.clock().now().since(since)),
            counts,
            history,
        });
    }
    Ok(queues)
}
