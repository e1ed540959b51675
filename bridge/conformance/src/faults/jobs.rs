//! A submitter's handle that fails.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::Faults;
use relay_bridge::contract::{ClientId, Job, JobId, JobStatus, QueueName, Timestamp};
use relay_bridge::error::BrokerError;
use relay_bridge::job_queue::{Depth, Enqueued, Exact, JobFilter, JobQueue, Listed, Swept};
use relay_bridge::load::{KeptPace, Load};

pub(super) struct Faulty {
    pub(super) inner: Arc<dyn JobQueue>,
    pub(super) faults: Faults,
}

#[async_trait]
impl JobQueue for Faulty {
    async fn enqueue(&self, job: Job) -> Result<Enqueued, BrokerError> {
        self.faults.make("enqueue", self.inner.enqueue(job)).await
    }

    async fn status(&self, client: &ClientId, job: JobId) -> Result<Option<JobStatus>, BrokerError> {
        self.faults.make("status", self.inner.status(client, job)).await
    }

    async fn is_in(&self, client: &ClientId, job: JobId, queues: &[QueueName]) -> Result<bool, BrokerError> {
        self.faults.make("is in", self.inner.is_in(client, job, queues)).await
    }

    async fn cancel(&self, client: &ClientId, job: JobId) -> Result<JobStatus, BrokerError> {
        self.faults.make("cancel", self.inner.cancel(client, job)).await
    }

    async fn rerun(&self, client: &ClientId, job: JobId, from: u32) -> Result<Enqueued, BrokerError> {
        self.faults.make("rerun", self.inner.rerun(client, job, from)).await
    }

    async fn erase(&self, client: &ClientId, job: JobId) -> Result<(), BrokerError> {
        self.faults.make("erase", self.inner.erase(client, job)).await
    }

    async fn list(&self, client: &ClientId, filter: &JobFilter) -> Result<Listed, BrokerError> {
        self.faults.make("list", self.inner.list(client, filter)).await
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth, BrokerError> {
        self.faults.make("depth", self.inner.depth(queue)).await
    }

    async fn waiting(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        self.faults.make("waiting", self.inner.waiting(client, queue)).await
    }

    async fn stored(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        self.faults.make("stored", self.inner.stored(client, queue)).await
    }

    async fn oldest(&self, queue: &QueueName) -> Result<Option<Timestamp>, BrokerError> {
        self.faults.make("oldest", self.inner.oldest(queue)).await
    }

    async fn count(&self, queue: &QueueName) -> Result<Exact, BrokerError> {
        self.faults.make("count", self.inner.count(queue)).await
    }

    async fn load(&self, queue: &QueueName, within: Duration) -> Result<Load, BrokerError> {
        self.faults.make("load", self.inner.load(queue, within)).await
    }

    async fn kept_pace(&self, queue: &QueueName) -> Result<Option<KeptPace>, BrokerError> {
        self.faults.make("kept pace", self.inner.kept_pace(queue)).await
    }

    async fn keep_pace(&self, queue: &QueueName, pace: &KeptPace) -> Result<(), BrokerError> {
        self.faults.make("keep pace", self.inner.keep_pace(queue, pace)).await
    }

    async fn sweep(&self, limit: u32) -> Result<Swept, BrokerError> {
        self.faults.make("sweep", self.inner.sweep(limit)).await
    }
}
