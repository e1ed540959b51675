//! Each rule's table, and that every rule gives the same answer to the same call once its answer was written.

mod of_letters;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::contract::result::{DETAIL_BYTES_MAX, End};
use crate::contract::{Failure, JobId, Submission};
use crate::dead_letters::DeadLetter;
use crate::error::BrokerErrorKind as Kind;
use crate::leasing::Recorded;
use crate::policy::QueuePolicy;

const START: i64 = 1_790_000_000_000;
const RESULT_MAX: u64 = 1_000;

fn now() -> Timestamp {
    Timestamp::from_millis(START) + Duration::from_secs(60)
}

fn job(key: Option<&str>) -> Job {
    let submission = Submission {
        client: "acme".parse().unwrap(),
        queue: "work".parse().unwrap(),
        key: key.map(|key| key.parse().unwrap()),
        content_type: "text/plain".to_owned(),
        content_encoding: None,
        headers: [("relay-meta-tenant".to_owned(), "blue".to_owned())].into(),
        payload: "in".into(),
        delay: Duration::ZERO,
        expires_in: None,
    };
    submission.accept(&QueuePolicy::default(), Timestamp::from_millis(START))
}

fn known(job: &Job, ended: Option<Outcome>) -> Known {
    let payload = if job.keep_record { Payload::Kept } else { Payload::NotKept };
    let record = Record { job: Arc::new(job.clone()), attempts: 2, started_at: Some(now()), payload };
    let ended = ended.map(|outcome| Ended::of(&result(job, outcome)));
    Known { record: Some(record), ended }
}

fn result(job: &Job, outcome: Outcome) -> JobResult {
    let end = End { attempt: 2, started_at: Some(now()), finished_at: now() };
    match outcome {
        Outcome::Succeeded => JobResult::succeeded(job, end, "text/plain", "out".into()),
        outcome => JobResult::unsuccessful(job, outcome, end, Failure::new("exit-code", "2")),
    }
}

fn letter(job: &Job) -> DeadLetter {
    let failure = Failure::new("exit-code", "2");
    DeadLetter { job: job.clone(), outcome: Outcome::Failed, attempt: 2, failure, at: now(), extra: Default::default() }
}

fn done<T, A: std::fmt::Debug>(verdict: Verdict<T, A>) -> T {
    match verdict {
        Verdict::Do(write) => write,
        Verdict::Already(answer) => panic!("already: {answer:?}"),
        Verdict::Refuse(error) => panic!("refused: {error}"),
    }
}

fn short<T, A>(verdict: &Verdict<T, A>) -> String {
    match verdict {
        Verdict::Do(_) => "do".to_owned(),
        Verdict::Already(_) => "already".to_owned(),
        Verdict::Refuse(error) => format!("{:?}: {}", error.kind(), error.detail()),
    }
}

fn recorded(known: Option<&Known>, sent: &JobResult) -> Verdict<Ending, Recorded> {
    record(known, sent, RESULT_MAX, now())
}

#[test]
fn what_is_relays_in_a_result_comes_from_the_record() {
    let job = job(Some("k"));
    let honest = result(&job, Outcome::Succeeded);
    let ending = done(recorded(Some(&known(&job, None)), &honest));
    assert_eq!((ending.result, ending.corrections), (honest.clone(), Default::default()));

    let lie = JobResult {
        generation: 9,
        key: Some("other".parse().unwrap()),
        meta: [("tenant".to_owned(), "red".to_owned())].into(),
        attempt: 4_000_000_000,
        accepted_at: Timestamp::EPOCH,
        started_at: Some(Timestamp::EPOCH),
        finished_at: Timestamp::MAX,
        keep_ms: 0,
        traceparent: Some("00-1".to_owned()),
        ..honest.clone()
    };
    let ending = done(recorded(Some(&known(&job, None)), &lie));
    let claimed = Some(lie.claim());
    let kept = JobResult { started_at: Some(job.due_at), claimed, ..honest };
    assert_eq!(ending.result, kept);
    let all = record::Corrections { times: true, attempt: true, facts: true, ..Default::default() };
    assert_eq!((ending.corrections, ending.keeps_letter), (all, false));
}

#[test]
fn times_may_be_off_by_as_much_as_two_clocks() {
    let job = job(Some("k"));
    for (before, after, clamped) in [(5_000, 5_000, false), (5_001, 0, true), (0, 5_001, true)] {
        let sent = JobResult {
            started_at: Some(Timestamp::from_millis(START - before)),
            finished_at: now() + Duration::from_millis(after),
            ..result(&job, Outcome::Succeeded)
        };
        let ending = done(recorded(Some(&known(&job, None)), &sent));
        assert_eq!(ending.corrections.times, clamped, "{before} {after}");
    }
    let backwards = JobResult {
        started_at: Some(now()),
        finished_at: now() + Duration::from_secs(1),
        ..result(&job, Outcome::Succeeded)
    };
    let backwards = JobResult { started_at: Some(now() + Duration::from_secs(2)), ..backwards };
    let ending = done(recorded(Some(&known(&job, None)), &backwards));
    assert_eq!(ending.result.started_at, Some(ending.result.finished_at));
}

#[test]
fn a_result_that_cannot_be_kept_ends_the_run_once_as_failed_and_relay_keeps_the_letter() {
    let job = job(Some("k"));
    let honest = result(&job, Outcome::Succeeded);
    let failed = result(&job, Outcome::Failed);
    let long = |bytes: usize| "x".repeat(bytes);
    let failure = |reason: usize, detail: usize| Some(Failure { reason: long(reason), detail: long(detail) });
    let table = [
        (JobResult { payload: Bytes::from(vec![0; 1_001]), ..honest.clone() }, "result-too-large"),
        (
            JobResult { payload: Bytes::from(vec![0; 1_001]), content_type: "text/plain".to_owned(), ..failed.clone() },
            "result-too-large",
        ),
        (JobResult { content_type: long(256), ..honest.clone() }, "result-invalid"),
        (JobResult { content_type: "text/plain\r\nx: y".to_owned(), ..honest.clone() }, "result-invalid"),
        (JobResult { content_type: "text/\u{7f}".to_owned(), ..honest.clone() }, "result-invalid"),
        (JobResult { content_type: "text/\u{fc}".to_owned(), ..honest.clone() }, "result-invalid"),
        (JobResult { content_type: " text/plain".to_owned(), ..honest.clone() }, "result-invalid"),
        (JobResult { failure: failure(1, 1), ..honest.clone() }, "result-invalid"),
        (JobResult { failure: failure(65, 1), ..failed.clone() }, "result-invalid"),
        (JobResult { failure: failure(1, DETAIL_BYTES_MAX + 1), ..failed.clone() }, "result-invalid"),
        (JobResult { failure: None, ..failed.clone() }, "result-invalid"),
    ];
    for (sent, reason) in table {
        let ending = done(recorded(Some(&known(&job, None)), &sent));
        let failure = ending.result.failure.as_ref().unwrap();
        assert_eq!((ending.result.outcome, failure.reason.as_str()), (Outcome::Failed, reason), "{sent:?}");
        assert!(ending.keeps_letter && letters::own_letter(&job, &ending.result).is_some());
        let after = Known { ended: Some(Ended::of(&ending.result)), ..known(&job, None) };
        let again = recorded(Some(&after), &sent);
        assert!(matches!(again, Verdict::Already(Recorded::First)), "{reason}: {}", short(&again));
    }
    for sent in [
        JobResult { payload: Bytes::from(vec![0; 1_000]), content_type: long(255), ..honest },
        JobResult { failure: failure(64, DETAIL_BYTES_MAX), payload: vec![0; 2_000].into(), ..failed },
    ] {
        let ending = done(recorded(Some(&known(&job, None)), &sent));
        assert_eq!((ending.result.outcome, ending.keeps_letter), (sent.outcome, sent.outcome == Outcome::Failed));
    }
}

#[test]
fn a_claim_that_comes_with_a_result_is_not_its_words() {
    let job = job(Some("k"));
    let (first, other) = (result(&job, Outcome::Succeeded), result(&job, Outcome::Failed));
    let forged = |claim| JobResult { claimed: Some(claim), attempt: u32::MAX, ..other.clone() };
    let kept = done(recorded(Some(&known(&job, None)), &JobResult { claimed: Some(other.words()), ..first.clone() }));
    assert_eq!((kept.result.claim(), kept.result.claimed), (first.words(), None));
    let after = Known { ended: Some(Ended::of(&kept.result)), ..known(&job, None) };
    for sent in [forged(first.words()), forged(kept.result.claim())] {
        assert!(matches!(recorded(Some(&after), &sent), Verdict::Already(Recorded::Superseded(Outcome::Succeeded))));
    }
    let corrected = done(recorded(Some(&known(&job, None)), &forged(first.words())));
    assert_eq!(corrected.result.claimed, Some(forged(first.words()).words()));
}

#[test]
fn a_result_is_judged_by_the_run_it_names() {
    let job = job(Some("k"));
    let (sent, next) = (result(&job, Outcome::Succeeded), job.next_run(now()));
    let table = [
        (None, "NotFound: "),
        (Some(known(&job, None)), "do"),
        (Some(known(&job, Some(Outcome::Cancelled))), "already"),
        (Some(known(&next, None)), "already"),
        (Some(Known { record: None, ended: Some(Ended::of(&sent)) }), "already"),
        (Some(Known::default()), "NotFound: "),
    ];
    for (known, expected) in table {
        let verdict = short(&recorded(known.as_ref(), &sent));
        assert!(verdict.starts_with(expected), "{known:?}: {verdict}");
    }
    let later = short(&recorded(Some(&known(&job, None)), &result(&next, Outcome::Succeeded)));
    assert_eq!(later, "Invalid: the result names a run that no relay gave out");
    let other = JobResult { client: "other".parse().unwrap(), ..sent };
    assert!(short(&recorded(Some(&known(&job, None)), &other)).starts_with("NotFound"));
}

#[test]
fn a_rerun_names_the_generation_it_starts_from() {
    let (keyed, bare) = (job(Some("k")), job(None));
    let ended = |job: &Job| known(job, Some(Outcome::Failed));
    let erased = |mut known: Known| {
        known.record.as_mut().unwrap().payload = Payload::Erased;
        known
    };
    let left = Known { record: None, ..ended(&keyed) };
    let table = [
        (Some(ended(&keyed)), 1, "do"),
        (Some(ended(&keyed.next_run(now()))), 1, "already"),
        (Some(known(&keyed.next_run(now()), None)), 1, "already"),
        (Some(ended(&keyed)), 0, "StateConflict: the job is in generation 1, not 0: rerun that one, if it is meant"),
        (
            Some(ended(&keyed)),
            u32::MAX,
            "StateConflict: the job is in generation 1, not 4294967295: rerun that one, if it is meant",
        ),
        (Some(known(&keyed, None)), 1, "StateConflict: generation 1 has not ended: wait for it, or cancel it"),
        (Some(erased(ended(&keyed))), 1, "StateConflict: the payload was erased: submit the job again"),
        (
            Some(ended(&bare)),
            1,
            "StateConflict: the payload was not kept: submit the job again, or set `keep_keyless` for the queue",
        ),
        (Some(left.clone()), 1, "StateConflict: the payload is not kept any more: submit the job again"),
        (Some(left), 2, "StateConflict: the job is in generation 1, not 2: rerun that one, if it is meant"),
    ];
    for (known, from, expected) in table {
        assert_eq!(short(&rerun(known.as_ref(), keyed.id, from, now())), expected, "{from} {known:?}");
    }
    let gone = short(&rerun(Some(&Known { record: None, ..ended(&bare) }), bare.id, 1, now()));
    assert!(gone.starts_with("StateConflict: the payload was not kept"), "its record went with its run: {gone}");
    assert!(matches!(rerun(None, keyed.id, 1, now()), Verdict::Refuse(error) if error.kind() == Kind::NotFound));
}

#[test]
fn a_lease_request_is_bounded() {
    let queue = |n: usize| format!("q{n}").parse().unwrap();
    let request = |queues: usize| LeaseRequest {
        worker: "w".parse().unwrap(),
        queues: (0..queues).map(queue).collect(),
        max: std::num::NonZeroU32::MAX,
        wait: Duration::MAX,
    };
    for queues in [0, LEASE_QUEUES_MAX + 1] {
        assert_eq!(lease_request(&request(queues)).unwrap_err().kind(), Kind::Invalid);
    }
    let bounded = lease_request(&request(LEASE_QUEUES_MAX)).unwrap();
    assert_eq!((bounded.max.get(), bounded.wait), (LEASE_BATCH_MAX, LEASE_WAIT_MAX));
}

prop_compose! {
    fn any_known()(
        keyed in any::<bool>(), runs in 1_u32..4, attempts in 0_u32..20, started in any::<bool>(),
        payload in prop::sample::select(&[Payload::Kept, Payload::NotKept, Payload::Erased][..]),
        record in any::<bool>(), ended in prop::option::of((prop::sample::select(&Outcome::ALL[..]), any::<bool>())),
    ) -> Known {
        let mut job = job(keyed.then_some("k"));
        let mut before = job.clone();
        for _ in 1..runs {
            before = job.clone();
            job = job.next_run(now());
        }
        let ended = ended.map(|(outcome, last)| Ended::of(&result(if last { &job } else { &before }, outcome)));
        let started_at = started.then(now);
        Known { record: record.then_some(Record { job: job.into(), attempts, started_at, payload }), ended }
    }
}

prop_compose! {
    fn any_result()(
        known in any_known(), outcome in prop::sample::select(&Outcome::ALL[..]), attempt in any::<u32>(),
        times in (any::<i64>(), prop::option::of(any::<i64>())), keep_ms in any::<u64>(), size in 0_usize..1_200,
        content_type in ".{0,300}", failure in prop::option::of((".{0,80}", 0_usize..9_000)), next in any::<bool>(),
    ) -> (Known, JobResult) {
        let base = known.record.as_ref().map_or_else(|| job(Some("k")).into(), |record| record.job.clone());
        let base = if next { base.next_run(now()).into() } else { base };
        let sent = JobResult {
            attempt, keep_ms, content_type,
            payload: vec![7; size].into(),
            failure: failure.map(|(reason, detail)| Failure { reason, detail: "d".repeat(detail) }),
            finished_at: Timestamp::from_millis(times.0),
            started_at: times.1.map(Timestamp::from_millis),
            ..result(&base, outcome)
        };
        (known, sent)
    }
}

proptest! {
    #[test]
    fn the_same_result_again_is_the_first_one_whatever_was_in_it((known, sent) in any_result()) {
        if let Verdict::Do(ending) = recorded(Some(&known), &sent) {
            let after = Known { ended: Some(Ended::of(&ending.result)), ..known.clone() };
            prop_assert!(matches!(recorded(Some(&after), &sent), Verdict::Already(Recorded::First)));
            let read = Known { record: None, ..after };
            prop_assert!(matches!(recorded(Some(&read), &sent), Verdict::Already(Recorded::First)));
        }
    }

    #[test]
    fn what_is_recorded_is_within_bounds_whatever_was_sent((known, sent) in any_result()) {
        if let Verdict::Do(Ending { result, .. }) = recorded(Some(&known), &sent) {
            let record = known.record.as_ref().unwrap();
            prop_assert!(result.attempt <= record.attempts.max(1));
            prop_assert!(result.finished_at <= now() + SKEW && result.started_at.is_none_or(|at| at <= result.finished_at));
            prop_assert!(result.content_type.len() <= 255 && record::fits_header(&result.content_type));
            prop_assert!(result.failure.is_some() == (result.outcome != Outcome::Succeeded));
            prop_assert!(result.failure.iter().all(|why| why.reason.len() <= 64 && why.detail.len() <= DETAIL_BYTES_MAX));
            prop_assert_eq!(result.keep_ms, record.job.keep_ms);
            prop_assert!(record::keep_until(&result, record.job.due_at, now()) >= record.job.keep_until());
        }
    }

    #[test]
    fn a_rerun_that_was_started_is_answered_again(known in any_known(), from in 0_u32..5) {
        if let Verdict::Do(next) = rerun(Some(&known), JobId::mint(), from, now()) {
            prop_assert!(known.run().is_some_and(|(run, _)| next.run_id > run));
            prop_assert_eq!(next.generation, from + 1);
            let record = known.record.clone().map(|record| Record { job: next.clone().into(), ..record });
            let after = Known { record, ..known };
            prop_assert!(matches!(rerun(Some(&after), JobId::mint(), from, now()), Verdict::Already(())));
        }
    }

    #[test]
    fn a_redrive_that_was_started_is_answered_again(known in prop::option::of(any_known()), there in any::<bool>()) {
        let base = known.as_ref().and_then(|known| known.record.clone()).map_or_else(|| job(Some("k")).into(), |record| record.job);
        let letter = letter(&base);
        let ask = |known: Option<&Known>, letter| redrive(known, letter, base.id, base.run_id, now());
        if let Verdict::Do(next) = ask(known.as_ref(), Some(&letter)) {
            prop_assert!(next.run_id > base.run_id && !next.payload.is_empty());
            let record = Record { job: next.into(), attempts: 0, started_at: None, payload: Payload::Kept };
            let after = Known { record: Some(record), ended: known.and_then(|known| known.ended) };
            prop_assert!(matches!(ask(Some(&after), there.then_some(&letter)), Verdict::Already(())));
        }
    }

    #[test]
    fn a_letter_is_kept_the_same_twice(known in any_known()) {
        let base = known.record.as_ref().map_or_else(|| job(None).into(), |record| record.job.clone());
        if let Verdict::Do(kept) = keep_letter(Some(&known), &letter(&base), now()) {
            prop_assert_eq!(done(keep_letter(Some(&known), &kept, now())), kept);
        }
    }

    #[test]
    fn a_run_is_cancelled_and_erased_once(known in any_known()) {
        if let Verdict::Do(result) = cancel(Some(&known), JobId::mint(), now()) {
            let after = Known { ended: Some(Ended::of(&result)), ..known.clone() };
            prop_assert!(matches!(cancel(Some(&after), JobId::mint(), now()), Verdict::Already(())));
            prop_assert!(matches!(expire(Some(&after), JobId::mint(), now()), Verdict::Already(())));
        }
        if let Verdict::Do(left) = erase(Some(&known), JobId::mint()) {
            let record = known.record.clone().zip(left.clone()).map(|(record, job)| Record { job: job.into(), ..record });
            let after = Known { record, ..known };
            prop_assert_eq!(done(erase(Some(&after), JobId::mint())), left);
        }
    }
}
