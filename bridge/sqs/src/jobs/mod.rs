//! The submitter's half: each call on the record, which decides.

pub(crate) mod count;
pub(crate) mod enqueue;
pub(crate) mod list;
pub(crate) mod quota;
pub(crate) mod runs;
pub(crate) mod spares;
pub(crate) mod sweep;

use async_trait::async_trait;

use crate::Sqs;
use relay_bridge::contract::{ClientId, Job, JobId, JobStatus, QueueName, Timestamp};
use relay_bridge::error::BrokerError;
use relay_bridge::job_queue::{Depth, Enqueued, Exact, JobFilter, JobQueue, Listed, Swept};

#[async_trait]
impl JobQueue for Sqs {
    async fn enqueue(&self, job: Job) -> Result<Enqueued, BrokerError> {
        self.take_job(job).await
    }

    async fn status(&self, client: &ClientId, job: JobId) -> Result<Option<JobStatus>, BrokerError> {
        let record = self.owned(client, job, "read status").await?;
        record.map(|record| record.status(self.clock().now())).transpose()
    }

    async fn cancel(&self, client: &ClientId, job: JobId) -> Result<JobStatus, BrokerError> {
        self.cancel_run(client, job).await
    }

    async fn rerun(&self, client: &ClientId, job: JobId, from: u32) -> Result<Enqueued, BrokerError> {
        self.rerun_job(client, job, from).await
    }

    async fn erase(&self, client: &ClientId, job: JobId) -> Result<(), BrokerError> {
        self.erase_job(client, job).await
    }

    async fn list(&self, client: &ClientId, filter: &JobFilter) -> Result<Listed, BrokerError> {
        self.list_jobs(client, filter).await
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth, BrokerError> {
        self.policies().require(queue, "read depth").await?;
        self.look_at_queue(queue).await
    }

    async fn waiting(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        self.waiting_in(client, queue).await
    }

    async fn oldest(&self, queue: &QueueName) -> Result<Option<Timestamp>, BrokerError> {
        self.policies().require(queue, "read depth").await?;
        // SQS tells it to CloudWatch alone; the records would be read for it.
        Ok(None)
    }

    async fn count(&self, queue: &QueueName) -> Result<Exact, BrokerError> {
        self.policies().require(queue, "read depth").await?;
        self.count_queue(queue).await
    }

    async fn sweep(&self, limit: u32) -> Result<Swept, BrokerError> {
        self.sweep_step(limit).await
    }
}
