//! The client role of relay's TCP protocol: submit, wait, follow, cancel over one connection. `docs/protocol.md` is the
//! specification.
//!
//! It stands on the state of the HTTP ingress: the same policies, rates and authenticator, and the same budgets, so that a
//! client has one share of each however it comes; and the same pools of connections, with the bounds of each source. A connection comes
//! by a listener of its own, or by one of HTTP where its handshake agreed on `relay/1`. The work of a request is in the code that HTTP and NATS use,
//! `ingress::{jobs, headers, outcome, grants}`; here are the connection and the messages.
//!
//! # Layout
//!
//! - `listener`: accepts, and drains.
//! - `hello`: the first message, and the clients that may come.
//! - `session`: one connection after its hello; `reading`: its frames; `writer`: the messages that go back.
//! - `open`: the requests of a connection that are not answered, and the credit of those that follow.
//! - `requests`: the effect of each request; `submit`, `wait`, `follow`: of those.
//! - `answers`: jobs, results and problems as messages.
//! - `audited`: the lines of the audit.

pub(super) mod answers;
mod audited;
mod follow;
mod hello;
mod listener;
mod open;
mod reading;
mod requests;
mod session;
mod submit;
mod wait;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use relay_bridge::contract::wire::FRAME_MAX;

use crate::ingress::http;
use crate::ingress::refusals::Refusals;
use crate::ingress::strangers::Strangers;

/// The limits of one listener beside those that clients have over HTTP as well. The numbers for a connection are told to the
/// client in the welcome.
#[derive(Clone, Debug)]
pub struct ClientLimits {
    /// Unanswered requests of one connection, and of its client together as many as its share of all requests; more are
    /// answered `rate-limited`. Default 4,096.
    pub requests_max: u32,
    /// The longest frame after the hello, in bytes: 64 KiB to 17 MiB. Default 17 MiB.
    pub frame_max: u32,
    /// How long a new connection may take for its hello. Default 10 s.
    pub hello_timeout: Duration,
    /// How long a frame of more than 64 KiB waits for its bytes at most. Default 10 s.
    pub room_timeout: Duration,
    /// How often each side sends a ping; three without any message end the connection. Default 20 s, well under the
    /// 350 s after which a network load balancer forgets a silent connection.
    pub ping: Duration,
    /// How long a client may take no bytes before its connection is closed. Default 30 s.
    pub write_timeout: Duration,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            requests_max: 4_096,
            frame_max: FRAME_MAX,
            hello_timeout: Duration::from_secs(10),
            room_timeout: Duration::from_secs(10),
            ping: Duration::from_secs(20),
            write_timeout: Duration::from_secs(30),
        }
    }
}

/// Serves the client role, on any number of listeners.
pub struct Clients {
    ingress: Arc<http::Ingress>,
    limits: ClientLimits,
    refusals: Refusals,
    /// The lines of the log about those who were refused at their hello.
    strangers: Strangers,
    connections: AtomicUsize,
    in_flight: AtomicUsize,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Clients {
    /// Serves clients over TCP out of what `ingress` has for all of them.
    #[must_use]
    pub fn new(ingress: Arc<http::Ingress>, limits: ClientLimits) -> Arc<Self> {
        let strangers = Strangers::new(ingress.clock.clone());
        Arc::new(Self {
            ingress,
            limits,
            refusals: Refusals::default(),
            strangers,
            connections: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
        })
    }

    /// How often which problem was the answer.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Connections of clients that were let in.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Requests that are not answered yet, waits included, and without those that follow.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// One of a number, until it is dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
