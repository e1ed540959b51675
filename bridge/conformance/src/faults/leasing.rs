//! A worker's handle that fails.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::Faults;
use relay_bridge::contract::{JobId, JobResult, QueueName, RunId};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::BrokerError;
use relay_bridge::leasing::{Delivery, Held, LeaseRequest, Leasing, Progress, Receipt, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;

pub(super) struct Faulty {
    pub(super) inner: Arc<dyn Leasing>,
    pub(super) faults: Faults,
}

impl Faulty {
    /// Ends the lease behind the holder's back, as a network partition or a paused process would let it end: the job
    /// is someone else's soon, and the attempt stays spent.
    async fn cut(&self, delivery: &Delivery) {
        let at_once = Settlement::RetryAfter(Duration::from_millis(1));
        if let Err(error) = self.inner.settle(&delivery.receipt, &at_once).await {
            tracing::debug!(job_id = %delivery.job.id, %error, "a lease to be cut had ended");
        }
    }
}

#[async_trait]
impl Leasing for Faulty {
    async fn lease(&self, request: &LeaseRequest) -> Result<Vec<Delivery>, BrokerError> {
        // A lost reply leaves jobs leased to a worker that does not know of them: their leases end by themselves.
        let leased = self.faults.make("lease", self.inner.lease(request)).await?;
        let mut deliveries = Vec::with_capacity(leased.len());
        for delivery in leased {
            let decision = self.faults.next("delivery");
            if decision.lease_cut {
                self.cut(&delivery).await;
            }
            if decision.duplicate {
                deliveries.push(delivery.clone());
            }
            deliveries.push(delivery);
        }
        Ok(deliveries)
    }

    async fn extend(&self, receipt: &Receipt) -> Result<Held, BrokerError> {
        self.faults.make("extend", self.inner.extend(receipt)).await
    }

    async fn ended_early(&self, receipt: &Receipt) {
        self.inner.ended_early(receipt).await;
    }

    async fn progress(&self, receipt: &Receipt, progress: &Progress) -> Result<(), BrokerError> {
        self.faults.make("progress", self.inner.progress(receipt, progress)).await
    }

    async fn dead_letter(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        self.faults.make("dead-letter", self.inner.dead_letter(letter)).await
    }

    async fn retract_dead_letter(
        &self,
        job: JobId,
        run: RunId,
        within: Option<&[QueueName]>,
    ) -> Result<(), BrokerError> {
        self.faults.make("retract dead letter", self.inner.retract_dead_letter(job, run, within)).await
    }

    async fn record(&self, result: &JobResult) -> Result<Recorded, BrokerError> {
        self.faults.make("record", self.inner.record(result)).await
    }

    async fn settle(&self, receipt: &Receipt, settlement: &Settlement) -> Result<(), BrokerError> {
        self.faults.make("settle", self.inner.settle(receipt, settlement)).await
    }

    async fn queue_policy(&self, queue: &QueueName) -> Result<QueuePolicy, BrokerError> {
        self.faults.make("queue policy", self.inner.queue_policy(queue)).await
    }
}
