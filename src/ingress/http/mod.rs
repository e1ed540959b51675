//! HTTP/1.1 and HTTP/2 on one port: submit, wait, result, status, cancel. Everything refused is a problem document.
//!
//! # Layout
//!
//! - `serve`: the accept loop, the guards of a connection, and the drain; `connection`: what the guards look at; `pools`: how
//!   many there are, and which one makes room for others.
//! - `proxied`: how many connections there may be of a source that a balancer in front names, and the handshake.
//! - `beside`: connections of another protocol on the same port.
//! - `gate`: what every request passes first: request id, drain, limits, panics.
//! - `audited`: the line about each request.
//! - `framing`: what decides where a request ends.
//! - `routes`: which path goes where; `describe`, `docs`: the same as OpenAPI, and as a page.
//! - `submit`, `batch`, `jobs`, `results`, `whoami`: the handlers.
//! - `follow`, `watch`: the handlers whose answer is a stream; `sse`: what streams have in common.
//! - `request`, `prefer`, `body`: reading a request, within bounds.
//! - `leaving`: telling clients that the process goes.
//! - `page`: a list within its bytes.
//! - `answer`: writing an answer; `room`: the bytes that answers may hold; `held`: the answer until its last byte has left.
//! - `hyper`: two things that hyper does not do.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::leasing::Leasing;
use relay_bridge::policy_cache::PolicyCache;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::authentications::Authentications;
use super::budget::Budget;
use super::clients::ClientShares;
use super::events::{Events, Watched};
use super::front::{Arrivals, Bound};
use super::proxy::HeaderCounts;
use super::rates::Rates;
use super::refusals::Refusals;
use super::strangers::Strangers;
use crate::api::ListenerView;
use crate::audit::Audit;
use crate::auth::Authenticator;
use crate::tls::stream::{HTTP, RELAY};
use pools::Pools;

mod answer;
mod audited;
mod batch;
pub(super) mod beside;
pub(super) mod body;
pub(super) mod connection;
mod describe;
mod docs;
mod echo;
mod follow;
mod framing;
mod gate;
mod held;
mod hyper;
mod jobs;
mod leaving;
mod page;
pub(super) mod pools;
mod prefer;
pub(super) mod proxied;
mod request;
mod results;
mod room;
mod routes;
mod serve;
mod sse;
mod submit;
mod watch;
pub(super) mod whoami;

pub use serve::serve;
pub(super) use serve::serve_beside;

/// The limits of one process for all clients together.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of all bodies in flight; beyond it 503 `overloaded`. A body counts with 64 KiB until so much of it has come, and
    /// then with its whole length. Default 64 MiB.
    pub body_bytes: usize,
    /// Bytes of all answers that are being read by the broker, written, or not yet taken by their peers; one that finds no
    /// room within 2 s is refused with 503 `overloaded`. One half is for streams of events, which wait for it. Receipts and
    /// other small answers are bounded by `requests` instead. Default 64 MiB.
    pub answer_bytes: usize,
    /// Bytes a second in which a body must come on average, from 5 s after its head; slower ones are answered 408. Default 16
    /// KiB.
    pub body_rate: u64,
    /// The time from a request's head to the end of its body; beyond it 408. Default 30 s.
    pub body_timeout: Duration,
    /// The longest wait for a result that is honoured. Default 55 s, below the idle timeout of common proxies.
    pub wait_max: Duration,
    /// Requests in flight, waiting ones and those whose answers are not read yet included; beyond it 503 `overloaded`. Default
    /// 10,000.
    pub requests: usize,
    /// Connections; beyond it the one that has been idle for longest is closed, and where none is idle new ones wait in the
    /// listen queue. Default 20,000: over HTTP/1.1 each of the `followers` has one, and must not take the others' places.
    pub connections: usize,
    /// Of these, connections on which nobody was authenticated yet. Default 1,000.
    pub unproven: usize,
    /// Connections from one address at a time; more are closed unread. `None`, the default: as many as there may be, because
    /// behind a load balancer all callers have its address.
    pub per_source: Option<usize>,
    /// Of one source that a PROXY header names: connections on which nobody was authenticated yet; more are closed. Default 16.
    pub source_unproven: usize,
    /// Through one VPC endpoint that a PROXY header names: connections; more are closed. Default 256.
    pub endpoint_connections: usize,
    /// How much of requests, connections, streams and bytes one client may hold. By default a quarter, and everything where
    /// nobody is authenticated.
    pub shares: Arc<ClientShares>,
    /// The time from a connection's start until somebody is authenticated on it, and for each head from its first byte to its
    /// end. Default 10 s; half as much again on listeners where a PROXY header or a handshake comes before.
    pub first_request: Duration,
    /// The time after an answer is ready until the end of the next request's head: for reading the answer, for being idle,
    /// and for sending that head. Default 120 s.
    pub idle: Duration,
    /// How long a connection lasts, within a fifth, until its peer is told to connect anew. Default 15 min.
    pub max_age: Duration,
    /// Bytes of a request's header names and values; beyond it 431. Default 16 KiB, at most 32 KiB.
    pub header_bytes: usize,
    /// Headers of a request; beyond it 431. Default 64, at most 200. HTTP/1.1 requests beyond 100 (with a limit above
    /// 100: beyond 256) are refused before they are read, and not told how many they had.
    pub headers: usize,
    /// Streams of one HTTP/2 connection at a time. Default 256.
    pub streams: u32,
    /// Streams of events; beyond it 503 `overloaded`. Default 10,000.
    pub followers: usize,
    /// How long a stream of events lasts before it ends on purpose, within a fifth. Default 5 min.
    pub follow_for: Duration,
    /// How often a stream of events without any says that it is there. Default 15 s; less than `idle`.
    pub ping_every: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 64 * 1024 * 1024,
            answer_bytes: 64 * 1024 * 1024,
            body_rate: 16 * 1024,
            body_timeout: Duration::from_secs(30),
            wait_max: Duration::from_secs(55),
            requests: 10_000,
            connections: 20_000,
            unproven: 1_000,
            per_source: None,
            source_unproven: 16,
            endpoint_connections: 256,
            shares: ClientShares::new(None, |_| None, || false),
            first_request: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            max_age: Duration::from_secs(900),
            header_bytes: 16 * 1024,
            headers: 64,
            streams: 256,
            followers: 10_000,
            follow_for: Duration::from_secs(300),
            ping_every: Duration::from_secs(15),
        }
    }
}

/// The OpenAPI document of what is served, as JSON with line breaks: `docs/openapi.json`.
#[must_use]
pub fn openapi() -> String {
    routes::described().to_pretty_json().unwrap_or_default() + "\n"
}

/// The state that the handlers of all connections share, over TCP as well.
pub struct Ingress {
    pub(super) broker: Broker,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) limits: Limits,
    pub(super) clock: Clock,
    pub(super) policies: PolicyCache,
    pub(super) rates: Arc<Rates>,
    pub(super) body_bytes: Arc<Budget>,
    pub(super) answers: Arc<Budget>,
    /// The same of streams, which wait for it as long as they last, and must not take the others' room.
    pub(super) streamed: Arc<Budget>,
    pub(super) requests: Arc<Budget>,
    /// Connections on which somebody was authenticated.
    pub(super) proven: Arc<Budget>,
    pub(super) pools: Arc<Pools>,
    pub(super) arrivals: Arc<Arrivals>,
    refusals: Refusals,
    pub(super) strangers: Strangers,
    pub(super) followers: Arc<Budget>,
    events: Arc<Events>,
    /// Where calls are written; unset if they are not.
    pub(super) audit: OnceLock<Arc<Audit>>,
    /// The addresses for clients; unset where nobody said them.
    listens: OnceLock<Vec<ListenerView>>,
    /// Since when clients are told to go elsewhere; unset while they are not.
    leaving: OnceLock<Instant>,
    pub(super) authentications: Arc<Authentications>,
}

impl fmt::Debug for Ingress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ingress").field("broker", &self.broker).field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Ingress {
    /// An ingress over `broker`, for any number of listeners.
    #[must_use]
    pub fn new(
        broker: Broker,
        authenticator: impl Into<Arc<Authenticator>>,
        limits: Limits,
        clock: Clock,
    ) -> Arc<Self> {
        let budget = |max| Budget::new(max, Arc::clone(&limits.shares));
        Arc::new(Self {
            policies: PolicyCache::new(&broker, clock.clone()),
            rates: Rates::new(clock.clone()),
            body_bytes: budget(limits.body_bytes),
            answers: budget(limits.answer_bytes.div_ceil(2)),
            streamed: budget(limits.answer_bytes / 2),
            requests: budget(limits.requests),
            proven: budget(limits.connections),
            pools: Pools::new(&limits),
            arrivals: Arrivals::new(&clock),
            refusals: Refusals::default(),
            strangers: Strangers::new(clock.clone()),
            followers: budget(limits.followers),
            events: Arc::default(),
            audit: OnceLock::new(),
            listens: OnceLock::new(),
            leaving: OnceLock::new(),
            authentications: Arc::default(),
            broker,
            authenticator: authenticator.into(),
            limits,
            clock,
        })
    }

    /// Calls are written there.
    pub fn audits(&self, audit: Arc<Audit>) {
        self.arrivals.audits(Arc::clone(&audit));
        // A second call would be about the same one.
        self.audit.set(audit).ok();
    }

    /// Clients are told of these sockets for them, over HTTP and over TCP, in this order.
    pub fn listens(&self, http: &[Bound], tcp: &[Bound]) {
        let views = http.iter().map(|bound| bound.view(HTTP)).chain(tcp.iter().map(|bound| bound.view(&[RELAY])));
        // A second call would be about the same ones.
        self.listens.set(views.flatten().collect()).ok();
    }

    /// How often callers were let in or not, by what they showed, for a listener of another protocol in the same process.
    #[must_use]
    pub fn authentications(&self) -> Arc<Authentications> {
        Arc::clone(&self.authentications)
    }

    /// The budget over all bodies in flight, for an ingress of another protocol in the same process.
    #[must_use]
    pub fn byte_budget(&self) -> Arc<Budget> {
        Arc::clone(&self.body_bytes)
    }

    /// The budget over all answers that are not read yet, for an ingress of another protocol in the same process.
    #[must_use]
    pub fn answer_budget(&self) -> Arc<Budget> {
        Arc::clone(&self.answers)
    }

    /// Each budget by its name.
    #[must_use]
    pub fn budgets(&self) -> [(&'static str, &Budget); 6] {
        [
            ("requests", &self.requests),
            ("connections", &self.proven),
            ("streams", &self.followers),
            ("body_bytes", &self.body_bytes),
            ("answer_bytes", &self.answers),
            ("stream_bytes", &self.streamed),
        ]
    }

    /// Connections on which somebody was authenticated, and those on which nobody was yet.
    #[must_use]
    pub fn connections(&self) -> (usize, usize) {
        self.pools.counts()
    }

    /// How often which end the listeners' looks for a PROXY header had.
    #[must_use]
    pub fn proxy_headers(&self) -> &HeaderCounts {
        self.arrivals.headers()
    }

    /// The ends that new connections had, for listeners of another protocol in the same process.
    #[must_use]
    pub fn arrivals(&self) -> Arc<Arrivals> {
        Arc::clone(&self.arrivals)
    }

    /// How long ago each issuer of tokens that is asked over https gave its keys, by its URL; without those that never did.
    #[must_use]
    pub fn issuer_ages(&self) -> Vec<(String, Duration)> {
        self.authenticator.issuer_ages()
    }

    /// How fast each client submits, for an ingress of another protocol in the same process.
    #[must_use]
    pub fn rates(&self) -> Arc<Rates> {
        Arc::clone(&self.rates)
    }

    /// How often which problem was the answer.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Streams of events that are open.
    #[must_use]
    pub fn followers(&self) -> usize {
        self.followers.taken()
    }

    /// Requests that are not answered yet, waits included.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.requests.taken()
    }

    /// `leasing` for workers of this process or of its listener: who watches a job here is told what they do with it.
    #[must_use]
    pub fn watched(&self, leasing: Arc<dyn Leasing>) -> Arc<dyn Leasing> {
        let events = Arc::clone(&self.events);
        Arc::new(Watched { leasing, events, clock: self.clock.clone() })
    }

    /// The largest payload that the broker takes, whatever a queue's policy says.
    fn payload_max(&self) -> u64 {
        self.broker.capabilities.payload_max.min(self.limits.body_bytes as u64)
    }
}

/// The ingress as one listener serves it.
struct Served {
    ingress: Arc<Ingress>,
    /// Cancelled when the drain begins.
    shutdown: CancellationToken,
    /// The tasks that the drain waits for.
    tasks: TaskTracker,
}
