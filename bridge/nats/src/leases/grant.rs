//! Deliveries on their way to the caller of a lease.

use std::sync::Arc;
use std::time::Duration;

use super::settling::Settling;
use relay_bridge::leasing::Delivery;
use relay_bridge::settlement::Settlement;

/// Deliveries on their way to the caller. If the caller is gone, they go back without spending an attempt.
pub(crate) struct Grant {
    settling: Arc<Settling>,
    deliveries: Vec<Delivery>,
}

impl Grant {
    pub(crate) fn nothing(settling: Arc<Settling>) -> Self {
        Self { settling, deliveries: Vec::new() }
    }

    pub(crate) fn of(settling: &Arc<Settling>, deliveries: Vec<Delivery>) -> Self {
        Self { settling: Arc::clone(settling), deliveries }
    }

    pub(crate) fn push(&mut self, delivery: Delivery) {
        self.deliveries.push(delivery);
    }

    pub(crate) fn take(mut self) -> Vec<Delivery> {
        std::mem::take(&mut self.deliveries)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.deliveries.len()
    }

    /// Its deliveries, and behind them those of `other`.
    pub(crate) fn join(&mut self, mut other: Self) {
        self.deliveries.append(&mut other.deliveries);
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if self.deliveries.is_empty() {
            return;
        }
        let (settling, deliveries) = (Arc::clone(&self.settling), std::mem::take(&mut self.deliveries));
        let (tasks, runtime) = (self.settling.tasks.clone(), self.settling.runtime.clone());
        tasks.spawn_on(
            async move {
                for delivery in deliveries {
                    let back = settling.settle_delivery(&delivery.receipt, &Settlement::HandBack(Duration::ZERO)).await;
                    if let Err(failure) = back {
                        let job_id = delivery.job.id;
                        tracing::warn!(%job_id, error = %failure, "a lease nobody took was not handed back: it ends by itself");
                    }
                }
            },
            &runtime,
        );
    }
}
