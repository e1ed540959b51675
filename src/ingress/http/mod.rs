//! HTTP/1.1 and HTTP/2 on one port: submit, wait, result, status, cancel. Everything refused is a problem document.
//!
//! # Layout
//!
//! - `serve`: the accept loop, the guards of a connection, and the drain; `activity`: what the guards look at.
//! - `gate`: what every request passes first: request id, drain, limits, panics.
//! - `routes`: which path goes where; `describe`, `docs`: the same as OpenAPI, and as a page.
//! - `submit`, `batch`, `jobs`, `results`, `whoami`: the handlers.
//! - `follow`, `watch`: the handlers whose answer is a stream; `sse`: what streams have in common.
//! - `request`, `prefer`, `body`: reading a request, within bounds.
//! - `page`: a list within its bytes.
//! - `answer`: writing an answer. `hyper`: two things that hyper does not do.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::leasing::Leasing;
use relay_bridge::policy_cache::PolicyCache;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::budget::Budget;
use super::events::{Events, Watched};
use super::rates::Rates;
use super::refusals::Refusals;
use crate::auth::Authenticator;

mod activity;
mod answer;
mod batch;
mod body;
mod describe;
mod docs;
mod follow;
mod gate;
mod hyper;
mod jobs;
mod page;
mod prefer;
mod request;
mod results;
mod routes;
mod serve;
mod sse;
mod submit;
mod watch;
mod whoami;

pub use serve::serve;

/// The limits of one process for all clients together.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of all bodies in flight; beyond it 503 `overloaded`. Default 64 MiB.
    pub body_bytes: usize,
    /// The time from a request's head to the end of its body; beyond it 408. Default 30 s.
    pub body_timeout: Duration,
    /// The longest wait for a result that is honoured. Default 55 s, below the idle timeout of common proxies.
    pub wait_max: Duration,
    /// Requests in flight, waiting ones included; beyond it 503 `overloaded`. Default 10,000.
    pub requests: usize,
    /// Connections; beyond it new ones wait in the listen queue. Default 20,000: over HTTP/1.1 each of the `followers` has
    /// one, and must not take the others' places.
    pub connections: usize,
    /// The time from a connection's start to the end of its first request's head. Default 10 s.
    pub first_request: Duration,
    /// The time after an answer is ready until the end of the next request's head: for reading the answer, for being idle,
    /// and for sending that head. Default 120 s.
    pub idle: Duration,
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
            body_timeout: Duration::from_secs(30),
            wait_max: Duration::from_secs(55),
            requests: 10_000,
            connections: 20_000,
            first_request: Duration::from_secs(10),
            idle: Duration::from_secs(120),
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

/// The state that the handlers of all connections share.
pub struct Ingress {
    broker: Broker,
    authenticator: Arc<Authenticator>,
    limits: Limits,
    clock: Clock,
    policies: PolicyCache,
    rates: Arc<Rates>,
    body_bytes: Arc<Budget>,
    requests: Arc<Budget>,
    refusals: Refusals,
    followers: Arc<Budget>,
    events: Arc<Events>,
    request_prefix: u64,
    request_count: AtomicU64,
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
        let mut prefix = [0; 8];
        if getrandom::fill(&mut prefix).is_err() {
            // Request ids need to differ between processes only as far as a reader of logs cares.
            prefix = clock.now().as_millis().to_be_bytes();
        }
        Arc::new(Self {
            policies: PolicyCache::new(&broker, clock.clone()),
            rates: Rates::new(clock.clone()),
            body_bytes: Budget::new(limits.body_bytes),
            requests: Budget::new(limits.requests),
            refusals: Refusals::default(),
            followers: Budget::new(limits.followers),
            events: Arc::default(),
            request_prefix: u64::from_be_bytes(prefix),
            request_count: AtomicU64::new(0),
            broker,
            authenticator: authenticator.into(),
            limits,
            clock,
        })
    }

    /// The budget over all bodies in flight, for an ingress of another protocol in the same process.
    #[must_use]
    pub fn byte_budget(&self) -> Arc<Budget> {
        Arc::clone(&self.body_bytes)
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

    /// A name for a request that no other request of any relay has.
    fn mint_request_id(&self) -> String {
        let count = self.request_count.fetch_add(1, Ordering::Relaxed);
        let mut id = String::with_capacity(2 * 16 + 1);
        push_hex(&mut id, self.request_prefix, 16);
        id.push('-');
        // Eight digits, and as many as it takes after 2^32 requests.
        push_hex(&mut id, count, 8.max(16 - count.leading_zeros() / 4));
        id
    }

    /// The largest payload that the broker takes, whatever a queue's policy says.
    fn payload_max(&self) -> u64 {
        self.broker.capabilities.payload_max.min(self.limits.body_bytes as u64)
    }
}

/// Appends the last `digits` hexadecimal digits of `number`.
fn push_hex(to: &mut String, number: u64, digits: u32) {
    let nibbles = (0..digits).rev().map(|at| (number >> (4 * at)) as u32 & 0xf);
    to.extend(nibbles.filter_map(|nibble| char::from_digit(nibble, 16)));
}

/// The ingress as one listener serves it.
struct Served {
    ingress: Arc<Ingress>,
    /// Cancelled when the drain begins.
    shutdown: CancellationToken,
    /// The tasks that the drain waits for.
    tasks: TaskTracker,
}
