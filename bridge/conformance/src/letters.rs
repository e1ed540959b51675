//! Which dead letters are kept, with what in them, and what a redrive starts.

use super::Fixture;
use super::stage::{Stage, refused};
use relay_bridge::contract::{Failure, Job, JobState, Outcome, RunId};
use relay_bridge::dead_letters::{DeadLetter, LetterHead};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::{Delivery, Recorded};
use relay_bridge::settlement::Settlement;

/// A keyed job that ended as failed.
async fn dead(stage: &Stage<'_>, key: &str) -> (Job, Delivery) {
    let job = stage.submit(stage.keyed(&stage.client("a"), key)).await;
    let delivery = stage.lease_one().await;
    stage.end_badly(&delivery, Outcome::Failed).await;
    (job, delivery)
}

pub async fn a_letter_of_a_run_that_nobody_gave_out_is_not_kept(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let job = stage.submit(stage.keyed(&stage.client("a"), "key")).await;
    let delivery = stage.lease_one().await;
    let letter = stage.letter(&delivery, Outcome::Failed);
    let greater = RunId::mint(fixture.now(), Some(job.run_id));
    for wrong in [
        Job { run_id: greater, ..job.clone() },
        Job { run_id: greater, generation: 2, ..job.clone() },
        Job { generation: 2, ..job.clone() },
        Job { client: stage.client("b"), ..job.clone() },
        Job { id: relay_bridge::contract::JobId::mint(), ..job.clone() },
    ] {
        let answer = stage.leasing.dead_letter(&DeadLetter { job: wrong, ..letter.clone() }).await;
        let kind = refused(answer);
        assert!(matches!(kind, BrokerErrorKind::Invalid | BrokerErrorKind::NotFound), "{kind:?}");
    }
    let listed = stage.broker.dead_letters.list(Some(&stage.queue), None, None, 10).await.unwrap().letters;
    assert_eq!(listed, []);
    stage.leasing.dead_letter(&letter).await.unwrap();
}

pub async fn a_letter_has_what_relay_knows_of_its_job(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let mut submission = stage.keyed(&stage.client("a"), "key");
    submission.headers.insert("relay-meta-n".to_owned(), "1".to_owned());
    let job = stage.submit(submission.clone()).await;
    let delivery = stage.lease_one().await;
    let honest = stage.letter(&delivery, Outcome::Failed);
    let lie = DeadLetter {
        job: Job {
            content_type: "text/lie".to_owned(),
            headers: Default::default(),
            fingerprint: relay_bridge::contract::Fingerprint::of("text/lie", None, b"lie"),
            keep_ms: 1,
            ttl_ms: 1,
            ..job.clone()
        },
        attempt: 4_000_000_000,
        failure: Failure { reason: "r".repeat(1_000), detail: "d".repeat(100_000) },
        ..honest
    };
    stage.leasing.dead_letter(&lie).await.unwrap();
    stage.record_first(&stage.failure(&delivery, Outcome::Failed, "exit-code")).await;
    let kept = stage.broker.dead_letters.get(job.id).await.unwrap().unwrap();
    assert_eq!((&kept.job, kept.attempt), (&job, 1));
    assert_eq!((kept.failure.reason.len(), kept.failure.detail.len()), (64, 8 * 1024));
    stage.pass_lease().await;
    let redriven = stage.broker.dead_letters.redrive(job.id, job.run_id).await.unwrap();
    assert_eq!(redriven.status().generation, 2);
    let replayed = stage.replay(submission).await;
    assert_eq!((replayed.fingerprint, &replayed.content_type), (job.fingerprint, &job.content_type));
    let again = stage.lease_one().await;
    assert_eq!((&again.job.payload, &again.job.headers), (&job.payload, &job.headers));
}

pub async fn a_letter_goes_when_its_run_is_cancelled_or_expires(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    let mut short = stage.keyed(&client, "expires");
    short.expires_in = Some(stage.lease * 2);
    for (submission, outcome) in [(stage.keyed(&client, "cancelled"), Outcome::Cancelled), (short, Outcome::Expired)] {
        let job = stage.submit(submission).await;
        let delivery = stage.lease_one().await;
        stage.leasing.dead_letter(&stage.letter(&delivery, Outcome::Failed)).await.unwrap();
        // Here its worker crashes.
        if outcome == Outcome::Cancelled {
            stage.broker.jobs.cancel(&client, job.id).await.unwrap();
        } else {
            stage.pass(stage.lease * 2 + stage.slack).await;
            stage.sweep().await;
        }
        assert_eq!(stage.finished(&job).await.result.outcome, outcome);
        assert_eq!(stage.broker.dead_letters.get(job.id).await.unwrap(), None, "{outcome}");
        // Nor does one come back.
        stage.leasing.dead_letter(&stage.letter(&delivery, Outcome::Failed)).await.unwrap();
        assert_eq!(stage.broker.dead_letters.get(job.id).await.unwrap(), None, "{outcome}");
        let answer = stage.broker.dead_letters.redrive(job.id, job.run_id).await;
        assert_eq!(refused(answer), BrokerErrorKind::NotFound);
        stage.pass_lease().await;
        stage.assert_nothing_in_line().await;
        assert_eq!(stage.status(&job).await.state, JobState::Finished(outcome));
    }
}

pub async fn a_letter_goes_when_a_later_attempt_of_its_run_succeeds(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let job = stage.submit(stage.keyed(&stage.client("a"), "key")).await;
    let first = stage.lease_one().await;
    stage.leasing.dead_letter(&stage.letter(&first, Outcome::Failed)).await.unwrap();
    // Here its worker crashes, and the next one is killed before it takes anything back.
    stage.pass_lease().await;
    let second = stage.lease_one().await;
    assert_eq!(second.attempt, 2);
    stage.record_first(&stage.success(&second, "done")).await;
    assert_eq!(stage.broker.dead_letters.get(job.id).await.unwrap(), None);
    stage.settle(&second, Settlement::Complete).await;
}

pub async fn a_retraction_is_kept_to_the_queues_of_its_caller(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let (job, delivery) = dead(&stage, "key").await;
    let elsewhere = [stage.another_queue().await];
    // As the server asks that knows the worker's key.
    let leasing = &stage.broker.leasing;
    let run = delivery.job.run_id;
    let answer = leasing.retract_dead_letter(job.id, run, Some(&elsewhere)).await;
    if fixture.takes_queues_of_caller() {
        assert_eq!(refused(answer), BrokerErrorKind::Unauthorized);
    }
    let own = [elsewhere[0].clone(), stage.queue.clone()];
    leasing.retract_dead_letter(job.id, run, Some(&own)).await.unwrap();
    assert!(stage.broker.dead_letters.get(job.id).await.unwrap().is_some(), "a run that failed keeps its letter");
}

pub async fn a_letter_stays_whatever_becomes_of_later_runs(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let (job, delivery) = dead(&stage, "key").await;
    let failed = stage.failure(&delivery, Outcome::Failed, "exit-code");
    stage.broker.jobs.rerun(&job.client, job.id, 1).await.unwrap();
    stage.broker.jobs.cancel(&job.client, job.id).await.unwrap();
    let answer = stage.leasing.record(&failed).await.unwrap();
    assert_eq!(answer, Recorded::Superseded(Outcome::Cancelled), "a result of the first run comes again");
    let letter = stage.broker.dead_letters.get(job.id).await.unwrap();
    assert_eq!(letter.map(|letter| letter.job.run_id), Some(job.run_id));
}

pub async fn a_letter_of_an_erased_job_is_not_kept(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    for submission in [stage.keyed(&client, "key"), stage.submission(&client)] {
        let job = stage.submit(submission).await;
        let delivery = stage.lease_one().await;
        stage.end_badly(&delivery, Outcome::Failed).await;
        stage.broker.jobs.erase(&client, job.id).await.unwrap();
        assert_eq!(stage.broker.dead_letters.get(job.id).await.unwrap(), None);
        // A late attempt has the payload still.
        stage.leasing.dead_letter(&stage.letter(&delivery, Outcome::Failed)).await.unwrap();
        assert_eq!(stage.broker.dead_letters.get(job.id).await.unwrap(), None);
    }
}

pub async fn a_letter_without_the_payload_that_its_client_sent_is_not_kept(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    // Nobody keeps the payload of this one beyond its run, but for the letter.
    let (job, delivery) = {
        let job = stage.submit_plain(&stage.client("a")).await;
        let delivery = stage.lease_one().await;
        stage.end_badly(&delivery, Outcome::Failed).await;
        (job, delivery)
    };
    let letters = &stage.broker.dead_letters;
    assert!(letters.purge(job.id, job.run_id).await.unwrap());
    for payload in ["", "a lie"] {
        let lie = Job { payload: payload.into(), ..job.clone() };
        let letter = DeadLetter { job: lie, ..stage.letter(&delivery, Outcome::Failed) };
        stage.leasing.dead_letter(&letter).await.unwrap();
        assert_eq!(letters.get(job.id).await.unwrap(), None, "{payload:?}");
    }
    stage.leasing.dead_letter(&stage.letter(&delivery, Outcome::Failed)).await.unwrap();
    let kept = letters.get(job.id).await.unwrap().map(|letter| letter.job.payload);
    // Where the record goes with its run, nothing tells one copy of the payload from another, and none is kept.
    if stage.status(&job).await.content_type.is_empty() {
        assert_eq!(kept, None);
        return;
    }
    assert_eq!(kept, Some(job.payload.clone()));
    letters.redrive(job.id, job.run_id).await.unwrap();
    assert_eq!(stage.lease_one().await.job.payload, job.payload);
}

pub async fn a_redrive_does_not_touch_another_job_under_the_key(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let (job, _) = dead(&stage, "key").await;
    stage.pass(stage.policy.job_ttl + stage.policy.retention + stage.lease).await;
    stage.sweep().await;
    let mut other = stage.keyed(&job.client, "key");
    other.payload = "another body".into();
    let second = stage.submit(other).await;
    assert_eq!(second.id, job.id);
    let letters = &stage.broker.dead_letters;
    let error = letters.redrive(job.id, job.run_id).await.expect_err("the key is another job's");
    assert_eq!(error.kind(), BrokerErrorKind::StateConflict);
    assert!(error.detail().contains("another body"), "{error}");
    let kept = letters.get(job.id).await.unwrap().expect("the only copy of the first body");
    assert_eq!(kept.job.payload, job.payload);
    assert_eq!(stage.open(&job).await.run_id, second.run_id);
    assert_eq!(stage.lease_one().await.job.payload, second.payload);
    assert!(letters.purge(job.id, job.run_id).await.unwrap());
}

pub async fn a_letter_that_comes_again_after_its_redrive_starts_nothing(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let (job, delivery) = dead(&stage, "key").await;
    let letter = stage.letter(&delivery, Outcome::Failed);
    let letters = &stage.broker.dead_letters;
    let started = letters.redrive(job.id, job.run_id).await.unwrap();
    assert!(matches!(started, Enqueued::Created(_)));
    stage.leasing.dead_letter(&letter).await.unwrap();
    assert_eq!(letters.get(job.id).await.unwrap(), None);
    let next = stage.lease_one().await;
    stage.succeed(&next).await;
    stage.leasing.dead_letter(&letter).await.unwrap();
    assert_eq!(letters.get(job.id).await.unwrap(), None);
    stage.pass(stage.policy.job_ttl + stage.policy.retention + stage.lease).await;
    stage.sweep().await;
    // A broker may still know that it was redriven; none keeps it.
    drop(stage.leasing.dead_letter(&letter).await);
    assert_eq!(letters.get(job.id).await.unwrap(), None);
    assert_eq!(refused(letters.redrive(job.id, job.run_id).await), BrokerErrorKind::NotFound);
    stage.assert_absent(&job).await;
    stage.assert_nothing_in_line().await;
}

pub async fn dead_letters_are_listed_by_when_they_were_kept(fixture: &dyn Fixture) {
    // Held until the last one has ended.
    let stage =
        Stage::with(fixture, |policy| (policy.lease, policy.lease_max) = (policy.lease * 20, policy.lease * 40)).await;
    let client = stage.client("a");
    let mut held = Vec::new();
    for number in 0..5 {
        stage.submit(stage.keyed(&client, &format!("key-{number}"))).await;
        held.push(stage.lease_one().await);
        stage.pass(fixture.edge()).await;
    }
    let mut order = Vec::new();
    for number in [3, 0, 4, 1, 2] {
        stage.end_badly(&held[number], Outcome::Failed).await;
        // Kept again, it has its first place.
        stage.leasing.dead_letter(&stage.letter(&held[3], Outcome::Failed)).await.unwrap();
        order.insert(0, held[number].job.run_id);
        stage.pass(fixture.edge()).await;
    }
    let letters = &stage.broker.dead_letters;
    let count = async |max| letters.count(&stage.queue, max).await.unwrap();
    // A broker counts them, or says that it does not.
    let counts = count(10).await.is_some();
    assert_eq!((count(10).await, count(2).await), (counts.then_some(5), counts.then_some(2)));
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = letters.list(Some(&stage.queue), None, after.as_ref(), 2).await.unwrap();
        assert!(page.letters.len() <= 2);
        for LetterHead { letter, .. } in &page.letters {
            seen.push(letter.job.run_id);
            // A place is good when its letter is gone.
            assert!(letters.purge(letter.job.id, letter.job.run_id).await.unwrap());
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, order);
    assert_eq!(count(10).await, counts.then_some(0));
    let nowhere = "no place of any broker".replace(' ', "-").parse().unwrap();
    assert_eq!(refused(letters.list(None, None, Some(&nowhere), 2).await), BrokerErrorKind::Invalid);
}
