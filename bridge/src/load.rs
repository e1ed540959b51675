//! The work that a queue has and has done, as scalers of workers read it: a look that costs the same however much waits.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest time that a look can be asked to foresee: a day.
pub const SOON_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A look at a queue's work. Where a broker can't tell something cheaply, `Capabilities` says what stands for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// In line now, whoever they are of and whether or not the queue is paused.
    pub in_line: u64,
    /// Those that could start within the time that was asked for, if there were slots: without those beyond their client's
    /// running limit, with parked ones that are due by then; none of a queue that is paused.
    pub startable: u64,
    /// Waiting for a delay or a backoff to end.
    pub parked: u64,
    /// Held by workers.
    pub leased: u64,
    /// Attempts that have ended, since some time in the past. Fewer than at the look before mean that the broker counts anew.
    pub ended: u64,
    /// How long slots were busy with attempts since that time: those that ended, and those that run, by their age. `None`
    /// where the broker does not measure it.
    pub busy: Option<Duration>,
}

/// A measurement of a queue's attempts, kept for the next process that asks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptPace {
    /// Attempts that it is made of.
    pub attempts: f64,
    /// How long slots were busy with them, in seconds.
    pub busy: f64,
}
