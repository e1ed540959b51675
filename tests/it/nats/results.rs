//! Results over NATS: one, and all of a client's after a cursor.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use relay::ingress::nats::Limits;
use relay_bridge::broker::Broker;
use relay_bridge::contract::{ClientId, JobId, RunId};
use relay_bridge::error::BrokerError;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::{Finished, Lookup, Page, ResultFilter, ResultLog, Start};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::support::{Answer, Relay, Setup};

#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_raw_with_its_facts_as_headers_and_until_then_there_is_the_state_and_no_body() {
    let relay = Relay::start().await;
    let id = relay.submit(&[], "x").await.job();
    let open = relay.ask("relay.result.me", &[], id.clone()).await;
    assert_eq!((open.header("Relay-State"), open.header("Relay-Job-Id"), open.text()), ("queued", id.as_str(), ""));
    let delivery = relay.lease().await;
    assert_eq!(relay.ask("relay.result.me", &[], id.clone()).await.header("Relay-State"), "leased");
    drop(delivery);
    let other = relay.submit(&[], "y").await.job();
    relay.work("text/csv", "a,b").await;
    let result = relay.ask("relay.result.me", &[], other.clone()).await;
    assert_eq!((result.text(), result.header("Content-Type")), ("a,b", "text/csv"));
    assert_eq!((result.header("Relay-Outcome"), result.header("Relay-Attempt")), ("succeeded", "1"));
    assert_eq!(result.header("Relay-Job-Id"), other);
    assert!(!result.header("Relay-Run-Id").is_empty() && !result.header("Relay-Cursor").is_empty());
    assert_eq!(result.header("Nats-Service-Error"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_names_its_key_and_its_meta_as_they_were_submitted() {
    let relay = Relay::start().await;
    let own = [("Idempotency-Key", "order-17"), ("Relay-Meta-Order-Id", "17")];
    let id = relay.submit(&own, "x").await.job();
    let own_of = |answer: &Answer| own.map(|(name, _)| (name, answer.header(name).to_owned()));
    let expected = own.map(|(name, value)| (name, value.to_owned()));
    assert_eq!(own_of(&relay.ask("relay.result.me", &[], id.clone()).await), expected, "while there is none");
    relay.work("text/plain", "done").await;
    assert_eq!(own_of(&relay.ask("relay.result.me", &[], id.clone()).await), expected);
    let empty = relay.submit(&[("Nats-Msg-Id", "order-18"), own[1]], "x").await.job();
    relay.work("text/plain", "").await;
    let listed = relay.until_empty("relay.results.me", &[]).await;
    assert_eq!(own_of(&listed[0]), expected);
    let view: serde_json::Value = serde_json::from_str(listed[1].text()).unwrap();
    assert_eq!((&view["job_id"], &view["key"]), (&empty.into(), &"order-18".into()), "an entry in JSON");
    assert_eq!(view["meta"], serde_json::json!({ "order-id": "17" }));
    let status = relay.ask("relay.status.me", &[], id).await;
    assert_eq!(status.field("key"), "order-17");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_a_result_and_no_service_error() {
    let relay = Relay::start().await;
    let id = relay.submit(&[], "x").await.job();
    relay.reject("bad-order", "no such article").await;
    let result = relay.ask("relay.result.me", &[], id).await;
    assert_eq!((result.header("Relay-Outcome"), result.field("reason")), ("failed", "bad-order".into()));
    assert_eq!(
        (result.header("Nats-Service-Error"), relay.stats("result").await["num_errors"].as_u64()),
        ("", Some(0))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_says_which_trace_its_job_belongs_to_and_an_invalid_one_is_dropped() {
    let relay = Relay::start().await;
    for (sent, said) in [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", 1),
        ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", 0),
    ] {
        let id = relay.submit(&[("traceparent", sent)], "x").await.job();
        relay.work("text/plain", "done").await;
        let expected = if said == 1 { sent } else { "" };
        assert_eq!(relay.ask("relay.result.me", &[], id).await.header("traceparent"), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_result_says_that_it_expired_and_how_the_job_ended() {
    let relay = Relay::start().await;
    let id = relay.submit(&[("Idempotency-Key", "k")], "x").await.job();
    relay.work("text/plain", "secret").await;
    relay.broker.jobs.erase(&"me".parse().unwrap(), id.parse().unwrap()).await.unwrap();
    let gone = relay.ask("relay.result.me", &[], id).await;
    assert_eq!(gone.is_problem(410, "result-expired").field("outcome"), "succeeded");
    let listed = relay.until_empty("relay.results.me", &[]).await;
    assert_eq!(listed.len(), 2, "the outcome is still listed");
    assert_eq!(listed[0].header("Content-Type"), "application/vnd.relay.result+json");
    assert_eq!((listed[0].field("outcome"), listed[0].field("size")), ("succeeded".into(), "0".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn missed_results_are_fetched_by_cursor_each_once_until_an_empty_message() {
    let relay = Relay::start().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(relay.submit(&[], format!("{n}")).await.job());
        relay.work("text/plain", format!("r{n}")).await;
    }
    relay.ask("relay.submit.other.mail", &[], "x").await.job();
    relay.work("text/plain", "another client's").await;

    let first = relay.until_empty("relay.results.me", &[("Relay-Limit", "2")]).await;
    let bodies: Vec<_> = first.iter().map(|answer| answer.text()).collect();
    assert_eq!(bodies, ["r0", "r1", ""]);
    assert_eq!(first[1].header("Relay-Job-Id"), ids[1]);
    assert_eq!(first[1].header("Relay-Cursor"), first[2].header("Relay-Cursor"), "the end says where to read on");

    let after = [("Relay-After", first[1].header("Relay-Cursor"))];
    let second = relay.until_empty("relay.results.me", &after).await;
    let bodies: Vec<_> = second.iter().map(|answer| answer.text()).collect();
    assert_eq!(bodies, ["r2", "r3", "r4", ""]);

    let after = [("Relay-After", second[3].header("Relay-Cursor"))];
    let third = relay.until_empty("relay.results.me", &after).await;
    assert_eq!(third.len(), 1, "nothing new is an end at once");
    assert_eq!(third[0].header("Relay-Cursor"), second[3].header("Relay-Cursor"));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_results_than_a_page_come_in_one_answer() {
    let relay = Relay::start().await;
    for n in 0..120 {
        relay.client.publish("relay.submit.me.mail", format!("{n}").into()).await.unwrap();
        relay.work("text/plain", format!("r{n}")).await;
    }
    let answers = relay.until_empty("relay.results.me", &[("Relay-Limit", "1000")]).await;
    assert_eq!((answers.len(), answers[119].text()), (121, "r119"));
    assert_eq!(relay.until_empty("relay.results.me", &[]).await.len(), 101, "100 unless more are asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_result_does_not_look_like_the_end() {
    let relay = Relay::start().await;
    for answer in ["", "second"] {
        relay.submit(&[], "x").await.job();
        relay.work("text/plain", answer).await;
    }
    let answers = relay.until_empty("relay.results.me", &[]).await;
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[0].header("Content-Type"), "application/vnd.relay.result+json");
    assert_eq!((answers[0].field("size"), answers[0].header("Relay-Outcome")), ("0".into(), "succeeded"));
    assert_eq!(answers[1].text(), "second");
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_from_now_on_begins_at_the_end_and_a_strange_cursor_is_refused_and_ended() {
    let relay = Relay::start().await;
    relay.submit(&[], "x").await.job();
    relay.work("text/plain", "old").await;
    let now = relay.until_empty("relay.results.me", &[("Relay-After", "now")]).await;
    assert_eq!(now.len(), 1);
    relay.submit(&[], "x").await.job();
    relay.work("text/plain", "new").await;
    let news = relay.until_empty("relay.results.me", &[("Relay-After", now[0].header("Relay-Cursor"))]).await;
    assert_eq!((news.len(), news[0].text()), (2, "new"));

    let mine = now[0].header("Relay-Cursor");
    for (subject, cursor) in [("relay.results.other", mine), ("relay.results.me", "garbage")] {
        let refused = relay.until_empty(subject, &[("Relay-After", cursor)]).await;
        refused[0].is_problem(400, "malformed-request");
        assert_eq!((refused.len(), refused[1].header("Nats-Service-Error")), (2, "malformed-request"));
    }
    let refused = relay.until_empty("relay.results.me", &[("Relay-Limit", "0")]).await;
    refused[0].is_problem(400, "malformed-request");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_larger_than_a_message_is_named_and_not_sent() {
    let server = "max_payload: 8KB".to_owned();
    let relay = Setup { server, ..Default::default() }.start().await;
    let id = relay.submit(&[], "x").await.job();
    relay.work("text/plain", vec![b'r'; 20_000]).await;
    let refused = relay.ask("relay.result.me", &[], id.clone()).await;
    assert_eq!(refused.is_problem(413, "payload-too-large").field("limit"), "8192");
    let listed = relay.until_empty("relay.results.me", &[]).await;
    assert_eq!((listed.len(), listed[0].field("size")), (2, "20000".into()));
    assert_eq!(listed[0].field("link"), format!("/v1/jobs/{id}/result"));
}

/// Reads the log a result at a time, and each page after the first `free` ones only when it is let.
struct HeldLog {
    inner: Arc<dyn ResultLog>,
    free: usize,
    pages: AtomicUsize,
    begun: Arc<Semaphore>,
    let_go: Arc<Semaphore>,
}

#[async_trait]
impl ResultLog for HeldLog {
    async fn lookup(&self, client: &ClientId, job: JobId) -> Result<Lookup, BrokerError> {
        self.inner.lookup(client, job).await
    }
    async fn wait(&self, client: &ClientId, job: JobId, wait: Duration) -> Result<Lookup, BrokerError> {
        self.inner.wait(client, job, wait).await
    }
    async fn wait_ahead(
        &self,
        client: &ClientId,
        job: JobId,
        run: RunId,
        wait: Duration,
    ) -> Result<Option<Box<Finished>>, BrokerError> {
        self.inner.wait_ahead(client, job, run, wait).await
    }
    async fn page(
        &self,
        client: &ClientId,
        from: &Start,
        filter: &ResultFilter,
        _: u32,
        wait: Duration,
    ) -> Result<Page, BrokerError> {
        if self.pages.fetch_add(1, Ordering::Relaxed) >= self.free {
            self.begun.add_permits(1);
            self.let_go.acquire().await.unwrap().forget();
        }
        self.inner.page(client, from, filter, 1, wait).await
    }
}

struct Gates {
    begun: Arc<Semaphore>,
    let_go: Arc<Semaphore>,
}

/// A relay whose log is held after `free` pages.
async fn held(free: usize, setup: Setup) -> (Relay, Gates) {
    let (begun, let_go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let gates = Gates { begun: Arc::clone(&begun), let_go: Arc::clone(&let_go) };
    let break_broker = Box::new(move |broker: &mut Broker| {
        let inner = Arc::clone(&broker.results);
        broker.results = Arc::new(HeldLog { inner, free, pages: AtomicUsize::new(0), begun, let_go });
    });
    (Setup { break_broker, ..setup }.start().await, gates)
}

#[tokio::test(flavor = "multi_thread")]
async fn large_results_come_in_answers_of_a_few_mebibytes_that_say_how_many_they_sent() {
    let policy = QueuePolicy { result_max: 300_000, ..QueuePolicy::default() };
    let relay = Setup { policy, ..Setup::default() }.start().await;
    let mut runs = Vec::new();
    for _ in 0..40 {
        relay.client.publish("relay.submit.me.mail", "x".into()).await.unwrap();
        runs.push(relay.work("text/plain", vec![b'r'; 256 << 10]).await.job.run_id.to_string());
    }
    let (mut read, mut after) = (Vec::new(), String::new());
    loop {
        let headers = [("Relay-Limit", "1000"), ("Relay-After", after.as_str())];
        let answers = relay.until_empty("relay.results.me", &headers[..if after.is_empty() { 1 } else { 2 }]).await;
        let (end, results) = answers.split_last().unwrap();
        assert_eq!(end.header("Relay-Count"), results.len().to_string());
        let bytes: usize = results.iter().map(|result| result.0.payload.len()).sum();
        assert!(bytes <= 5 << 20, "{bytes} bytes in one answer");
        if results.is_empty() {
            break;
        }
        read.extend(results.iter().map(|result| result.header("Relay-Run-Id").to_owned()));
        after = end.header("Relay-Cursor").to_owned();
    }
    assert_eq!(read, runs, "each once, in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_a_call_does_not_have_is_refused_by_name() {
    let relay = Relay::start().await;
    let job = relay.submit(&[], "x").await.job();
    for (subject, header) in [
        ("relay.results.me", "Relay-Afer"),
        ("relay.results.me", "Relay-Wait"),
        ("relay.result.me", "Relay-Wiat"),
        ("relay.result.me", "Relay-Limit"),
        ("relay.status.me", "Relay-Wait"),
        ("relay.cancel.me", "Relay-Delay"),
        ("relay.submit.me.mail", "Relay-Limit"),
    ] {
        let refused = relay.ask(subject, &[(header, "1s")], job.clone()).await;
        let detail = refused.is_problem(400, "malformed-request").field("detail");
        assert!(detail.contains(&format!("no header {}:", header.to_lowercase())), "{subject}: {detail}");
    }
    let known = [("Relay-Client", "me"), ("Relay-Meta-Of", "x"), ("X-Other", "y")];
    assert_eq!(relay.ask("relay.status.me", &known, job).await.json()["state"], "queued", "nothing was done");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_which_the_connection_was_lost_does_not_look_complete() {
    let (mut relay, gates) = held(1, Setup::default()).await;
    for answer in ["first", "second"] {
        relay.submit(&[], "x").await.job();
        relay.work("text/plain", answer).await;
    }
    let inbox = relay.client.new_inbox();
    let mut replies = relay.client.subscribe(inbox.clone()).await.unwrap();
    relay.client.publish_with_reply("relay.results.me", inbox, "".into()).await.unwrap();
    let first = Answer(replies.next().await.unwrap());
    assert_eq!(first.text(), "first");
    gates.begun.acquire().await.unwrap().forget();
    relay.server.restart().await;
    relay.answers().await;
    gates.let_go.add_permits(1_000);
    let mut answers = Vec::new();
    while answers.last().is_none_or(|last: &Answer| !last.text().is_empty()) {
        answers.push(Answer(replies.next().await.unwrap()));
    }
    let [.., refused, end] = &answers[..] else { panic!("an end without a problem") };
    assert_eq!(refused.is_problem(503, "broker-unavailable").field("retry"), "safe");
    assert_eq!((end.header("Nats-Service-Error"), end.header("Relay-Cursor")), ("broker-unavailable", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_for_its_results_many_times_at_once_leaves_places_to_others() {
    let limits = Limits { requests: 20, readers: 1, answer_within: Duration::from_secs(3_600), ..Limits::default() };
    let (relay, gates) = held(0, Setup { limits, ..Setup::default() }).await;
    let inbox = relay.client.new_inbox();
    let mut replies = relay.client.subscribe(inbox.clone()).await.unwrap();
    let ask = || relay.client.publish_with_reply("relay.results.me", inbox.clone(), "".into());
    ask().await.unwrap();
    gates.begun.acquire().await.unwrap().forget();
    // One reads, three wait.
    for _ in 0..3 {
        ask().await.unwrap();
    }
    for _ in 0..27 {
        ask().await.unwrap();
        let refused = Answer(timeout(Duration::from_secs(60), replies.next()).await.unwrap().unwrap());
        refused.is_problem(429, "rate-limited");
        assert_eq!(Answer(replies.next().await.unwrap()).header("Nats-Service-Error"), "rate-limited");
    }
    relay.ask("relay.submit.other.mail", &[], "x").await.job();
    gates.let_go.add_permits(1_000);
    for _ in 0..4 {
        assert_eq!(Answer(replies.next().await.unwrap()).header("Relay-Count"), "0");
    }
    // Its places are free as soon as they have answered.
    while relay.until_empty("relay.results.me", &[]).await[0].header("Nats-Service-Error") == "rate-limited" {}
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_long_to_read_is_told_so() {
    let limits = Limits { readers: 1, answer_within: Duration::from_millis(50), ..Limits::default() };
    let (relay, gates) = held(0, Setup { limits, ..Setup::default() }).await;
    relay.client.publish_with_reply("relay.results.me", "_INBOX.x", "".into()).await.unwrap();
    gates.begun.acquire().await.unwrap().forget();
    let refused = relay.until_empty("relay.results.other", &[]).await;
    assert_eq!(refused[0].is_problem(503, "overloaded").field("retry"), "safe");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_all_results_leaves_half_of_the_room_to_others_however_large_results_may_be() {
    let policy = QueuePolicy { result_max: 4 << 20, ..QueuePolicy::default() };
    let (relay, gates) = held(0, Setup { bytes: 4 << 20, policy, ..Setup::default() }).await;
    let id = relay.submit(&[], "x").await.job();
    relay.work("text/plain", "done").await;
    let inbox = relay.client.new_inbox();
    let mut replies = relay.client.subscribe(inbox.clone()).await.unwrap();
    relay.client.publish_with_reply("relay.results.me", inbox, "".into()).await.unwrap();
    // It has its room, and reads for as long as it is held.
    gates.begun.acquire().await.unwrap().forget();
    assert_eq!(relay.ask("relay.result.me", &[], id).await.text(), "done");
    gates.let_go.add_permits(1_000);
    assert_eq!(Answer(replies.next().await.unwrap()).text(), "done");
}
