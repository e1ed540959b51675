//! The contract's decisions, once for all brokers: which result counts, when a run may start again, which dead letter is
//! kept, what a cancel or an erasure does.
//!
//! Everything here is pure and total. An adapter reads the facts, asks, and writes what it is told under a condition of its
//! own; if the condition fails, it reads anew and asks again. The texts of refusals are made here too, so that a client
//! reads the same words whichever broker it meets.
//!
//! # Layout
//!
//! - [`mod@record`]: a worker's result against what relay knows of the run.
//! - [`runs`]: rerun, redrive, cancel, expire, erase.
//! - [`letters`]: which dead letters are kept, and which are taken back.
//! - [`refusal`]: the words of refusals. [`counts`]: how often a rule spoke.

pub mod counts;
pub mod letters;
pub mod record;
pub mod refusal;
pub mod runs;

use std::sync::Arc;
use std::time::Duration;

pub use counts::Counts;
pub use letters::{keep_letter, leaves_letter, retract_letter};
pub use record::{Ending, record};
pub use runs::{cancel, erase, erased_result, expire, redrive, rerun};

use crate::contract::result::Claim;
use crate::contract::{Job, JobResult, Outcome, RunId, Timestamp};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::leasing::{LEASE_BATCH_MAX, LEASE_QUEUES_MAX, LEASE_WAIT_MAX, LeaseRequest};

/// How far the clocks of two hosts may be apart: docs/contract.md, section 4.
pub const SKEW: Duration = Duration::from_secs(5);

/// The facts that a broker knows of a job when it is asked to change the job: a record, a result, or both.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The record; `None` if only a result is left of the job.
    pub record: Option<Record>,
    /// The job's latest result that is kept, of whichever run.
    pub ended: Option<Ended>,
}

/// A job's record.
#[derive(Clone, Debug)]
pub struct Record {
    /// The job in its current run. Its payload may be left out where no rule's answer has it.
    pub job: Arc<Job>,
    /// The most attempts that may have been started in this run.
    pub attempts: u32,
    /// When the last attempt started.
    pub started_at: Option<Timestamp>,
    /// Whether the payload is kept.
    pub payload: Payload,
}

/// Whether a job's payload is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// It is there, and stays with the record.
    Kept,
    /// The job has no key and its queue keeps no payloads of such jobs: gone, or about to go with the run's end.
    NotKept,
    /// The client had it removed.
    Erased,
}

/// A result that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The run that it ended.
    pub run: RunId,
    /// That run's number.
    pub generation: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// The worker's claim about the run; `None` if it is not known, as for an erased result.
    pub claim: Option<Claim>,
}

impl Ended {
    /// As a result says.
    #[must_use]
    pub fn of(result: &JobResult) -> Self {
        let JobResult { run_id, generation, outcome, .. } = *result;
        Self { run: run_id, generation, outcome, claim: Some(result.claim()) }
    }
}

impl Known {
    /// The outcome of the job's current run: there is a result whose run is the record's, or a greater one, or no record.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        let ended = self.ended.as_ref()?;
        let current = self.record.as_ref().is_none_or(|record| ended.run >= record.job.run_id);
        current.then_some(ended.outcome)
    }

    /// The greatest run that is known, with its number.
    #[must_use]
    pub fn run(&self) -> Option<(RunId, u32)> {
        let record = self.record.as_ref().map(|record| (record.job.run_id, record.job.generation));
        record.max(self.ended.as_ref().map(|ended| (ended.run, ended.generation)))
    }
}

/// The answer of a rule.
#[derive(Debug)]
pub enum Verdict<T, A = ()> {
    /// Write this, if nothing has changed since the facts were read.
    Do(T),
    /// It is so already: answer as if it had been done now.
    Already(A),
    /// No, and why.
    Refuse(BrokerError),
}

/// The request with its bounds applied: more jobs or a longer wait than are allowed are the most that is.
///
/// # Errors
/// `Invalid` unless 1 to [`LEASE_QUEUES_MAX`] queues are named.
pub fn lease_request(request: &LeaseRequest) -> Result<LeaseRequest, BrokerError> {
    let named = request.queues.len();
    if named == 0 || named > LEASE_QUEUES_MAX {
        let why = format!("{named} queues were named, allowed are 1 to {LEASE_QUEUES_MAX}");
        return Err(BrokerError::new(BrokerErrorKind::Invalid, "lease", why));
    }
    let most = std::num::NonZeroU32::new(LEASE_BATCH_MAX).unwrap_or(request.max);
    Ok(LeaseRequest { max: request.max.min(most), wait: request.wait.min(LEASE_WAIT_MAX), ..request.clone() })
}

#[cfg(test)]
mod testing;
