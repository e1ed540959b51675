//! The calls of submitters, readers and operators, repeated.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::Calls;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, Job, JobId, JobStatus, QueueName, RunId, Timestamp};
use relay_bridge::dead_letters::{DeadLetter, DeadLetters, LetterPlace, Letters};
use relay_bridge::error::BrokerError;
use relay_bridge::job_queue::{Depth, Enqueued, Exact, JobFilter, JobQueue, Listed, Swept};
use relay_bridge::load::{KeptPace, Load};
use relay_bridge::policy::{PolicyStore, QueuePolicy};
use relay_bridge::provision::{Change, Provision, Wanted};
use relay_bridge::result_log::{Finished, Lookup, Page, ResultFilter, ResultLog, Start};

/// One capability of a broker.
pub(super) struct Repeating<T: ?Sized> {
    pub(super) inner: Arc<T>,
    pub(super) calls: Calls,
}

#[async_trait]
impl JobQueue for Repeating<dyn JobQueue> {
    async fn enqueue(&self, job: Job) -> Result<Enqueued, BrokerError> {
        let (run, accepted_at, asked) = (job.run_id, job.accepted_at, Instant::now());
        let delay = job.due_at.since(Clock::system().now());
        // Where the record was past its keeping the broker names another run.
        let is_own = |found: &JobStatus| found.run_id == run || found.accepted_at == accepted_at;
        let answered = self.calls.call("enqueue", || self.inner.enqueue(job.clone())).await;
        let enqueued = self.calls.started(answered, is_own)?;
        if let Enqueued::Created(status) = &enqueued
            && !delay.is_zero()
        {
            self.calls.comes_back(status.run_id, asked, delay);
        }
        Ok(enqueued)
    }

    async fn status(&self, client: &ClientId, job: JobId) -> Result<Option<JobStatus>, BrokerError> {
        self.calls.call("status", || self.inner.status(client, job)).await.answer
    }

    async fn is_in(&self, client: &ClientId, job: JobId, queues: &[QueueName]) -> Result<bool, BrokerError> {
        self.calls.call("is in", || self.inner.is_in(client, job, queues)).await.answer
    }

    async fn cancel(&self, client: &ClientId, job: JobId) -> Result<JobStatus, BrokerError> {
        self.calls.call("cancel", || self.inner.cancel(client, job)).await.answer
    }

    async fn rerun(&self, client: &ClientId, job: JobId, from: u32) -> Result<Enqueued, BrokerError> {
        let answered = self.calls.call("rerun", || self.inner.rerun(client, job, from)).await;
        self.calls.started(answered, |found| found.generation == from.saturating_add(1))
    }

    async fn erase(&self, client: &ClientId, job: JobId) -> Result<(), BrokerError> {
        self.calls.call("erase", || self.inner.erase(client, job)).await.answer
    }

    async fn list(&self, client: &ClientId, filter: &JobFilter) -> Result<Listed, BrokerError> {
        self.calls.call("list", || self.inner.list(client, filter)).await.answer
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth, BrokerError> {
        self.calls.call("depth", || self.inner.depth(queue)).await.answer
    }

    async fn waiting(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        self.calls.call("waiting", || self.inner.waiting(client, queue)).await.answer
    }

    async fn stored(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        self.calls.call("stored", || self.inner.stored(client, queue)).await.answer
    }

    async fn oldest(&self, queue: &QueueName) -> Result<Option<Timestamp>, BrokerError> {
        self.calls.call("oldest", || self.inner.oldest(queue)).await.answer
    }

    async fn count(&self, queue: &QueueName) -> Result<Exact, BrokerError> {
        self.calls.call("count", || self.inner.count(queue)).await.answer
    }

    async fn load(&self, queue: &QueueName, within: Duration) -> Result<Load, BrokerError> {
        self.calls.call("load", || self.inner.load(queue, within)).await.answer
    }

    async fn kept_pace(&self, queue: &QueueName) -> Result<Option<KeptPace>, BrokerError> {
        self.calls.call("kept pace", || self.inner.kept_pace(queue)).await.answer
    }

    async fn keep_pace(&self, queue: &QueueName, pace: &KeptPace) -> Result<(), BrokerError> {
        self.calls.call("keep pace", || self.inner.keep_pace(queue, pace)).await.answer
    }

    async fn sweep(&self, limit: u32) -> Result<Swept, BrokerError> {
        self.calls.call("sweep", || self.inner.sweep(limit)).await.answer
    }
}

#[async_trait]
impl ResultLog for Repeating<dyn ResultLog> {
    async fn lookup(&self, client: &ClientId, job: JobId) -> Result<Lookup, BrokerError> {
        self.calls.call("lookup", || self.inner.lookup(client, job)).await.answer
    }

    async fn wait(&self, client: &ClientId, job: JobId, wait: Duration) -> Result<Lookup, BrokerError> {
        let left = Left::of(wait);
        self.calls.repeat("wait", || self.inner.wait(client, job, left.now())).await.answer
    }

    async fn wait_ahead(
        &self,
        client: &ClientId,
        job: JobId,
        run: RunId,
        wait: Duration,
    ) -> Result<Option<Box<Finished>>, BrokerError> {
        // Not repeated: a wait begun anew would have missed earlier results. The caller looks the job up in that case.
        self.inner.wait_ahead(client, job, run, wait).await
    }

    async fn page(
        &self,
        client: &ClientId,
        from: &Start,
        filter: &ResultFilter,
        limit: u32,
        wait: Duration,
    ) -> Result<Page, BrokerError> {
        let left = Left::of(wait);
        self.calls.repeat("page", || self.inner.page(client, from, filter, limit, left.now())).await.answer
    }
}

#[async_trait]
impl DeadLetters for Repeating<dyn DeadLetters> {
    async fn list(
        &self,
        queue: Option<&QueueName>,
        key_prefix: Option<&str>,
        after: Option<&LetterPlace>,
        limit: u32,
    ) -> Result<Letters, BrokerError> {
        self.calls.call("list dead letters", || self.inner.list(queue, key_prefix, after, limit)).await.answer
    }

    async fn count(&self, queue: &QueueName, max: u32) -> Result<Option<u64>, BrokerError> {
        self.calls.call("count dead letters", || self.inner.count(queue, max)).await.answer
    }

    async fn get(&self, job: JobId) -> Result<Option<DeadLetter>, BrokerError> {
        self.calls.call("dead letter", || self.inner.get(job)).await.answer
    }

    async fn redrive(&self, job: JobId, run: RunId) -> Result<Enqueued, BrokerError> {
        let answered = self.calls.call("redrive", || self.inner.redrive(job, run)).await;
        self.calls.started(answered, |found| found.run_id > run)
    }

    async fn purge(&self, job: JobId, run: RunId) -> Result<bool, BrokerError> {
        // Looked at before: a repetition finds nothing more.
        let was_there = self.get(job).await?.is_some_and(|letter| letter.job.run_id == run);
        let answered = self.calls.call("purge", || self.inner.purge(job, run)).await;
        Ok(answered.answer? || answered.in_doubt && was_there)
    }
}

#[async_trait]
impl PolicyStore for Repeating<dyn PolicyStore> {
    async fn policy(&self, queue: &QueueName) -> Result<Option<QueuePolicy>, BrokerError> {
        self.calls.call("policy", || self.inner.policy(queue)).await.answer
    }

    async fn recent(&self, queue: &QueueName) -> Result<Option<Arc<QueuePolicy>>, BrokerError> {
        self.calls.call("recent policy", || self.inner.recent(queue)).await.answer
    }

    async fn policies(&self) -> Result<Vec<(QueueName, QueuePolicy)>, BrokerError> {
        self.calls.call("policies", || self.inner.policies()).await.answer
    }

    async fn put_policy(
        &self,
        queue: &QueueName,
        policy: &QueuePolicy,
        seen: Option<&QueuePolicy>,
    ) -> Result<(), BrokerError> {
        self.calls.call("put policy", || self.inner.put_policy(queue, policy, seen)).await.answer
    }

    async fn set_paused(&self, queue: &QueueName, paused: bool) -> Result<(), BrokerError> {
        self.calls.call("pause", || self.inner.set_paused(queue, paused)).await.answer
    }
}

#[async_trait]
impl Provision for Repeating<dyn Provision> {
    async fn plan(&self, queues: &[Wanted]) -> Result<Vec<Change>, BrokerError> {
        self.calls.call("plan", || self.inner.plan(queues)).await.answer
    }

    async fn apply(&self, queues: &[Wanted], force: bool) -> Result<Vec<Change>, BrokerError> {
        // Asked before: a repetition changes only what is left.
        let planned = self.plan(queues).await?;
        let answered = self.calls.call("apply", || self.inner.apply(queues, force)).await;
        let changed = answered.answer?;
        Ok(if answered.in_doubt { planned } else { changed })
    }
}

/// The rest of a wait that was begun at some time.
struct Left {
    wait: Duration,
    deadline: Option<Instant>,
}

impl Left {
    fn of(wait: Duration) -> Self {
        Self { wait, deadline: Instant::now().checked_add(wait) }
    }

    fn now(&self) -> Duration {
        self.deadline.map_or(self.wait, |deadline| deadline.saturating_duration_since(Instant::now()))
    }
}
