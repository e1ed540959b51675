//! A relay behind a NATS server of its own, a worker by hand, and a client that asks as the `nats` CLI does.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, HeaderMap, Message, Request};
use bytes::Bytes;
use futures_util::StreamExt as _;
use relay::ingress::budget::Budget;
use relay::ingress::clients::ClientShares;
use relay::ingress::nats::{Ingress, Limits, RELAY_INBOX, serve};
use relay::ingress::rates::Rates;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Failure, JobResult, Outcome};
use relay_bridge::leasing::{Delivery, LeaseRequest};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::NatsServer;
use relay_embedded::{Embedded, EmbeddedConfig};
use relay_nats::config::{Credentials, NatsConfig};
use relay_nats::connection::{Connection, Wait};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How a test wants its relay.
pub(crate) struct Setup {
    pub(crate) limits: Limits,
    pub(crate) bytes: usize,
    pub(crate) policy: QueuePolicy,
    /// More of the server's configuration.
    pub(crate) server: String,
    /// relay's identity at the server.
    pub(crate) user: Credentials,
    /// The test's identity at the server.
    pub(crate) operator: ConnectOptions,
    pub(crate) drain: Duration,
    pub(crate) break_broker: Box<dyn FnOnce(&mut Broker)>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            bytes: 1 << 20,
            policy: QueuePolicy { payload_max: 1_000, result_max: 100_000, ..QueuePolicy::default() },
            server: String::new(),
            user: Credentials::None,
            operator: ConnectOptions::new(),
            drain: Duration::from_secs(30),
            break_broker: Box::new(|_| {}),
        }
    }
}

impl Setup {
    /// A running relay with the queues `mail` and `other`, ready to answer.
    pub(crate) async fn start(self) -> Relay {
        let server = NatsServer::builder().config(&self.server).start().await;
        let store = Embedded::open(EmbeddedConfig::default()).await.unwrap();
        let broker = store.broker();
        for queue in ["mail", "other"] {
            broker.policies.put_policy(&queue.parse().unwrap(), &self.policy, None).await.unwrap();
        }
        let mut seen = broker.clone();
        (self.break_broker)(&mut seen);
        let rates = Rates::new(Clock::system());
        let [bytes, answers] = [self.bytes; 2].map(|max| Budget::new(max, ClientShares::undivided()));
        let ingress = Ingress::new(seen, self.limits, (bytes, answers), rates, Clock::system());
        let shutdown = CancellationToken::new();
        let mut serving = JoinSet::new();
        let connection = connect(&server.url(), self.user).await;
        serving.spawn(serve(connection.clone(), Arc::clone(&ingress), shutdown.clone(), self.drain));
        let client = self.operator.connect(server.url()).await.unwrap();
        let relay = Relay { server, broker, ingress, connection, client, shutdown, serving };
        relay.answers().await;
        relay
    }
}

/// The connection on which relay serves clients.
pub(crate) async fn connect(url: &str, credentials: Credentials) -> Connection {
    let inbox_prefix = Some(RELAY_INBOX.to_owned());
    let config = NatsConfig { credentials, inbox_prefix, ..NatsConfig::new([url]) };
    Connection::open_core(config, Wait::Forever).await.unwrap()
}

/// A relay that serves until it is dropped.
pub(crate) struct Relay {
    pub(crate) server: NatsServer,
    pub(crate) broker: Broker,
    pub(crate) ingress: Arc<Ingress>,
    pub(crate) connection: Connection,
    pub(crate) client: Client,
    pub(crate) shutdown: CancellationToken,
    serving: JoinSet<std::io::Result<()>>,
}

impl Relay {
    pub(crate) async fn start() -> Self {
        Setup::default().start().await
    }

    /// Waits until the service answers: a server without its subscriptions says so at once.
    pub(crate) async fn answers(&self) {
        let subject = format!("$SRV.PING.relay.{}", self.ingress.id());
        let answers = async { while self.client.request(subject.clone(), "".into()).await.is_err() {} };
        tokio::time::timeout(Duration::from_secs(60), answers).await.unwrap();
    }

    /// One request.
    pub(crate) async fn ask(&self, subject: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, *value);
        }
        let request = Request::new().headers(map).payload(body.into()).timeout(Some(Duration::from_secs(60)));
        Answer(self.client.send_request(subject.to_owned(), request).await.unwrap())
    }

    pub(crate) async fn submit(&self, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        self.ask("relay.submit.me.mail", headers, body).await
    }

    /// All answers to one request up to the empty one, as `nats req --wait-for-empty` prints them.
    pub(crate) async fn until_empty(&self, subject: &str, headers: &[(&str, &str)]) -> Vec<Answer> {
        let inbox = self.client.new_inbox();
        let mut replies = self.client.subscribe(inbox.clone()).await.unwrap();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, *value);
        }
        self.client.publish_with_reply_and_headers(subject.to_owned(), inbox, map, "".into()).await.unwrap();
        let mut answers = Vec::new();
        loop {
            let reply = tokio::time::timeout(Duration::from_secs(60), replies.next()).await.unwrap().unwrap();
            let ended = reply.payload.is_empty();
            answers.push(Answer(reply));
            if ended {
                return answers;
            }
        }
    }

    /// The figures of an endpoint, as `nats micro stats relay` shows them.
    pub(crate) async fn stats(&self, endpoint: &str) -> Value {
        let stats = self.ask("$SRV.STATS.relay", &[], "").await.json();
        stats["endpoints"].as_array().unwrap().iter().find(|found| found["name"] == endpoint).unwrap().clone()
    }

    /// Waits for a job of `mail` and takes it.
    pub(crate) async fn lease(&self) -> Delivery {
        let request = LeaseRequest {
            worker: "worker".parse().unwrap(),
            queues: vec!["mail".parse().unwrap()],
            max: NonZeroU32::MIN,
            wait: Duration::from_secs(60),
        };
        self.broker.leasing.lease(&request).await.unwrap().pop().unwrap()
    }

    /// Waits for a job of `mail` and does it: `answer` becomes its result.
    pub(crate) async fn work(&self, content_type: &str, answer: impl Into<Bytes>) -> Delivery {
        let delivery = self.lease().await;
        let result = JobResult::succeeded(&delivery.job, end(&delivery), content_type, answer.into());
        self.settle(&delivery, &result, Settlement::Complete).await;
        delivery
    }

    /// Waits for a job of `mail` and rejects it.
    pub(crate) async fn reject(&self, reason: &str, detail: &str) {
        let delivery = self.lease().await;
        let failure = Failure::new(reason, detail);
        let result = JobResult::unsuccessful(&delivery.job, Outcome::Failed, end(&delivery), failure);
        self.settle(&delivery, &result, Settlement::DeadLetter).await;
    }

    async fn settle(&self, delivery: &Delivery, result: &JobResult, settlement: Settlement) {
        self.broker.leasing.record(result).await.unwrap();
        self.broker.leasing.settle(&delivery.receipt, &settlement).await.unwrap();
    }

    /// Waits for the end of a drain.
    pub(crate) async fn drained(&mut self) {
        self.serving.join_next().await.unwrap().unwrap().unwrap();
    }
}

fn end(delivery: &Delivery) -> End {
    let at = delivery.leased_at;
    End { attempt: delivery.attempt, started_at: Some(at), finished_at: at }
}

/// A message that relay sent.
pub(crate) struct Answer(pub(crate) Message);

impl Answer {
    /// A header's value, empty if it is not there.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.0.headers.as_ref().and_then(|headers| headers.get(name)).map_or("", |value| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.0.payload).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.0.payload).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// A field as text: a string as it is, `null` as empty.
    pub(crate) fn field(&self, name: &str) -> String {
        match &self.json()[name] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        }
    }

    /// The id of the job of a receipt.
    #[track_caller]
    pub(crate) fn job(&self) -> String {
        assert_eq!(self.header("Nats-Service-Error"), "", "{}", self.text());
        self.field("job_id")
    }

    /// Holds a refusal against the contract: headers of a service error and a problem document that agree.
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, slug: &str) -> &Self {
        let problem: relay::api::Problem =
            serde_json::from_slice(&self.0.payload).unwrap_or_else(|error| panic!("{error}: {}", self.text()));
        assert_eq!((problem.status, problem.slug.as_str()), (status, slug), "{}", self.text());
        assert_eq!(self.header("Nats-Service-Error-Code"), status.to_string());
        assert_eq!(self.header("Nats-Service-Error"), slug);
        assert_eq!(self.header("Content-Type"), "application/problem+json");
        assert_eq!(problem.instance, format!("urn:relay:request:{}", self.header("Relay-Request-Id")));
        assert_eq!(self.header("Retry-After").parse::<u64>().is_ok(), matches!(status, 429 | 503));
        self
    }
}
