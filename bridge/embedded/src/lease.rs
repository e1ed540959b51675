//! Leases, the receipts that name them, and how many have ended.

use std::sync::Arc;
use std::time::Duration;

use super::lines::Key;
use relay_bridge::contract::{Job, JobId, Outcome, RunId};
use relay_bridge::leasing::Receipt;

/// A job in a worker's hands.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) number: i64,
    pub(super) job: JobId,
    pub(super) run: RunId,
    /// The job in that run without its payload; `None` if the store was opened since.
    pub(super) known: Option<Arc<Job>>,
    pub(super) line: Key,
    pub(super) until: Duration,
    /// Since when it is held, as far as this opening of the store knows.
    pub(super) started: Duration,
    /// How long it was held before that.
    pub(super) held_before: Duration,
    /// Set when the run ended while the worker held it.
    pub(super) ended: Option<Outcome>,
    /// Whether its worker sent a dead letter.
    pub(super) has_letter: bool,
}

/// The attempts of a queue that ended since the store was opened, and the time for which they were held.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ended {
    pub(super) attempts: u64,
    pub(super) held: Duration,
}

impl Ended {
    /// Notes that a lease ended; one that was handed back is no attempt, but held its slot.
    pub(super) fn note(&mut self, lease: &Lease, now: Duration, is_attempt: bool) {
        self.attempts += u64::from(is_attempt);
        self.held += now.saturating_sub(lease.started);
    }
}

/// The content of a receipt: the lease's number and the job's `seq`.
pub(super) fn token(number: i64, seq: i64) -> Vec<u8> {
    [number.to_be_bytes(), seq.to_be_bytes()].concat()
}

/// The number and the `seq` in a receipt; `None` if this version gave no such receipt.
pub(super) fn read_token(receipt: &Receipt) -> Option<(i64, i64)> {
    let (number, seq) = receipt.token.split_first_chunk::<8>()?;
    Some((i64::from_be_bytes(*number), i64::from_be_bytes(seq.try_into().ok()?)))
}
