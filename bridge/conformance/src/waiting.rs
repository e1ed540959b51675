//! Waiting for a result costs no polling: the outcome wakes who waits, and time ends the wait.

use std::time::Duration;

use tokio::task::JoinSet;

use super::Fixture;
use super::reading::{WAIT, finish};
use super::stage::{Stage, finished, soon};
use relay_bridge::contract::{Job, JobId};
use relay_bridge::result_log::{Lookup, ResultFilter, Start};
use relay_bridge::settlement::Settlement;

async fn waiter(stage: &Stage<'_>, job: &Job) -> JoinSet<Lookup> {
    let mut waiting = JoinSet::new();
    for _ in 0..20 {
        let (broker, client, id) = (stage.broker.clone(), job.client.clone(), job.id);
        waiting.spawn(async move { soon(broker.results.wait(&client, id, WAIT)).await.unwrap() });
    }
    tokio::task::yield_now().await;
    waiting
}

pub async fn everyone_who_waits_for_a_job_is_woken_by_its_outcome(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let client = stage.client("a");
    let job = stage.submit(stage.keyed(&client, "succeeds")).await;
    let waiting = waiter(&stage, &job).await;
    let delivery = stage.lease_one().await;
    stage.record_first(&stage.success(&delivery, "done")).await;
    for lookup in waiting.join_all().await {
        assert_eq!(finished(lookup).result.payload, "done", "before it is settled");
    }
    stage.settle(&delivery, Settlement::Complete).await;

    let job = stage.submit(stage.keyed(&client, "cancelled")).await;
    let waiting = waiter(&stage, &job).await;
    stage.broker.jobs.cancel(&client, job.id).await.unwrap();
    assert!(waiting.join_all().await.into_iter().all(|lookup| matches!(lookup, Lookup::Finished(_))));

    // One who comes late does not wait.
    let lookup = soon(stage.broker.results.wait(&client, job.id, WAIT)).await.unwrap();
    assert!(matches!(lookup, Lookup::Finished(_)));
    let unknown = soon(stage.broker.results.wait(&client, JobId::mint(), WAIT)).await.unwrap();
    assert!(matches!(unknown, Lookup::Absent));
}

pub async fn an_expiry_wakes_who_waits(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let mut submission = stage.submission(&stage.client("a"));
    submission.expires_in = Some(stage.lease / 2);
    let job = stage.submit(submission).await;
    // Longer than the deadline, by the broker's own clock; the sweep comes in between.
    let waiting = stage.broker.results.wait(&job.client, job.id, stage.lease * 20);
    let (lookup, ()) = soon(async {
        tokio::join!(waiting, async {
            stage.pass(stage.lease / 2 + stage.slack).await;
            stage.sweep().await;
        })
    })
    .await;
    assert_eq!(finished(lookup.unwrap()).result.outcome, relay_bridge::contract::Outcome::Expired);
}

pub async fn a_wait_ends_with_the_open_job_after_its_time(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    let wait = stage.lease;
    let lookup = stage.drive(wait / 5, stage.broker.results.wait(&job.client, job.id, wait)).await.unwrap();
    assert!(matches!(lookup, Lookup::Open(status) if status.job_id == job.id));
    let lookup = soon(stage.broker.results.wait(&job.client, job.id, Duration::ZERO)).await.unwrap();
    assert!(matches!(lookup, Lookup::Open(_)));
}

pub async fn a_wait_of_any_length_is_taken(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    // So that the sum of both is beyond any clock.
    stage.pass(stage.slack).await;
    let (results, client) = (&stage.broker.results, &job.client);
    let (lookup, page, ()) = soon(async {
        let (lookup, page) = (results.wait(client, job.id, Duration::MAX), Duration::MAX);
        tokio::join!(lookup, results.page(client, &Start::Oldest, &ResultFilter::ALL, 10, page), async {
            tokio::task::yield_now().await;
            let delivery = stage.lease_one().await;
            stage.succeed(&delivery).await;
        })
    })
    .await;
    assert!(matches!(lookup.unwrap(), Lookup::Finished(_)));
    assert_eq!(page.unwrap().entries.len(), 1);
}

pub async fn a_waiting_page_is_woken_by_a_result(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let client = stage.client("a");
    let mut from = Start::Now;
    for _ in 0..10 {
        let start = match from {
            Start::Now => Start::After(stage.page(&client, &Start::Now, 10).await.next),
            ref after => after.clone(),
        };
        let (page, job) = soon(async {
            tokio::join!(stage.broker.results.page(&client, &start, &ResultFilter::ALL, 10, WAIT), async {
                tokio::task::yield_now().await;
                finish(&stage, "b", 1).await;
                finish(&stage, "a", 1).await[0]
            })
        })
        .await;
        let page = page.unwrap();
        assert_eq!(page.entries.iter().map(|entry| entry.result.job_id).collect::<Vec<_>>(), [job]);
        from = Start::After(page.next);
    }
}

pub async fn a_waiting_page_ends_empty_after_its_time(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    finish(&stage, "b", 1).await;
    let call = stage.broker.results.page(&client, &Start::Oldest, &ResultFilter::ALL, 10, stage.lease);
    let page = stage.drive(stage.lease / 5, call).await.unwrap();
    assert!(page.entries.is_empty() && page.reset.is_none());
    let jobs = finish(&stage, "a", 1).await;
    let (entries, _) = stage.read_all(&client, Start::After(page.next)).await;
    assert_eq!(entries[0].result.job_id, jobs[0]);
}

pub async fn a_dropped_wait_costs_nothing(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    for _ in 0..50 {
        let mut waiting = waiter(&stage, &job).await;
        waiting.abort_all();
        while waiting.join_next().await.is_some() {}
    }
    let delivery = stage.lease_one().await;
    stage.succeed(&delivery).await;
    assert_eq!(stage.finished(&job).await.result.payload, "done");
}
