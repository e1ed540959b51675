//! Sending the messages that wake workers up.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::adapter::aws::queue::{Outgoing, SqsQueues};
use crate::adapter::jobs::spares::Spares;
use crate::adapter::stored::record::left_to_sweep;
use crate::adapter::stored::wake_up::{Sending, Wake};
use crate::settings::Settings;
use relay_bridge::contract::{Job, Timestamp};
use relay_bridge::error::BrokerError;

/// How long an answer waits for SQS, and how many messages may be on their way to it meanwhile: up to 22 KiB each.
const SEND_MAX: std::time::Duration = std::time::Duration::from_millis(500);
pub(crate) const SENDING_MAX: usize = 1_000;

/// Sends messages of jobs.
pub(crate) struct Sender {
    pub(crate) queues: Arc<SqsQueues>,
    pub(crate) sending: Arc<Semaphore>,
    pub(crate) settings: Settings,
    pub(crate) spares: Arc<Spares>,
    pub(crate) tasks: TaskTracker,
}

impl Sender {
    /// Sends the job's message, unless it is left to the sweep. A send that fails is left to the sweep as well, because
    /// the job was accepted.
    pub(crate) async fn send_quietly(self: &Arc<Self>, job: &Job) {
        let now = self.settings.clock.now();
        let due = job.due(now);
        if left_to_sweep(due, now, self.queues.config().fifo) {
            return;
        }
        self.send_for_a_moment(job, due, Sending::First).await;
    }

    /// Sends the job's message and waits for a moment at most; then the send goes on in the background, unless too many
    /// sends do.
    pub(crate) async fn send_for_a_moment(self: &Arc<Self>, job: &Job, due: Timestamp, sending: Sending) {
        let send = async {
            let place = self.sending.clone().acquire_owned().await;
            let (sender, job) = (Arc::clone(self), job.clone());
            let sent = self.tasks.spawn(async move {
                let _place = place;
                if let Err(error) = sender.wake(&job, due, sending).await {
                    tracing::warn!(job_id = %job.id, %error, "a job was accepted and not sent: the sweep sends it");
                }
            });
            // Only the end of the send is waited for: its task logs the error.
            drop(sent.await);
        };
        if tokio::time::timeout(SEND_MAX, send).await.is_err() {
            tracing::warn!(job_id = %job.id, "a job was accepted and SQS does not answer: if need be the sweep sends it");
        }
    }

    /// Puts a message for `job` in line, which may be taken when it is due.
    pub(crate) async fn wake(&self, job: &Job, due: Timestamp, sending: Sending) -> Result<(), BrokerError> {
        let now = self.settings.clock.now();
        let delay = if self.queues.config().fifo { Duration::ZERO } else { due.since(now) };
        let (group, deduplication) = match (self.queues.config().fifo, sending) {
            (false, _) => (job.client.to_string(), None),
            (true, Sending::First) => (job.id.to_string(), Some(job.run_id.to_string())),
            (true, _) => (job.id.to_string(), Some(format!("{}-{}", job.run_id, now.as_millis()))),
        };
        let body = serde_json::to_string(&Wake::of(job)).unwrap_or_default();
        let queue = self.queues.of(&job.queue, "send").await?;
        queue.send(Outgoing { body, group: Some(group), deduplication, delay, attributes: Vec::new() }).await?;
        if sending == Sending::Beside {
            self.spares.change(&job.queue, 1);
        }
        Ok(())
    }
}
