//! `Relay-Wait`: the result is the answer, if it comes in time.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, Subscriber};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use relay::ingress::nats::Limits;
use relay_bridge::broker::Broker;
use relay_bridge::contract::{ClientId, JobId, RunId};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::result_log::{Finished, Lookup, Page, ResultFilter, ResultLog, Start};

use super::limits::held;
use super::support::{Answer, Relay, Setup};
use crate::turns::{Gate, Held};

/// Longer than a test waits for an answer: one that is not at once fails it.
const LONG: (&str, &str) = ("Relay-Wait", "1h");

fn limits(waits: usize) -> Limits {
    Limits { waits, wait_max: Duration::from_secs(3_600), ..Limits::default() }
}

async fn start(waits: usize) -> Relay {
    Setup { limits: limits(waits), ..Setup::default() }.start().await
}

/// Waits until something is so.
async fn until(is_so: impl Fn() -> bool) {
    let waited = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited).await.expect("it did not come to that");
}

/// Asks without waiting for the answer, which comes to what is given back.
async fn begin(relay: &Relay, subject: &str, headers: &[(&str, &str)], body: &str) -> Subscriber {
    let inbox = relay.client.new_inbox();
    let replies = relay.client.subscribe(inbox.clone()).await.unwrap();
    let mut map = HeaderMap::new();
    headers.iter().for_each(|(name, value)| map.append(*name, *value));
    let body = body.to_owned().into();
    relay.client.publish_with_reply_and_headers(subject.to_owned(), inbox, map, body).await.unwrap();
    replies
}

async fn next(replies: &mut Subscriber) -> Answer {
    Answer(tokio::time::timeout(Duration::from_secs(60), replies.next()).await.unwrap().unwrap())
}

/// Every header of an answer but the one that differs from request to request.
fn headers(answer: &Answer) -> Vec<(String, String)> {
    let all = answer.0.headers.as_ref().unwrap().iter();
    let mut all: Vec<_> = all.map(|(name, values)| (name.to_string(), format!("{values:?}"))).collect();
    all.retain(|(name, _)| name != "Relay-Request-Id");
    all.sort();
    all
}

#[track_caller]
fn is_receipt(answer: &Answer, state: &str) {
    assert_eq!((answer.header("Relay-State"), answer.field("state").as_str()), (state, state), "{}", answer.text());
    assert_eq!((answer.header("Relay-Job-Id"), answer.header("Relay-Outcome")), (answer.job().as_str(), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_that_waits_is_answered_with_the_result() {
    let relay = start(8).await;
    let own = [LONG, ("Relay-Meta-Order", "17"), ("Idempotency-Key", "k")];
    let (result, done) = tokio::join!(relay.submit(&own, "x"), relay.work("text/csv", "a,b"));
    assert_eq!((result.text(), result.header("Relay-Outcome")), ("a,b", "succeeded"));
    assert!(done.job.headers.keys().eq(["relay-meta-order"]), "{:?}", done.job.headers);
    let asked = relay.ask("relay.result.me", &[], done.job.id.to_string()).await;
    assert_eq!((headers(&result), result.text()), (headers(&asked), asked.text()), "as relay.result answers it");
    let (failed, ()) = tokio::join!(relay.submit(&[LONG], "x"), relay.reject("bad-order", "no such article"));
    assert_eq!((failed.header("Relay-Outcome"), failed.field("reason")), ("failed", "bad-order".into()));
    until(|| relay.ingress.in_flight() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_is_answered_with_its_receipt_when_its_time_is_up() {
    let relay = start(8).await;
    for wait in ["0s", "1ms", "100ms"] {
        let receipt = relay.submit(&[("Relay-Wait", wait), ("Idempotency-Key", "k")], "x").await;
        is_receipt(&receipt, "queued");
    }
    let _held = relay.lease().await;
    let leased = relay.submit(&[("Relay-Wait", "1ms"), ("Idempotency-Key", "k")], "x").await;
    is_receipt(&leased, "leased");
    assert_eq!((leased.field("replayed"), leased.header("Idempotency-Replayed")), ("true".into(), "true"));
    assert_eq!(relay.submit(&[], "x").await.header("Relay-State"), "", "who does not wait is answered as ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_again_is_answered_with_the_same_result() {
    let relay = start(8).await;
    let key = [LONG, ("Idempotency-Key", "k")];
    let first = begin(&relay, "relay.submit.me.mail", &key, "x").await;
    let second = begin(&relay, "relay.submit.me.mail", &key, "x").await;
    until(|| relay.ingress.waits() == 2).await;
    relay.work("text/plain", "once").await;
    let mut runs = Vec::new();
    for mut replies in [first, second] {
        let result = next(&mut replies).await;
        assert_eq!(result.text(), "once");
        runs.push(result.header("Relay-Run-Id").to_owned());
    }
    for wait in [LONG, ("Relay-Wait", "0s")] {
        let again = relay.submit(&[wait, ("Idempotency-Key", "k")], "x").await;
        assert_eq!((again.text(), again.header("Idempotency-Replayed")), ("once", "true"));
        runs.push(again.header("Relay-Run-Id").to_owned());
    }
    assert!(!runs[0].is_empty() && runs.iter().all(|run| *run == runs[0]), "{runs:?}");
    relay.submit(&key, "other").await.is_problem(422, "idempotency-conflict");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_result_that_is_waited_for_has_expired() {
    let relay = start(8).await;
    let key = ("Idempotency-Key", "k");
    let id = relay.submit(&[key], "x").await.job();
    relay.work("text/plain", "secret").await;
    relay.broker.jobs.erase(&"me".parse().unwrap(), id.parse().unwrap()).await.unwrap();
    let gone = relay.submit(&[LONG, key], "x").await;
    assert_eq!(gone.is_problem(410, "result-expired").field("job_id"), id);
    is_receipt(&relay.submit(&[("Relay-Wait", "0s"), key], "x").await, "succeeded");
    relay.ask("relay.result.me", &[LONG], id).await.is_problem(410, "result-expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_waited_for_by_the_id_of_its_job() {
    let relay = start(8).await;
    let id = relay.submit(&[], "x").await.job();
    let open = relay.ask("relay.result.me", &[("Relay-Wait", "1ms")], id.clone()).await;
    assert_eq!((open.header("Relay-State"), open.text()), ("queued", ""));
    let (result, _) = tokio::join!(relay.ask("relay.result.me", &[LONG], id.clone()), relay.work("text/plain", "done"));
    assert_eq!((result.text(), result.header("Relay-Job-Id")), ("done", id.as_str()));
    for wait in [LONG, ("Relay-Wait", "0s")] {
        assert_eq!(
            relay.ask("relay.result.me", &[wait], id.clone()).await.text(),
            "done",
            "what is there is not waited for"
        );
        relay.ask("relay.result.other", &[wait], id.clone()).await.is_problem(404, "not-found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_can_not_be_read_is_refused_before_anything_is_done() {
    let relay = start(8).await;
    let id = relay.submit(&[("Relay-Delay", "1h")], "x").await.job();
    for wait in [&[("Relay-Wait", "10")][..], &[("Relay-Wait", "soon")], &[LONG, ("relay-wait", "1s")]] {
        let refused = relay.submit(wait, "x").await;
        assert!(refused.is_problem(400, "malformed-request").field("detail").contains("relay-wait"));
        relay.ask("relay.result.me", wait, id.clone()).await.is_problem(400, "malformed-request");
    }
    let depth = relay.broker.jobs.depth(&"mail".parse().unwrap()).await.unwrap();
    assert_eq!((depth.waiting, depth.parked), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_was_waited_for_and_is_larger_than_a_message_is_named_with_its_job() {
    let setup = Setup { server: "max_payload: 8KB".to_owned(), limits: limits(8), ..Setup::default() };
    let relay = setup.start().await;
    let key = [LONG, ("Idempotency-Key", "k")];
    let (refused, done) = tokio::join!(relay.submit(&key, "x"), relay.work("text/plain", vec![b'r'; 20_000]));
    assert_eq!(refused.is_problem(413, "payload-too-large").field("job_id"), done.job.id.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_set_of_waits_answers_receipts_and_submissions_go_on() {
    let relay = start(2).await;
    let mut waiting = Vec::new();
    for n in 1..=2 {
        waiting.push(begin(&relay, "relay.submit.me.mail", &[LONG], "x").await);
        until(|| relay.ingress.waits() == n).await;
    }
    let receipt = relay.submit(&[LONG, ("Idempotency-Key", "k")], "x").await;
    is_receipt(&receipt, "queued");
    let open = relay.ask("relay.result.me", &[LONG], receipt.job()).await;
    assert_eq!((open.header("Relay-State"), open.text()), ("queued", ""));
    assert_eq!(relay.ingress.waits(), 2);
    for _ in 0..3 {
        relay.work("text/plain", "done").await;
    }
    for replies in &mut waiting {
        assert_eq!(next(replies).await.text(), "done");
    }
    until(|| relay.ingress.wait_places() == 0).await;
    assert_eq!(relay.submit(&[LONG, ("Idempotency-Key", "k")], "x").await.text(), "done", "there is a place again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_holds_no_place_of_a_submission_and_none_of_the_bytes_in_flight() {
    let limits = Limits { requests: 1, ..limits(8) };
    let relay = Setup { limits, bytes: 1_000, ..Setup::default() }.start().await;
    let mut waiting = Vec::new();
    for n in 1..=4 {
        waiting.push(begin(&relay, "relay.submit.me.mail", &[LONG], &"x".repeat(600)).await);
        until(|| (relay.ingress.waits(), relay.ingress.in_flight()) == (n, n)).await;
    }
    for replies in &mut waiting {
        relay.work("text/plain", "done").await;
        assert_eq!(next(replies).await.text(), "done");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_clients_waits_leave_three_quarters_of_the_places_to_others() {
    let relay = start(8).await;
    let mut waiting = Vec::new();
    for n in 1..=8 {
        waiting.push(begin(&relay, "relay.submit.me.mail", &[LONG], "x").await);
        until(|| relay.ingress.waits() == n).await;
    }
    // Nobody else was there until now.
    let full = relay.ask("relay.submit.b.mail", &[LONG], "x").await;
    is_receipt(&full, "queued");
    for _ in 0..9 {
        relay.work("text/plain", "done").await;
    }
    for replies in &mut waiting {
        assert_eq!(next(replies).await.text(), "done");
    }
    until(|| relay.ingress.wait_places() == 0).await;
    let mut waiting = Vec::new();
    for (n, client) in ["b", "me", "me", "b", "c", "c", "d", "d"].into_iter().enumerate() {
        if n == 3 {
            is_receipt(&relay.submit(&[LONG], "x").await, "queued");
        }
        waiting.push(begin(&relay, &format!("relay.submit.{client}.mail"), &[LONG], "x").await);
        until(|| relay.ingress.waits() == n + 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_answers_open_waits_with_their_receipts() {
    let mut relay = start(8).await;
    let id = relay.submit(&[], "x").await.job();
    let mut submitted = begin(&relay, "relay.submit.me.mail", &[LONG], "x").await;
    let mut asked = begin(&relay, "relay.result.me", &[LONG], &id).await;
    until(|| (relay.ingress.waits(), relay.ingress.in_flight()) == (2, 2)).await;
    relay.shutdown.cancel();
    is_receipt(&next(&mut submitted).await, "queued");
    assert_eq!(next(&mut asked).await.header("Relay-State"), "queued");
    relay.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_reply_subject_nobody_waits() {
    let relay = start(8).await;
    for wait in ["1h", "soon"] {
        let mut headers = HeaderMap::new();
        headers.insert("Relay-Wait", wait);
        relay.client.publish_with_headers("relay.submit.me.mail", headers, "quiet".into()).await.unwrap();
        assert_eq!(&relay.work("text/plain", "done").await.job.payload[..], b"quiet");
    }
    while relay.stats("submit").await["num_requests"] != 2 {}
    assert_eq!((relay.ingress.wait_places(), relay.stats("submit").await["num_errors"].as_u64()), (0, Some(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_gives_its_place_back_in_time_though_the_broker_has_not_confirmed() {
    let patient = Limits { answer_within: Duration::from_secs(3_600), ..limits(1) };
    let (relay, gates) = held(patient, 1 << 20).await;
    let mut replies = begin(&relay, "relay.submit.me.mail", &[("Relay-Wait", "50ms")], "x").await;
    gates.begun.acquire().await.unwrap().forget();
    until(|| relay.ingress.wait_places() == 0).await;
    assert_eq!((relay.ingress.in_flight(), relay.ingress.waits()), (1, 0));
    gates.let_go.add_permits(1);
    is_receipt(&next(&mut replies).await, "queued");
}

/// A log that can't be read.
struct Away;

fn away() -> BrokerError {
    BrokerError::new(BrokerErrorKind::Unavailable, "read", "it is away")
}

#[async_trait]
impl ResultLog for Away {
    async fn lookup(&self, _: &ClientId, _: JobId) -> Result<Lookup, BrokerError> {
        Err(away())
    }
    async fn wait(&self, _: &ClientId, _: JobId, _: Duration) -> Result<Lookup, BrokerError> {
        Err(away())
    }
    async fn wait_ahead(
        &self,
        _: &ClientId,
        _: JobId,
        _: RunId,
        _: Duration,
    ) -> Result<Option<Box<Finished>>, BrokerError> {
        Err(away())
    }
    async fn page(&self, _: &ClientId, _: &Start, _: &ResultFilter, _: u32, _: Duration) -> Result<Page, BrokerError> {
        Err(away())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_job_whose_result_can_not_be_waited_for_is_answered_with_its_receipt() {
    let break_broker = Box::new(|broker: &mut Broker| broker.results = Arc::new(Away));
    let relay = Setup { break_broker, limits: limits(8), ..Setup::default() }.start().await;
    let receipt = relay.submit(&[LONG], "x").await;
    is_receipt(&receipt, "queued");
    relay.ask("relay.result.me", &[LONG], receipt.job()).await.is_problem(503, "broker-unavailable");
    until(|| relay.ingress.wait_places() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_what_is_there_is_read_in_its_clients_turn() {
    for subject in ["relay.result.me", "relay.submit.me.mail"] {
        let gate = Gate::closed();
        let held = Arc::clone(&gate);
        let break_broker = Box::new(move |broker: &mut Broker| {
            broker.results = Arc::new(Held { inner: Arc::clone(&broker.results), gate: held });
        });
        // Room for two results, which the log may take as long as it likes to read.
        let patient = Limits { answer_within: Duration::from_secs(3_600), ..limits(8) };
        let relay = Setup { limits: patient, bytes: 200_000, break_broker, ..Setup::default() }.start().await;
        let key = ("Idempotency-Key", "k");
        let id = relay.submit(&[key], "x").await.job();
        relay.work("text/plain", "done").await;
        let submits = subject.contains("submit");
        let headers = |wait| if submits { vec![wait, key] } else { vec![wait] };
        let body = if submits { "x" } else { id.as_str() };
        let mut reading = Vec::new();
        for _ in 0..2 {
            reading.push(begin(&relay, subject, &headers(LONG), body).await);
        }
        until(|| gate.begun() == 2).await;
        // Their time may be up before it is their turn to stand in line.
        let short = headers(("Relay-Wait", "1ms"));
        let mut refused: FuturesUnordered<_> = (0..3).map(|_| relay.ask(subject, &short, body.to_owned())).collect();
        while let Some(refused) = refused.next().await {
            match submits {
                // It was accepted, whatever becomes of its wait.
                true => assert_eq!(refused.job(), id),
                false => drop(refused.is_problem(503, "overloaded")),
            }
        }
        assert_eq!(gate.begun(), 2, "{subject}: no more than there is room for");
        gate.open();
        for replies in &mut reading {
            assert_eq!(next(replies).await.text(), "done", "{subject}");
        }
    }
}
