//! The acts of a client or an operator on a run: rerun, redrive, cancel, erase; and the act of time: expire.

use bytes::Bytes;

use super::letters::{did_not_fail, has_payload};
use super::refusal::{conflict, no_job, no_letter};
use super::{Known, Payload, Record, Verdict, leaves_letter};
use crate::contract::result::End;
use crate::contract::{Failure, Job, JobId, JobResult, Outcome, RunId, Timestamp};
use crate::dead_letters::DeadLetter;
use crate::error::BrokerError;

/// The run that starts when a client wants generation `from` of `job` again. The job's payload is as it is in `known`.
///
/// | known of the job | answer |
/// | --- | --- |
/// | nothing | refused: there is no such job |
/// | it is in generation `from + 1`, in whatever state | already |
/// | it is in another generation than `from` | refused, with both numbers |
/// | its run is open | refused: it has not ended |
/// | its payload was erased, or is not kept | refused, and what to do |
/// | its run has ended | do: the job in its next run |
///
/// Generations begin at 1; there is no run after generation 0.
#[must_use]
pub fn rerun(known: Option<&Known>, job: JobId, from: u32, now: Timestamp) -> Verdict<Job> {
    const OPERATION: &str = "rerun";
    let Some((known, (_, generation))) = known.and_then(|known| Some((known, known.run()?))) else {
        return Verdict::Refuse(no_job(OPERATION, job));
    };
    if from > 0 && from.checked_add(1) == Some(generation) {
        return Verdict::Already(());
    }
    let refuse = |why: String| Verdict::Refuse(conflict(OPERATION, why));
    if generation != from {
        return refuse(format!("the job is in generation {generation}, not {from}: rerun that one, if it is meant"));
    }
    if known.outcome().is_none() {
        return refuse(format!("generation {from} has not ended: wait for it, or cancel it"));
    }
    match known.record.as_ref().map(|record| (record.payload, &record.job)) {
        Some((Payload::Kept, base)) => Verdict::Do(next_run(base, known, now)),
        Some((Payload::Erased, _)) => refuse(ERASED.to_owned()),
        Some((Payload::NotKept, _)) => refuse(NOT_KEPT.to_owned()),
        // The record of a job without a key may have gone with its run.
        None => refuse(if job.has_key() { PAST } else { NOT_KEPT }.to_owned()),
    }
}

const ERASED: &str = "the payload was erased: submit the job again";
const NOT_KEPT: &str = "the payload was not kept: submit the job again, or set `keep_keyless` for the queue";
const PAST: &str = "the payload is not kept any more: submit the job again";
const NO_PAYLOAD: &str =
    "the dead letter has not the payload that its client sent: purge it, and have the job submitted again";

/// The run that starts when an operator redrives the dead letter of `run`. The record's facts win; the letter gives
/// back the payload.
///
/// | the letter | known of the job | answer |
/// | --- | --- | --- |
/// | gone | a later run | already |
/// | gone | anything else | refused: there is no such letter |
/// | there | another body under the key | refused: redriving would start or hide the wrong job |
/// | there | a later run | already: the letter may go |
/// | there | this run, open | refused: its outcome is not recorded yet |
/// | there | this run, which did not fail | refused: purge the letter |
/// | there | erased | refused |
/// | there, without the payload | this run, failed; or nothing | refused: there is nothing to start |
/// | there | this run, failed; or nothing | do: the job in its next run, with its payload |
#[must_use]
pub fn redrive(
    known: Option<&Known>,
    letter: Option<&DeadLetter>,
    job: JobId,
    run: RunId,
    now: Timestamp,
) -> Verdict<Job> {
    const OPERATION: &str = "redrive";
    let refuse = |why: String| Verdict::Refuse(conflict(OPERATION, why));
    let later = known.and_then(Known::run).is_some_and(|(known, _)| known > run);
    let Some(letter) = letter else {
        return if later { Verdict::Already(()) } else { Verdict::Refuse(no_letter(OPERATION, job, run)) };
    };
    let record = known.and_then(|known| known.record.as_ref());
    if let Some(record) = record.filter(|record| record.job.fingerprint != letter.job.fingerprint) {
        let since = record.job.accepted_at;
        return refuse(format!(
            "since {since} the key is another job's, with another body: purge the dead letter, or have its payload \
             submitted under a key of its own"
        ));
    }
    if later {
        return Verdict::Already(());
    }
    let Some(known) = known else {
        let whole = has_payload(&letter.job, &letter.job.payload);
        return if whole { Verdict::Do(letter.job.next_run(now)) } else { refuse(NO_PAYLOAD.to_owned()) };
    };
    match known.outcome() {
        None => return refuse("the run has not ended: wait for its outcome, or have its client cancel it".to_owned()),
        Some(outcome) if !leaves_letter(outcome) => return refuse(did_not_fail(outcome)),
        Some(_) => {}
    }
    let base = match record {
        Some(Record { payload: Payload::Erased, .. }) => return refuse(ERASED.to_owned()),
        Some(Record { job, .. }) => job,
        None => &letter.job,
    };
    let payload = if base.payload.is_empty() { &letter.job.payload } else { &base.payload };
    if !has_payload(base, payload) {
        return refuse(NO_PAYLOAD.to_owned());
    }
    Verdict::Do(next_run(&Job { payload: payload.clone(), ..base.clone() }, known, now))
}

/// The job in the run after every one that is known.
fn next_run(base: &Job, known: &Known, now: Timestamp) -> Job {
    let (run, generation) = known.run().unwrap_or((base.run_id, base.generation));
    let next = base.next_run(now);
    Job {
        run_id: RunId::mint(now, Some(run.max(base.run_id))),
        generation: next.generation.max(generation.saturating_add(1)),
        ..next
    }
}

/// The result that a client's cancel writes.
///
/// | known of the job | answer |
/// | --- | --- |
/// | nothing | refused: there is no such job |
/// | its run has ended | already |
/// | its run is open | do: the result that ends it as `cancelled` |
#[must_use]
pub fn cancel(known: Option<&Known>, job: JobId, now: Timestamp) -> Verdict<JobResult> {
    let failure = Failure::new("cancelled", "the client cancelled the job");
    end(known, "cancel", job, Outcome::Cancelled, failure, now)
}

/// The result of a run whose deadline has passed, as for [`cancel`]. That it has passed is the caller's to know.
#[must_use]
pub fn expire(known: Option<&Known>, job: JobId, now: Timestamp) -> Verdict<JobResult> {
    let deadline = known.and_then(|known| known.record.as_ref()).map_or(now, |record| record.job.expires_at);
    let failure = Failure::new("expired", format!("the run did not end by its deadline {deadline}"));
    end(known, "expire", job, Outcome::Expired, failure, now)
}

fn end(
    known: Option<&Known>,
    operation: &'static str,
    job: JobId,
    outcome: Outcome,
    failure: Failure,
    now: Timestamp,
) -> Verdict<JobResult> {
    if known.is_some_and(|known| known.outcome().is_some()) {
        return Verdict::Already(());
    }
    let Some(record) = known.and_then(|known| known.record.as_ref()) else {
        return Verdict::Refuse(no_job(operation, job));
    };
    let started_at = record.started_at.filter(|_| record.attempts > 0);
    let end = End { attempt: record.attempts, started_at, finished_at: now };
    Verdict::Do(JobResult::unsuccessful(&record.job, outcome, end, failure))
}

/// The record as an erasure leaves it; `None` if there is no record. Results are stripped by [`erased_result`], and the
/// job's dead letters are removed.
///
/// | known of the job | answer |
/// | --- | --- |
/// | nothing | refused: there is no such job |
/// | its run is open | refused: cancel it first |
/// | its run has ended | do, also a second time: the first call may have ended between two writes |
#[must_use]
pub fn erase(known: Option<&Known>, job: JobId) -> Verdict<Option<Job>> {
    const OPERATION: &str = "erase";
    let Some(known) = known.filter(|known| known.run().is_some()) else {
        return Verdict::Refuse(no_job(OPERATION, job));
    };
    if known.outcome().is_none() {
        let why = "the run has not ended: cancel it first";
        return Verdict::Refuse(conflict(OPERATION, why));
    }
    let stripped = |record: &Record| Job {
        payload: Bytes::new(),
        headers: Default::default(),
        extra: Default::default(),
        ..Job::clone(&record.job)
    };
    Verdict::Do(known.record.as_ref().map(stripped))
}

/// The result as an erasure leaves it: outcome, reason, key and times.
#[must_use]
pub fn erased_result(result: JobResult) -> JobResult {
    let failure = result.failure.map(|failure| Failure { detail: String::new(), ..failure });
    JobResult {
        payload: Bytes::new(),
        failure,
        meta: Default::default(),
        claimed: None,
        extra: Default::default(),
        ..result
    }
}

/// A verdict's refusal as an error.
impl<T, A> Verdict<T, A> {
    /// # Errors
    /// The refusal. `Ok(Ok)` is to be done, `Ok(Err)` is so already.
    pub fn refused(self) -> Result<Result<T, A>, BrokerError> {
        match self {
            Self::Do(write) => Ok(Ok(write)),
            Self::Already(answer) => Ok(Err(answer)),
            Self::Refuse(error) => Err(error),
        }
    }
}
