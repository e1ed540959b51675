//! The submitter's half of the broker. The job's record decides about each call.

pub(crate) mod attempts;
pub(crate) mod count;
pub(crate) mod enqueue;
pub(crate) mod list;
pub(crate) mod quota;
pub(crate) mod runs;
pub(crate) mod sending;
pub(crate) mod spares;
pub(crate) mod sweep;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::DropGuard;

use crate::adapter::jobs::attempts::Attempts;
use crate::adapter::jobs::count::Counting;
use crate::adapter::jobs::enqueue::Submissions;
use crate::adapter::jobs::list::Listing;
use crate::adapter::jobs::quota::Places;
use crate::adapter::jobs::runs::Runs;
use crate::adapter::jobs::sweep::Sweep;
use crate::adapter::stored::policies::Policies;
use crate::adapter::stored::records::Records;
use crate::settings::Settings;
use relay_bridge::contract::{ClientId, Job, JobId, JobStatus, QueueName, Timestamp};
use relay_bridge::error::BrokerError;
use relay_bridge::job_queue::{Depth, Enqueued, Exact, JobFilter, JobQueue, Listed, Swept};
use relay_bridge::load::{KeptPace, Load};

/// The submitter's half: hands each call to the part that makes it.
pub(crate) struct Jobs {
    pub(crate) policies: Arc<Policies>,
    pub(crate) settings: Settings,
    pub(crate) records: Arc<Records>,
    pub(crate) submissions: Arc<Submissions>,
    pub(crate) runs: Arc<Runs>,
    pub(crate) listing: Arc<Listing>,
    pub(crate) counting: Arc<Counting>,
    pub(crate) attempts: Arc<Attempts>,
    pub(crate) places: Arc<Places>,
    pub(crate) sweep: Arc<Sweep>,
    pub(crate) _alive: Arc<DropGuard>,
}

#[async_trait]
impl JobQueue for Jobs {
    async fn enqueue(&self, job: Job) -> Result<Enqueued, BrokerError> {
        self.submissions.take_job(job).await
    }

    async fn status(&self, client: &ClientId, job: JobId) -> Result<Option<JobStatus>, BrokerError> {
        let record = self.records.owned(client, job, "read status").await?;
        record.map(|record| record.status(self.settings.clock.now())).transpose()
    }

    async fn is_in(&self, client: &ClientId, job: JobId, queues: &[QueueName]) -> Result<bool, BrokerError> {
        let record = self.records.owned(client, job, "find job").await?;
        Ok(record.is_some_and(|record| queues.contains(&record.queue)))
    }

    async fn cancel(&self, client: &ClientId, job: JobId) -> Result<JobStatus, BrokerError> {
        self.runs.cancel_run(client, job).await
    }

    async fn rerun(&self, client: &ClientId, job: JobId, from: u32) -> Result<Enqueued, BrokerError> {
        self.runs.rerun_job(client, job, from).await
    }

    async fn erase(&self, client: &ClientId, job: JobId) -> Result<(), BrokerError> {
        self.runs.erase_job(client, job).await
    }

    async fn list(&self, client: &ClientId, filter: &JobFilter) -> Result<Listed, BrokerError> {
        self.listing.list_jobs(client, filter).await
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth, BrokerError> {
        self.policies.require(queue, "read depth").await?;
        self.counting.look_at_queue(queue).await
    }

    async fn waiting(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        self.places.waiting_in(client, queue).await
    }

    async fn stored(&self, _: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        self.policies.require(queue, "count").await?;
        Ok(None)
    }

    async fn oldest(&self, queue: &QueueName) -> Result<Option<Timestamp>, BrokerError> {
        self.policies.require(queue, "read depth").await?;
        // SQS reports this age to CloudWatch alone; here all records would have to be read for it.
        Ok(None)
    }

    async fn count(&self, queue: &QueueName) -> Result<Exact, BrokerError> {
        self.policies.require(queue, "read depth").await?;
        self.counting.count_queue(queue).await
    }

    /// Two reads of the table and a call of SQS. The clients of the jobs that wait are not known, and neither is when delayed ones are due.
    async fn load(&self, queue: &QueueName, _: Duration) -> Result<Load, BrokerError> {
        let policy = self.policies.require(queue, "look at queue").await?;
        let (depth, ended) = tokio::try_join!(self.counting.look_at_queue(queue), self.attempts.ended(queue))?;
        let startable = if policy.paused { 0 } else { depth.waiting };
        let Depth { waiting: in_line, parked, leased } = depth;
        Ok(Load { in_line, startable, parked, leased, ended, busy: None })
    }

    async fn kept_pace(&self, queue: &QueueName) -> Result<Option<KeptPace>, BrokerError> {
        self.attempts.kept_pace(queue).await
    }

    async fn keep_pace(&self, queue: &QueueName, pace: &KeptPace) -> Result<(), BrokerError> {
        self.policies.require(queue, "keep pace").await?;
        self.attempts.keep_pace(queue, pace).await
    }

    async fn sweep(&self, limit: u32) -> Result<Swept, BrokerError> {
        self.sweep.sweep_step(limit).await
    }
}
