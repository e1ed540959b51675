//! A job comes in once, whatever a client repeats, and its result goes out as the handler left it.

use relay_bridge::contract::{ClientId, IdempotencyKey, JobId, QueueName};

use super::support::Relay;

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_job_has_a_receipt_and_a_location() {
    let relay = Relay::start().await;
    let reply = relay.submit(&[("content-type", "text/plain")], "hello").await;
    assert_eq!(reply.status, 202, "{}", reply.text());
    let id: JobId = reply.field("job_id").parse().unwrap();
    assert_eq!(reply.header("location"), format!("/v1/jobs/{id}"));
    assert_eq!(reply.header("content-type"), "application/json");
    assert_eq!(reply.header("idempotency-replayed"), "");
    let receipt: relay::api::Receipt = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!((receipt.generation, receipt.replayed, receipt.state.as_str()), (1, false, "queued"));
    assert_eq!((receipt.client.as_str(), receipt.queue.as_str()), ("dev", "mail"));
    assert_eq!(receipt.links.result, format!("/v1/jobs/{id}/result"));
    assert!(receipt.expires_at.unwrap() > receipt.accepted_at);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_is_what_the_worker_gets() {
    let relay = Relay::start().await;
    let payload: Vec<u8> = (0..=255).collect();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [
        ("Content-Type", "Image/PNG; x=\"Y\""),
        ("Content-Encoding", "gzip"),
        ("Relay-Meta-Trace-Of", "a b"),
        ("Relay-Expires-In", "90s"),
        ("traceparent", trace),
        ("tracestate", "a=1"),
        ("tracestate", "b=2"),
        ("cookie", "not passed on"),
    ];
    let receipt = relay.submit(&headers, &payload).await;
    assert_eq!(receipt.status, 202, "{}", receipt.text());
    let job = relay.lease().await.job;
    assert_eq!((&job.payload[..], &*job.content_type), (&payload[..], "Image/PNG; x=\"Y\""));
    assert_eq!(job.content_encoding.as_deref(), Some("gzip"));
    let passed: Vec<_> = job.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(passed, [("relay-meta-trace-of", "a b"), ("traceparent", trace), ("tracestate", "a=1,b=2")]);
    assert_eq!(job.expires_at.since(job.due_at).as_secs(), 90);
    let view = relay.get(&format!("/v1/jobs/{}", job.id)).await;
    assert_eq!((view.field("state"), view.field("size")), ("leased".into(), "256".into()));
    assert_eq!(view.json()["meta"]["trace-of"], "a b");
    assert_eq!(view.field("max_attempts"), "10");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_says_which_trace_its_job_belongs_to() {
    let relay = Relay::start().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let traced = relay.submit(&[("traceparent", trace), ("Idempotency-Key", "a")], "x").await;
    relay.work("text/plain", "done").await;
    let path = format!("/v1/jobs/{}/result", traced.field("job_id"));
    assert_eq!(relay.get(&path).await.header("traceparent"), trace);
    let cancelled = relay.submit(&[("traceparent", trace), ("Idempotency-Key", "b")], "x").await.field("job_id");
    relay.ask(&format!("POST /v1/jobs/{cancelled}/cancel"), &[], "").await;
    assert_eq!(relay.get(&format!("/v1/jobs/{cancelled}/result")).await.header("traceparent"), trace);
    // One that is not valid is dropped, and the job is taken all the same.
    let bare = relay.submit(&[("traceparent", "00-1-2-3"), ("tracestate", "a=1"), ("Prefer", "wait=50")], "x");
    let (bare, delivery) = tokio::join!(bare, relay.work("text/plain", "done"));
    assert_eq!((bare.status, bare.header("traceparent"), delivery.job.headers.len()), (200, "", 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunked_body_and_an_empty_one_are_jobs_too() {
    let relay = Relay::start().await;
    let chunked = [("transfer-encoding", "chunked")];
    let reply = relay.submit(&chunked, "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n").await;
    assert_eq!(reply.status, 202);
    assert_eq!(&relay.work("text/plain", "x").await.job.payload[..], b"hello world");
    assert_eq!(relay.submit(&[], "").await.status, 202);
    let job = relay.lease().await.job;
    assert_eq!((job.payload.len(), &*job.content_type), (0, "application/octet-stream"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_answered_with_the_first_receipt() {
    let relay = Relay::start().await;
    let first = relay.submit(&[("Idempotency-Key", "k")], "hello").await;
    // Quotes, delay and meta are not part of what makes a retry the same.
    let retry = relay.submit(&[("Idempotency-Key", "\"k\""), ("Relay-Delay", "1h"), ("Relay-Meta-A", "b")], "hello");
    let retry = retry.await;
    assert_eq!((first.status, retry.status), (202, 202));
    assert_eq!((first.header("idempotency-replayed"), retry.header("idempotency-replayed")), ("", "true"));
    let (mut first, mut retry) = (first.json(), retry.json());
    assert_eq!((first["replayed"].take(), retry["replayed"].take()), (false.into(), true.into()));
    assert_eq!(first, retry);
    let id = JobId::derive(
        &"dev".parse::<ClientId>().unwrap(),
        &"mail".parse::<QueueName>().unwrap(),
        &"k".parse::<IdempotencyKey>().unwrap(),
    );
    assert_eq!(first["job_id"], id.to_string());

    relay.work("text/plain", "done").await;
    let late = relay.submit(&[("Idempotency-Key", "k"), ("Prefer", "wait=0")], "hello").await;
    assert_eq!((late.status, &*late.text(), late.header("idempotency-replayed")), (200, "done", "true"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_its_own_in_every_queue_and_client() {
    let relay = Relay::start().await;
    let key = ("Idempotency-Key", "k");
    let mut ids = std::collections::BTreeSet::new();
    for (queue, client) in [("mail", "a"), ("mail", "b"), ("other", "a")] {
        let reply = relay.ask(&format!("POST /v1/queues/{queue}/jobs"), &[key, ("Relay-Client", client)], client).await;
        assert_eq!((reply.status, reply.field("replayed")), (202, "false".into()));
        ids.insert(reply.field("job_id"));
    }
    assert_eq!(ids.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_body_under_a_key_names_the_first_request_and_changes_nothing() {
    let relay = Relay::start().await;
    let key = ("Idempotency-Key", "k");
    let first = relay.submit(&[key, ("content-type", "text/plain")], "hello").await;
    for (content_type, body) in [("text/plain", "hallo"), ("text/html", "hello")] {
        let reply = relay.submit(&[key, ("content-type", content_type)], body).await;
        reply.is_problem(422, "idempotency-conflict");
        assert_eq!(reply.field("job_id"), first.field("job_id"));
        assert_eq!(reply.field("first_at"), first.field("accepted_at"));
    }
    let same = relay.submit(&[key, ("content-type", "Text/Plain; charset=utf-8")], "hello").await;
    assert_eq!((same.status, same.field("replayed")), (202, "true".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_gets_the_result_itself() {
    let relay = Relay::start().await;
    let headers = [("Prefer", "wait=50"), ("Idempotency-Key", "k")];
    let (reply, delivery) = tokio::join!(relay.submit(&headers, "2+2"), relay.work("text/x-answer", "4"));
    assert_eq!((reply.status, &*reply.text()), (200, "4"));
    assert_eq!(reply.header("content-type"), "text/x-answer");
    assert_eq!(reply.header("preference-applied"), "wait=50");
    assert_eq!((reply.header("relay-outcome"), reply.header("relay-attempt")), ("succeeded", "1"));
    assert_eq!(reply.header("relay-run-id"), delivery.job.run_id.to_string());
    assert_eq!(reply.header("relay-job-id"), delivery.job.id.to_string());
    assert_eq!(reply.header("location"), format!("/v1/jobs/{}", delivery.job.id));
    assert!(!reply.header("relay-cursor").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_does_not_come_in_time_leaves_the_receipt() {
    let relay = Relay::start().await;
    let reply = relay.submit(&[("Prefer", "respond-async, wait=0")], "x").await;
    assert_eq!((reply.status, reply.header("preference-applied")), (202, "respond-async, wait=0"));
    let reply = relay.submit(&[("Prefer", "respond-async")], "x").await;
    assert_eq!((reply.status, reply.header("preference-applied")), (202, "respond-async"));
    let reply = relay.submit(&[("Prefer", "return=minimal")], "x").await;
    assert_eq!((reply.status, reply.header("preference-applied")), (202, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_longer_wait_than_allowed_is_cut_and_said() {
    let mut setup = super::support::Setup::default();
    setup.limits.wait_max = std::time::Duration::from_secs(1);
    let relay = setup.start().await;
    let reply = relay.submit(&[("Prefer", "wait=3600")], "x").await;
    assert_eq!((reply.status, reply.header("preference-applied")), (202, "wait=1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_job_is_an_outcome_and_not_an_error() {
    let relay = Relay::start().await;
    let headers = [("Prefer", "wait=50")];
    let (reply, ()) = tokio::join!(relay.submit(&headers, "x"), relay.reject("bad-input", "no picture"));
    assert_eq!((reply.status, reply.header("relay-outcome")), (200, "failed"));
    assert_eq!(reply.header("content-type"), "application/vnd.relay.failure+json");
    assert_eq!(reply.json(), serde_json::json!({"reason": "bad-input", "detail": "no picture"}));
}
