//! Messages of a NATS stream that know nothing of relay become jobs: the messages that are taken, put aside or waited
//! for, and where results go. Kills are in `tests/kill/bridge.rs`.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::context::Context;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use futures_util::TryStreamExt as _;
use relay::bridge::foreign::ForeignQueue as _;
use relay::bridge::foreign::intake::Intake;
use relay::bridge::foreign::mapping::JobMapping;
use relay::bridge::foreign::nats::{NatsQueue, StreamSource};
use relay::bridge::foreign::replies::Replies;
use relay::bridge::stats::ForeignReport;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{Job, JobState};
use relay_bridge::error::BrokerError;
use relay_bridge::job_queue::JobFilter;
use relay_bridge::policy::{ClientPolicy, QueuePolicy};
use relay_conformance::testing::NatsServer;
use relay_embedded::{Embedded, EmbeddedConfig};
use relay_nats::config::NatsConfig;
use relay_nats::connection::{Connection, Wait};
use relay_workers::handler::function::{HandlerError, function};
use relay_workers::{QueueOrder, Worker, WorkerConfig};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Of the trace that a message belongs to.
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const LONG: Duration = Duration::from_secs(60);

async fn target(policy: QueuePolicy) -> Broker {
    let broker = Embedded::open(EmbeddedConfig::default()).await.unwrap().broker();
    broker.policies.put_policy(&"orders".parse().unwrap(), &policy, None).await.unwrap();
    broker
}

fn mapping() -> JobMapping {
    JobMapping {
        client: "shop".parse().unwrap(),
        queue: "orders".parse().unwrap(),
        key: Some("{header.Order-Id}".parse().unwrap()),
        content_type: "application/json".to_owned(),
        meta: vec!["X-Tenant".to_owned()],
    }
}

fn source() -> StreamSource {
    StreamSource {
        stream: "ORDERS".to_owned(),
        consumer: "relay".to_owned(),
        subjects: vec!["orders.>".to_owned()],
        put_aside: Some("refused".to_owned()),
        reply: None,
    }
}

/// Somebody else's NATS, with a stream of orders, one of what is refused, and one of results.
struct Shop {
    nats: NatsServer,
    jetstream: Context,
}

impl Shop {
    async fn start() -> Self {
        let nats = NatsServer::start().await;
        let jetstream = async_nats::jetstream::new(async_nats::connect(nats.url()).await.unwrap());
        for (name, subject, retention) in [
            ("ORDERS", "orders.>", RetentionPolicy::WorkQueue),
            ("REFUSED", "refused", RetentionPolicy::Limits),
            ("RESULTS", "results", RetentionPolicy::Limits),
        ] {
            let config =
                Config { name: name.to_owned(), subjects: vec![subject.to_owned()], retention, ..Config::default() };
            jetstream.create_stream(config).await.unwrap();
        }
        Self { nats, jetstream }
    }

    async fn publish(&self, subject: &str, headers: &[(&str, &str)], body: &str) {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.insert(*name, *value));
        let sent = self.jetstream.publish_with_headers(subject.to_owned(), map, body.to_owned().into()).await;
        sent.unwrap().await.unwrap();
    }

    async fn connection(&self) -> Connection {
        Connection::open(NatsConfig::new([self.nats.url()]), Wait::AtMost(LONG)).await.unwrap()
    }

    async fn queue(&self, source: StreamSource) -> Result<NatsQueue, BrokerError> {
        NatsQueue::open(self.connection().await, source).await
    }

    /// All messages of a stream, once there are `count`.
    async fn messages(&self, stream: &str, count: u64) -> Vec<StreamMessage> {
        let stream = self.jetstream.get_stream(stream).await.unwrap();
        let arrived = async {
            while stream.get_info().await.unwrap().state.messages < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, arrived).await.unwrap();
        let (state, mut messages) = (stream.get_info().await.unwrap().state, Vec::new());
        for sequence in state.first_sequence..=state.last_sequence {
            messages.push(stream.get_raw_message(sequence).await.unwrap());
        }
        messages
    }

    /// How many orders were delivered and not ended.
    async fn in_hand(&self) -> usize {
        let stream = self.jetstream.get_stream("ORDERS").await.unwrap();
        stream.consumer_info("relay").await.unwrap().num_ack_pending
    }
}

/// Runs an intake until `then` has seen what it waits for.
async fn taking(shop: &Shop, target: &Broker, slots: u32, then: impl AsyncFnOnce()) -> ForeignReport {
    taking_as(mapping(), shop, target, slots, then).await
}

/// The same with a mapping of its own.
async fn taking_as(
    mapping: JobMapping,
    shop: &Shop,
    target: &Broker,
    slots: u32,
    then: impl AsyncFnOnce(),
) -> ForeignReport {
    let queue = Arc::new(shop.queue(source()).await.unwrap());
    let intake = Arc::new(Intake::new(target.clone(), Clock::system(), mapping));
    let (stats, stop) = (intake.stats(), CancellationToken::new());
    let slots = NonZeroU32::new(slots).unwrap();
    tokio::join!(intake.run(queue, slots, stop.clone()), async {
        then().await;
        stop.cancel();
    });
    stats.report()
}

async fn jobs(target: &Broker, count: usize) -> Vec<relay_bridge::contract::JobStatus> {
    let filter = JobFilter { queues: None, state: None, key_prefix: None, after: None, limit: 1000 };
    let listed = async {
        loop {
            let listed = target.jobs.list(&"shop".parse().unwrap(), &filter).await.unwrap();
            if listed.jobs.len() >= count {
                return listed.jobs;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, listed).await.unwrap()
}

fn header<'a>(message: &'a StreamMessage, name: &str) -> &'a str {
    message.headers.get(name).map_or("", |value| value.as_str())
}

#[tokio::test]
async fn a_message_is_ended_once_it_is_a_job_and_comes_to_one_job_however_often_it_is_sent() {
    let (shop, target) = (Shop::start().await, target(QueuePolicy::default()).await);
    for _ in 0..2 {
        shop.publish("orders.new", &[("Order-Id", "A-17"), ("X-Tenant", "blue"), ("traceparent", TRACE)], "{}").await;
    }
    let stream = shop.jetstream.get_stream("ORDERS").await.unwrap();
    let report = taking(&shop, &target, 8, async || {
        while stream.get_info().await.unwrap().state.messages > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let jobs = jobs(&target, 1).await;
    assert_eq!((jobs.len(), report.received, report.created, report.found), (1, 2, 1, 1));
    let job = &jobs[0];
    assert_eq!((job.queue.as_str(), job.key.as_ref().unwrap().as_str()), ("orders", "A-17"));
    let passed = [("relay-hops", "1"), ("relay-meta-x-tenant", "blue"), ("traceparent", TRACE)];
    assert_eq!(job.headers, passed.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert_eq!((job.content_type.as_str(), job.size), ("application/json", 2));
}

#[tokio::test]
async fn what_can_never_be_a_job_is_put_aside_with_the_reason_and_holds_up_nothing() {
    let small = QueuePolicy { payload_max: 10, ..QueuePolicy::default() };
    let (shop, target) = (Shop::start().await, target(small).await);
    shop.publish("orders.new", &[("X-Other", "kept")], "no id").await;
    shop.publish("orders.new", &[("Order-Id", "big")], "larger than ten bytes").await;
    shop.publish("orders.new", &[("Order-Id", "1")], "one").await;
    shop.publish("orders.new", &[("Order-Id", "1")], "another").await;
    shop.publish("orders.new", &[("Order-Id", "2")], "two").await;
    let report = taking(&shop, &target, 1, async || {
        jobs(&target, 2).await;
        shop.messages("REFUSED", 3).await;
    })
    .await;
    assert_eq!((report.created, report.put_aside), (2, 3));
    let aside = shop.messages("REFUSED", 3).await;
    let reasons: Vec<_> = aside.iter().map(|message| header(message, "Relay-Reason")).collect();
    assert_eq!(reasons, ["missing", "payload-too-large", "idempotency-conflict"]);
    assert_eq!(aside[0].payload, "no id");
    assert_eq!(header(&aside[0], "X-Other"), "kept");
    assert_eq!(header(&aside[0], "Relay-Subject"), "orders.new");
    assert!(header(&aside[0], "Relay-Place").starts_with("ORDERS."));
    assert!(header(&aside[1], "Relay-Detail").contains("takes 10"), "{}", header(&aside[1], "Relay-Detail"));
    assert_eq!(shop.messages("ORDERS", 0).await.len(), 0);
}

#[tokio::test]
async fn a_message_that_came_over_eight_bridges_is_put_aside_and_stays_where_that_goes_in_a_circle_too() {
    let (shop, target) = (Shop::start().await, target(QueuePolicy::default()).await);
    for (order, hops) in [("first", "0"), ("last", "7"), ("circling", "8"), ("for-ever", "17")] {
        shop.publish("orders.eu", &[("Order-Id", order), ("Relay-Hops", hops)], "{}").await;
    }
    let report = taking(&shop, &target, 4, async || {
        jobs(&target, 2).await;
        let aside = &shop.messages("REFUSED", 1).await[0];
        assert_eq!((header(aside, "Relay-Reason"), header(aside, "Relay-Hops")), ("too-many-hops", "9"));
        assert_eq!(header(aside, "Order-Id"), "circling");
    })
    .await;
    let hops: BTreeMap<_, _> = jobs(&target, 2)
        .await
        .into_iter()
        .map(|job| (job.key.unwrap().to_string(), job.headers["relay-hops"].clone()))
        .collect();
    assert_eq!(hops, [("first", "1"), ("last", "8")].map(|(key, hops)| (key.to_owned(), hops.to_owned())).into());
    assert_eq!((report.put_aside, report.given_back), (1, 1));
    assert_eq!(shop.messages("ORDERS", 1).await.len(), 1, "it is not lost");
}

#[tokio::test]
async fn more_messages_that_are_held_back_than_a_server_lets_wait_by_default_keep_no_other_out() {
    const HELD_BACK: u64 = 1_001;
    let (shop, target) = (Shop::start().await, target(QueuePolicy::default()).await);
    for _ in 0..HELD_BACK {
        shop.publish("orders.eu", &[("Relay-Hops", "17")], "{}").await;
    }
    shop.publish("orders.eu", &[("Order-Id", "sound")], "{}").await;
    let report = taking(&shop, &target, 16, async || drop(jobs(&target, 1).await)).await;
    assert_eq!((report.created, report.given_back), (1, HELD_BACK));
}

#[tokio::test]
async fn what_a_producer_says_of_hops_and_reasons_hides_nothing_that_relay_says() {
    let (shop, target) = (Shop::start().await, target(QueuePolicy::default()).await);
    let spelled = [("RELAY-HOPS", "0"), ("Relay-Hops", "8"), ("relay-reason", "none"), ("Order-Id", "circling")];
    shop.publish("orders.eu", &spelled, "{}").await;
    taking(&shop, &target, 1, async || drop(shop.messages("REFUSED", 1).await)).await;
    let aside = &shop.messages("REFUSED", 1).await[0];
    assert_eq!((header(aside, "Relay-Reason"), header(aside, "Relay-Hops")), ("too-many-hops", "9"));
    for hidden in ["RELAY-HOPS", "relay-reason"] {
        assert!(aside.headers.get(hidden).is_none(), "{hidden}: {:?}", aside.headers);
    }
}

#[tokio::test]
async fn a_message_that_is_too_large_with_its_headers_is_put_aside_without_them_once() {
    // The most bytes that nats-server takes by default, headers included.
    const LARGEST: usize = 1_048_576;
    let (shop, target) = (Shop::start().await, target(QueuePolicy::default()).await);
    let note = "x".repeat(900);
    // No order id: neither can be a job. The first has no room for its headers beside the reason, the second for no header at all.
    shop.publish("orders.eu", &[("X-Note", &note)], &"a".repeat(LARGEST - 1_000)).await;
    shop.publish("orders.eu", &[], &"b".repeat(LARGEST)).await;
    let report = taking(&shop, &target, 1, async || {
        shop.messages("REFUSED", 2).await;
    })
    .await;
    let aside = shop.messages("REFUSED", 2).await;
    assert_eq!((aside.len(), report.put_aside, report.unsettled), (2, 2, 0));
    assert_eq!((aside[0].payload.len(), header(&aside[0], "Relay-Reason")), (LARGEST - 1_000, "missing"));
    assert!(aside[0].headers.get("X-Note").is_none());
    assert_eq!((aside[1].payload.len(), aside[1].headers.is_empty()), (LARGEST, true));
    assert!(shop.messages("ORDERS", 0).await.is_empty());
}

#[tokio::test]
async fn a_message_with_headers_that_are_none_is_put_aside_and_those_after_it_become_jobs() {
    let (shop, target) = (Shop::start().await, target(QueuePolicy::default()).await);
    let mut raw = TcpStream::connect(shop.nats.url().strip_prefix("nats://").unwrap()).await.unwrap();
    raw.write_all(b"CONNECT {\"verbose\":false,\"headers\":true}\r\n").await.unwrap();
    raw.write_all(b"HPUB orders.new 20 24\r\nNATS/1.0\r\nA: b\rc\r\n\r\nbody\r\n").await.unwrap();
    shop.publish("orders.new", &[("Order-Id", "1")], "one").await;
    let report = taking(&shop, &target, 1, async || {
        jobs(&target, 1).await;
        shop.messages("REFUSED", 1).await;
    })
    .await;
    assert_eq!((report.created, report.put_aside), (1, 1), "{report:?}");
    let aside = shop.messages("REFUSED", 1).await;
    assert_eq!((header(&aside[0], "Relay-Reason"), &aside[0].payload[..]), ("invalid-header", &b"body"[..]));
}

#[tokio::test]
async fn a_message_that_the_queue_does_not_take_or_not_from_its_client_is_put_aside() {
    let policy = QueuePolicy {
        content_types: ["application/json".parse().unwrap()].into(),
        allowed_clients: ["shop-blue".parse().unwrap()].into(),
        ..QueuePolicy::default()
    };
    let (shop, target) = (Shop::start().await, target(policy).await);
    let mapping = JobMapping { client: "shop-{header.X-Tenant}".parse().unwrap(), ..mapping() };
    for (id, tenant, content_type) in [
        ("1", "red", "application/json"),
        ("2", "blue", "text/plain"),
        ("3", "blue", "application/json; charset=utf-8"),
    ] {
        let headers = [("Order-Id", id), ("X-Tenant", tenant), ("Content-Type", content_type)];
        shop.publish("orders.new", &headers, "{}").await;
    }
    let stream = shop.jetstream.get_stream("ORDERS").await.unwrap();
    let report = taking_as(mapping, &shop, &target, 1, async || {
        while stream.get_info().await.unwrap().state.messages > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!((report.created, report.put_aside), (1, 2));
    let aside = shop.messages("REFUSED", 2).await;
    let reasons: Vec<_> = aside.iter().map(|message| header(message, "Relay-Reason")).collect();
    assert_eq!(reasons, ["forbidden", "unsupported-media-type"]);
}

#[tokio::test]
async fn a_message_of_a_configured_client_that_the_queue_is_not_for_stays_until_an_operator_has_mended_that() {
    let closed = QueuePolicy { allowed_clients: ["other".parse().unwrap()].into(), ..QueuePolicy::default() };
    let (shop, target) = (Shop::start().await, target(closed).await);
    shop.publish("orders.new", &[("Order-Id", "1")], "{}").await;
    let report = taking(&shop, &target, 1, async || {
        while shop.in_hand().await < 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!((report.created, report.put_aside, report.given_back), (0, 0, 1), "{report:?}");
    assert_eq!(shop.messages("ORDERS", 1).await.len(), 1, "it is still there");
}

#[tokio::test]
async fn a_target_that_is_full_is_waited_for_and_no_more_is_taken_than_there_are_slots() {
    let client_defaults = ClientPolicy { max_queued: 2, ..ClientPolicy::default() };
    let full = QueuePolicy { client_defaults, ..QueuePolicy::default() };
    let (shop, target) = (Shop::start().await, target(full).await);
    for n in 0..20 {
        shop.publish("orders.new", &[("Order-Id", &n.to_string())], "x").await;
    }
    let queue = Arc::new(shop.queue(source()).await.unwrap());
    let intake = Arc::new(Intake::new(target.clone(), Clock::system(), mapping()));
    let (stats, stop) = (intake.stats(), CancellationToken::new());
    tokio::join!(intake.run(queue, NonZeroU32::new(4).unwrap(), stop.clone()), async {
        // Two are jobs, and ended; four wait; a seventh is not asked for.
        while stats.report().received < 6 || shop.in_hand().await > 4 {
            tokio::task::yield_now().await;
        }
        assert_eq!(shop.in_hand().await, 4);
        stop.cancel();
    });
    let report = stats.report();
    assert_eq!((report.created, report.put_aside), (2, 0), "{report:?}");
    assert_eq!(report.received, 6, "four are in hand, and two are jobs");
    assert_eq!(report.given_back, 4, "a drain gives back what it holds");
    let queue = shop.queue(source()).await.unwrap();
    let again: Vec<_> = queue.pull(NonZeroU32::new(20).unwrap()).try_collect().await.unwrap();
    assert_eq!(again.len(), 18, "they come again at once, not when their time is over");
}

#[tokio::test]
async fn results_are_sent_once_each_whichever_replica_sends_them() {
    let (shop, target) = (Shop::start().await, target(QueuePolicy::default()).await);
    let stop = CancellationToken::new();
    let mut running = JoinSet::new();
    for _ in 0..2 {
        let queue = Arc::new(shop.queue(source()).await.unwrap());
        let intake = Arc::new(Intake::new(target.clone(), Clock::system(), mapping()));
        let whose = ("shop".parse().unwrap(), "orders".parse().unwrap());
        let connection = shop.connection().await;
        let replies = Replies::open(target.clone(), connection, whose, "results".to_owned(), intake.stats()).await;
        running.spawn(replies.unwrap().run(stop.clone()));
        running.spawn(intake.run(queue, NonZeroU32::new(8).unwrap(), stop.clone()));
    }
    let worker = Worker::new(Arc::clone(&target.leasing), Arc::new(function(judge)), Clock::system(), worker_config());
    let (worker_stop, mut worker_running) = (CancellationToken::new(), JoinSet::new());
    worker_running.spawn(worker.run(worker_stop.clone()));
    for n in 0..50 {
        let body = if n == 7 { "bad" } else { "good" };
        shop.publish(
            "orders.new",
            &[("Order-Id", &format!("o-{n}")), ("X-Tenant", "blue"), ("traceparent", TRACE)],
            body,
        )
        .await;
    }
    let results = shop.messages("RESULTS", 50).await;
    stop.cancel();
    worker_stop.cancel();
    running.join_all().await;
    worker_running.join_all().await;
    assert_eq!(shop.messages("RESULTS", 50).await.len(), 50, "nothing is sent twice");

    let by_key: BTreeMap<_, _> = results.iter().map(|message| (header(message, "Relay-Key"), message)).collect();
    assert_eq!(by_key.len(), 50);
    let good = by_key["o-3"];
    assert_eq!((header(good, "Relay-Outcome"), &good.payload[..]), ("succeeded", &b"GOOD"[..]));
    assert_eq!((header(good, "Relay-Meta-X-Tenant"), header(good, "traceparent")), ("blue", TRACE));
    assert_eq!(header(good, "Relay-Hops"), "1");
    let bad = by_key["o-7"];
    assert_eq!(header(bad, "Relay-Outcome"), "failed");
    assert!(str::from_utf8(&bad.payload).unwrap().contains("no good order"));
}

async fn judge(job: Job, _: relay_workers::Context) -> Result<String, HandlerError> {
    match &job.payload[..] {
        b"bad" => Err(HandlerError::reject("bad-order", "no good order")),
        payload => Ok(str::from_utf8(payload)?.to_uppercase()),
    }
}

fn worker_config() -> WorkerConfig {
    WorkerConfig {
        id: "worker".parse().unwrap(),
        queues: vec![("orders".parse().unwrap(), 1)],
        order: QueueOrder::Weighted,
        slots: NonZeroU32::new(8).unwrap(),
        drain: LONG,
    }
}

#[tokio::test]
async fn a_stream_or_consumer_that_would_lose_messages_is_refused_with_what_to_do() {
    let shop = Shop::start().await;
    let stream = shop.jetstream.get_stream("ORDERS").await.unwrap();
    let refused = async |source: StreamSource, part: &str| {
        let error = shop.queue(source).await.err().unwrap().to_string();
        assert!(error.contains(part), "{part}: {error}");
    };
    refused(StreamSource { put_aside: None, ..source() }, "put_aside").await;
    refused(StreamSource { put_aside: Some("nobody.keeps".to_owned()), ..source() }, "no stream keeps").await;
    refused(StreamSource { put_aside: Some("orders.bad".to_owned()), ..source() }, "among the messages").await;
    refused(StreamSource { reply: Some("orders.results".to_owned()), ..source() }, "`reply` is orders.results").await;
    refused(StreamSource { stream: "NONE".to_owned(), ..source() }, "NONE").await;
    let config = pull::Config { durable_name: Some("relay".to_owned()), max_deliver: 3, ..pull::Config::default() };
    stream.create_consumer(config).await.unwrap();
    refused(source(), "max_deliver").await;
}

#[tokio::test]
async fn a_consumer_that_was_removed_is_made_again_and_nothing_is_lost() {
    let (shop, target) = (Shop::start().await, target(QueuePolicy::default()).await);
    let stream = shop.jetstream.get_stream("ORDERS").await.unwrap();
    shop.publish("orders.new", &[("Order-Id", "1")], "x").await;
    taking(&shop, &target, 4, async || {
        jobs(&target, 1).await;
        stream.delete_consumer("relay").await.unwrap();
        shop.publish("orders.new", &[("Order-Id", "2")], "x").await;
        let found = jobs(&target, 2).await;
        assert!(found.iter().all(|job| job.state == JobState::Queued));
    })
    .await;
    let names: Vec<String> = stream.consumer_names().try_collect().await.unwrap();
    assert_eq!(names, ["relay"]);
}

#[tokio::test]
async fn a_reply_stream_that_can_not_say_where_to_go_on_is_refused() {
    let (shop, target) = (Shop::start().await, target(QueuePolicy::default()).await);
    for (subject, part) in [("orders.results", "removes what was read"), ("nobody.keeps", "no stream keeps")] {
        let whose = ("shop".parse().unwrap(), "orders".parse().unwrap());
        let connection = shop.connection().await;
        let opened = Replies::open(target.clone(), connection, whose, subject.to_owned(), Arc::default()).await;
        let error = opened.err().unwrap().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
}
