//! The queues from which this process leases, and the messages that it has at hand.

use futures_util::future::join_all;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::adapter::aws::queue::SqsQueues;
use crate::adapter::leases::line::Line;
use crate::adapter::leases::received::Received;
use crate::adapter::stored::record::Record;
use relay_bridge::contract::QueueName;
use relay_bridge::error::BrokerError;
use relay_bridge::support::lock;

/// How long messages of clients at their bounds are hidden if they are too many to keep at hand.
const BOUNDED_AWAY: Duration = Duration::from_secs(10);

/// All lines of this process.
pub(crate) struct Lines {
    pub(crate) open: Mutex<HashMap<QueueName, Arc<Line>>>,
    pub(crate) queues: Arc<SqsQueues>,
}

impl Lines {
    /// The line of `queue`.
    pub(crate) async fn line(&self, queue: &QueueName, operation: &'static str) -> Result<Arc<Line>, BrokerError> {
        if let Some(line) = lock(&self.open).get(queue) {
            return Ok(line.clone());
        }
        let sqs_queue = self.queues.of(queue, operation).await?;
        let line = Line::new(queue.clone(), sqs_queue);
        Ok(lock(&self.open).entry(queue.clone()).or_insert(Arc::new(line)).clone())
    }

    /// Notes that a client of `queue` may run one job more.
    pub(crate) fn slot_freed(&self, queue: &QueueName) {
        if let Some(line) = lock(&self.open).get(queue) {
            line.lock().full.clear();
            line.freed.notify_waiters();
        }
    }

    /// Deletes the message of a run that ended while it was in line, if this process has it at hand; returns whether it
    /// had. Else the process that receives the message deletes it.
    pub(crate) async fn delete_at_hand(&self, record: &Record) -> bool {
        let line = lock(&self.open).get(&record.queue).cloned();
        let Some((line, received)) =
            line.and_then(|line| Some((line.clone(), line.take_of(record.job_id, record.run)?)))
        else {
            return false;
        };
        if let Err(error) = line.queue.delete(&received.handle).await {
            tracing::debug!(job_id = %record.job_id, %error, "a message is not deleted: who receives it next deletes it");
        }
        true
    }

    /// Keeps messages of clients that run as many jobs as they may, as far as there is room.
    pub(crate) async fn keep_at_hand(&self, line: &Line, bounded: Vec<Received>) {
        self.hide_all(line, line.keep(bounded), BOUNDED_AWAY).await;
    }

    /// Lets other processes receive at once the messages that nobody takes here.
    pub(crate) async fn give_back(&self, line: &Line, unwanted: impl IntoIterator<Item = Received>) {
        self.hide_all(line, unwanted, Duration::ZERO).await;
    }

    /// Lets other processes receive at once the messages that this process keeps at hand, of all queues.
    pub(crate) async fn give_back_at_hand(&self) {
        let lines: Vec<_> = lock(&self.open).values().cloned().collect();
        let at_hand = |line: &Line| std::mem::take(&mut line.lock().bounded);
        join_all(lines.iter().map(|line| self.give_back(line, at_hand(line)))).await;
    }

    pub(crate) async fn hide_all(&self, line: &Line, unwanted: impl IntoIterator<Item = Received>, time: Duration) {
        let back = unwanted.into_iter().map(async |received| line.queue.hide(&received.handle, time).await);
        for error in join_all(back).await.into_iter().filter_map(Result::err) {
            tracing::warn!(queue = %line.name, %error, "a message that nobody took comes again when its time is over");
        }
    }
}
