//! A client finds its own work again by its own names: its keys, and the notes it sent along as `Relay-Meta-*`.

use std::time::Duration;

use serde_json::{Value, json};

use super::support::{Relay, Reply, Setup};

const OWN: [(&str, &str); 2] = [("Idempotency-Key", "order-17"), ("Relay-Meta-Order-Id", "17")];

/// Key and meta, as JSON has them.
fn own(of: &Value) -> (Value, Value) {
    (of["key"].clone(), of["meta"].clone())
}

/// Submits a job under `key` to `queue` and ends it.
async fn finish(relay: &Relay, queue: &str, key: &str) -> String {
    let headers = [("Idempotency-Key", key)];
    let receipt = relay.ask(&format!("POST /v1/queues/{queue}/jobs"), &headers, key).await;
    let id = receipt.field("job_id");
    assert_eq!(relay.ask(&format!("POST /v1/jobs/{id}/cancel"), &[], "").await.status, 200, "{}", receipt.text());
    id
}

/// The keys of a page's results or jobs, and its `next`.
fn keys(page: &Reply, of: &str) -> (Vec<String>, String) {
    let entries = page.json()[of].as_array().unwrap_or_else(|| panic!("{}", page.text())).clone();
    (entries.iter().map(|entry| entry["key"].as_str().unwrap_or("none").to_owned()).collect(), page.field("next"))
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_told_of_a_job_names_its_key_and_its_meta() {
    let relay = Relay::start().await;
    let expected = (json!("order-17"), json!({ "order-id": "17" }));
    let receipt = relay.submit(&OWN, "x").await;
    assert_eq!(own(&receipt.json()), expected, "the receipt");
    let job = format!("/v1/jobs/{}", receipt.field("job_id"));
    let mut events = relay.stream(&format!("{job}/events"), &[]).await;
    let snapshot = events.event().await;
    assert_eq!((own(&snapshot.data), own(&snapshot.data["job"])), (expected.clone(), expected.clone()), "the snapshot");
    relay.work("text/plain", "done").await;
    for name in ["started", "finished"] {
        let event = events.event().await;
        assert_eq!((&*event.event, own(&event.data)), (name, expected.clone()));
    }
    assert_eq!(own(&relay.get(&job).await.json()), expected, "the job");
    assert_eq!(own(&relay.get("/v1/jobs").await.json()["jobs"][0]), expected, "the list of jobs");
    assert_eq!(own(&relay.get("/v1/results").await.json()["entries"][0]), expected, "the results");
    let streamed = relay.stream("/v1/results", &[]).await.event().await;
    assert_eq!(own(&streamed.data), expected, "the stream of results");
    let result = relay.get(&format!("{job}/result")).await;
    assert_eq!((result.header("idempotency-key"), result.header("relay-meta-order-id")), ("order-17", "17"));
    let waited = relay.submit(&[OWN[0], OWN[1], ("Prefer", "wait=1")], "x").await;
    assert_eq!((waited.header("idempotency-key"), waited.header("relay-meta-order-id")), ("order-17", "17"));
    let batch = relay.ask("POST /v1/queues/mail/batch", &[OWN[0]], r#"[{"text":"x","meta":{"n":"1"}}]"#).await.json();
    assert_eq!(own(&batch["entries"][0]["receipt"]), (json!("order-17/0"), json!({ "n": "1" })), "a batch's receipt");

    assert_eq!(relay.ask(&format!("DELETE {job}"), &[], "").await.status, 204);
    let erased = (json!("order-17"), json!({}));
    assert_eq!(own(&relay.get(&job).await.json()), erased);
    let listed = relay.get("/v1/jobs?state=succeeded").await.json();
    assert_eq!(own(&listed["jobs"][0]), erased);
    assert_eq!(own(&relay.get("/v1/results").await.json()["entries"][0]), erased);
    let again = relay.stream(&format!("{job}/events"), &[]).await.rest().await;
    let told: Vec<_> = again.iter().filter(|block| !block.event.is_empty()).map(|block| &block.data).collect();
    assert!(told.len() == 2 && told.iter().all(|data| data["meta"].is_null() && data["key"] == "order-17"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_which_only_the_result_is_kept_has_its_meta_and_no_key() {
    let relay = Relay::start().await;
    let id = relay.submit(&OWN[1..], "x").await.field("job_id");
    relay.work("text/plain", "done").await;
    let job = relay.get(&format!("/v1/jobs/{id}")).await.json();
    assert_eq!((own(&job), &job["state"]), ((Value::Null, json!({ "order-id": "17" })), &json!("succeeded")));
    let result = relay.get(&format!("/v1/jobs/{id}/result")).await;
    assert_eq!((result.header("idempotency-key"), result.header("relay-meta-order-id")), ("", "17"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_comes_back_in_the_spelling_that_names_the_same_job() {
    let relay = Relay::start().await;
    for (sent, key) in [(r#""a\"b\\c""#, r#"a"b\c"#), (r#""\"d""#, r#""d"#)] {
        let id = relay.submit(&[("Idempotency-Key", sent)], "x").await.field("job_id");
        relay.work("text/plain", "done").await;
        let result = relay.get(&format!("/v1/jobs/{id}/result")).await;
        let retry = relay.submit(&[("Idempotency-Key", result.header("idempotency-key"))], "x").await;
        assert_eq!(
            (retry.field("job_id"), retry.field("key"), retry.field("replayed")),
            (id, key.into(), "true".into())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_and_results_are_narrowed_to_keys_that_begin_so() {
    let relay = Relay::start().await;
    for (queue, key) in [("mail", "order-1"), ("mail", "mail-1"), ("other", "order-2"), ("mail", "order-3")] {
        finish(&relay, queue, key).await;
    }
    let none: Vec<String> = Vec::new();
    for (query, oldest_first) in [
        ("key_prefix=order-", vec!["order-1", "order-2", "order-3"]),
        ("key_prefix=order-&queue=mail", vec!["order-1", "order-3"]),
        ("key_prefix=order-4", vec![]),
        // Escaped as any parameter is.
        ("key_prefix=%6frder-3", vec!["order-3"]),
    ] {
        let (found, next) = keys(&relay.get(&format!("/v1/results?{query}")).await, "entries");
        assert_eq!(found, oldest_first, "{query}");
        // Behind all of them, also behind those that were not asked for.
        assert_eq!(keys(&relay.get(&format!("/v1/results?after={next}")).await, "entries").0, none, "{query}");
        let newest_first: Vec<_> = oldest_first.into_iter().rev().collect();
        assert_eq!(keys(&relay.get(&format!("/v1/jobs?{query}")).await, "jobs").0, newest_first, "{query}");
    }
    let first = relay.get("/v1/jobs?key_prefix=order-&limit=2").await;
    let rest = relay.get(&format!("/v1/jobs?key_prefix=order-&limit=2&after={}", first.field("next"))).await;
    assert_eq!(
        (keys(&first, "jobs").0, keys(&rest, "jobs").0),
        (vec!["order-3".to_owned(), "order-2".to_owned()], vec!["order-1".to_owned()])
    );
    for path in ["/v1/jobs", "/v1/results"] {
        for bad in ["", "a%20b", "%C3%A9", &"x".repeat(256)] {
            let refused = relay.get(&format!("{path}?key_prefix={bad}")).await;
            refused.is_problem(400, "malformed-request");
            assert!(refused.field("detail").contains("key_prefix"), "{}", refused.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_and_a_stream_for_some_keys_go_on_past_the_others() {
    let mut setup = Setup::default();
    setup.limits.ping_every = Duration::from_millis(20);
    let relay = setup.start().await;
    let mut stream = relay.stream("/v1/results?key_prefix=order-", &[]).await;
    let opening = stream.block().await.unwrap();
    let (waited, ()) = tokio::join!(relay.get("/v1/results?key_prefix=order-&wait=50s"), async {
        finish(&relay, "mail", "mail-1").await;
        finish(&relay, "mail", "mail-2").await;
        finish(&relay, "mail", "order-1").await;
    });
    assert_eq!(keys(&waited, "entries").0, ["order-1"]);
    assert_eq!(stream.event().await.data["key"], "order-1");
    finish(&relay, "mail", "mail-3").await;
    // A ping says that it moved on: a reader that comes back need not pass the same results again.
    let moved = loop {
        let block = stream.block().await.unwrap();
        if !block.id.is_empty() {
            break block.id;
        }
    };
    assert_ne!(moved, opening.id);
    let mut again = relay.stream("/v1/results?key_prefix=order-", &[("Last-Event-ID", &moved)]).await;
    finish(&relay, "mail", "order-2").await;
    assert_eq!(
        (stream.event().await.data["key"].clone(), again.event().await.data["key"].clone()),
        (json!("order-2"), json!("order-2"))
    );
}
