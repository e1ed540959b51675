//! A worker's result against what relay knows of the run. The first result for a run counts, and what is relay's in it is
//! the record's: a worker says how the handler ended, and nothing else.

use std::time::Duration;

use super::refusal::{no_job, unknown_run};
use super::{Known, Record, SKEW, Verdict, leaves_letter};
use crate::contract::result::{DETAIL_BYTES_MAX, End, FAILURE_CONTENT_TYPE, REASON_BYTES_MAX, words_of};
use crate::contract::trace::TRACEPARENT;
use crate::contract::{Failure, JobResult, Outcome, Timestamp};
use crate::leasing::Recorded;

const OPERATION: &str = "record";
/// The longest content type of a result, in bytes: docs/contract.md, section 4.
pub const CONTENT_TYPE_BYTES_MAX: usize = 255;
/// The most bytes of fields that this build does not know.
const EXTRA_BYTES_MAX: usize = 4 * 1024;

/// The writes for a run that ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The result as relay keeps it.
    pub result: JobResult,
    /// Whether relay sees to the run's dead letter, before the result: it keeps its own where the worker has sent none.
    pub keeps_letter: bool,
    /// Whether another attempt may have left a dead letter, which the run's end takes back. A broker that knows of one takes it
    /// back wherever relay keeps none.
    pub takes_letter: bool,
    /// The facts that were not as the worker said.
    pub corrections: Corrections,
}

/// The facts that were not as a worker said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Corrections {
    /// A time outside of the run.
    pub times: bool,
    /// An attempt that was not started.
    pub attempt: bool,
    /// A fact that is the record's.
    pub facts: bool,
    /// The payload was too large.
    pub too_large: bool,
    /// The content type, reason or detail could not be taken.
    pub invalid: bool,
}

/// The meaning of a result.
///
/// | known of the job | answer |
/// | --- | --- |
/// | nothing, or another client's or queue's | refused: there is no such job |
/// | a result of this run, with the same claim | already, `First` |
/// | a result of this run or a greater one | already, `Superseded` with its outcome |
/// | a record of a greater run | already, `Superseded` with the last known outcome |
/// | a record of a smaller run | refused: no relay gave that run out |
/// | an open record of this run | do: the result [as relay keeps it](Ending) |
///
/// `result_max` is the largest payload in bytes that the queue and its broker take. Where the payload is larger, or the
/// content type (above 255 bytes, or no header's value), the reason (above 64 bytes) or the detail (above 8 KiB) can't be
/// taken, the run ends as `failed`: a refusal would start the handler again. A run that ends as `failed` or `exhausted` has a
/// dead letter, also where its worker sent none.
#[must_use]
pub fn record(known: Option<&Known>, sent: &JobResult, result_max: u64, now: Timestamp) -> Verdict<Ending, Recorded> {
    let Some(known) = known else { return Verdict::Refuse(no_job(OPERATION, sent.job_id)) };
    if let Some(Record { job, .. }) = &known.record
        && (&job.client, &job.queue) != (&sent.client, &sent.queue)
    {
        return Verdict::Refuse(no_job(OPERATION, sent.job_id));
    }
    if let Some(ended) = known.ended.as_ref().filter(|ended| ended.run >= sent.run_id) {
        let again = ended.run == sent.run_id && ended.claim.is_some_and(|claim| claim == sent.words());
        return Verdict::Already(if again { Recorded::First } else { Recorded::Superseded(ended.outcome) });
    }
    let Some(record) = &known.record else { return Verdict::Refuse(no_job(OPERATION, sent.job_id)) };
    match record.job.run_id.cmp(&sent.run_id) {
        std::cmp::Ordering::Greater => {
            let outcome = known.ended.as_ref().map_or(sent.outcome, |ended| ended.outcome);
            Verdict::Already(Recorded::Superseded(outcome))
        }
        std::cmp::Ordering::Less => Verdict::Refuse(unknown_run(OPERATION, "result")),
        std::cmp::Ordering::Equal => Verdict::Do(ending(record, sent, result_max, now)),
    }
}

/// The result as relay keeps it.
fn ending(record: &Record, sent: &JobResult, result_max: u64, now: Timestamp) -> Ending {
    let mut corrections = Corrections::default();
    let job = &record.job;
    let least = u32::from(sent.outcome == Outcome::Succeeded);
    let attempt = sent.attempt.clamp(least, record.attempts.max(1));
    corrections.attempt = attempt != sent.attempt;
    let within = |at: Timestamp| within_run(at, job.due_at, now);
    let finished_at = within(sent.finished_at);
    let started_at = sent.started_at.map(|at| within(at).min(finished_at));
    corrections.times = (started_at, finished_at) != (sent.started_at, sent.finished_at);
    let end = End { attempt, started_at, finished_at };

    let actual = sent.payload.len() as u64;
    // A failure without a handler's output has relay's words of it as payload, which are bounded by themselves.
    let own_words = sent.outcome != Outcome::Succeeded && sent.content_type == FAILURE_CONTENT_TYPE;
    let refused = if actual > result_max && !own_words {
        corrections.too_large = true;
        let why = format!("the result has {actual} bytes, allowed are {result_max}");
        Some(Failure::new("result-too-large", why))
    } else {
        invalid(sent).map(|why| {
            corrections.invalid = true;
            Failure::new("result-invalid", why)
        })
    };
    let extra = if sent.extra.byte_len() > EXTRA_BYTES_MAX { Default::default() } else { sent.extra.clone() };
    let kept = JobResult {
        job_id: sent.job_id,
        run_id: sent.run_id,
        generation: job.generation,
        client: job.client.clone(),
        queue: job.queue.clone(),
        key: job.key.clone(),
        meta: job.meta(),
        outcome: sent.outcome,
        attempt,
        content_type: sent.content_type.clone(),
        payload: sent.payload.clone(),
        failure: sent.failure.clone(),
        accepted_at: job.accepted_at,
        started_at,
        finished_at,
        keep_ms: job.keep_ms,
        traceparent: job.headers.get(TRACEPARENT).cloned(),
        hops: job.hops(),
        claimed: None,
        extra,
    };
    corrections.facts = differs(&kept, sent);
    let mut result = match (&refused, &sent.failure) {
        (Some(failure), _) => JobResult::unsuccessful(job, Outcome::Failed, end, failure.clone()),
        (None, Some(failure)) if own_words => JobResult { payload: words_of(failure), ..kept },
        (None, _) => kept,
    };
    if corrections.attempt || refused.is_some() || result.payload != sent.payload {
        result.claimed = Some(sent.words());
    }
    let keeps_letter = leaves_letter(result.outcome);
    Ending { keeps_letter, takes_letter: !keeps_letter && record.attempts > 1, result, corrections }
}

/// Whether what is the record's was otherwise in what was sent. Workers before this release send neither key nor meta.
fn differs(kept: &JobResult, sent: &JobResult) -> bool {
    let facts = |result: &JobResult| (result.generation, result.accepted_at, result.keep_ms);
    facts(kept) != facts(sent)
        || kept.traceparent != sent.traceparent
        || sent.key.is_some() && kept.key != sent.key
        || !sent.meta.is_empty() && kept.meta != sent.meta
}

/// The time, if it is within the run as far as two clocks agree; else the run's start or now.
fn within_run(at: Timestamp, due_at: Timestamp, now: Timestamp) -> Timestamp {
    let skew = i64::try_from(SKEW.as_millis()).unwrap_or(i64::MAX);
    if at.as_millis() < due_at.as_millis().saturating_sub(skew) {
        return due_at.min(now);
    }
    if at > now + SKEW { now } else { at }
}

/// Why a result can't be kept as it is.
fn invalid(sent: &JobResult) -> Option<String> {
    let content_type = sent.content_type.len();
    if content_type > CONTENT_TYPE_BYTES_MAX {
        return Some(format!("the content type has {content_type} bytes, allowed are {CONTENT_TYPE_BYTES_MAX}"));
    }
    if !fits_header(&sent.content_type) {
        return Some("the content type is no header's value: visible ASCII, with spaces and tabs within".to_owned());
    }
    match (&sent.failure, sent.outcome) {
        (None, Outcome::Succeeded) => None,
        (None, outcome) => Some(format!("the outcome is `{outcome}` and no reason was given")),
        (Some(_), Outcome::Succeeded) => Some("the outcome is `succeeded` and a reason was given".to_owned()),
        (Some(failure), _) => {
            let (reason, detail) = (failure.reason.len(), failure.detail.len());
            if reason > REASON_BYTES_MAX {
                Some(format!("the reason has {reason} bytes, allowed are {REASON_BYTES_MAX}"))
            } else if detail > DETAIL_BYTES_MAX {
                Some(format!("the detail has {detail} bytes, allowed are {DETAIL_BYTES_MAX}"))
            } else {
                None
            }
        }
    }
}

/// Whether a text can be a header's value: visible ASCII, with spaces and tabs within (RFC 9110, section 5.5, without the
/// bytes above ASCII that it calls obsolete).
#[must_use]
pub fn fits_header(text: &str) -> bool {
    let visible = text.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    visible && text.trim_matches([' ', '\t']) == text
}

/// Until when a result that is recorded at `now` is kept: at least as long as its record.
#[must_use]
pub fn keep_until(result: &JobResult, due_at: Timestamp, now: Timestamp) -> Timestamp {
    now.max(due_at) + Duration::from_millis(result.keep_ms)
}
