//! A log whose reads go on when a test lets them: how many of one client are at the broker at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use relay_bridge::contract::{ClientId, JobId, RunId};
use relay_bridge::error::BrokerError;
use relay_bridge::result_log::{Finished, Lookup, Page, ResultFilter, ResultLog, Start};
use tokio::sync::Semaphore;

/// Counts the reads that have begun, and holds each until there is a permit for it.
pub(crate) struct Held {
    pub(crate) inner: Arc<dyn ResultLog>,
    pub(crate) gate: Arc<Gate>,
}

pub(crate) struct Gate {
    begun: AtomicUsize,
    open: Semaphore,
}

impl Gate {
    pub(crate) fn closed() -> Arc<Self> {
        Arc::new(Self { begun: AtomicUsize::new(0), open: Semaphore::new(0) })
    }

    /// How many reads have begun.
    pub(crate) fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    /// Lets all go on, also those to come.
    pub(crate) fn open(&self) {
        self.open.close();
    }

    async fn pass(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        // An error means that it is open.
        self.open.acquire().await.map(drop).ok();
    }
}

#[async_trait]
impl ResultLog for Held {
    async fn lookup(&self, client: &ClientId, job: JobId) -> Result<Lookup, BrokerError> {
        self.gate.pass().await;
        self.inner.lookup(client, job).await
    }
    async fn wait(&self, client: &ClientId, job: JobId, wait: Duration) -> Result<Lookup, BrokerError> {
        self.gate.pass().await;
        self.inner.wait(client, job, wait).await
    }
    async fn wait_ahead(
        &self,
        client: &ClientId,
        job: JobId,
        run: RunId,
        wait: Duration,
    ) -> Result<Option<Box<Finished>>, BrokerError> {
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
        self.gate.pass().await;
        self.inner.page(client, from, filter, limit, wait).await
    }
}
