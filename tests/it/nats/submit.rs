//! Jobs come in over NATS, are looked up and cancelled.

use std::sync::Arc;

use relay::auth::{Authenticator, Files};
use relay_bridge::clock::Clock;
use relay_bridge::contract::ClientId;

use super::support::Relay;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_answered_with_a_receipt_once_the_job_is_durable() {
    let relay = Relay::start().await;
    let receipt = relay.submit(&[("Idempotency-Key", "a")], "work").await;
    assert_eq!((receipt.field("client"), receipt.field("queue")), ("me".into(), "mail".into()));
    assert_eq!((receipt.field("state"), receipt.field("replayed")), ("queued".into(), "false".into()));
    assert_eq!(receipt.header("Content-Type"), "application/json");
    assert_eq!(receipt.header("Relay-Job-Id"), receipt.job());
    let me: ClientId = "me".parse().unwrap();
    assert!(relay.broker.jobs.status(&me, receipt.job().parse().unwrap()).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_published_without_a_reply_subject_is_taken_and_nothing_answered() {
    let relay = Relay::start().await;
    relay.client.publish("relay.submit.me.mail", "quiet".into()).await.unwrap();
    let delivery = relay.work("text/plain", "done").await;
    assert_eq!((&delivery.job.payload[..], delivery.job.client.as_str()), (&b"quiet"[..], "me"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_lists_comes_over_nats_only_if_one_of_them_is_nats_and_others_come_as_before() {
    let relay = Relay::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("clients.toml");
    let lists = "[[client]]\nname = \"listed\"\nany = [[\"key\"], [\"nats\"]]\n[[client]]\nname = \"held\"\nany = [[\"key\"]]\n";
    std::fs::write(&file, lists).unwrap();
    let files = Files { keys: None, clients: Some(file) };
    relay.ingress.ask(Arc::new(Authenticator::open(files, Clock::system()).unwrap()));
    for client in ["listed", "free"] {
        let receipt = relay.ask(&format!("relay.submit.{client}.mail"), &[], "x").await;
        assert_eq!(receipt.field("client"), client);
    }
    let refused = relay.ask("relay.submit.held.mail", &[], "x").await;
    assert!(refused.is_problem(403, "forbidden").field("detail").contains("[\"nats\"]"));
    for subject in ["relay.status.held", "relay.results.held", "relay.cancel.held"] {
        relay.ask(subject, &[], "").await.is_problem(403, "forbidden");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_is_the_same_job_whichever_header_names_it() {
    let relay = Relay::start().await;
    let first = relay.submit(&[("Idempotency-Key", "k")], "x").await;
    for headers in [[("Nats-Msg-Id", "k")], [("idempotency-key", "\"k\"")]] {
        let again = relay.submit(&headers, "x").await;
        assert_eq!((again.job(), again.field("replayed")), (first.job(), "true".into()));
        assert_eq!(again.header("Idempotency-Replayed"), "true");
    }
    let other = relay.submit(&[("Nats-Msg-Id", "k")], "y").await;
    assert_eq!(other.is_problem(422, "idempotency-conflict").field("job_id"), first.job());
    let two = [("Nats-Msg-Id", "k"), ("Idempotency-Key", "l")];
    relay.submit(&two, "x").await.is_problem(400, "malformed-request");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_headers_say_reaches_the_worker_and_headers_of_nats_do_not() {
    let relay = Relay::start().await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [
        ("Content-Type", "text/csv"),
        ("Content-Encoding", "zstd"),
        ("Relay-Meta-Order", "17"),
        ("Relay-Expires-In", "1h"),
        ("traceparent", parent),
        ("Nats-Schedule", "@at 2030-01-01T00:00:00Z"),
        ("Nats-Schedule-Target", "relay.jobs.mail.other.x"),
        ("Nats-Rollup", "all"),
        ("X-Other", "1"),
    ];
    let receipt = relay.submit(&headers, "a,b").await;
    let job = relay.work("text/plain", "done").await.job;
    assert_eq!((job.id.to_string(), job.content_type.as_str()), (receipt.job(), "text/csv"));
    assert_eq!(job.content_encoding.as_deref(), Some("zstd"));
    assert_eq!(job.ttl_ms, 3_600_000);
    let passed: Vec<_> = job.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(passed, [("relay-meta-order", "17"), ("traceparent", parent)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_read_is_refused_with_the_same_slugs_as_over_http() {
    let relay = Relay::start().await;
    for subject in ["relay.submit.Me.mail", "relay.submit.me.Mail", "relay.submit.me._", "relay.status.me_"] {
        relay.ask(subject, &[], "x").await.is_problem(400, "malformed-request");
    }
    for header in [("Relay-Delay", "5"), ("Relay-Dealy", "5s"), ("Relay-Delay", "8d"), ("Idempotency-Key", "ü")] {
        relay.submit(&[header], "x").await.is_problem(400, "malformed-request");
    }
    relay.submit(&[("Relay-Delay", "1s"), ("relay-delay", "2s")], "x").await.is_problem(400, "malformed-request");
    relay.submit(&[("X-Large", &"x".repeat(17 * 1024))], "x").await.is_problem(431, "headers-too-large");
    relay.ask("relay.submit.me.nowhere", &[], "x").await.is_problem(404, "not-found");
    let large = relay.submit(&[], vec![b'x'; 1_001]).await;
    assert_eq!(large.is_problem(413, "payload-too-large").field("limit"), "1000");
    for body in ["", "x", "0193a4b0"] {
        relay.ask("relay.status.me", &[], body).await.is_problem(400, "malformed-request");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_looked_up_and_cancelled_by_its_id_and_another_clients_is_not_there() {
    let relay = Relay::start().await;
    let id = relay.submit(&[("Relay-Meta-Order", "17")], "x").await.job();
    let job = relay.ask("relay.status.me", &[], format!("{id}\n")).await;
    assert_eq!(
        (job.job(), job.field("state"), job.json()["meta"]["order"].as_str()),
        (id.clone(), "queued".into(), Some("17"))
    );
    for subject in ["relay.status.other", "relay.cancel.other", "relay.result.other"] {
        relay.ask(subject, &[], id.clone()).await.is_problem(404, "not-found");
    }
    for _ in 0..2 {
        let cancelled = relay.ask("relay.cancel.me", &[], id.clone()).await;
        assert_eq!((cancelled.job(), cancelled.field("outcome")), (id.clone(), "cancelled".into()));
    }
}
