//! The configuration of a worker: its id, the queues that it serves, their order, and how many jobs it runs at once.

use std::num::NonZeroU32;
use std::time::Duration;

use relay_bridge::contract::{QueueName, WorkerId};

/// The most queues of one worker: as many as one lease call takes.
pub const QUEUES_MAX: usize = 64;

/// The configuration of a worker.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// The worker's id, its name in leases and logs.
    pub id: WorkerId,
    /// The queues it serves, each with its weight, most wanted first; 1 to [`QUEUES_MAX`]. A weight of zero counts as
    /// one. Queues past the limit are not served, and an error is logged.
    pub queues: Vec<(QueueName, u32)>,
    /// How the queues take turns.
    pub order: QueueOrder,
    /// How many jobs run at once. It never holds more leases than this.
    pub slots: NonZeroU32,
    /// How long running handlers may go on after shutdown was asked for. Then they are cancelled, and their jobs are
    /// handed back without spending an attempt. Zero hands back at once.
    pub drain: Duration,
}

/// How the queues of a worker take turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueOrder {
    /// In the order given: a later queue is served only while the earlier ones have nothing.
    #[default]
    Strict,
    /// Each queue is first in turns proportional to its weight; the others follow, so that no slot stays empty.
    Weighted,
}
