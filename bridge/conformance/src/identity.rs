//! A retry is one job: the same client, queue and key name the same job, from acceptance until past its retention.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::task::JoinSet;

use super::Fixture;
use super::stage::{Stage, finished, refused};
use relay_bridge::contract::{JobId, JobState, Outcome};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::Recorded;
use relay_bridge::result_log::Start;

pub async fn concurrent_creates_of_one_key_make_one_job(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let client = stage.client("a");
    for round in 0..8 {
        let mut creates = JoinSet::new();
        for _ in 0..24 {
            // Each replica accepts on its own and so mints another run id.
            let job = stage.accept(stage.keyed(&client, &format!("key-{round}")));
            let broker = stage.broker.clone();
            creates.spawn(async move { broker.jobs.enqueue(job).await.unwrap() });
        }
        let answers = creates.join_all().await;
        let created = answers.iter().filter(|answer| matches!(answer, Enqueued::Created(_))).count();
        assert_eq!(created, 1, "round {round}");
        let receipts: BTreeSet<_> = answers
            .iter()
            .map(Enqueued::status)
            .map(|status| (status.job_id, status.run_id, status.generation, status.accepted_at, status.expires_at))
            .collect();
        assert_eq!(receipts.len(), 1, "every answer is the same receipt");
    }
    stage.lease_exactly(8).await;
}

pub async fn a_replay_is_answered_after_the_first_write_is_durable(fixture: &dyn Fixture) {
    let mut stage = Stage::new(fixture).await;
    let client = stage.client("a");
    let mut known = Vec::new();
    for round in 0..20 {
        let key = format!("key-{round}");
        let jobs = [stage.accept(stage.keyed(&client, &key)), stage.accept(stage.keyed(&client, &key))];
        let mut writes = JoinSet::new();
        for job in jobs {
            let broker = stage.broker.clone();
            writes.spawn(async move {
                let answer = broker.jobs.enqueue(job).await.unwrap();
                let seen = broker.jobs.status(&answer.status().client, answer.status().job_id).await.unwrap();
                assert_eq!(seen.map(|seen| seen.run_id), Some(answer.status().run_id), "answered before it was there");
                answer
            });
        }
        let answers = writes.join_all().await;
        assert_eq!(answers.iter().filter(|answer| matches!(answer, Enqueued::Created(_))).count(), 1);
        assert_eq!(answers[0].status().run_id, answers[1].status().run_id);
        known.push(answers[0].status().clone());
    }
    if stage.crash().await {
        for status in known {
            let seen = stage.broker.jobs.status(&client, status.job_id).await.unwrap();
            assert_eq!(seen.expect("an answered job survives").run_id, status.run_id);
        }
    }
}

pub async fn a_replay_answers_the_same_receipt_and_result(fixture: &dyn Fixture) {
    let stage = Stage::brief(fixture).await;
    let submission = stage.keyed(&stage.client("a"), "key");
    let job = stage.submit(submission.clone()).await;
    assert_eq!(job.id, JobId::derive(&job.client, &job.queue, job.key.as_ref().unwrap()));
    stage.pass(stage.slack).await;
    let receipt = |status: relay_bridge::contract::JobStatus| {
        (status.job_id, status.run_id, status.generation, status.accepted_at, status.expires_at, status.fingerprint)
    };
    let first = (job.id, job.run_id, 1, job.accepted_at, job.expires_at, job.fingerprint);
    let queued = stage.replay(submission.clone()).await;
    assert_eq!(queued.state, JobState::Queued);
    assert_eq!(receipt(queued), first);

    let delivery = stage.lease_one().await;
    let leased = stage.replay(submission.clone()).await;
    assert_eq!(leased.state, JobState::Leased);
    assert_eq!(receipt(leased), first);

    stage.succeed(&delivery).await;
    let result = stage.finished(&job).await;
    for _ in 0..3 {
        stage.pass(stage.policy.retention / 3 - stage.slack).await;
        stage.sweep().await;
        let finished = stage.replay(submission.clone()).await;
        assert_eq!(finished.state, JobState::Finished(Outcome::Succeeded));
        assert_eq!(receipt(finished), first);
        let again = stage.finished(&job).await;
        assert_eq!((&again.result, &again.cursor), (&result.result, &result.cursor));
        stage.assert_nothing_in_line().await;
    }
}

pub async fn another_body_under_a_key_finds_the_first_fingerprint(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let submission = stage.keyed(&stage.client("a"), "key");
    let job = stage.submit(submission.clone()).await;
    let mut other = submission.clone();
    other.payload = "another body".into();
    let status = stage.replay(other.clone()).await;
    assert_eq!((status.fingerprint, status.accepted_at), (job.fingerprint, job.accepted_at));
    assert_ne!(status.fingerprint, stage.accept(other.clone()).fingerprint);
    let delivery = stage.lease_one().await;
    assert_eq!(delivery.job.payload, submission.payload);
    stage.assert_nothing_in_line().await;
    stage.succeed(&delivery).await;
    assert_eq!(stage.replay(other).await.fingerprint, job.fingerprint, "also after completion");
}

pub async fn what_is_not_in_the_fingerprint_stands_as_it_first_came(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let mut submission = stage.keyed(&stage.client("a"), "key");
    submission.delay = stage.lease;
    submission.headers.insert("relay-meta-n".to_owned(), "first".to_owned());
    let job = stage.submit(submission.clone()).await;
    submission.delay = Duration::ZERO;
    submission.expires_in = Some(stage.lease * 2);
    submission.headers.insert("relay-meta-n".to_owned(), "second".to_owned());
    let status = stage.replay(submission).await;
    assert_eq!((status.expires_at, &status.headers), (job.expires_at, &job.headers));
    stage.assert_nothing_in_line().await;
    stage.pass(stage.lease + stage.slack).await;
    assert_eq!(stage.lease_one().await.job, job);
}

pub async fn a_key_is_scoped_by_client_and_queue(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let mut elsewhere = stage.keyed(&stage.client("a"), "key");
    elsewhere.queue = stage.another_queue().await;
    let jobs = [
        stage.submit(stage.keyed(&stage.client("a"), "key")).await,
        stage.submit(stage.keyed(&stage.client("b"), "key")).await,
        stage.submit(stage.keyed(&stage.client("a"), "Key")).await,
        stage.submit(elsewhere).await,
    ];
    assert_eq!(jobs.iter().map(|job| job.id).collect::<BTreeSet<_>>().len(), 4);
}

pub async fn submissions_without_a_key_are_jobs_of_their_own(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let mut submission = stage.submission(&stage.client("a"));
    submission.payload = "the same".into();
    for _ in 0..3 {
        stage.submit(submission.clone()).await;
    }
    stage.lease_exactly(3).await;
}

pub async fn the_same_job_enqueued_twice_is_known(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    // A caller whose first answer was lost sends the same job again.
    let job = stage.submit_plain(&stage.client("a")).await;
    match stage.broker.jobs.enqueue(job.clone()).await.unwrap() {
        Enqueued::Known(status) => assert_eq!((status.job_id, status.run_id), (job.id, job.run_id)),
        Enqueued::Created(_) => panic!("one job was created twice"),
    }
    stage.lease_exactly(1).await;
}

pub async fn a_key_whose_record_expired_starts_anew_without_the_old_result(fixture: &dyn Fixture) {
    starts_anew(fixture, true).await;
}

pub async fn a_key_whose_record_expired_starts_anew_before_any_sweep(fixture: &dyn Fixture) {
    starts_anew(fixture, false).await;
}

async fn starts_anew(fixture: &dyn Fixture, swept: bool) {
    let stage = Stage::brief(fixture).await;
    let submission = stage.keyed(&stage.client("a"), "key");
    let old = stage.submit(submission.clone()).await;
    // A result recorded late may outlive the record.
    stage.pass(stage.policy.job_ttl / 2).await;
    let delivery = stage.lease_one().await;
    let kept_until = fixture.now() + Duration::from_millis(old.keep_ms);
    stage.succeed(&delivery).await;
    let result_until = fixture.now() + Duration::from_millis(old.keep_ms);
    stage.pass(old.keep_until().since(fixture.now()) - stage.slack).await;
    let mut answer = stage.broker.jobs.enqueue(stage.accept(submission.clone())).await.unwrap();
    if fixture.now() < old.keep_until() {
        assert!(matches!(&answer, Enqueued::Known(status) if status.run_id == old.run_id), "{answer:?}");
    }
    // From here on the key may be free; when the result has gone too it must be.
    if matches!(answer, Enqueued::Known(_)) {
        stage.pass(stage.slack * 2).await;
        let lookup = stage.lookup(&old).await;
        if fixture.now() < kept_until {
            assert_eq!(finished(lookup).result.run_id, old.run_id, "the result is kept longer than the record");
        }
        answer = stage.broker.jobs.enqueue(stage.accept(submission.clone())).await.unwrap();
    }
    if let Enqueued::Known(status) = &answer {
        assert_eq!((status.run_id, status.state), (old.run_id, JobState::Finished(Outcome::Succeeded)));
        stage.pass(result_until.since(fixture.now()) + stage.slack).await;
        if swept {
            stage.sweep().await;
        }
        answer = stage.broker.jobs.enqueue(stage.accept(submission.clone())).await.unwrap();
    }
    assert!(matches!(answer, Enqueued::Created(_)), "{answer:?}");
    let run = answer.status().run_id;
    assert!(run > old.run_id && answer.status().job_id == old.id, "swept: {swept}");
    assert_eq!(stage.open(&old).await.run_id, run, "the old result is not the new run's");
    assert_eq!(stage.replay(submission).await.run_id, run);
    let delivery = stage.lease_one().await;
    assert_eq!((delivery.job.run_id, delivery.attempt), (run, 1));
    stage.record_first(&stage.success(&delivery, "new")).await;
    assert_eq!(stage.finished(&old).await.result.payload, "new");
    let (entries, _) = stage.read_all(&old.client, Start::Oldest).await;
    assert_eq!(entries.iter().map(|entry| entry.result.run_id).collect::<Vec<_>>(), [run]);
}

pub async fn a_late_result_of_an_older_run_does_not_finish_a_new_one(fixture: &dyn Fixture) {
    let stage = Stage::brief(fixture).await;
    let submission = stage.keyed(&stage.client("a"), "key");
    let old = stage.submit(submission.clone()).await;
    let stuck = stage.lease_one().await;
    stage.pass(stage.policy.job_ttl + stage.slack).await;
    stage.sweep().await;
    assert_eq!(stage.finished(&old).await.result.outcome, Outcome::Expired);
    stage.pass(Duration::from_millis(old.keep_ms) + stage.slack).await;
    stage.sweep().await;
    stage.assert_absent(&old).await;
    // Its worker is back only now.
    assert_eq!(refused(stage.leasing.record(&stage.success(&stuck, "old")).await), BrokerErrorKind::NotFound);
    let new = stage.submit(submission).await;
    let run = stage.open(&new).await.run_id;
    match stage.leasing.record(&stage.success(&stuck, "old")).await {
        Ok(Recorded::First | Recorded::Superseded(_)) => {}
        Err(error) => assert_eq!(error.kind(), BrokerErrorKind::NotFound, "{error}"),
    }
    assert_eq!(stage.open(&new).await.run_id, run);
    let delivery = stage.lease_one().await;
    assert_eq!(delivery.job.run_id, run);
    stage.record_first(&stage.success(&delivery, "new")).await;
    assert_eq!(stage.finished(&new).await.result.payload, "new");
}

pub async fn a_known_key_is_answered_where_the_quota_is_full(fixture: &dyn Fixture) {
    let stage = Stage::with(fixture, |policy| policy.client_defaults.max_queued = 2).await;
    let client = stage.client("a");
    let first = stage.submit(stage.keyed(&client, "key-1")).await;
    stage.submit(stage.keyed(&client, "key-2")).await;
    let refusal = refused(stage.broker.jobs.enqueue(stage.accept(stage.keyed(&client, "key-3"))).await);
    assert_eq!(refusal, BrokerErrorKind::QuotaExceeded { actual: 2, limit: 2 });
    // A broker that counts waiting jobs on request counts the same.
    let waiting = stage.broker.jobs.waiting(&client, &first.queue).await.unwrap();
    assert!(waiting.is_none_or(|waiting| waiting == 2), "{waiting:?}");
    assert_eq!(stage.replay(stage.keyed(&client, "key-1")).await.run_id, first.run_id);
}
