//! A relay on port 0, a worker by hand, and an HTTP/1.1 client that sends exactly the bytes it is told.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use relay::auth::Authenticator;
use relay::ingress::front::{Bound, Front};
use relay::ingress::http::{Ingress, Limits};
use relay::ingress::tcp::client::{ClientLimits, Clients};
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Failure, JobResult, Outcome};
use relay_bridge::leasing::{Delivery, LeaseRequest, Leasing};
use relay_bridge::policy::{PolicyStore, QueuePolicy, change_policy};
use relay_bridge::settlement::Settlement;
use relay_embedded::{Embedded, EmbeddedConfig};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How a test wants its relay.
pub(crate) struct Setup {
    pub(crate) limits: Limits,
    pub(crate) front: Front,
    pub(crate) authenticator: Authenticator,
    pub(crate) policy: QueuePolicy,
    pub(crate) drain: Duration,
    /// The clock of the ingress; the store has the system's.
    pub(crate) clock: Clock,
    pub(crate) break_broker: Box<dyn FnOnce(&mut Broker)>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            front: Front::default(),
            authenticator: Authenticator::development(),
            policy: QueuePolicy { payload_max: 1_000, ..QueuePolicy::default() },
            drain: Duration::from_secs(30),
            clock: Clock::system(),
            break_broker: Box::new(|_| {}),
        }
    }
}

impl Setup {
    /// A running relay with the queues `mail` and `other`.
    pub(crate) async fn start(self) -> Relay {
        let store = Embedded::open(EmbeddedConfig::default()).await.unwrap();
        let broker = store.broker();
        for queue in ["mail", "other"] {
            broker.policies.put_policy(&queue.parse().unwrap(), &self.policy, None).await.unwrap();
        }
        let mut seen = broker.clone();
        (self.break_broker)(&mut seen);
        let leasing = Arc::clone(&seen.leasing);
        let ingress = Ingress::new(seen, self.authenticator, self.limits, self.clock.clone());
        let leasing = ingress.watched(leasing);
        let clients = Clients::new(Arc::clone(&ingress), ClientLimits::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let mut serving = JoinSet::new();
        let bound = Bound { listener, front: Arc::new(self.front) };
        let bound = vec![bound];
        ingress.listens(&bound, &[]);
        serving.spawn(Arc::clone(&clients).serve_beside_http(bound, shutdown.clone(), self.drain));
        Relay { address, ingress, clients, leasing, policies: broker.policies, clock: self.clock, shutdown, serving }
    }
}

/// A relay that serves until it is dropped.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    pub(crate) ingress: Arc<Ingress>,
    /// Those whose handshake agrees on relay's own protocol.
    pub(crate) clients: Arc<Clients>,
    /// As workers of this process have it.
    pub(crate) leasing: Arc<dyn Leasing>,
    policies: Arc<dyn PolicyStore>,
    clock: Clock,
    pub(crate) shutdown: CancellationToken,
    serving: JoinSet<std::io::Result<()>>,
}

impl Relay {
    pub(crate) async fn start() -> Self {
        Setup::default().start().await
    }

    /// Changes what holds for `queue`.
    pub(crate) async fn set_policy(&self, queue: &str, policy: &QueuePolicy) {
        change_policy(&*self.policies, &queue.parse().unwrap(), |_| policy.clone()).await.unwrap();
        // The ingress remembers the old one for a second.
        self.clock.advance(Duration::from_secs(1));
    }

    pub(crate) async fn connect(&self) -> Peer {
        Peer::new(TcpStream::connect(self.address).await.unwrap())
    }

    /// One request on a connection of its own.
    pub(crate) async fn ask(&self, line: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Reply {
        let mut peer = self.connect().await;
        peer.send(line, headers, body).await;
        peer.reply().await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.ask(&format!("GET {path}"), &[], "").await
    }

    /// Opens a stream of events.
    pub(crate) async fn stream(&self, path: &str, headers: &[(&str, &str)]) -> Events {
        let mut peer = self.connect().await;
        let headers = [headers, &[("accept", "text/event-stream")]].concat();
        peer.send(&format!("GET {path}"), &headers, "").await;
        let head = peer.reply().await;
        Events { peer, head, text: String::new() }
    }

    pub(crate) async fn submit(&self, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Reply {
        self.ask("POST /v1/queues/mail/jobs", headers, body).await
    }

    /// Waits for a job of `mail` and takes it.
    pub(crate) async fn lease(&self) -> Delivery {
        let request = LeaseRequest {
            worker: "worker".parse().unwrap(),
            queues: vec!["mail".parse().unwrap()],
            max: NonZeroU32::MIN,
            wait: Duration::from_secs(60),
        };
        self.leasing.lease(&request).await.unwrap().pop().unwrap()
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
        self.leasing.record(result).await.unwrap();
        self.leasing.settle(&delivery.receipt, &settlement).await.unwrap();
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

/// One connection.
pub(crate) struct Peer {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Peer {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, read: Vec::new() }
    }

    /// Sends a whole request; it has a length and the host `localhost` unless `headers` say otherwise.
    pub(crate) async fn send(&mut self, line: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        let mut head = format!("{line} HTTP/1.1\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let named = |wanted: &str| headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted));
        if !named("host") {
            head += "host: localhost\r\n";
        }
        if !named("content-length") && !named("transfer-encoding") && (!body.is_empty() || line.starts_with("POST")) {
            head += &format!("content-length: {}\r\n", body.len());
        }
        self.write((head + "\r\n").as_bytes()).await;
        self.write(body).await;
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Whether the connection still takes it.
    pub(crate) async fn try_write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// Says that nothing more will be sent.
    pub(crate) async fn half_close(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// The next answer.
    pub(crate) async fn reply(&mut self) -> Reply {
        let head = loop {
            if let Some(end) = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break self.read.drain(..end + 4).collect::<Vec<_>>();
            }
            assert!(self.fill().await, "closed before an answer: {:?}", String::from_utf8_lossy(&self.read));
        };
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.split("\r\n").filter(|line| !line.is_empty());
        let status: u16 = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<_> = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length = length.map_or(0, |(_, value)| value.parse().unwrap());
        while self.read.len() < length {
            assert!(self.fill().await, "closed within an answer");
        }
        let body = self.read.drain(..length).collect();
        Reply { status, headers, body }
    }

    /// The next chunk of a chunked body; empty at its end.
    pub(crate) async fn chunk(&mut self) -> Vec<u8> {
        loop {
            if let Some(end) = self.read.windows(2).position(|bytes| bytes == b"\r\n") {
                let length = usize::from_str_radix(std::str::from_utf8(&self.read[..end]).unwrap(), 16).unwrap();
                if self.read.len() >= end + 2 + length + 2 {
                    let chunk = self.read[end + 2..end + 2 + length].to_vec();
                    self.read.drain(..end + 2 + length + 2);
                    return chunk;
                }
            }
            assert!(self.fill().await, "closed within a stream");
        }
    }

    /// Waits for the end of the connection; what still came before it.
    pub(crate) async fn closed(&mut self) -> String {
        while self.fill().await {}
        String::from_utf8_lossy(&self.read).into_owned()
    }

    /// `false` at the end, also at one by a reset.
    async fn fill(&mut self) -> bool {
        self.stream.read_buf(&mut self.read).await.unwrap_or(0) > 0
    }
}

/// A stream of events.
pub(crate) struct Events {
    peer: Peer,
    pub(crate) head: Reply,
    text: String,
}

/// A block of a stream: an event, a comment, or what it begins and ends with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Block {
    pub(crate) id: String,
    pub(crate) event: String,
    pub(crate) data: Value,
    pub(crate) retry: String,
    pub(crate) comment: String,
}

impl Events {
    /// The next block, or `None` at the end of the stream.
    pub(crate) async fn block(&mut self) -> Option<Block> {
        let text = loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = block.to_owned();
                self.text = rest.to_owned();
                break block;
            }
            match self.peer.chunk().await {
                chunk if chunk.is_empty() => return None,
                chunk => self.text += &String::from_utf8(chunk).unwrap(),
            }
        };
        let mut block = Block::default();
        for line in text.lines() {
            let (name, value) = line.split_once(':').unwrap();
            let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
            match name {
                "id" => block.id = value,
                "event" => block.event = value,
                "data" => block.data = serde_json::from_str(&value).unwrap(),
                "retry" => block.retry = value,
                "" => block.comment = value,
                other => panic!("no field of a stream: {other}"),
            }
        }
        Some(block)
    }

    /// The next event; the blocks before it say nothing.
    pub(crate) async fn event(&mut self) -> Block {
        loop {
            let block = self.block().await.expect("the stream ended before an event");
            if !block.event.is_empty() {
                return block;
            }
        }
    }

    /// The rest of the stream, to its end.
    pub(crate) async fn rest(&mut self) -> Vec<Block> {
        let mut blocks = Vec::new();
        while let Some(block) = self.block().await {
            blocks.push(block);
        }
        blocks
    }

    /// The connection, for another request.
    pub(crate) fn into_peer(self) -> Peer {
        self.peer
    }
}

/// An answer.
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// A header's value, empty if it is not there.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }

    /// A field as text: a string as it is, `null` as empty.
    pub(crate) fn field(&self, name: &str) -> String {
        match &self.json()[name] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        }
    }

    /// Holds a refusal against the contract: status, slug, content type and request id belong together.
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, slug: &str) -> &Self {
        let problem: relay::api::Problem = serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()));
        assert_eq!((self.status, problem.slug.as_str()), (status, slug), "{}", self.text());
        assert_eq!(problem.status, status);
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(problem.page, format!("/problems/{slug}"));
        assert!(!self.header("relay-request-id").is_empty());
        assert_eq!(problem.instance, format!("urn:relay:request:{}", self.header("relay-request-id")));
        assert!(!problem.detail.is_empty() && problem.title == problem.slug.title());
        let waits = matches!(status, 429 | 503);
        assert_eq!(self.header("retry-after").parse::<u64>().is_ok(), waits, "Retry-After exactly where it helps");
        self
    }
}
