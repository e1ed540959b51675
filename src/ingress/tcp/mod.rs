//! The worker role of relay's TCP protocol: separate worker processes reach the broker through it and need no access to
//! the broker itself. `docs/protocol.md` is the specification.
//!
//! The worker speaks first; a connection that says no hello in time is closed. Every request is checked against the
//! queues that the worker's key grants. Nothing a worker sends grows the process: connections, requests, and the bytes of
//! frames and of messages that wait to be written are bounded, and a reader that is too slow loses its connection and keeps
//! its jobs in line. A session ends with the key that it began with; leases that the worker holds then run out. A peer that
//! is not known yet keeps no worker out: it has a place that the next one takes.
//!
//! # Layout
//!
//! - `arriving`: a new connection before its hello; `listener`: accepts, and drains; `leaving`: tells workers that the process goes.
//! - `first`: the first frame, of workers and of clients; `hello`: a worker's, and the workers that may come.
//! - `session`: one connection after its hello.
//! - `requests`: the effect of each request.
//! - [`client`]: the client role, which has connections of its own.
//! - `audited`: the lines about sessions.
//! - `memory`: the bytes that connections may hold, and the leases that may wait.
//! - `places`: the places of workers, which those of one key can't keep from others.
//! - `writer`: the messages that go back, and their fate when nobody reads; `writing`: a batch of them, of either role.

mod arriving;
mod audited;
pub mod client;
mod first;
mod hello;
mod leaving;
mod listener;
mod memory;
mod places;
mod requests;
mod session;
mod writer;
mod writing;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use relay_bridge::clock::Clock;
use relay_bridge::contract::wire::FRAME_MAX;
use relay_bridge::contract::{ClientId, QueueName, WorkerId};
use relay_bridge::leasing::Leasing;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::authentications::Authentications;
use super::front::Arrivals;
use super::strangers::Strangers;
use crate::audit::Audit;
use crate::auth::credential::Credential;
use crate::auth::{Presented, Refused};

pub use leaving::Leaving;

/// Decides which workers may come, and what they may touch.
pub trait WorkerAuth: Send + Sync {
    /// The grant of `worker` with `key` (an API key or a token), whose connection came with the rest of `presented`.
    ///
    /// # Errors
    /// The problem, in words that the worker is told: no secrets.
    fn authorize<'a>(
        &'a self,
        worker: &'a WorkerId,
        key: Option<&'a str>,
        presented: Presented<'a>,
    ) -> BoxFuture<'a, Result<WorkerGrant, Refused>>;
}

/// The rights of a worker on its connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerGrant {
    /// The name of its key, if it has one. The worker is known as `<key>/<name>` then, and shares memory with the others that
    /// come with keys of that name.
    pub key: Option<ClientId>,
    /// The queues it may touch; `None` for all.
    pub queues: Option<Vec<QueueName>>,
    /// Ends with what let the worker in; its session ends with it. The default never ends.
    pub credential: Credential,
}

impl WorkerGrant {
    /// Whether the worker may touch `queue`.
    #[must_use]
    pub fn allows(&self, queue: &QueueName) -> bool {
        self.queues.as_ref().is_none_or(|queues| queues.contains(queue))
    }
}

/// The limits of one listener. The numbers for a connection are told to the worker in the welcome.
#[derive(Clone, Debug)]
pub struct WorkerLimits {
    /// Connections of workers at a time. One more takes the place of the newest one under the key that has most, if its own key has
    /// fewer; else it waits for a place as long as it may take for its hello, and is told `overloaded` then. Default 1,024.
    pub connections_max: u32,
    /// Connections at a time that have said no good hello yet. One more takes the place of the oldest. Default 256.
    pub unknown_max: u32,
    /// Bytes that all connections may hold, beside 64 KiB of each: frames on their way in, requests that the broker has not
    /// answered, and deliveries that are not written. Those under keys of one name have a half at most. Default 64 MiB; at
    /// least one frame.
    pub bytes: u64,
    /// Unanswered requests of one connection; more are answered `overloaded`. Default 256.
    pub requests_max: u32,
    /// The longest frame after the hello, in bytes: 64 KiB to 17 MiB. Default 17 MiB.
    pub frame_max: u32,
    /// How long a new connection may take for its hello. Default 10 s.
    pub hello_timeout: Duration,
    /// How long a connection lasts, within a fifth, until its worker is told to connect anew. Default 15 min.
    pub max_age: Duration,
    /// How often each side sends a ping; three without any message end the connection. Default 20 s, well under the
    /// 350 s after which a network load balancer forgets a silent connection.
    pub ping: Duration,
    /// How long a worker may take no bytes before its connection is closed. Default 30 s.
    pub write_timeout: Duration,
}

impl Default for WorkerLimits {
    fn default() -> Self {
        Self {
            connections_max: 1_024,
            unknown_max: 256,
            bytes: 64 * 1024 * 1024,
            requests_max: 256,
            frame_max: FRAME_MAX,
            hello_timeout: Duration::from_secs(10),
            max_age: Duration::from_secs(900),
            ping: Duration::from_secs(20),
            write_timeout: Duration::from_secs(30),
        }
    }
}

/// Serves the worker role on a listener.
#[derive(Clone)]
pub struct WorkerListener {
    leasing: Arc<dyn Leasing>,
    auth: Arc<dyn WorkerAuth>,
    limits: WorkerLimits,
    clock: Clock,
    /// Refused at their hello.
    strangers: Arc<Strangers>,
    /// Where sessions are written, if they are.
    audit: Option<Arc<Audit>>,
    authentications: Arc<Authentications>,
    leaving: Arc<Leaving>,
    arrivals: Arc<Arrivals>,
}

impl WorkerListener {
    /// Serves `leasing` to the workers that `auth` lets in, with the default limits.
    #[must_use]
    pub fn new(leasing: Arc<dyn Leasing>, auth: Arc<dyn WorkerAuth>) -> Self {
        let (clock, limits) = (Clock::system(), WorkerLimits::default());
        let strangers = Arc::new(Strangers::new(clock.clone()));
        Self {
            arrivals: Arrivals::new(&clock),
            leasing,
            auth,
            limits,
            clock,
            strangers,
            leaving: Arc::default(),
            audit: None,
            authentications: Arc::default(),
        }
    }

    /// The same with other limits.
    #[must_use]
    pub fn with_limits(self, limits: WorkerLimits) -> Self {
        Self { limits, ..self }
    }

    /// The same, whose sessions are written to `audit`.
    #[must_use]
    pub fn with_audit(self, audit: Option<Arc<Audit>>) -> Self {
        Self { audit, ..self }
    }

    /// The part that tells its workers to connect elsewhere before the listener ends.
    #[must_use]
    pub fn leaving(&self) -> Arc<Leaving> {
        Arc::clone(&self.leaving)
    }

    /// The same, whose workers are counted beside the callers of other doors.
    #[must_use]
    pub fn with_authentications(self, authentications: Arc<Authentications>) -> Self {
        Self { authentications, ..self }
    }

    /// The same, whose new connections are counted beside those of other doors.
    #[must_use]
    pub fn with_arrivals(self, arrivals: Arc<Arrivals>) -> Self {
        Self { arrivals, ..self }
    }

    /// The same with another clock for the server time in the welcome.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        let strangers = Arc::new(Strangers::new(clock.clone()));
        Self { clock, strangers, ..self }
    }
}

impl std::fmt::Debug for WorkerListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerListener").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Serves the worker role on `listener` with the default limits until `shutdown`, then drains: see
/// [`WorkerListener::serve`].
///
/// # Errors
/// None so far: errors of accepting are waited out.
pub async fn serve_workers(
    listener: TcpListener,
    leasing: Arc<dyn Leasing>,
    auth: Arc<dyn WorkerAuth>,
    shutdown: CancellationToken,
    drain: Duration,
) -> std::io::Result<()> {
    WorkerListener::new(leasing, auth).serve(vec![listener.into()], shutdown, drain).await
}
