//! A deadline that passes is recorded, also when no worker runs; and nothing is removed before its time.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Fixture;
use super::stage::{Stage, refused};
use relay_bridge::contract::{Job, JobState, Outcome};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::leasing::{Held, Recorded};
use relay_bridge::result_log::{Finished, Lookup, Start};
use relay_bridge::settlement::Settlement;

pub async fn expiry_is_recorded_without_any_worker(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    let mut short = stage.keyed(&client, "short");
    short.expires_in = Some(stage.lease);
    let mut parked = stage.submission(&client);
    (parked.delay, parked.expires_in) = (stage.lease / 2, Some(stage.lease / 2));
    let mut longer_than_the_queues = stage.keyed(&client, "capped");
    longer_than_the_queues.expires_in = Some(stage.policy.job_ttl * 10);
    let (short, parked) = (stage.submit(short).await, stage.submit(parked).await);
    let capped = stage.submit(longer_than_the_queues).await;

    stage.pass_until(short.expires_at, -1).await;
    let (swept, looked) = (stage.sweep().await, stage.lookup(&short).await);
    // Where time passes by itself, the look may have come later than it was meant to.
    if fixture.now() < short.expires_at {
        assert!(swept.iter().all(|result| result.client != client));
        assert!(matches!(looked, Lookup::Open(_)), "{looked:?}");
    }
    stage.pass_until(short.expires_at, 1).await;
    stage.sweep().await;
    for job in [&short, &parked] {
        let result = stage.finished(job).await.result;
        assert_eq!((result.outcome, result.attempt, result.started_at), (Outcome::Expired, 0, None));
        assert_eq!((result.run_id, &result.queue), (job.run_id, &job.queue));
        assert!(result.failure.is_some() && result.finished_at >= job.expires_at);
    }
    assert_eq!(stage.status(&short).await.state, JobState::Finished(Outcome::Expired));
    stage.open(&capped).await;
    stage.pass(stage.policy.job_ttl - stage.lease).await;
    stage.sweep().await;
    assert_eq!(stage.finished(&capped).await.result.outcome, Outcome::Expired);
    stage.assert_nothing_in_line().await;
    stage.assert_depth(relay_bridge::job_queue::Depth::default()).await;
}

pub async fn an_expired_job_does_not_start(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let mut submission = stage.keyed(&stage.client("a"), "key");
    submission.expires_in = Some(stage.lease);
    let job = stage.submit(submission).await;
    stage.pass(stage.lease + stage.slack).await;
    // No sweep ran. A worker that gets it all the same sees the deadline in it.
    for delivery in stage.lease_up_to(1).await {
        assert!(delivery.job.expires_at <= delivery.leased_at);
        stage.record_first(&stage.failure(&delivery, Outcome::Expired, "expired")).await;
        stage.settle(&delivery, Settlement::Complete).await;
    }
    stage.sweep().await;
    assert_eq!(stage.finished(&job).await.result.outcome, Outcome::Expired);
    stage.assert_nothing_in_line().await;
}

pub async fn the_holder_of_an_expired_job_is_told(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let mut submission = stage.keyed(&stage.client("a"), "key");
    submission.expires_in = Some(stage.lease / 2);
    let job = stage.submit(submission).await;
    let delivery = stage.lease_one().await;
    stage.pass(stage.lease / 2 + stage.slack).await;
    stage.sweep().await;
    let result = stage.finished(&job).await.result;
    assert_eq!((result.outcome, result.attempt), (Outcome::Expired, 1));
    assert_eq!(stage.leasing.extend(&delivery.receipt).await.unwrap(), Held::Ended(Outcome::Expired));
    let answer = stage.leasing.record(&stage.success(&delivery, "late")).await.unwrap();
    assert_eq!(answer, Recorded::Superseded(Outcome::Expired));
    stage.settle_late(&delivery, Settlement::Complete).await;
    stage.pass_lease().await;
    stage.assert_nothing_in_line().await;
}

pub async fn a_sweep_is_one_bounded_step(fixture: &dyn Fixture) {
    let stage = Stage::with(fixture, |policy| policy.job_ttl = policy.lease).await;
    let client = stage.client("a");
    stage.backlog(&client, 50).await;
    stage.pass(stage.lease + stage.slack).await;
    let mut ended = BTreeSet::new();
    for _ in 0..200 {
        let swept = stage.broker.jobs.sweep(7).await.unwrap();
        assert!(swept.expired.len() <= 7, "{} in a step of 7", swept.expired.len());
        for result in swept.expired.into_iter().filter(|result| result.client == client) {
            assert_eq!(result.outcome, Outcome::Expired);
            assert!(ended.insert(result.run_id), "a run ended twice");
        }
        if !swept.more {
            break;
        }
    }
    assert_eq!(stage.read_all(&client, Start::Oldest).await.0.len(), 50);
    assert!(stage.sweep().await.iter().all(|result| result.client != client));
}

/// One finished job for each outcome.
async fn finished_jobs(stage: &Stage<'_>) -> Vec<Job> {
    let client = stage.client("a");
    let mut jobs = vec![stage.run(stage.keyed(&client, "succeeded")).await];
    for (key, outcome) in [("failed", Outcome::Failed), ("exhausted", Outcome::Exhausted)] {
        jobs.push(stage.submit(stage.keyed(&client, key)).await);
        let delivery = stage.lease_one().await;
        stage.end_badly(&delivery, outcome).await;
    }
    jobs.push(stage.submit(stage.keyed(&client, "cancelled")).await);
    stage.broker.jobs.cancel(&client, jobs[3].id).await.unwrap();
    let mut expiring = stage.keyed(&client, "expired");
    expiring.expires_in = Some(stage.lease);
    jobs.push(stage.submit(expiring).await);
    stage.pass(stage.lease + stage.slack).await;
    stage.sweep().await;
    jobs
}

pub async fn a_sweep_writes_nothing_for_finished_runs_at_any_edge(fixture: &dyn Fixture) {
    let stage = Stage::brief(fixture).await;
    let jobs = finished_jobs(&stage).await;
    let client = jobs[0].client.clone();
    let mut before: Vec<Finished> = Vec::new();
    for job in &jobs {
        before.push(stage.finished(job).await);
    }
    let last_finish = before.iter().map(|finished| finished.result.finished_at).max().unwrap();
    let retention = stage.policy.retention;
    let mut edges = BTreeSet::new();
    let near = i64::try_from(fixture.edge().as_millis()).unwrap();
    // For how long a submission may be on its way.
    let real = if fixture.calls().is_some() { fixture.edge() * 2 } else { Duration::ZERO };
    for (job, finished) in jobs.iter().zip(&before) {
        let finish = finished.result.finished_at;
        for edge in [job.expires_at, finish + stage.policy.job_ttl, finish + retention, job.keep_until()] {
            let edge = edge.as_millis();
            edges.extend([edge - near, edge, edge + near]);
        }
    }
    let last_edge = edges.last().copied().map(relay_bridge::contract::Timestamp::from_millis).unwrap();
    for edge in edges {
        let edge = relay_bridge::contract::Timestamp::from_millis(edge);
        stage.pass(edge.since(fixture.now())).await;
        if fixture.now() > last_edge + fixture.edge() {
            // On a slow machine the looks at one edge last beyond the others.
            break;
        }
        let expired = stage.sweep().await;
        assert!(expired.iter().all(|result| result.client != client), "a finished run ended again: {expired:?}");
        for (job, before) in jobs.iter().zip(&before) {
            // In real time the look may come after the edge: what counts is the time once it was answered.
            let (lookup, kept) = (stage.lookup(job).await, fixture.now());
            match lookup {
                Lookup::Finished(now) => {
                    let found = (&now.result, &now.cursor, now.erased);
                    assert_eq!(found, (&before.result, &before.cursor, false), "at {edge}");
                }
                // A result is kept from when it was recorded as long as its record is from its start.
                gone => {
                    let until = before.result.finished_at + stage.policy.job_ttl + retention;
                    assert!(kept + fixture.edge() > until, "{gone:?} at {edge}");
                }
            }
            let (status, kept) = (stage.broker.jobs.status(&client, job.id).await.unwrap(), fixture.now());
            match status {
                Some(status) => assert_eq!(status.state, JobState::Finished(before.result.outcome)),
                None => assert!(kept >= job.keep_until(), "no record at {edge}"),
            }
            if fixture.now() + real < job.keep_until() {
                assert_eq!(stage.replay(stage.keyed(&client, before.result.outcome.as_str())).await.run_id, job.run_id);
            }
        }
        stage.assert_nothing_in_line().await;
    }
    // Past all of it nothing is left.
    let gone = last_finish + stage.policy.job_ttl + retention;
    stage.pass(gone.since(fixture.now()) + stage.slack * 2).await;
    stage.sweep().await;
    for job in &jobs {
        stage.assert_absent(job).await;
        assert_eq!(stage.broker.jobs.status(&client, job.id).await.unwrap(), None);
    }
    assert!(stage.list(&client, |_| {}).await.is_empty());
    assert!(stage.page(&client, &Start::Oldest, 100).await.entries.is_empty());
}

pub async fn a_result_is_readable_for_its_retention_after_completion(fixture: &dyn Fixture) {
    let stage = Stage::brief(fixture).await;
    let client = stage.client("a");
    // The latest completion there is: just before the deadline.
    let keyed = stage.submit(stage.keyed(&client, "key")).await;
    let keyless = stage.submit_plain(&client).await;
    stage.pass(stage.policy.job_ttl - stage.slack * 3).await;
    for _ in 0..2 {
        stage.succeed(&stage.lease_one().await).await;
    }
    let finished_at = fixture.now();
    for quarter in 1..=4 {
        stage.pass_until(finished_at + stage.policy.retention / 4 * quarter, -2).await;
        stage.sweep().await;
        for job in [&keyed, &keyless] {
            match stage.lookup(job).await {
                Lookup::Finished(finished) => assert_eq!(finished.result.payload, "done"),
                // In real time a sweep of all queues may last beyond the edge.
                gone => assert!(fixture.now() >= finished_at + stage.policy.retention, "{gone:?} in quarter {quarter}"),
            }
        }
        if quarter < 4 || fixture.calls().is_none() {
            assert_eq!(stage.replay(stage.keyed(&client, "key")).await.run_id, keyed.run_id);
            assert_eq!(stage.read_all(&client, Start::Oldest).await.0.len(), 2);
        }
    }
    stage.pass(stage.policy.job_ttl + stage.policy.retention).await;
    stage.sweep().await;
    stage.assert_absent(&keyed).await;
    stage.assert_absent(&keyless).await;
}

pub async fn a_result_past_its_keeping_is_absent_before_any_sweep(fixture: &dyn Fixture) {
    let stage = Stage::brief(fixture).await;
    let job = stage.run(stage.keyed(&stage.client("a"), "key")).await;
    stage.pass(stage.policy.job_ttl + stage.policy.retention + stage.slack).await;
    match stage.lookup(&job).await {
        Lookup::Absent | Lookup::Finished(_) => {}
        Lookup::Open(status) => panic!("a finished run is open again: {status:?}"),
    }
    stage.assert_nothing_in_line().await;
    stage.sweep().await;
    stage.assert_absent(&job).await;
}

pub async fn a_delayed_job_that_is_cancelled_keeps_its_key_as_long_as_one_that_ran(fixture: &dyn Fixture) {
    let stage = Stage::brief(fixture).await;
    let mut submission = stage.keyed(&stage.client("a"), "key");
    // In real time a sweep of all queues may take long.
    submission.delay = stage.lease * 12;
    let job = stage.submit(submission.clone()).await;
    stage.broker.jobs.cancel(&job.client, job.id).await.unwrap();
    // Past what a job without a delay would be kept.
    stage.pass(stage.policy.job_ttl + stage.policy.retention + stage.lease * 2).await;
    stage.sweep().await;
    assert_eq!(stage.replay(submission).await.run_id, job.run_id);
    assert_eq!(stage.finished(&job).await.result.outcome, Outcome::Cancelled);
}

pub async fn retention_is_fixed_at_acceptance(fixture: &dyn Fixture) {
    let stage = Stage::brief(fixture).await;
    let job = stage.run(stage.keyed(&stage.client("a"), "key")).await;
    let shorter =
        relay_bridge::policy::QueuePolicy { job_ttl: stage.lease, retention: stage.lease, ..stage.policy.clone() };
    stage.write_policy(&shorter).await;
    stage.pass(stage.policy.retention - stage.slack).await;
    stage.sweep().await;
    assert_eq!(stage.finished(&job).await.result.payload, "done");
    assert_eq!(stage.replay(stage.keyed(&job.client, "key")).await.run_id, job.run_id);
}

pub async fn a_job_without_a_key_leaves_only_its_result(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let job = stage.run(stage.submission(&stage.client("a"))).await;
    assert_eq!(stage.finished(&job).await.result.payload, "done");
    if let Some(status) = stage.broker.jobs.status(&job.client, job.id).await.unwrap() {
        assert_eq!(status.state, JobState::Finished(Outcome::Succeeded));
    }
    let kind = refused(stage.broker.jobs.rerun(&job.client, job.id, 1).await);
    assert!(matches!(kind, BrokerErrorKind::NotFound | BrokerErrorKind::StateConflict), "{kind:?}");
}
