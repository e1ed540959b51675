//! The broker's seams with a count beside each call, and a span where they are wanted, which the job carries on. Nothing
//! else is changed on the way, and nothing fails here.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use relay_bridge::contract::{
    ClientId, Job, JobId, JobResult, JobState, JobStatus, Outcome, QueueName, RunId, Timestamp,
};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::{Depth, Enqueued, Exact, JobFilter, JobQueue, Listed, Swept};
use relay_bridge::leasing::{Delivery, Held, LeaseRequest, Leasing, Progress, Receipt, Recorded};
use relay_bridge::load::{KeptPace, Load};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;

use super::storage::Writes;
use super::{Telemetry, micros};

/// The submitter's half.
pub(super) struct Jobs {
    pub(super) inner: Arc<dyn JobQueue>,
    pub(super) telemetry: Telemetry,
}

/// The worker's half.
pub(super) struct Work {
    pub(super) inner: Arc<dyn Leasing>,
    pub(super) telemetry: Telemetry,
}

/// Notes what became of a write; `is_stored` says whether an answer means that something was written.
fn note<T>(
    writes: &Writes,
    telemetry: &Telemetry,
    answer: &Result<T, BrokerError>,
    is_stored: impl FnOnce(&T) -> bool,
) {
    match answer {
        Ok(answer) if is_stored(answer) => writes.stored(),
        Ok(_) => {}
        Err(error) => writes.failed(error, telemetry.clock().monotonic()),
    }
}

#[async_trait]
impl JobQueue for Jobs {
    async fn enqueue(&self, mut job: Job) -> Result<Enqueued, BrokerError> {
        let body = job.body();
        let span = self.telemetry.traces().map(|traces| traces.submit(&mut job));
        let enqueued = self.inner.enqueue(job).await;
        if let Some(span) = span {
            span.submitted(&enqueued);
        }
        note(&self.telemetry.storage().jobs, &self.telemetry, &enqueued, |enqueued| {
            matches!(enqueued, Enqueued::Created(_))
        });
        let enqueued = enqueued?;
        let flow = |status: &JobStatus| self.telemetry.flows().of(&status.queue, &status.client);
        match &enqueued {
            Enqueued::Created(status) => {
                flow(status).came(false);
                if let Some(came) = self.telemetry.0.came.get() {
                    came(&status.queue);
                }
            }
            Enqueued::Known(status) if body.is_of(status.fingerprint) => flow(status).came(true),
            // Another body under the key: refused, and counted as that.
            Enqueued::Known(_) => {}
        }
        Ok(enqueued)
    }

    async fn status(&self, client: &ClientId, job: JobId) -> Result<Option<JobStatus>, BrokerError> {
        self.inner.status(client, job).await
    }

    async fn is_in(&self, client: &ClientId, job: JobId, queues: &[QueueName]) -> Result<bool, BrokerError> {
        self.inner.is_in(client, job, queues).await
    }

    async fn cancel(&self, client: &ClientId, job: JobId) -> Result<JobStatus, BrokerError> {
        let asked_at = self.telemetry.clock().now();
        let status = self.inner.cancel(client, job).await?;
        // A job that was cancelled before is answered in the same way, with the time at which it was.
        let now = status.finished_at.is_some_and(|finished_at| finished_at >= asked_at);
        if status.state == JobState::Finished(Outcome::Cancelled) && now {
            self.telemetry.flows().of(&status.queue, client).ended(Outcome::Cancelled);
            if let Some(traces) = self.telemetry.traces() {
                traces.cancelled(&status);
            }
        }
        Ok(status)
    }

    async fn rerun(&self, client: &ClientId, job: JobId, from: u32) -> Result<Enqueued, BrokerError> {
        let enqueued = self.inner.rerun(client, job, from).await;
        note(&self.telemetry.storage().jobs, &self.telemetry, &enqueued, |enqueued| {
            matches!(enqueued, Enqueued::Created(_))
        });
        let enqueued = enqueued?;
        if matches!(enqueued, Enqueued::Created(_)) {
            self.telemetry.0.reruns.add(1);
        }
        Ok(enqueued)
    }

    async fn erase(&self, client: &ClientId, job: JobId) -> Result<(), BrokerError> {
        self.inner.erase(client, job).await
    }

    async fn list(&self, client: &ClientId, filter: &JobFilter) -> Result<Listed, BrokerError> {
        self.inner.list(client, filter).await
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth, BrokerError> {
        self.inner.depth(queue).await
    }

    async fn waiting(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        self.inner.waiting(client, queue).await
    }

    async fn stored(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        self.inner.stored(client, queue).await
    }

    async fn oldest(&self, queue: &QueueName) -> Result<Option<Timestamp>, BrokerError> {
        self.inner.oldest(queue).await
    }

    async fn count(&self, queue: &QueueName) -> Result<Exact, BrokerError> {
        self.inner.count(queue).await
    }

    async fn load(&self, queue: &QueueName, within: Duration) -> Result<Load, BrokerError> {
        self.inner.load(queue, within).await
    }

    async fn kept_pace(&self, queue: &QueueName) -> Result<Option<KeptPace>, BrokerError> {
        self.inner.kept_pace(queue).await
    }

    async fn keep_pace(&self, queue: &QueueName, pace: &KeptPace) -> Result<(), BrokerError> {
        self.inner.keep_pace(queue, pace).await
    }

    async fn sweep(&self, limit: u32) -> Result<Swept, BrokerError> {
        let swept = self.inner.sweep(limit).await?;
        for result in &swept.expired {
            self.telemetry.flows().of(&result.queue, &result.client).ended(result.outcome);
            if let Some(traces) = self.telemetry.traces() {
                traces.result(result).end();
            }
        }
        Ok(swept)
    }
}

#[async_trait]
impl Leasing for Work {
    async fn lease(&self, request: &LeaseRequest) -> Result<Vec<Delivery>, BrokerError> {
        let telemetry = &self.telemetry;
        telemetry.workers_seen().asks(request, telemetry.clock().monotonic());
        let leased = self.inner.lease(request).await?;
        if !leased.is_empty() {
            telemetry.0.leased.add(leased.len() as u64);
            telemetry.workers_seen().given(&request.worker, leased.len() as u64);
        }
        Ok(leased)
    }

    async fn extend(&self, receipt: &Receipt) -> Result<Held, BrokerError> {
        let held = self.inner.extend(receipt).await;
        match &held {
            Ok(_) => self.telemetry.0.extended.add(1),
            Err(error) if error.kind() == BrokerErrorKind::LeaseLost => self.telemetry.0.leases_lost.add(1),
            Err(_) => {}
        }
        held
    }

    async fn ended_early(&self, receipt: &Receipt) {
        self.inner.ended_early(receipt).await;
    }

    async fn progress(&self, receipt: &Receipt, progress: &Progress) -> Result<(), BrokerError> {
        self.inner.progress(receipt, progress).await
    }

    async fn dead_letter(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        self.inner.dead_letter(letter).await
    }

    async fn retract_dead_letter(
        &self,
        job: JobId,
        run: RunId,
        within: Option<&[QueueName]>,
    ) -> Result<(), BrokerError> {
        self.inner.retract_dead_letter(job, run, within).await
    }

    async fn record(&self, result: &JobResult) -> Result<Recorded, BrokerError> {
        let span = self.telemetry.traces().map(|traces| traces.result(result));
        let recorded = self.inner.record(result).await;
        if let Some(span) = span {
            span.recorded(&recorded);
        }
        note(&self.telemetry.storage().results, &self.telemetry, &recorded, |recorded| *recorded == Recorded::First);
        let recorded = recorded?;
        match recorded {
            Recorded::First => self.count_end(result),
            Recorded::Superseded(_) => self.telemetry.0.superseded.add(1),
        }
        Ok(recorded)
    }

    async fn settle(&self, receipt: &Receipt, settlement: &Settlement) -> Result<(), BrokerError> {
        self.inner.settle(receipt, settlement).await?;
        let telemetry = &*self.telemetry.0;
        match settlement {
            Settlement::Complete => telemetry.completed.add(1),
            Settlement::RetryAfter(_) => telemetry.retried.add(1),
            Settlement::DeadLetter => telemetry.dead_lettered.add(1),
            Settlement::HandBack(_) => telemetry.handed_back.add(1),
        }
        Ok(())
    }

    async fn queue_policy(&self, queue: &QueueName) -> Result<QueuePolicy, BrokerError> {
        self.inner.queue_policy(queue).await
    }
}

impl Work {
    fn count_end(&self, result: &JobResult) {
        self.telemetry.flows().of(&result.queue, &result.client).ended(result.outcome);
        if let Some(started_at) = result.started_at {
            self.telemetry.0.handlers.add(&result.queue, micros(result.finished_at.since(started_at)));
        }
        // A rerun's clock began when the first run was accepted, which says nothing about how long anybody waited.
        if result.generation == 1 {
            self.telemetry.0.end_to_end.add(micros(result.finished_at.since(result.accepted_at)));
        }
    }
}
