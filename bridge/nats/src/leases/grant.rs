//! Deliveries on their way to the caller of a lease.

use std::sync::Arc;
use std::time::Duration;

use super::settling::Settling;
use relay_bridge::leasing::{Delivery, LEASE_BYTES_MAX};
use relay_bridge::settlement::Settlement;

/// Deliveries on their way to the caller. If the caller is gone, they go back without spending an attempt.
pub(crate) struct Grant {
    settling: Arc<Settling>,
    deliveries: Vec<Delivery>,
    bytes: u64,
    /// Whether a job did not fit any more.
    is_full: bool,
}

impl Grant {
    pub(crate) fn nothing(settling: Arc<Settling>) -> Self {
        Self { settling, deliveries: Vec::new(), bytes: 0, is_full: false }
    }

    pub(crate) fn of(settling: &Arc<Settling>, deliveries: Vec<Delivery>) -> Self {
        Self { settling: Arc::clone(settling), deliveries, bytes: 0, is_full: false }
    }

    pub(crate) fn push(&mut self, delivery: Delivery) {
        self.deliveries.push(delivery);
    }

    /// Whether a delivery still fits, and counts it.
    pub(crate) fn fits(&mut self, delivery: &Delivery) -> bool {
        let size = delivery.job.payload.len() as u64;
        self.is_full |= self.bytes > 0 && self.bytes.saturating_add(size) > LEASE_BYTES_MAX;
        if !self.is_full {
            self.bytes = self.bytes.saturating_add(size);
        }
        !self.is_full
    }

    /// How many of `max` may still come.
    pub(crate) fn left(&self, max: u32) -> u32 {
        if self.is_full { 0 } else { max.saturating_sub(u32::try_from(self.deliveries.len()).unwrap_or(u32::MAX)) }
    }

    pub(crate) fn take(mut self) -> Vec<Delivery> {
        std::mem::take(&mut self.deliveries)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
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
