//! Jobs that come in over TCP: they are the jobs that they would be over HTTP.

use std::time::Duration;

use relay_bridge::contract::JobState;
use relay_bridge::contract::wire::FRAME_MAX_LEAST;
use relay_bridge::contract::wire::client::answer::Body;
use relay_bridge::contract::wire::client::{Entry, FromClient, Hello, Request, Submit, ToClient};

use super::support::{Door, Wire, hello, mail};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_came_over_tcp_is_the_one_that_it_would_be_over_http() {
    let (relay, door) = Door::start().await;
    let mut client = door.client().await;
    let submit = Submit {
        key: Some("k-1".to_owned()),
        content_type: Some("text/plain".to_owned()),
        meta: [("Tier".to_owned(), "gold".to_owned())].into(),
        traceparent: Some(TRACE.to_owned()),
        ..mail("hello")
    };
    let receipt = client.submit(7, submit.clone()).await;
    assert_eq!((receipt.state, receipt.replayed, receipt.generation), (JobState::Queued, false, 1));
    let headers = [
        ("Idempotency-Key", "k-1"),
        ("Content-Type", "text/plain"),
        ("Relay-Meta-Tier", "gold"),
        ("Traceparent", TRACE),
    ];
    let over_http = relay.submit(&headers, "hello").await;
    assert_eq!(over_http.status, 202);
    assert_eq!(over_http.header("idempotency-replayed"), "true");
    let seen = over_http.json();
    assert_eq!(seen["job_id"], receipt.job.to_string());
    assert_eq!(seen["run_id"], receipt.run.to_string());
    assert_eq!(seen["accepted_at"], receipt.accepted_at.to_string());
    assert_eq!(seen["expires_at"], receipt.expires_at.to_string());
    assert_eq!(seen["meta"]["tier"], receipt.meta["tier"]);
    let again = client.submit(7, submit).await;
    assert!(again.replayed && again.job == receipt.job, "the id is free again");

    let delivery = relay.work("text/plain", "done").await;
    assert_eq!(&delivery.job.payload[..], b"hello");
    assert_eq!(delivery.job.headers["traceparent"], TRACE);
    client.ask(8, Request::Wait { job: receipt.job, wait: Duration::from_secs(50) }).await;
    let result = client.result(8).await;
    assert_eq!((result.job, result.run, result.attempt), (receipt.job, receipt.run, 1));
    assert_eq!(result.payload, Body::Here("done".into()));
    assert_eq!((result.key.unwrap().as_str(), &result.meta["tier"][..]), ("k-1", "gold"));
    assert_eq!(result.traceparent.as_deref(), Some(TRACE));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_that_waits_is_answered_with_the_result_and_a_replay_too() {
    let (relay, door) = Door::start().await;
    let mut client = door.client().await;
    let wait = Some(Duration::from_secs(50));
    let submit = Submit { key: Some("k".to_owned()), wait, ..mail("x") };
    client.ask(1, Request::Submit(Box::new(submit.clone()))).await;
    relay.work("text/plain", "y").await;
    let first = client.result(1).await;
    assert_eq!(first.payload, Body::Here("y".into()));
    match client.answer(2, Request::Submit(Box::new(submit))).await {
        ToClient::Result { id: 2, replayed: true, result } => assert_eq!(*result, first),
        other => panic!("{other:?}"),
    }
    let soon = Submit { wait: Some(Duration::from_millis(1)), ..mail("z") };
    assert_eq!(client.submit(3, soon).await.state, JobState::Queued, "its time is up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_whose_result_is_larger_than_a_frame_is_answered_with_its_receipt() {
    let (relay, door) = Door::start().await;
    let mut client = Wire::connect(door.address).await;
    client.welcomed(&Hello { frame_max: FRAME_MAX_LEAST, ..hello() }).await;
    let submit = Submit { wait: Some(Duration::from_secs(50)), ..mail("x") };
    client.ask(1, Request::Submit(Box::new(submit))).await;
    relay.work("text/plain", vec![b'y'; 64 * 1024]).await;
    let job = match client.next().await.unwrap() {
        ToClient::Receipt { id: 1, receipt } => receipt.job,
        other => panic!("{other:?}"),
    };
    let problem = client.problem(2, Request::Wait { job, wait: Duration::ZERO }).await;
    assert_eq!(problem.slug, "payload-too-large");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_is_answered_by_its_own_id() {
    let (relay, door) = Door::start().await;
    let mut client = door.client().await;
    let entry = |id, submit: Submit| Entry { id, submit: Ok(Box::new(submit)) };
    let nowhere = Submit { queue: "nowhere".to_owned(), ..mail("c") };
    let entries = vec![entry(1, mail("a")), entry(2, nowhere), entry(3, mail(vec![0; 1_001])), entry(4, mail("b"))];
    client.send(&FromClient::SubmitMany(entries)).await;
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(match client.next().await.unwrap() {
            ToClient::Receipt { id, .. } => (id, "receipt".to_owned()),
            ToClient::Problem { id, problem } => (id, problem.slug),
            other => panic!("{other:?}"),
        });
    }
    answers.sort();
    let wanted = [(1, "receipt"), (2, "not-found"), (3, "payload-too-large"), (4, "receipt")];
    assert_eq!(answers, wanted.map(|(id, slug)| (id, slug.to_owned())));
    let mut payloads = [relay.lease().await.job.payload, relay.lease().await.job.payload];
    payloads.sort();
    assert_eq!(payloads, ["a", "b"]);
}
