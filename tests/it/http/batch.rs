//! Many jobs in one request: each has a receipt or a problem of its own, in their order.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use relay::api::{BatchAnswer, BatchItem, Slug};
use serde_json::json;

use super::support::{Relay, Reply, Setup};

const BATCH: &str = "POST /v1/queues/mail/batch";

fn items(reply: &Reply) -> BatchAnswer {
    assert_eq!(reply.status, 200, "{}", reply.text());
    let answer: BatchAnswer = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(answer.accepted + answer.refused, answer.entries.len());
    answer
}

/// `queued`, `replayed`, or the slug of each entry.
fn words(reply: &Reply) -> Vec<&'static str> {
    let word = |item: &BatchItem| match item {
        BatchItem::Receipt(receipt) if receipt.replayed => "replayed",
        BatchItem::Receipt(receipt) => receipt.state.as_str(),
        BatchItem::Problem(problem) => problem.slug.as_str(),
    };
    items(reply).entries.iter().map(word).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_entries_of_a_batch_say_is_what_the_workers_get() {
    let relay = Relay::start().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let entries = [
        r#"{"key":"a","payload":{"b" :  1e2, "ä":[null]},"meta":{"Of":"x"},"expires_in":"90s"}"#.to_owned(),
        format!(r#"{{"key":"b","payload_base64":"{}"}}"#, STANDARD.encode([0xff, 0x00])),
        r#"{"key":"c","text":"hallo\nWelt","content_type":"text/x-greeting"}"#.to_owned(),
        r#"{"key":"d","payload":null}"#.to_owned(),
        r#"{"key":"e","text":""}"#.to_owned(),
    ];
    let expected: [(&[u8], &str); 5] = [
        ("{\"b\" :  1e2, \"ä\":[null]}".as_bytes(), "application/json"),
        (&[0xff, 0x00], "application/octet-stream"),
        (b"hallo\nWelt", "text/x-greeting"),
        (b"null", "application/json"),
        (b"", "text/plain; charset=utf-8"),
    ];
    let reply = relay.ask(BATCH, &[("traceparent", trace)], format!("{}\n", entries.join("\n"))).await;
    assert_eq!(words(&reply), ["queued"; 5]);
    for (payload, content_type) in expected {
        let job = relay.work("text/plain", "done").await.job;
        assert_eq!((&job.payload[..], &*job.content_type), (payload, content_type));
        assert_eq!(job.headers["traceparent"], trace);
        if job.key.is_some_and(|key| key.as_str() == "a") {
            assert_eq!((&*job.headers["relay-meta-of"], job.expires_at.since(job.due_at).as_secs()), ("x", 90));
        }
    }
    // The same jobs as an array; what a single submission would make of them is the same job, too.
    let again = relay.ask(BATCH, &[], format!("[{}]", entries.join(","))).await;
    assert_eq!(words(&again), ["replayed"; 5]);
    let single = relay.submit(&[("Idempotency-Key", "d"), ("content-type", "application/json")], "null").await;
    assert_eq!(single.header("idempotency-replayed"), "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_entries_in_the_middle_are_refused_alone_and_in_their_place() {
    let relay = Relay::start().await;
    let first = relay.submit(&[("Idempotency-Key", "k"), ("content-type", "text/plain")], "first").await;
    let large = "x".repeat(1_001);
    let key = "k".repeat(256);
    let entries = [
        (r#"{"text":"good"}"#, "queued", ""),
        ("{]", "malformed-request", "can't be read"),
        ("7", "malformed-request", "no JSON object"),
        (r#"["k1",{"a":1}]"#, "malformed-request", "no JSON object"),
        ("[]", "malformed-request", "no JSON object"),
        (r#"{"text":"a","payload":1}"#, "malformed-request", "exactly one"),
        ("{}", "malformed-request", "exactly one"),
        (r#"{"text":"a","prio":1}"#, "malformed-request", "`prio`"),
        (r#"{"text":"a","key":""}"#, "malformed-request", "key"),
        (&format!(r#"{{"text":"a","key":"{key}"}}"#), "malformed-request", "256 bytes"),
        (r#"{"text":"a","delay":"8d"}"#, "malformed-request", "`delay`"),
        (r#"{"text":"a","delay":10}"#, "malformed-request", "expected a string at its byte 22"),
        (r#"{"text":"a","expires_in":"0s"}"#, "malformed-request", "`expires_in`"),
        (r#"{"text":"a","content_type":"ü"}"#, "malformed-request", "`content_type`"),
        (r#"{"text":"a","meta":{"a b":"c"}}"#, "malformed-request", "`a b`"),
        (r#"{"text":"a","meta":{"a":"ü"}}"#, "malformed-request", "`a`"),
        (r#"{"payload_base64":"%"}"#, "malformed-request", "base64"),
        (&format!(r#"{{"text":"{large}"}}"#), "payload-too-large", "1000"),
        (r#"{"text":"other","key":"k"}"#, "idempotency-conflict", "used at"),
        (r#"{"text":"good too"}"#, "queued", ""),
    ];
    let body: Vec<&str> = entries.iter().map(|(entry, ..)| *entry).collect();
    let reply = relay.ask(BATCH, &[], body.join("\n")).await;
    let expected: Vec<_> = entries.iter().map(|(_, word, _)| *word).collect();
    assert_eq!(words(&reply), expected);
    let answer = items(&reply);
    assert_eq!((answer.accepted, answer.refused), (2, entries.len() - 2));
    for (at, (item, (entry, _, named))) in answer.entries.iter().zip(entries).enumerate() {
        let BatchItem::Problem(problem) = item else { continue };
        assert!(problem.detail.starts_with(&format!("entry {at}: ")), "{}", problem.detail);
        assert!(problem.detail.contains(named), "{entry}: {}", problem.detail);
        if problem.slug == Slug::IdempotencyConflict {
            assert_eq!(problem.job_id.unwrap().to_string(), first.field("job_id"));
        }
    }
    assert_eq!(relay.get("/v1/jobs").await.json()["jobs"].as_array().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_under_a_key_may_be_repeated_as_a_whole() {
    let relay = Relay::start().await;
    let key = [("Idempotency-Key", "\"night/7\"")];
    let body = json!([{"text": "a"}, {"text": "b", "key": "own"}, {"text": "c"}]).to_string();
    let first = items(&relay.ask(BATCH, &key, &body).await);
    let again = relay.ask(BATCH, &key, &body).await;
    assert_eq!(words(&again), ["replayed"; 3]);
    let ids = |answer: &BatchAnswer| -> Vec<_> {
        let id = |item: &BatchItem| match item {
            BatchItem::Receipt(receipt) => receipt.job_id.to_string(),
            BatchItem::Problem(problem) => problem.detail.clone(),
        };
        answer.entries.iter().map(id).collect()
    };
    assert_eq!(ids(&first), ids(&items(&again)));
    for (at, key) in ["night%2F7%2F0", "own", "night%2F7%2F2"].into_iter().enumerate() {
        let found = relay.get(&format!("/v1/queues/mail/jobs?key={key}")).await;
        assert_eq!(found.field("job_id"), ids(&first)[at]);
    }
    let long = "k".repeat(254);
    let refused = relay.ask(BATCH, &[("Idempotency-Key", &long)], &body).await;
    refused.is_problem(400, "malformed-request");
    assert_eq!(relay.get("/v1/jobs").await.json()["jobs"].as_array().unwrap().len(), 3, "all of it or nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_can_not_be_taken_apart_does_nothing() {
    let relay = Relay::start().await;
    for broken in ["[{\"text\":\"a\"},{\"text\":\"b\"}", "[{\"text\":\"a\"}]x", "[{\"text\":\"a\"} {\"text\":\"b\"}]"] {
        relay.ask(BATCH, &[], broken).await.is_problem(400, "malformed-request");
    }
    relay.ask(BATCH, &[], b"{\"text\":\"\xff\"}").await.is_problem(400, "malformed-request");
    for header in [("Relay-Delay", "1s"), ("Relay-Expires-In", "1s"), ("Relay-Meta-A", "b"), ("Relay-Dealy", "1s")] {
        relay.ask(BATCH, &[header], "[{\"text\":\"a\"}]").await.is_problem(400, "malformed-request");
    }
    let packed = relay.ask(BATCH, &[("Content-Encoding", "gzip")], "[{\"text\":\"a\"}]").await;
    packed.is_problem(415, "unsupported-media-type");
    relay.ask(&format!("{BATCH}?x=1"), &[], "[]").await.is_problem(400, "malformed-request");
    relay.ask("POST /v1/queues/nowhere/batch", &[], "[]").await.is_problem(404, "not-found");
    for empty in ["", "\n\n"] {
        relay.ask(BATCH, &[], empty).await.is_problem(400, "malformed-request");
    }
    assert_eq!(items(&relay.ask(BATCH, &[], "[]").await).entries.len(), 0);
    assert_eq!(relay.get("/v1/jobs").await.json()["jobs"].as_array().unwrap().len(), 0, "nothing was done");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_a_batch_are_a_thousand_entries_and_8_mib() {
    let relay = Relay::start().await;
    let many = "{\"text\":\"a\"}\n".repeat(1_001);
    let refused = relay.ask(BATCH, &[], &many).await;
    refused.is_problem(413, "payload-too-large");
    assert_eq!((refused.field("limit"), refused.field("actual")), ("1000".into(), "1001".into()));
    assert_eq!(items(&relay.ask(BATCH, &[], &many[13..]).await).accepted, 1_000);
    let refused = relay.ask(BATCH, &[("content-length", "8388609")], "").await;
    refused.is_problem(413, "payload-too-large");
    assert_eq!(refused.field("limit"), "8388608");
    assert_eq!(relay.ask(BATCH, &[], "[]".to_owned() + &" ".repeat(8_388_606)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_above_the_clients_quota_are_told_so_and_the_others_stand() {
    let mut setup = Setup::default();
    setup.policy.client_defaults.max_queued = 2;
    let relay = setup.start().await;
    let reply = relay.ask(BATCH, &[], json!([{"text": "a"}, {"text": "b"}, {"text": "c"}]).to_string()).await;
    assert_eq!(words(&reply), ["queued", "queued", "quota-exceeded"]);
}
