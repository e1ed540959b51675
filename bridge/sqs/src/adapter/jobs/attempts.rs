//! Attempts that ended, which SQS does not count: a number in an item for each queue, for those who scale its workers, and
//! the pace that they measured. A process adds what it settled after some seconds, so that this costs a write per process
//! and not one per job. Leases that end by themselves are not counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::adapter::aws::item::Item;
use crate::adapter::aws::table::Table;
use crate::names;
use relay_bridge::contract::QueueName;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::load::KeptPace;
use relay_bridge::support::lock;

const OPERATION: &str = "count attempts";
/// How long ends are collected: as long as counts of SQS may be old.
const COLLECTED_FOR: Duration = Duration::from_secs(5);

/// Counts attempts that ended.
pub(crate) struct Attempts {
    table: Table,
    tasks: TaskTracker,
    closing: CancellationToken,
    collected: Mutex<Collected>,
}

#[derive(Default)]
struct Collected {
    /// The ends that are not written to the table yet, by queue.
    ended: HashMap<QueueName, u64>,
    /// Whether a task waits to write them.
    is_due: bool,
}

impl Attempts {
    pub(crate) fn new(table: Table, tasks: TaskTracker, closing: CancellationToken) -> Self {
        Self { table, tasks, closing, collected: Mutex::default() }
    }

    /// Notes that an attempt ended, other than by being handed back.
    pub(crate) fn end(self: &Arc<Self>, queue: &QueueName) {
        let is_first = {
            let mut collected = lock(&self.collected);
            *collected.ended.entry(queue.clone()).or_default() += 1;
            !std::mem::replace(&mut collected.is_due, true)
        };
        if is_first {
            let this = self.clone();
            self.tasks.spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep(COLLECTED_FOR) => {}
                    () = this.closing.cancelled() => {}
                }
                this.write().await;
            });
        }
    }

    async fn write(&self) {
        let Collected { ended, .. } = std::mem::take(&mut *lock(&self.collected));
        for (queue, more) in ended {
            let change = "SET #ended = if_not_exists(#ended, :none) + :more";
            let values = Item::default().number(":none", 0).number(":more", more);
            if let Err(error) = self.table.update(&names::attempts(&queue), change, "", values, OPERATION).await {
                if error.kind() == BrokerErrorKind::Ambiguous {
                    tracing::debug!(%queue, %error, "attempts that ended may not be counted: their queue seems slower than it is");
                    continue;
                }
                tracing::debug!(%queue, %error, "attempts that ended are not counted yet: they are with the next ones");
                *lock(&self.collected).ended.entry(queue).or_default() += more;
            }
        }
    }

    /// How many attempts of `queue` have ended, as far as processes have said.
    pub(crate) async fn ended(&self, queue: &QueueName) -> Result<u64, BrokerError> {
        let item = self.table.get(&names::attempts(queue), OPERATION).await?;
        Ok(item.and_then(|item| item.get_number("ended")).unwrap_or(0))
    }

    /// The pace that was kept last.
    pub(crate) async fn kept_pace(&self, queue: &QueueName) -> Result<Option<KeptPace>, BrokerError> {
        let item = self.table.get(&names::attempts(queue), OPERATION).await?;
        Ok(item.and_then(|item| serde_json::from_str(item.get_text("pace")?).ok()))
    }

    pub(crate) async fn keep_pace(&self, queue: &QueueName, pace: &KeptPace) -> Result<(), BrokerError> {
        let pace = serde_json::to_string(pace);
        let pace = pace.map_err(|e| BrokerError::new(BrokerErrorKind::Invalid, OPERATION, e.to_string()))?;
        let values = Item::default().text(":pace", pace);
        self.table.update(&names::attempts(queue), "SET #pace = :pace", "", values, OPERATION).await.map(drop)
    }
}
