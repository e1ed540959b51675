//! The bounds: requests in hand, bytes, time, and where answers may go.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use relay::ingress::nats::Limits;
use relay_bridge::broker::Broker;
use relay_bridge::contract::{ClientId, Job, JobId, JobStatus, QueueName, Timestamp};
use relay_bridge::error::BrokerError;
use relay_bridge::job_queue::{Depth, Enqueued, Exact, JobFilter, JobQueue, Listed, Swept};
use relay_bridge::load::{KeptPace, Load};
use relay_bridge::policy::{ClientPolicy, PolicyStore, QueuePolicy};
use tokio::sync::Semaphore;

use super::support::{Relay, Setup};

/// Passes calls on, but takes a job or cancels one only when it is let.
struct Held {
    inner: Broker,
    begun: Arc<Semaphore>,
    let_go: Arc<Semaphore>,
}

impl Held {
    async fn wait(&self) {
        self.begun.add_permits(1);
        self.let_go.acquire().await.unwrap().forget();
    }
}

#[async_trait]
impl JobQueue for Held {
    async fn enqueue(&self, job: Job) -> Result<Enqueued, BrokerError> {
        self.wait().await;
        self.inner.jobs.enqueue(job).await
    }
    async fn status(&self, client: &ClientId, job: JobId) -> Result<Option<JobStatus>, BrokerError> {
        self.inner.jobs.status(client, job).await
    }
    async fn is_in(&self, client: &ClientId, job: JobId, queues: &[QueueName]) -> Result<bool, BrokerError> {
        self.inner.jobs.is_in(client, job, queues).await
    }
    async fn cancel(&self, client: &ClientId, job: JobId) -> Result<JobStatus, BrokerError> {
        self.wait().await;
        self.inner.jobs.cancel(client, job).await
    }
    async fn rerun(&self, client: &ClientId, job: JobId, from: u32) -> Result<Enqueued, BrokerError> {
        self.inner.jobs.rerun(client, job, from).await
    }
    async fn erase(&self, client: &ClientId, job: JobId) -> Result<(), BrokerError> {
        self.inner.jobs.erase(client, job).await
    }
    async fn list(&self, client: &ClientId, filter: &JobFilter) -> Result<Listed, BrokerError> {
        self.inner.jobs.list(client, filter).await
    }
    async fn depth(&self, queue: &QueueName) -> Result<Depth, BrokerError> {
        self.inner.jobs.depth(queue).await
    }
    async fn waiting(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        self.inner.jobs.waiting(client, queue).await
    }

    async fn stored(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        self.inner.jobs.stored(client, queue).await
    }
    async fn oldest(&self, queue: &QueueName) -> Result<Option<Timestamp>, BrokerError> {
        self.inner.jobs.oldest(queue).await
    }
    async fn count(&self, queue: &QueueName) -> Result<Exact, BrokerError> {
        self.inner.jobs.count(queue).await
    }
    async fn load(&self, queue: &QueueName, within: Duration) -> Result<Load, BrokerError> {
        self.inner.jobs.load(queue, within).await
    }
    async fn kept_pace(&self, queue: &QueueName) -> Result<Option<KeptPace>, BrokerError> {
        self.inner.jobs.kept_pace(queue).await
    }
    async fn keep_pace(&self, queue: &QueueName, pace: &KeptPace) -> Result<(), BrokerError> {
        self.inner.jobs.keep_pace(queue, pace).await
    }
    async fn sweep(&self, limit: u32) -> Result<Swept, BrokerError> {
        self.inner.jobs.sweep(limit).await
    }
}

/// A policy store that never answers.
struct Silent;

#[async_trait]
impl PolicyStore for Silent {
    async fn policy(&self, _: &QueueName) -> Result<Option<QueuePolicy>, BrokerError> {
        std::future::pending().await
    }
    async fn recent(&self, _: &QueueName) -> Result<Option<Arc<QueuePolicy>>, BrokerError> {
        std::future::pending().await
    }
    async fn policies(&self) -> Result<Vec<(QueueName, QueuePolicy)>, BrokerError> {
        std::future::pending().await
    }
    async fn put_policy(&self, _: &QueueName, _: &QueuePolicy, _: Option<&QueuePolicy>) -> Result<(), BrokerError> {
        std::future::pending().await
    }
    async fn set_paused(&self, _: &QueueName, _: bool) -> Result<(), BrokerError> {
        std::future::pending().await
    }
}

/// How a test holds the broker: each of its calls is counted, and goes on when it is let.
pub(crate) struct Gates {
    pub(crate) begun: Arc<Semaphore>,
    pub(crate) let_go: Arc<Semaphore>,
}

/// A relay whose broker takes jobs only when it is let.
pub(crate) async fn held(limits: Limits, bytes: usize) -> (Relay, Gates) {
    let (begun, let_go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let gates = Gates { begun: Arc::clone(&begun), let_go: Arc::clone(&let_go) };
    let break_broker =
        Box::new(move |broker: &mut Broker| broker.jobs = Arc::new(Held { inner: broker.clone(), begun, let_go }));
    (Setup { limits, bytes, break_broker, ..Setup::default() }.start().await, gates)
}

fn patient(requests: usize) -> Limits {
    Limits { requests, answer_within: Duration::from_secs(3_600), ..Limits::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_the_broker_does_not_confirm_in_time_is_unconfirmed_and_the_same_key_finds_it() {
    let limits = Limits { answer_within: Duration::from_secs(1), ..Limits::default() };
    let (relay, gates) = held(limits, 1 << 20).await;
    let late = relay.submit(&[("Idempotency-Key", "k")], "x").await;
    late.is_problem(504, "unconfirmed");
    let id = late.field("job_id");
    assert_eq!(late.field("retry"), "with-idempotency-key");
    gates.let_go.add_permits(1_000);
    // The broker took it after all, or takes it now: one job.
    let again = relay.submit(&[("Idempotency-Key", "k")], "x").await;
    assert_eq!(again.job(), id);
    relay.work("text/plain", "done").await;
    assert_eq!(relay.ask("relay.result.me", &[], id).await.text(), "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_the_broker_does_not_confirm_in_time_is_unconfirmed() {
    let limits = Limits { answer_within: Duration::from_millis(50), ..Limits::default() };
    let (relay, _gates) = held(limits, 1 << 20).await;
    let late = relay.ask("relay.cancel.me", &[], "0193a4b0-0000-7000-8000-000000000000").await;
    late.is_problem(504, "unconfirmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bug_in_the_middle_of_a_change_is_answered_with_the_job_that_it_is_about() {
    let (relay, gates) = held(patient(100), 1 << 20).await;
    gates.let_go.close();
    let failed = relay.submit(&[("Idempotency-Key", "k")], "x").await;
    let id = JobId::derive(&"me".parse().unwrap(), &"mail".parse().unwrap(), &"k".parse().unwrap());
    assert_eq!(failed.is_problem(500, "internal").field("job_id"), id.to_string());
    let failed = relay.ask("relay.cancel.me", &[], id.to_string()).await;
    assert_eq!(failed.is_problem(500, "internal").field("job_id"), id.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_which_the_broker_has_not_heard_in_time_is_not_taken_later() {
    let limits = Limits { answer_within: Duration::from_millis(50), ..Limits::default() };
    let break_broker = Box::new(|broker: &mut Broker| broker.policies = Arc::new(Silent));
    let relay = Setup { limits, break_broker, ..Setup::default() }.start().await;
    let late = relay.submit(&[], "x").await;
    assert_eq!(late.is_problem(503, "broker-unavailable").field("retry"), "safe");
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_requests_that_relay_takes_it_is_overloaded_and_says_so_at_once() {
    let (relay, gates) = held(patient(2), 1 << 20).await;
    for n in 0..2 {
        relay.client.publish("relay.submit.me.mail", format!("{n}").into()).await.unwrap();
    }
    gates.begun.acquire_many(2).await.unwrap().forget();
    assert_eq!(relay.submit(&[], "x").await.is_problem(503, "overloaded").field("retry"), "safe");
    relay.ask("relay.status.me", &[], "x").await.is_problem(503, "overloaded");
    gates.let_go.add_permits(1_000);
    relay.work("text/plain", "one").await;
    relay.work("text/plain", "two").await;
    // Both places are free again as soon as their requests are answered.
    while relay.ask("relay.status.me", &[], "x").await.header("Nats-Service-Error") == "overloaded" {}
    relay.submit(&[], "x").await.job();
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_bytes_that_relay_takes_it_is_overloaded() {
    let (relay, gates) = held(patient(100), 1_000).await;
    relay.client.publish("relay.submit.me.mail", vec![b'x'; 600].into()).await.unwrap();
    gates.begun.acquire().await.unwrap().forget();
    relay.submit(&[], vec![b'x'; 600]).await.is_problem(503, "overloaded");
    gates.let_go.add_permits(1_000);
    relay.submit(&[], vec![b'x'; 100]).await.job();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_takes_of_the_answers_bytes_whatever_its_size_and_gives_them_back() {
    let relay = Setup { bytes: 1_000, ..Setup::default() }.start().await;
    let mut ids = Vec::new();
    for size in [600, 5_000] {
        ids.push(relay.submit(&[], "x").await.job());
        relay.work("text/plain", vec![b'r'; size]).await;
    }
    // Each is beyond what is left beside another one: they wait for each other.
    for _ in 0..3 {
        let asked = ids.iter().map(|id| relay.ask("relay.result.me", &[], id.clone()));
        let sizes =
            futures_util::future::join_all(asked).await.iter().map(|result| result.text().len()).collect::<Vec<_>>();
        assert_eq!(sizes, [600, 5_000]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_answers_what_came_and_takes_nothing_new() {
    let (mut relay, gates) = held(patient(100), 1 << 20).await;
    let inbox = relay.client.new_inbox();
    let mut replies = relay.client.subscribe(inbox.clone()).await.unwrap();
    relay.client.publish_with_reply("relay.submit.me.mail", inbox, "x".into()).await.unwrap();
    gates.begun.acquire().await.unwrap().forget();
    relay.shutdown.cancel();
    // Once the subscriptions have ended the server knows nobody who would answer.
    while relay.client.request("relay.status.me", "x".into()).await.is_ok() {}
    gates.let_go.add_permits(1);
    let receipt = super::support::Answer(replies.next().await.unwrap());
    assert_eq!(receipt.field("state"), "queued");
    relay.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_under_load_answers_every_request_that_reached_relay() {
    let mut relay = Relay::start().await;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let client = async_nats::connect(relay.server.url()).await.unwrap();
        asking.spawn(async move {
            let mut answered = 0;
            loop {
                match client.request("relay.status.me", "x".into()).await {
                    Ok(_) => answered += 1,
                    Err(error) => return (answered, error.kind()),
                }
            }
        });
    }
    while relay.stats("status").await["num_requests"].as_u64().unwrap() < 1_000 {}
    relay.shutdown.cancel();
    relay.drained().await;
    let mut answered = 0;
    while let Some(asked) = asking.join_next().await {
        let (count, kind) = asked.unwrap();
        assert_eq!(kind, async_nats::RequestErrorKind::NoResponders, "after {count} answers one request got none");
        answered += count;
    }
    assert!(answered >= 1_000, "{answered}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_in_time_though_the_broker_does_not_answer() {
    let (begun, let_go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let started = Arc::clone(&begun);
    let break_broker =
        Box::new(move |broker: &mut Broker| broker.jobs = Arc::new(Held { inner: broker.clone(), begun, let_go }));
    let drain = Duration::from_millis(100);
    let mut relay = Setup { drain, break_broker, limits: patient(100), ..Setup::default() }.start().await;
    relay.client.publish("relay.submit.me.mail", "x".into()).await.unwrap();
    started.acquire().await.unwrap().forget();
    relay.shutdown.cancel();
    relay.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_to_an_inbox_of_the_client_and_nowhere_else() {
    let relay = Relay::start().await;
    let id = relay.submit(&[("Idempotency-Key", "k")], "x").await.job();
    relay.work("text/plain", "relay would publish this").await;
    let mut everything = relay.client.subscribe(">").await.unwrap();
    // A result as another client's job, a receipt as another client's result, an empty message to JetStream.
    for (subject, reply, body) in [
        ("relay.result.me", "relay.submit.other.mail", id.as_str()),
        ("relay.submit.me.mail", "relay.reply.other.0193a4b0-0000-7000-8000-000000000000", "forged"),
        ("relay.submit.me.mail", "_INBOX_other.x", "forged"),
        ("relay.submit.me.mail", "_INBOX__relay.x", "forged"),
        // A subject that is no address is refused, and the refusal has to go somewhere, too.
        ("relay.submit.me.BAD", "_INBOX_other.x", "forged"),
        ("relay.submit.Me.mail", "_INBOX_other.x", "forged"),
        ("relay.status._", "_INBOX_other.x", "forged"),
        ("relay.results.me", "$JS.API.STREAM.DELETE.relay-results", ""),
        ("$SRV.PING", "relay.submit.other.mail", ""),
    ] {
        relay.client.publish_with_reply(subject, reply, body.to_owned().into()).await.unwrap();
    }
    // Answered in the order in which they came, as far as they are answered: this one is the last.
    let own = relay.client.new_inbox().replacen("_INBOX.", "_INBOX_me.", 1);
    relay.client.publish_with_reply("relay.status.me", own.clone(), id.into()).await.unwrap();
    relay.client.publish_with_reply("$SRV.PING", own.clone(), "".into()).await.unwrap();
    let mut answers = 0;
    while answers < 2 {
        let message = everything.next().await.unwrap();
        let from_relay = message.reply.is_none();
        assert!(!from_relay || message.subject.as_str() == own, "{message:?}");
        answers += usize::from(from_relay);
    }
    let depth = relay.broker.jobs.depth(&"mail".parse().unwrap()).await.unwrap();
    assert_eq!(depth.waiting, 0, "what can't be answered where it wants to be is not done");
    assert_eq!(relay.stats("submit").await["num_errors"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_says_of_a_queue_holds_over_nats_too() {
    let policy = QueuePolicy {
        content_types: ["text/*".parse().unwrap()].into(),
        allowed_clients: ["me".parse().unwrap()].into(),
        client_defaults: ClientPolicy { rate: Some("1/h".parse().unwrap()), burst: 2, ..ClientPolicy::default() },
        ..QueuePolicy::default()
    };
    let relay = Setup { policy, ..Setup::default() }.start().await;
    let text = [("Content-Type", "text/plain; charset=utf-8")];
    let refused = relay.ask("relay.submit.other.mail", &text, "x").await;
    assert!(refused.is_problem(403, "forbidden").field("detail").contains("other"));
    let refused = relay.submit(&[("Content-Type", "image/png")], "x").await;
    assert!(refused.is_problem(415, "unsupported-media-type").field("detail").contains("text/*"));
    for _ in 0..2 {
        relay.submit(&text, "x").await.job();
    }
    let refused = relay.submit(&text, "x").await;
    refused.is_problem(429, "rate-limited");
    assert_eq!(refused.field("retry"), "safe");
    relay.ask("relay.submit.me.other", &text, "x").await.job();
}
