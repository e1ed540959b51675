//! Watching one job: where it stands, what happens to it, and how it ended.

use std::time::Duration;

use relay::api::JobEvent;
use relay_bridge::contract::JobId;
use relay_bridge::leasing::Progress;
use relay_bridge::settlement::Settlement;

use super::support::{Events, Relay};

async fn next(stream: &mut Events) -> JobEvent {
    let block = stream.event().await;
    let event: JobEvent = serde_json::from_value(block.data).unwrap();
    assert_eq!(block.event, event.kind.as_str(), "its name and its type are the same");
    event
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_watched_from_where_it_stands_to_its_end() {
    let relay = Relay::start().await;
    let id = relay.submit(&[("Idempotency-Key", "k"), ("Relay-Meta-Of", "x")], "x").await.field("job_id");
    let path = format!("/v1/jobs/{id}/events");
    let mut stream = relay.stream(&path, &[]).await;
    assert_eq!((stream.head.status, stream.head.header("content-type")), (200, "text/event-stream"));
    let snapshot = next(&mut stream).await;
    let mut job = *snapshot.job.clone().unwrap();
    assert_eq!(
        (snapshot.kind.as_str(), job.receipt.state.as_str(), &*job.receipt.meta["of"]),
        ("snapshot", "queued", "x")
    );
    let found: relay::api::JobView = serde_json::from_slice(&relay.get(&format!("/v1/jobs/{id}")).await.body).unwrap();
    job.next_attempt_at = found.next_attempt_at;
    assert_eq!(job, found, "the same as the job itself");

    let first = relay.lease().await;
    let started = next(&mut stream).await;
    assert_eq!((started.kind.as_str(), started.attempt, started.run_id), ("started", 1, first.job.run_id));
    let progress = Progress { percent: Some(40.0), message: "page 4 of 10".to_owned() };
    relay.leasing.progress(&first.receipt, &progress).await.unwrap();
    let told = next(&mut stream).await;
    assert_eq!((told.kind.as_str(), told.attempt, told.progress), ("progress", 1, Some(progress)));
    relay.leasing.settle(&first.receipt, &Settlement::RetryAfter(Duration::from_millis(1))).await.unwrap();
    let retrying = next(&mut stream).await;
    assert_eq!((retrying.kind.as_str(), retrying.attempt), ("retrying", 1));
    assert!(retrying.next_attempt_at.unwrap() > retrying.at);
    relay.work("text/plain", "done").await;
    assert_eq!(next(&mut stream).await.attempt, 2);
    let finished = stream.event().await;
    assert_eq!((&*finished.event, &finished.data["outcome"]), ("finished", &"succeeded".into()));
    assert_eq!(finished.data["attempt"], 2);
    assert!(stream.rest().await.is_empty(), "nothing follows");

    // A watcher that comes later sees the end at once; one that has seen it already is told not to come again.
    let mut later = relay.stream(&path, &[]).await;
    assert_eq!((next(&mut later).await.kind.as_str(), &*later.event().await.event), ("snapshot", "finished"));
    let again = relay.stream(&path, &[("Last-Event-ID", &finished.id)]).await;
    assert_eq!(again.head.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_is_told_the_end_also_if_no_worker_has_a_part_in_it() {
    let relay = Relay::start().await;
    let id = relay.submit(&[], "x").await.field("job_id");
    let path = format!("/v1/jobs/{id}/events");
    let mut streams = [relay.stream(&path, &[]).await, relay.stream(&path, &[]).await];
    assert_eq!(relay.ask(&format!("POST /v1/jobs/{id}/cancel"), &[], "").await.status, 200);
    for stream in &mut streams {
        assert_eq!(next(stream).await.kind.as_str(), "snapshot");
        assert_eq!(stream.event().await.data["outcome"], "cancelled");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_watches_another_clients_job() {
    let relay = Relay::start().await;
    let id = relay.submit(&[("Relay-Client", "mine")], "x").await.field("job_id");
    for id in [id, JobId::mint().to_string()] {
        let stream = relay.stream(&format!("/v1/jobs/{id}/events"), &[("Relay-Client", "other")]).await;
        stream.head.is_problem(404, "not-found");
    }
    relay.stream("/v1/jobs/x/events", &[]).await.head.is_problem(400, "malformed-request");
}
