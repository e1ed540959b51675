//! An operator's rules for a queue: its content types, its clients, and their rates. Refused before a body is read.

use std::time::Duration;

use relay::api::{BatchAnswer, BatchItem, RateLimit, Whoami};
use relay_bridge::clock::Clock;
use relay_bridge::policy::ClientPolicy;
use serde_json::json;

use super::support::{Relay, Reply, Setup};

const BATCH: &str = "POST /v1/queues/mail/batch";
const HOUR: Duration = Duration::from_secs(3_600);

fn whoami(reply: &Reply) -> Whoami {
    serde_json::from_slice(&reply.body).unwrap()
}

fn entries(reply: &Reply) -> Vec<BatchItem> {
    assert_eq!(reply.status, 200, "{}", reply.text());
    serde_json::from_slice::<BatchAnswer>(&reply.body).unwrap().entries
}

/// The outcome of each entry of a batch.
fn words(reply: &Reply) -> Vec<&'static str> {
    let word = |entry: BatchItem| match entry {
        BatchItem::Receipt(receipt) => receipt.state.as_str(),
        BatchItem::Problem(problem) => problem.slug.as_str(),
    };
    entries(reply).into_iter().map(word).collect()
}

async fn images_and_json() -> Relay {
    let mut setup = Setup::default();
    setup.policy.content_types = ["image/*", "application/json"].map(|range| range.parse().unwrap()).into();
    setup.start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_type_that_the_queue_does_not_take_is_refused_before_the_body_is_read() {
    let relay = images_and_json().await;
    for refused in ["text/html; charset=utf-8", "application/json5", "image", "application/octet-stream"] {
        // Nothing of the body is sent: an answer that waited for it would not come.
        let reply = relay.submit(&[("content-type", refused), ("content-length", "500")], "").await;
        reply.is_problem(415, "unsupported-media-type");
        assert!(reply.field("detail").contains("application/json, image/*"), "{}", reply.text());
    }
    relay.submit(&[], "none is application/octet-stream").await.is_problem(415, "unsupported-media-type");
    for taken in ["image/png", "IMAGE/SVG+xml", "application/json; charset=utf-8"] {
        assert_eq!(relay.submit(&[("content-type", taken)], "{}").await.status, 202, "{taken}");
    }
    assert_eq!(relay.get("/v1/jobs").await.json()["jobs"].as_array().unwrap().len(), 3, "nothing was done");
    let whoami = whoami(&relay.get("/v1/whoami").await);
    assert_eq!(whoami.queue_limits[0].content_types, ["application/json", "image/*"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_entries_of_a_batch_are_refused_one_by_one_for_their_content_types() {
    let relay = images_and_json().await;
    let entries = json!([{"payload": 1}, {"text": "a"}, {"payload_base64": "AA==", "content_type": "image/png"}]);
    // The batch's own content type is that of the list.
    let reply = relay.ask(BATCH, &[("content-type", "application/x-ndjson")], entries.to_string()).await;
    assert_eq!(words(&reply), ["queued", "unsupported-media-type", "queued"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_the_queue_is_not_for_can_not_submit_to_it_and_may_still_read_what_it_has() {
    let clock = Clock::manual(Clock::system().now());
    let relay = Setup { clock, ..Setup::default() }.start().await;
    let (shop, other) = (("Relay-Client", "shop"), ("Relay-Client", "other"));
    let id = relay.submit(&[other, ("Idempotency-Key", "k")], "before").await.field("job_id");

    let mut setup = Setup::default();
    setup.policy.allowed_clients = ["shop".parse().unwrap()].into();
    relay.set_policy("mail", &setup.policy).await;
    assert_eq!(relay.submit(&[shop], "x").await.status, 202);
    let refused = relay.submit(&[other, ("content-length", "500")], "").await;
    refused.is_problem(403, "forbidden");
    assert!(refused.field("detail").contains("allowed_clients"), "{}", refused.text());
    relay.ask(BATCH, &[other, ("content-length", "500")], "").await.is_problem(403, "forbidden");
    assert_eq!(relay.ask("POST /v1/queues/other/jobs", &[other], "x").await.status, 202, "another queue is open");

    assert_eq!(relay.ask(&format!("GET /v1/jobs/{id}"), &[other], "").await.field("state"), "queued");
    assert_eq!(relay.ask("GET /v1/queues/mail/jobs?key=k", &[other], "").await.field("job_id"), id);
    assert_eq!(relay.ask(&format!("POST /v1/jobs/{id}/cancel"), &[other], "").await.field("outcome"), "cancelled");
    let queues = async |client| {
        let whoami = whoami(&relay.ask("GET /v1/whoami", &[client], "").await);
        whoami.queue_limits.into_iter().map(|limits| limits.queue.to_string()).collect::<Vec<_>>()
    };
    assert_eq!((queues(shop).await, queues(other).await), (vec!["mail".into(), "other".into()], vec!["other".into()]));
}

/// A relay whose clock stands still, and where a client may submit 3 an hour and 2 at once.
async fn slow() -> (Relay, Clock) {
    let clock = Clock::manual(Clock::system().now());
    let mut setup = Setup { clock: clock.clone(), ..Setup::default() };
    setup.policy.client_defaults = ClientPolicy { rate: Some("3/h".parse().unwrap()), burst: 2, ..Default::default() };
    (setup.start().await, clock)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_above_its_rate_is_told_to_the_second_when_to_come_back_and_holds_up_nobody() {
    let (relay, clock) = slow().await;
    let key = [("Idempotency-Key", "k")];
    assert_eq!(relay.submit(&key, "x").await.status, 202);
    assert_eq!(relay.submit(&key, "x").await.field("replayed"), "true");
    // A retry counts, too: it costs as much. Nothing of the body is sent.
    let refused = relay.submit(&[("content-length", "500")], "").await;
    refused.is_problem(429, "rate-limited");
    assert_eq!((refused.header("retry-after"), &*refused.field("retry_after")), ("1200", "20m"));
    assert_eq!((&*refused.field("limit"), &*refused.field("retry")), ("3", "safe"));
    assert_eq!(relay.submit(&[("Relay-Client", "other")], "x").await.status, 202);
    assert_eq!(relay.ask("POST /v1/queues/other/jobs", &[], "x").await.status, 202);

    clock.advance(Duration::from_secs(1_199));
    let refused = relay.submit(&[], "x").await;
    refused.is_problem(429, "rate-limited");
    assert_eq!(refused.header("retry-after"), "1");
    clock.advance(Duration::from_secs(1));
    assert_eq!(relay.submit(&[], "x").await.status, 202);
    relay.submit(&[], "x").await.is_problem(429, "rate-limited");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoami_says_how_fast_a_client_may_submit_and_how_many_more_at_once() {
    let (relay, clock) = slow().await;
    let left = async || {
        let limits = whoami(&relay.get("/v1/whoami").await).queue_limits;
        let Some(RateLimit { limit, burst, left }) = limits[0].rate.clone() else { panic!("there is a rate") };
        assert_eq!((limit.as_str(), burst), ("3/h", 2));
        left
    };
    assert_eq!(left().await, 2);
    relay.submit(&[], "x").await;
    assert_eq!((left().await, left().await), (1, 1), "asking costs nothing");
    clock.advance(HOUR);
    assert_eq!(left().await, 2, "no more than the burst");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_entry_of_a_batch_counts_and_a_batch_that_comes_too_early_is_not_even_read() {
    let (relay, clock) = slow().await;
    let four = json!([{"text": "a"}, {"bad": 1}, {"text": "b"}, {"text": "c"}]).to_string();
    let reply = relay.ask(BATCH, &[], &four).await;
    assert_eq!(words(&reply), ["queued", "malformed-request", "queued", "rate-limited"]);
    let BatchItem::Problem(problem) = &entries(&reply)[3] else { panic!("it was refused") };
    assert_eq!(problem.retry_after.unwrap().to_string(), "20m");
    let refused = relay.ask(BATCH, &[("content-length", "500")], "").await;
    refused.is_problem(429, "rate-limited");
    assert_eq!(refused.header("retry-after"), "1200");
    clock.advance(HOUR / 3);
    assert_eq!(words(&relay.ask(BATCH, &[], &four).await)[..3], ["queued", "malformed-request", "rate-limited"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rerun_is_a_submission_to_its_clients_rate_and_to_the_queues_clients() {
    let (relay, clock) = slow().await;
    let id = relay.submit(&[("Idempotency-Key", "k")], "x").await.field("job_id");
    assert_eq!(relay.ask(&format!("POST /v1/jobs/{id}/cancel"), &[], "").await.field("outcome"), "cancelled");
    let rerun = async |from: u32| relay.ask(&format!("POST /v1/jobs/{id}/rerun?from={from}"), &[], "").await;
    assert_eq!(rerun(1).await.status, 202);
    // Both of the burst are spent; a rerun that was started is answered all the same.
    assert_eq!(rerun(1).await.field("replayed"), "true");
    assert_eq!(relay.ask(&format!("POST /v1/jobs/{id}/cancel"), &[], "").await.field("outcome"), "cancelled");
    let refused = rerun(2).await;
    refused.is_problem(429, "rate-limited");
    assert_eq!(refused.header("retry-after"), "1200");
    clock.advance(HOUR / 3);
    assert_eq!(rerun(2).await.status, 202);

    let mut setup = Setup::default();
    setup.policy.allowed_clients = ["another".parse().unwrap()].into();
    relay.set_policy("mail", &setup.policy).await;
    clock.advance(HOUR);
    assert_eq!(relay.ask(&format!("POST /v1/jobs/{id}/cancel"), &[], "").await.field("outcome"), "cancelled");
    rerun(3).await.is_problem(403, "forbidden");
    assert_eq!(rerun(2).await.field("replayed"), "true");
}
