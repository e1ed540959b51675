//! The NATS ingress: relay as a micro service (ADR-32 of NATS), for clients with nothing but the `nats` CLI. It serves
//! any broker. Payloads are raw bytes, everything else is headers; `docs/nats.md` has each command.
//!
//! The client is a token of the subject. NATS guards it: `relay nats permissions` prints what to configure, and without
//! that everybody can act as any client, which is said at start.
//!
//! # Layout
//!
//! - `permissions`: whether NATS keeps clients apart, as far as relay can see.
//! - `serve`: subscriptions, bounded concurrency, the drain.
//! - `gate`: the stages that every request passes first; `desk`: where answers leave.
//! - `jobs`, `results`: the endpoints; `readers`: how many read all of their results at a time.
//! - `wait`: an endpoint's wait for a result; `places`: how many wait at a time.
//! - `subject`, `request`, `answer`: the messages that are read and written.
//! - `stats`: the answers to `nats micro ls`, `info`, `stats` and `ping`.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::ClientId;
use relay_bridge::policy_cache::PolicyCache;

use super::budget::Budget;
use super::clients::{ClientShares, Owner};
use super::rates::Rates;
use super::refusal::Refusal;
use super::refusals::Refusals;
use crate::api::Slug;
use crate::audit::Audit;
use crate::auth::Authenticator;

mod answer;
mod desk;
mod gate;
mod jobs;
mod permissions;
mod places;
mod readers;
mod request;
mod results;
mod serve;
mod stats;
mod subject;
mod wait;

pub use serve::serve;
pub use subject::{RELAY_INBOX, client_inbox, worker_inbox};

use places::Places;
use readers::Readers;
use stats::Service;

/// The limits of one process over NATS for all clients together.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Requests in flight; beyond it 503 `overloaded`. Default 4,096.
    pub requests: usize,
    /// How many of these one client may have. Where NATS does not keep clients apart, all of them together have one client's.
    /// Default: all.
    pub shares: Arc<ClientShares>,
    /// `relay.results` requests that read at a time, each with a page of at most 1 MiB in hand; others wait, and are
    /// `overloaded` after `answer_within`. Default 16.
    pub readers: usize,
    /// `relay.results` requests of one client that read or wait; beyond it 429 `rate-limited`. Default 4.
    pub readers_per_client: usize,
    /// Requests that wait for a result, in places of their own; beyond it they are answered at once what there is. Default
    /// 10,000; with 0 nobody waits.
    pub waits: usize,
    /// Waits of one client while another one waits, or asked for it within 10 s. `None`, the default, is a quarter of `waits`;
    /// one at least.
    pub waits_per_client: Option<usize>,
    /// The longest wait for a result that is honoured, as over HTTP. Default 55 s.
    pub wait_max: Duration,
    /// How soon a request is answered that does not wait, or begins to, whatever the broker does. Default 3 s, below the 5 s
    /// that the `nats` CLI waits.
    pub answer_within: Duration,
    /// Bytes of a request's header names and values; beyond it 431. Default 16 KiB.
    pub header_bytes: usize,
    /// Headers of a request; beyond it 431. Default 64.
    pub headers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 4_096,
            shares: ClientShares::undivided(),
            readers: 16,
            readers_per_client: 4,
            waits: 10_000,
            waits_per_client: None,
            wait_max: Duration::from_secs(55),
            answer_within: Duration::from_secs(3),
            header_bytes: 16 * 1024,
            headers: 64,
        }
    }
}

/// The state that the endpoints share.
pub struct Ingress {
    broker: Broker,
    policies: PolicyCache,
    rates: Arc<Rates>,
    limits: Limits,
    clock: Clock,
    bytes: Arc<Budget>,
    answers: Arc<Budget>,
    requests: Arc<Budget>,
    refusals: Refusals,
    readers: Readers,
    waits: Arc<Places>,
    /// Requests that are nothing but a wait any more: `waits` bounds them.
    waiting: Arc<Budget>,
    /// Whether NATS keeps clients apart, as far as relay can see.
    keeps_apart: AtomicBool,
    /// Says which clients may come this way; all of them until it is set.
    authenticator: OnceLock<Arc<Authenticator>>,
    service: Service,
    /// Where calls are written; unset if they are not.
    audit: OnceLock<Arc<Audit>>,
}

impl fmt::Debug for Ingress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ingress").field("broker", &self.broker).field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Ingress {
    /// An ingress to `broker`. All bodies in flight share `bytes`, all answers `answers`, and `rates` counts submissions at
    /// any ingress.
    #[must_use]
    pub fn new(
        broker: Broker,
        limits: Limits,
        (bytes, answers): (Arc<Budget>, Arc<Budget>),
        rates: Arc<Rates>,
        clock: Clock,
    ) -> Arc<Self> {
        let mut random = [0; 11];
        if getrandom::fill(&mut random).is_err() {
            // An id needs to differ from those of other replicas only.
            random[..8].copy_from_slice(&clock.now().as_millis().to_be_bytes());
        }
        let id = random.iter().map(|byte| format!("{byte:02x}")).collect();
        Arc::new(Self {
            policies: PolicyCache::new(&broker, clock.clone()),
            requests: Budget::new(limits.requests.max(1), Arc::clone(&limits.shares)),
            refusals: Refusals::default(),
            readers: Readers::new(&limits),
            waits: Places::new(&limits),
            waiting: Budget::new(usize::MAX, ClientShares::undivided()),
            keeps_apart: AtomicBool::new(false),
            authenticator: OnceLock::new(),
            service: Service::new(id, clock.now(), broker.capabilities.durability.as_str()),
            broker,
            rates,
            limits,
            clock,
            bytes,
            answers,
            audit: OnceLock::new(),
        })
    }

    /// Calls are written there.
    pub fn audits(&self, audit: Arc<Audit>) {
        // A second call would be about the same one.
        self.audit.set(audit).ok();
    }

    /// The id of this instance of the micro service.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.service.id
    }

    /// Has `authenticator` say which clients may come over NATS. The first one counts.
    pub fn ask(&self, authenticator: Arc<Authenticator>) {
        drop(self.authenticator.set(authenticator));
    }

    /// Refuses `client` if it may not come over NATS, however right its permissions there are.
    fn admit(&self, client: &ClientId) -> Result<(), Refusal> {
        if self.authenticator.get().is_none_or(|authenticator| authenticator.lets_in_over_nats(client)) {
            return Ok(());
        }
        let detail = format!(
            "client {client} is not let in over NATS, because no list of its is [\"nats\"]; nothing was done: come over HTTP, \
             or ask the operator to add that list"
        );
        Err(Refusal::new(Slug::Forbidden, detail))
    }

    /// Whose share a request of `client` takes.
    fn owner(&self, client: &ClientId) -> Owner {
        match self.keeps_apart.load(Ordering::Relaxed) {
            true => Owner::Client(client.clone()),
            false => Owner::Anybody,
        }
    }

    /// How often which problem was the answer.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Requests that are not answered yet, waits included.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.requests.taken() + self.waits()
    }

    /// Requests that do nothing but wait for a result.
    #[must_use]
    pub fn waits(&self) -> usize {
        self.waiting.taken()
    }

    /// Places of waits that are taken, also by requests whose jobs are not accepted yet.
    #[must_use]
    pub fn wait_places(&self) -> usize {
        self.waits.open()
    }
}
