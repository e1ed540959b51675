//! Spare messages: messages in line for which no job waits. One kind is the second message of a job that nobody took
//! within half a minute, because the first may have been lost; the other is the message of a job that was cancelled or
//! expired. Spare messages are subtracted from the number of messages in line that SQS shows. The table keeps their
//! number, written once a second at most; the process that first receives a spare message counts it off.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::adapter::aws::item::Item;
use crate::adapter::aws::table::Table;
use crate::names;
use relay_bridge::contract::QueueName;
use relay_bridge::error::BrokerError;
use relay_bridge::support::lock;

const OPERATION: &str = "count messages";
/// How long changes are collected.
const COLLECTED_FOR: Duration = Duration::from_secs(1);

/// Counts the spare messages of queues.
pub(crate) struct Spares {
    table: Table,
    tasks: TaskTracker,
    closing: CancellationToken,
    /// The changes that are not written to the table yet.
    changes: Mutex<HashMap<QueueName, i64>>,
}

impl Spares {
    pub(crate) fn new(table: Table, tasks: TaskTracker, closing: CancellationToken) -> Self {
        Self { table, tasks, closing, changes: Mutex::default() }
    }

    /// Notes that a spare message came in line (`by` is 1), or that one was received (`by` is -1).
    pub(crate) fn change(self: &Arc<Self>, queue: &QueueName, by: i64) {
        let is_first = {
            let mut changes = self.changes();
            let is_first = changes.is_empty();
            *changes.entry(queue.clone()).or_default() += by;
            is_first
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
        let changes = std::mem::take(&mut *self.changes());
        for (queue, by) in changes.into_iter().filter(|(_, by)| *by != 0) {
            let change = "SET #spares = if_not_exists(#spares, :none) + :by";
            let values = Item::default().number(":none", 0).number(":by", by);
            if let Err(error) = self.table.update(&names::spares(&queue), change, "", values, OPERATION).await {
                tracing::debug!(%queue, %error, "how many messages are in line for nothing is not known well");
            }
        }
    }

    /// About how many spare messages `queue` has.
    pub(crate) async fn of(&self, queue: &QueueName) -> Result<u64, BrokerError> {
        let item = self.table.get(&names::spares(queue), OPERATION).await?;
        let written = item.and_then(|item| item.get_number::<i64>("spares")).unwrap_or(0);
        let unwritten = self.changes().get(queue).copied().unwrap_or(0);
        Ok(u64::try_from(written + unwritten).unwrap_or(0))
    }

    /// Notes that `queue` has no spare messages: nothing is in line, or far less than there should be.
    pub(crate) async fn forget(&self, queue: &QueueName) -> Result<(), BrokerError> {
        self.changes().remove(queue);
        self.table.remove(&names::spares(queue), OPERATION).await?;
        Ok(())
    }

    fn changes(&self) -> std::sync::MutexGuard<'_, HashMap<QueueName, i64>> {
        lock(&self.changes)
    }
}
