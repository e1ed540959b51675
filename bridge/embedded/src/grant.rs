//! Calls that wait for jobs, and leased jobs on their way to them.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::shared::Shared;
use relay_bridge::contract::QueueName;
use relay_bridge::error::BrokerError;
use relay_bridge::leasing::Delivery;

/// A `lease` call that waits for a job.
pub(super) struct Pending {
    pub(super) queues: Vec<QueueName>,
    pub(super) max: NonZeroU32,
    pub(super) deadline: Duration,
    /// Whether the worker's handlers end with this process.
    pub(super) is_here: bool,
    pub(super) reply: oneshot::Sender<Result<Grant, BrokerError>>,
    pub(super) give_back: GiveBack,
}

impl Pending {
    pub(super) fn refuse(self, failure: &BrokerError) {
        drop(self.reply.send(Err(failure.clone())));
    }
}

/// Where leases go that nobody took.
#[derive(Clone)]
pub(super) struct GiveBack {
    pub(super) shared: Arc<Shared>,
    /// Has the writer look for them.
    pub(super) nudge: Arc<dyn Fn() + Send + Sync>,
}

/// Leased jobs on their way to the caller. If the caller is gone, they go back without spending an attempt.
pub(super) struct Grant {
    deliveries: Vec<Delivery>,
    give_back: GiveBack,
}

impl Grant {
    pub(super) fn new(deliveries: Vec<Delivery>, give_back: GiveBack) -> Self {
        Self { deliveries, give_back }
    }

    pub(super) fn take(mut self) -> Vec<Delivery> {
        std::mem::take(&mut self.deliveries)
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if self.deliveries.is_empty() {
            return;
        }
        self.give_back.shared.abandon(self.deliveries.drain(..).map(|delivery| delivery.receipt));
        (self.give_back.nudge)();
    }
}
