//! Which dead letters are kept, and which are taken back.

use super::refusal::{no_job, unknown_run};
use super::{Known, Payload, Verdict};
use crate::contract::result::End;
use crate::contract::{Failure, Job, JobResult, Outcome, RunId, Timestamp};
use crate::dead_letters::DeadLetter;
use crate::error::{BrokerError, BrokerErrorKind};

const OPERATION: &str = "dead-letter";

/// Whether a run that ended so leaves a dead letter.
#[must_use]
pub fn leaves_letter(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Failed | Outcome::Exhausted)
}

/// The meaning of a dead letter. The job in the answer is the record's; of the worker's it has the payload at most, and
/// that only if it is the payload that the client sent.
///
/// | known of the job | answer |
/// | --- | --- |
/// | no record, or another client's or queue's | refused: there is no such job |
/// | a record of a later run | already: that run needs no letter any more |
/// | a record of another run or generation | refused: no relay gave that run out |
/// | a record of this run, which did not fail, or whose payload was erased | already: it leaves no letter |
/// | a record of this run, which has ended, and neither it nor the letter has the payload | already: nothing is left to start again |
/// | a record of this run, open or failed | do: the letter as relay keeps it |
/// | an outcome that leaves no letter | refused: `failed` and `exhausted` do |
#[must_use]
pub fn keep_letter(known: Option<&Known>, letter: &DeadLetter, now: Timestamp) -> Verdict<DeadLetter> {
    let sent = &letter.job;
    let refuse_job = || Verdict::Refuse(no_job(OPERATION, sent.id));
    let Some(record) = known.and_then(|known| known.record.as_ref()) else { return refuse_job() };
    let job = &record.job;
    if (&job.client, &job.queue) != (&sent.client, &sent.queue) {
        return refuse_job();
    }
    if job.run_id > sent.run_id {
        return Verdict::Already(());
    }
    if (job.run_id, job.generation) != (sent.run_id, sent.generation) {
        return Verdict::Refuse(unknown_run(OPERATION, "letter"));
    }
    if !leaves_letter(letter.outcome) {
        let why = format!("a run that ends as `{}` leaves no dead letter", letter.outcome);
        return Verdict::Refuse(BrokerError::new(BrokerErrorKind::Invalid, OPERATION, why));
    }
    let ended_well = known.and_then(Known::outcome).is_some_and(|outcome| !leaves_letter(outcome));
    if ended_well || record.payload == Payload::Erased {
        return Verdict::Already(());
    }
    let payload = if job.payload.is_empty() && is_payload_of(job, sent) { &sent.payload } else { &job.payload };
    if record.payload == Payload::NotKept && known.and_then(Known::outcome).is_some() && !has_payload(job, payload) {
        return Verdict::Already(());
    }
    let failure = Failure::new(letter.failure.reason.clone(), letter.failure.detail.clone());
    Verdict::Do(DeadLetter {
        job: Job { payload: payload.clone(), ..Job::clone(job) },
        outcome: letter.outcome,
        attempt: letter.attempt.min(record.attempts.max(1)),
        failure,
        at: letter.at.clamp(job.due_at.min(now), now),
        extra: Default::default(),
    })
}

/// Whether a worker's copy of the job has the payload that the client sent.
#[must_use]
pub fn is_payload_of(job: &Job, copy: &Job) -> bool {
    has_payload(job, &copy.payload)
}

/// Whether `payload` is the one that the client sent as `job`.
pub(super) fn has_payload(job: &Job, payload: &[u8]) -> bool {
    job.fingerprint.is_of(&job.content_type, job.content_encoding.as_deref(), payload)
}

/// Whether the dead letter of `run` is taken back, for every caller: that run has ended, and not badly.
///
/// | known of the run | answer |
/// | --- | --- |
/// | it ended as `succeeded`, `cancelled` or `expired` | yes |
/// | it ended as `failed` or `exhausted`, is open, or another run's result is there | no |
#[must_use]
pub fn retract_letter(known: Option<&Known>, run: RunId) -> bool {
    let ended = known.and_then(|known| known.ended.as_ref()).filter(|ended| ended.run == run);
    ended.is_some_and(|ended| !leaves_letter(ended.outcome))
}

/// The letter that relay keeps of a run which it ends as failed by itself.
#[must_use]
pub fn own_letter(job: &Job, result: &JobResult) -> Option<DeadLetter> {
    let failure = result.failure.clone().filter(|_| leaves_letter(result.outcome))?;
    let (outcome, attempt, at) = (result.outcome, result.attempt, result.finished_at);
    Some(DeadLetter { job: job.clone(), outcome, attempt, failure, at, extra: Default::default() })
}

/// The end of a run whose result is lost and whose letter is there: as the letter says, unless the run has a result.
///
/// | known of the job | answer |
/// | --- | --- |
/// | a result of this run or a later one | already |
/// | else | do: the letter's outcome, attempt, failure and time |
#[must_use]
pub fn end_as(known: Option<&Known>, letter: &DeadLetter) -> Verdict<JobResult> {
    if known.is_some_and(|known| known.outcome().is_some()) {
        return Verdict::Already(());
    }
    // When it started nobody knows any more.
    let end = End { attempt: letter.attempt, started_at: None, finished_at: letter.at };
    Verdict::Do(JobResult::unsuccessful(&letter.job, letter.outcome, end, letter.failure.clone()))
}

/// Why the letter of a run that did not fail is not redriven.
pub(super) fn did_not_fail(outcome: Outcome) -> String {
    match outcome {
        Outcome::Succeeded => "the run succeeded after all: purge the dead letter instead".to_owned(),
        other => format!("the run ended as `{other}` after all: purge the dead letter, its client may rerun the job"),
    }
}
