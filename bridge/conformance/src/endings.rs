//! Jobs that ended badly are kept with their payload and reason; operators start them again, clients too.

use std::collections::BTreeSet;

use tokio::task::JoinSet;

use super::Fixture;
use super::stage::{Stage, refused};
use relay_bridge::contract::{Job, JobId, JobState, JobStatus, Outcome, RunId};
use relay_bridge::dead_letters::LetterHead;
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::{Delivery, Recorded};
use relay_bridge::result_log::Start;
use relay_bridge::settlement::Settlement;

#[track_caller]
fn created(answer: Enqueued) -> JobStatus {
    match answer {
        Enqueued::Created(status) => status,
        Enqueued::Known(status) => panic!("started before: {status:?}"),
    }
}

#[track_caller]
fn known(answer: Enqueued) -> JobStatus {
    match answer {
        Enqueued::Known(status) => status,
        Enqueued::Created(status) => panic!("started anew: {status:?}"),
    }
}

async fn letters(stage: &Stage<'_>) -> Vec<(JobId, RunId)> {
    let letters = stage.broker.dead_letters.list(Some(&stage.queue), None, None, 1_000).await.unwrap().letters;
    letters.into_iter().map(|head| (head.letter.job.id, head.letter.job.run_id)).collect()
}

/// A keyed job that ended as failed.
async fn dead(stage: &Stage<'_>, key: &str) -> (Job, Delivery) {
    let job = stage.submit(stage.keyed(&stage.client("a"), key)).await;
    let delivery = stage.lease_one().await;
    stage.end_badly(&delivery, Outcome::Failed).await;
    (job, delivery)
}

pub async fn a_crash_between_dead_letter_result_and_settle_is_repeated_harmlessly(fixture: &dyn Fixture) {
    for steps_before_crash in 0..=3 {
        let stage = Stage::new(fixture).await;
        let job = stage.submit(stage.keyed(&stage.client("a"), "key")).await;
        let crashing = stage.lease_one().await;
        if steps_before_crash >= 1 {
            stage.leasing.dead_letter(&stage.letter(&crashing, Outcome::Failed)).await.unwrap();
        }
        if steps_before_crash >= 2 {
            stage.record_first(&stage.failure(&crashing, Outcome::Failed, "exit-code")).await;
        }
        if steps_before_crash >= 3 {
            stage.settle(&crashing, Settlement::DeadLetter).await;
        }
        stage.pass_lease().await;
        let next = match steps_before_crash {
            0 | 1 => stage.lease_some(1).await,
            _ => stage.lease_up_to(1).await,
        };
        assert!(steps_before_crash < 3 || next.is_empty(), "a settled delivery came back");
        for delivery in next {
            assert_eq!(delivery.attempt, 2);
            stage.leasing.dead_letter(&stage.letter(&delivery, Outcome::Failed)).await.unwrap();
            let recorded = stage.leasing.record(&stage.failure(&delivery, Outcome::Failed, "again")).await.unwrap();
            assert_eq!(recorded == Recorded::First, steps_before_crash < 2);
            stage.settle_late(&delivery, Settlement::DeadLetter).await;
        }
        stage.pass_lease().await;
        stage.assert_nothing_in_line().await;
        assert_eq!(letters(&stage).await, [(job.id, job.run_id)], "after step {steps_before_crash}");
        assert_eq!(stage.finished(&job).await.result.outcome, Outcome::Failed);
        assert_eq!(stage.read_all(&job.client, Start::Oldest).await.0.len(), 1);
    }
}

pub async fn a_dead_letter_keeps_payload_and_reason(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let mut submission = stage.keyed(&stage.client("a"), "key");
    submission.payload = (0..=255_u8).collect();
    submission.headers.insert("relay-meta-n".to_owned(), "1".to_owned());
    let job = stage.submit(submission).await;
    let delivery = stage.lease_one().await;
    let letter = stage.letter(&delivery, Outcome::Failed);
    stage.leasing.dead_letter(&letter).await.unwrap();
    stage.leasing.dead_letter(&letter).await.unwrap();
    assert_eq!(stage.broker.dead_letters.get(job.id).await.unwrap(), Some(letter.clone()));
    let listed = stage.broker.dead_letters.list(Some(&stage.queue), None, None, 10).await.unwrap().letters;
    assert!(!letter.job.payload.is_empty());
    assert_eq!(listed, [LetterHead::of(letter)], "all but the payload");
    assert_eq!(stage.broker.dead_letters.get(JobId::mint()).await.unwrap(), None);
}

pub async fn a_dead_letter_is_taken_back_when_the_run_succeeded(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let job = stage.submit(stage.keyed(&stage.client("a"), "key")).await;
    let late = stage.lease_one().await;
    stage.pass_lease().await;
    let holder = stage.lease_one().await;
    stage.leasing.dead_letter(&stage.letter(&holder, Outcome::Failed)).await.unwrap();
    stage.record_first(&stage.success(&late, "late")).await;
    assert_eq!(stage.broker.dead_letters.get(job.id).await.unwrap(), None, "the success takes it back");
    let recorded = stage.leasing.record(&stage.failure(&holder, Outcome::Failed, "exit-code")).await.unwrap();
    assert_eq!(recorded, Recorded::Superseded(Outcome::Succeeded));
    let kind = refused(stage.broker.dead_letters.redrive(job.id, job.run_id).await);
    assert_eq!(kind, BrokerErrorKind::NotFound);
    stage.leasing.retract_dead_letter(job.id, job.run_id, None).await.unwrap();
    stage.leasing.retract_dead_letter(job.id, job.run_id, None).await.unwrap();
    stage.settle_late(&holder, Settlement::Complete).await;
    assert_eq!(stage.broker.dead_letters.get(job.id).await.unwrap(), None);
    assert!(letters(&stage).await.is_empty());
}

pub async fn a_redrive_starts_the_next_run_once(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let (job, _) = dead(&stage, "key").await;
    stage.pass(stage.policy.job_ttl / 2).await;
    let now = fixture.now();
    let status = created(stage.broker.dead_letters.redrive(job.id, job.run_id).await.unwrap());
    assert_eq!((status.generation, status.state, status.attempt), (2, JobState::Queued, 0));
    assert!(status.run_id > job.run_id);
    assert!(status.expires_at >= now + stage.policy.job_ttl, "a whole job_ttl is before it");
    assert!(letters(&stage).await.is_empty(), "its letter is gone");
    let again = known(stage.broker.dead_letters.redrive(job.id, job.run_id).await.unwrap());
    assert_eq!((again.run_id, again.generation), (status.run_id, 2));
    assert_eq!(stage.open(&job).await.run_id, status.run_id);

    let delivery = stage.lease_one().await;
    assert_eq!((delivery.attempt, delivery.job.run_id), (1, status.run_id));
    assert_eq!(delivery.job.payload, job.payload);
    stage.assert_nothing_in_line().await;
    stage.succeed(&delivery).await;
    let finished = known(stage.broker.dead_letters.redrive(job.id, job.run_id).await.unwrap());
    assert_eq!((finished.run_id, finished.state), (status.run_id, JobState::Finished(Outcome::Succeeded)));
    stage.assert_nothing_in_line().await;
    let unknown = stage.broker.dead_letters.redrive(job.id, status.run_id).await;
    assert_eq!(refused(unknown), BrokerErrorKind::NotFound, "that run left no dead letter");
    let nobodys = stage.broker.dead_letters.redrive(JobId::mint(), job.run_id).await;
    assert_eq!(refused(nobodys), BrokerErrorKind::NotFound);
}

pub async fn a_job_without_a_key_is_redriven_from_its_dead_letter(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    let delivery = stage.lease_one().await;
    stage.end_badly(&delivery, Outcome::Exhausted).await;
    let status = created(stage.broker.dead_letters.redrive(job.id, job.run_id).await.unwrap());
    assert_eq!((status.generation, status.client.clone()), (2, job.client.clone()));
    let delivery = stage.lease_one().await;
    assert_eq!((delivery.attempt, &delivery.job.payload), (1, &job.payload));
    stage.succeed(&delivery).await;
    assert_eq!(stage.finished(&job).await.result.generation, 2);
}

pub async fn a_redrive_works_long_after_the_record_is_gone(fixture: &dyn Fixture) {
    let stage = Stage::brief(fixture).await;
    let (job, _) = dead(&stage, "key").await;
    stage.pass(stage.policy.job_ttl + stage.policy.retention + stage.lease).await;
    stage.sweep().await;
    stage.assert_absent(&job).await;
    let status = created(stage.broker.dead_letters.redrive(job.id, job.run_id).await.unwrap());
    assert!(status.run_id > job.run_id && status.generation == 2);
    let delivery = stage.lease_one().await;
    assert_eq!(delivery.job.payload, job.payload);
    stage.succeed(&delivery).await;
    assert_eq!(stage.finished(&job).await.result.run_id, status.run_id);
}

pub async fn a_dead_letter_is_kept_for_its_retention_and_no_longer(fixture: &dyn Fixture) {
    let stage = Stage::with(fixture, |policy| {
        (policy.job_ttl, policy.retention) = (policy.job_ttl / 2, policy.retention / 2);
        policy.dead_retention = policy.job_ttl * 5 / 2;
    })
    .await;
    let before = fixture.now();
    let (job, _) = dead(&stage, "key").await;
    let after = fixture.now();
    stage.pass_until(before + stage.policy.dead_retention, -2).await;
    stage.sweep().await;
    let kept = stage.broker.dead_letters.get(job.id).await.unwrap();
    // In real time a sweep of all queues may last beyond the edge.
    assert!(kept.is_some() || fixture.now() >= before + stage.policy.dead_retention);
    stage.pass_until(after + stage.policy.dead_retention, 1).await;
    stage.sweep().await;
    assert_eq!(stage.broker.dead_letters.get(job.id).await.unwrap(), None);
    assert!(letters(&stage).await.is_empty());
}

pub async fn a_dead_letter_is_purged_once(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let (job, _) = dead(&stage, "key").await;
    let letters = &stage.broker.dead_letters;
    assert!(!letters.purge(job.id, RunId::mint(fixture.now(), Some(job.run_id))).await.unwrap());
    assert!(letters.purge(job.id, job.run_id).await.unwrap());
    assert!(!letters.purge(job.id, job.run_id).await.unwrap());
    assert_eq!(letters.get(job.id).await.unwrap(), None);
    assert_eq!(refused(letters.redrive(job.id, job.run_id).await), BrokerErrorKind::NotFound);
    assert_eq!(stage.finished(&job).await.result.outcome, Outcome::Failed, "the outcome stays");
}

pub async fn dead_letters_are_listed_newest_first_page_by_page(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let mut runs = Vec::new();
    for number in 0..7 {
        runs.push(dead(&stage, &format!("key-{number}")).await.0.run_id);
        stage.pass(stage.slack).await;
    }
    runs.reverse();
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = stage.broker.dead_letters.list(Some(&stage.queue), None, after.as_ref(), 3).await.unwrap();
        assert!(page.letters.len() <= 3);
        seen.extend(page.letters.iter().map(|head| head.letter.job.run_id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, runs);
    let elsewhere = stage.another_queue().await;
    assert!(stage.broker.dead_letters.list(Some(&elsewhere), None, None, 10).await.unwrap().letters.is_empty());
    let all = stage.broker.dead_letters.list(None, None, None, 1_000).await.unwrap().letters;
    assert!(runs.iter().all(|run| all.iter().any(|head| head.letter.job.run_id == *run)));
}

pub async fn a_rerun_starts_the_next_run_once(fixture: &dyn Fixture) {
    let stage = Stage::with(fixture, |policy| policy.max_attempts = 2).await;
    let submission = stage.keyed(&stage.client("a"), "key");
    let job = stage.run(submission.clone()).await;
    stage.pass(stage.policy.job_ttl / 2).await;
    let now = fixture.now();
    let jobs = &stage.broker.jobs;
    let status = created(jobs.rerun(&job.client, job.id, 1).await.unwrap());
    assert_eq!((status.generation, status.state, status.attempt), (2, JobState::Queued, 0));
    assert!(status.run_id > job.run_id && status.expires_at >= now + stage.policy.job_ttl);
    assert_eq!(status.accepted_at, job.accepted_at);
    let again = known(jobs.rerun(&job.client, job.id, 1).await.unwrap());
    assert_eq!(again.run_id, status.run_id);
    assert_eq!(stage.replay(submission).await.run_id, status.run_id, "the key names the current run");
    let kind = refused(jobs.rerun(&job.client, job.id, 2).await);
    assert_eq!(kind, BrokerErrorKind::StateConflict, "run 2 is open");

    let delivery = stage.lease_one().await;
    assert_eq!((delivery.attempt, &delivery.job.payload), (1, &job.payload));
    stage.assert_nothing_in_line().await;
    stage.record_first(&stage.success(&delivery, "second")).await;
    stage.settle(&delivery, Settlement::Complete).await;
    let result = stage.finished(&job).await.result;
    assert_eq!((result.generation, result.payload.as_ref()), (2, &b"second"[..]));
    let finished = known(jobs.rerun(&job.client, job.id, 1).await.unwrap());
    assert_eq!((finished.run_id, finished.state), (status.run_id, JobState::Finished(Outcome::Succeeded)));
    for from in [0, 3, 4, u32::MAX] {
        let kind = refused(jobs.rerun(&job.client, job.id, from).await);
        assert_eq!(kind, BrokerErrorKind::StateConflict, "from generation {from}");
    }
    assert_eq!(created(jobs.rerun(&job.client, job.id, 2).await.unwrap()).generation, 3);
    let kind = refused(jobs.rerun(&job.client, job.id, 1).await);
    assert_eq!(kind, BrokerErrorKind::StateConflict, "the job is two runs further");
}

pub async fn a_rerun_of_an_open_run_is_a_conflict(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let job = stage.submit(stage.keyed(&stage.client("a"), "key")).await;
    let jobs = &stage.broker.jobs;
    assert_eq!(refused(jobs.rerun(&job.client, job.id, 1).await), BrokerErrorKind::StateConflict);
    let delivery = stage.lease_one().await;
    assert_eq!(refused(jobs.rerun(&job.client, job.id, 1).await), BrokerErrorKind::StateConflict);
    stage.succeed(&delivery).await;
    assert_eq!(refused(jobs.rerun(&job.client, JobId::mint(), 1).await), BrokerErrorKind::NotFound);
}

pub async fn every_outcome_can_be_rerun(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    let mut submission = stage.keyed(&client, "key");
    submission.expires_in = Some(stage.lease * 4);
    let job = stage.submit(submission).await;
    stage.broker.jobs.cancel(&client, job.id).await.unwrap();
    let status = created(stage.broker.jobs.rerun(&client, job.id, 1).await.unwrap());
    assert!(status.expires_at <= fixture.now() + stage.lease * 4, "its own span, not the queue's");
    stage.pass(stage.lease * 4 + stage.slack).await;
    stage.sweep().await;
    assert_eq!(stage.finished(&job).await.result.outcome, Outcome::Expired);
    created(stage.broker.jobs.rerun(&client, job.id, 2).await.unwrap());
    let delivery = stage.lease_one().await;
    stage.end_badly(&delivery, Outcome::Failed).await;
    assert_eq!(stage.finished(&job).await.result.outcome, Outcome::Failed);
    created(stage.broker.jobs.rerun(&client, job.id, 3).await.unwrap());
    let delivery = stage.lease_one().await;
    stage.succeed(&delivery).await;
    assert_eq!(stage.finished(&job).await.result.outcome, Outcome::Succeeded);
    assert_eq!(stage.read_all(&client, Start::Oldest).await.0.len(), 1);
}

pub async fn many_reruns_and_redrives_at_once_start_one_run(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let (job, _) = dead(&stage, "key").await;
    let mut racing = JoinSet::new();
    for number in 0..16 {
        let (broker, client, id, run) = (stage.broker.clone(), job.client.clone(), job.id, job.run_id);
        racing.spawn(async move {
            if number % 2 == 0 {
                broker.jobs.rerun(&client, id, 1).await
            } else {
                broker.dead_letters.redrive(id, run).await
            }
        });
    }
    let answers: Vec<_> = racing.join_all().await.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Enqueued::Created(_))).count(), 1);
    let runs: BTreeSet<_> = answers.iter().map(|answer| answer.status().run_id).collect();
    assert_eq!(runs.len(), 1);
    stage.lease_exactly(1).await;
}

pub async fn a_job_without_a_key_is_rerun_only_where_the_queue_keeps_it(fixture: &dyn Fixture) {
    let stage = Stage::with(fixture, |policy| policy.keep_keyless = true).await;
    let job = stage.run(stage.submission(&stage.client("a"))).await;
    assert_eq!(stage.status(&job).await.state, JobState::Finished(Outcome::Succeeded));
    assert_eq!(created(stage.broker.jobs.rerun(&job.client, job.id, 1).await.unwrap()).generation, 2);
    assert_eq!(stage.lease_one().await.job.payload, job.payload);
}

pub async fn erasing_removes_payload_and_result_and_keeps_outcome_and_key(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let submission = stage.keyed(&stage.client("a"), "key");
    let job = stage.submit(submission.clone()).await;
    let jobs = &stage.broker.jobs;
    assert_eq!(refused(jobs.erase(&job.client, job.id).await), BrokerErrorKind::StateConflict);
    let delivery = stage.lease_one().await;
    assert_eq!(refused(jobs.erase(&job.client, job.id).await), BrokerErrorKind::StateConflict);
    stage.end_badly(&delivery, Outcome::Failed).await;
    let before = stage.finished(&job).await;
    for _ in 0..2 {
        jobs.erase(&job.client, job.id).await.unwrap();
        let after = stage.finished(&job).await;
        assert!(after.erased && after.result.payload.is_empty());
        assert_eq!((after.result.outcome, after.result.run_id), (Outcome::Failed, job.run_id));
        assert_eq!((after.result.finished_at, &after.cursor), (before.result.finished_at, &before.cursor));
    }
    let (entries, _) = stage.read_all(&job.client, Start::Oldest).await;
    assert!(entries.len() == 1 && entries[0].erased && entries[0].result.payload.is_empty());
    let status = stage.replay(submission).await;
    assert_eq!((status.run_id, status.state), (job.run_id, JobState::Finished(Outcome::Failed)));
    assert_eq!(status.fingerprint, job.fingerprint, "another body is still a conflict");
    assert_eq!(refused(jobs.rerun(&job.client, job.id, 1).await), BrokerErrorKind::StateConflict);
    let letter = stage.broker.dead_letters.get(job.id).await.unwrap();
    assert!(letter.is_none_or(|letter| letter.job.payload.is_empty()), "the payload is among the dead letters");
    assert_eq!(refused(jobs.erase(&job.client, JobId::mint()).await), BrokerErrorKind::NotFound);
}
