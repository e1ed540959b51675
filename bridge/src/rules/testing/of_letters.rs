//! Which letter is kept, taken back and redriven.

use super::*;

#[test]
fn a_letter_is_taken_back_where_another_attempt_may_have_left_one() {
    let job = job(Some("k"));
    for (outcome, attempts, takes) in
        [(Outcome::Succeeded, 1, false), (Outcome::Succeeded, 2, true), (Outcome::Failed, 2, false)]
    {
        // Whichever attempt it is that ends the run late.
        let (mut known, sent) = (known(&job, None), JobResult { attempt: 1, ..result(&job, outcome) });
        known.record.as_mut().unwrap().attempts = attempts;
        let ending = done(recorded(Some(&known), &sent));
        assert_eq!((ending.takes_letter, ending.keeps_letter), (takes, outcome == Outcome::Failed));
    }
}

#[test]
fn a_redrive_starts_the_job_of_its_letter_and_no_other() {
    let job = job(Some("k"));
    let (letter, run) = (letter(&job), job.run_id);
    let mut other = self::job(Some("k"));
    other.fingerprint = crate::contract::Fingerprint::of("text/plain", None, b"another body");
    other.run_id = job.next_run(now()).run_id;
    let ask =
        |known: Option<Known>, letter: Option<&DeadLetter>| short(&redrive(known.as_ref(), letter, job.id, run, now()));
    let next = job.next_run(now());
    assert_eq!(ask(None, Some(&letter)), "do");
    assert_eq!(ask(Some(known(&job, Some(Outcome::Failed))), Some(&letter)), "do");
    assert_eq!(ask(Some(known(&job, Some(Outcome::Exhausted))), Some(&letter)), "do");
    assert_eq!(ask(Some(known(&next, None)), Some(&letter)), "already");
    assert_eq!(ask(Some(known(&next, None)), None), "already");
    assert!(ask(None, None).starts_with("NotFound: there is no dead letter"));
    assert!(ask(Some(known(&job, None)), None).starts_with("NotFound: there is no dead letter"));
    assert!(ask(Some(known(&job, None)), Some(&letter)).starts_with("StateConflict: the run has not ended"));
    assert!(ask(Some(known(&job, Some(Outcome::Succeeded))), Some(&letter)).contains("succeeded after all"));
    assert!(ask(Some(known(&job, Some(Outcome::Cancelled))), Some(&letter)).contains("`cancelled` after all"));
    assert!(ask(Some(known(&job, Some(Outcome::Expired))), Some(&letter)).contains("`expired` after all"));
    assert!(ask(Some(known(&other, None)), Some(&letter)).contains("another job's, with another body"));
}

#[test]
fn a_letter_is_kept_of_a_run_that_relay_gave_out_with_what_relay_knows() {
    let job = job(Some("k"));
    let lie = DeadLetter {
        job: Job {
            content_type: "x".to_owned(),
            headers: Default::default(),
            payload: "not the client's".into(),
            keep_ms: 0,
            ..job.clone()
        },
        attempt: 4_000_000_000,
        failure: Failure { reason: "r".repeat(100), detail: "d".repeat(DETAIL_BYTES_MAX * 2) },
        at: Timestamp::MAX,
        ..letter(&job)
    };
    let kept = done(keep_letter(Some(&known(&job, None)), &lie, now()));
    assert_eq!((&kept.job, kept.attempt, kept.at), (&job, 2, now()));
    assert_eq!((kept.failure.reason.len(), kept.failure.detail.len()), (64, DETAIL_BYTES_MAX));
    // Where the payload lies elsewhere, the worker's copy is taken if it is the client's.
    let mut apart = known(&job, None);
    Arc::make_mut(&mut apart.record.as_mut().unwrap().job).payload = Bytes::new();
    assert_eq!(done(keep_letter(Some(&apart), &letter(&job), now())).job, job);
    assert!(done(keep_letter(Some(&apart), &lie, now())).job.payload.is_empty());

    let next = job.next_run(now());
    let ask = |known: Option<Known>, letter: &DeadLetter| short(&keep_letter(known.as_ref(), letter, now()));
    assert!(ask(None, &letter(&job)).starts_with("NotFound"));
    assert_eq!(ask(Some(known(&next, None)), &letter(&job)), "already");
    assert_eq!(ask(Some(known(&job, None)), &letter(&next)), "Invalid: the letter names a run that no relay gave out");
    assert_eq!(ask(Some(known(&job, Some(Outcome::Cancelled))), &letter(&job)), "already");
    assert_eq!(ask(Some(known(&job, Some(Outcome::Failed))), &letter(&job)), "do");
    let mut erased = known(&job, Some(Outcome::Failed));
    erased.record.as_mut().unwrap().payload = Payload::Erased;
    assert_eq!(ask(Some(erased), &letter(&job)), "already", "what was erased does not come back");
    let succeeded = DeadLetter { outcome: Outcome::Succeeded, ..letter(&job) };
    assert!(ask(Some(known(&job, None)), &succeeded).starts_with("Invalid"));
}

#[test]
fn a_letter_is_taken_back_where_the_run_did_not_fail() {
    let job = job(Some("k"));
    for outcome in Outcome::ALL {
        let taken = retract_letter(Some(&known(&job, Some(outcome))), job.run_id);
        assert_eq!(taken, !matches!(outcome, Outcome::Failed | Outcome::Exhausted), "{outcome}");
        assert!(!retract_letter(Some(&known(&job, Some(outcome))), job.next_run(now()).run_id));
    }
    assert!(!retract_letter(Some(&known(&job, None)), job.run_id) && !retract_letter(None, job.run_id));
}
