//! The admin port: health for an orchestrator, metrics for Prometheus, a dashboard for people. Inside the cluster only, never behind the load
//! balancer that clients use.
//!
//! It is up before the broker is, and goes down last: a process can be asked the same while it starts or drains.
//! Frequent questions are answered from memory: nobody who asks them can slow the broker down.
//!
//! # Layout
//!
//! - `port`: the part that a process holds; `serve`: the listeners, also that of health checks, with `h2` for HTTP/2; `places`: those of their
//!   connections; `unread`: peers that do not read; `access`: the access of callers; `routes`: answers.
//! - [`refusing`]: the operations that the process can't do at present, although it is ready.
//! - `operator`: the operators' queries and changes; `jobs`: jobs as they look them up; `overview`: all of it, as it
//!   changes.
//! - `reload`: files that are read again on request.
//! - `dashboard`: the pages that show it in a browser.
//! - [`sampler`]: looks at the broker, one look at a time, whoever asks.
//! - [`collect`]: the numbers of the process's parts as metrics.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};

use relay_bridge::broker::Broker;
use relay_bridge::contract::Timestamp;
use relay_bridge::newer_jobs::NewerJobs;
use serde::Serialize;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::audit::Audit;
use crate::reload::Reload;
use crate::scaler::Looks;
use crate::telemetry::Telemetry;
use crate::telemetry::exposition::Exposition;

mod access;
pub mod collect;
mod dashboard;
mod h2;
mod jobs;
mod operator;
mod overview;
mod places;
mod port;
pub mod refusing;
mod reload;
mod routes;
pub mod sampler;
mod serve;
mod unread;

pub use access::{Holder, InvalidToken, Token, Tokens};
pub use port::{Caps, Listeners, Port};

use relay_bridge::support::lock;
use sampler::Sample;

/// Dashboards that are told of each look at a time.
const LIVE_MAX: usize = 32;

/// Adds the numbers of one part of the process.
type Collector = Box<dyn Fn(&mut Exposition) + Send + Sync>;

/// The admin port's knowledge of its process.
pub struct Admin {
    tokens: Option<Arc<Tokens>>,
    telemetry: Telemetry,
    started_at: Timestamp,
    collectors: Mutex<Vec<Collector>>,
    sample: watch::Sender<Arc<Sample>>,
    /// The broker that operators act on; set once it is there.
    broker: OnceLock<Broker>,
    /// The looks at the broker that scalers ask for; unset where there is no broker.
    looks: OnceLock<Arc<Looks>>,
    /// Where jobs come from, once that is looked at.
    newer_jobs: OnceLock<Arc<NewerJobs>>,
    /// Set when the process serves; cancelled when it drains.
    serving: OnceLock<CancellationToken>,
    /// Where the calls are written; unset if they are not.
    audit: OnceLock<Arc<Audit>>,
    /// The parts that can be read again; unset if there are none.
    reload: OnceLock<Arc<Reload>>,
    live: Arc<Semaphore>,
    /// Asks for a look before its time.
    look_now: Notify,
    /// Cancelled when the port closes.
    closing: CancellationToken,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

/// Why a process should get no new work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unready {
    /// For programs: `starting`, `draining`, or `broker` where that was asked for.
    pub reason: &'static str,
    /// For people.
    pub detail: String,
}

impl Admin {
    /// The admin port of a process that starts now. Without `tokens` everybody who connects may ask, so it must listen on
    /// loopback only.
    #[must_use]
    pub fn new(tokens: Option<Arc<Tokens>>, telemetry: Telemetry) -> Arc<Self> {
        let started_at = telemetry.clock().now();
        Arc::new(Self {
            tokens,
            telemetry,
            started_at,
            collectors: Mutex::default(),
            sample: watch::Sender::new(Arc::default()),
            broker: OnceLock::new(),
            looks: OnceLock::new(),
            newer_jobs: OnceLock::new(),
            serving: OnceLock::new(),
            audit: OnceLock::new(),
            reload: OnceLock::new(),
            live: Arc::new(Semaphore::new(LIVE_MAX)),
            look_now: Notify::new(),
            closing: CancellationToken::new(),
        })
    }

    /// Adds a part of the process to the metrics. Its families must be its own: a name may be there once.
    pub fn collect(&self, part: impl Fn(&mut Exposition) + Send + Sync + 'static) {
        lock(&self.collectors).push(Box::new(part));
    }

    /// The process has reached its broker, and serves from now until `drain` is cancelled.
    pub fn serves_until(&self, drain: CancellationToken) {
        // A second call would be about the same process.
        self.serving.set(drain).ok();
    }

    /// Operators act on this broker.
    pub(super) fn operates(&self, broker: Broker) {
        // A second call would be about the same one.
        self.broker.set(broker).ok();
    }

    /// Scalers are answered by these looks.
    pub fn scales(&self, looks: Arc<Looks>) {
        // A second call would be about the same broker.
        self.looks.set(looks).ok();
    }

    /// The jobs that are handed back because a newer relay wrote them are counted here.
    pub fn hands_back(&self, newer_jobs: Arc<NewerJobs>) {
        // A second call would be about the same broker.
        self.newer_jobs.set(newer_jobs).ok();
    }

    /// The calls are written there.
    pub fn audits(&self, audit: Arc<Audit>) {
        // A second call would be about the same one.
        self.audit.set(audit).ok();
    }

    /// Operators may have these parts read again.
    pub fn reloads(&self, reload: Arc<Reload>) {
        // A second call would be about the same ones.
        self.reload.set(reload).ok();
    }

    /// How many jobs were handed back because a newer relay wrote them.
    fn newer_jobs(&self) -> u64 {
        self.newer_jobs.get().map_or(0, |newer_jobs| newer_jobs.read())
    }

    /// The broker that operators act on, if it is there already.
    fn broker(&self) -> Option<&Broker> {
        self.broker.get()
    }

    /// Asks for a look at the broker before its time.
    pub fn look_soon(&self) {
        self.look_now.notify_one();
    }

    /// The findings of the looks at the broker, each as soon as its look was taken.
    #[must_use]
    pub fn samples(&self) -> watch::Receiver<Arc<Sample>> {
        self.sample.subscribe()
    }

    /// Why the process should get no new work; empty when it is ready: from the first time that it reached its broker until
    /// it drains, whatever it refuses in between.
    #[must_use]
    pub fn unready(&self) -> Vec<Unready> {
        let mut reasons = Vec::new();
        match self.serving.get() {
            None => {
                reasons.push(Unready { reason: "starting", detail: "the broker is waited for or looked at".to_owned() })
            }
            Some(drain) if drain.is_cancelled() => {
                let detail = "the process finishes what it has in hand and ends".to_owned();
                reasons.push(Unready { reason: "draining", detail });
            }
            Some(_) => {}
        }
        reasons
    }

    /// Everything that is counted, as Prometheus reads it.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut text = Exposition::default();
        collect::process(&mut text, self.started_at, self.unready().is_empty());
        refusing::report(&mut text, self);
        self.telemetry.report(&mut text);
        let workers = self.telemetry.workers_seen().lately(self.telemetry.clock().monotonic());
        collect::queues(&mut text, &self.sample.borrow(), &workers);
        if let Some(looks) = self.looks.get() {
            collect::slots_wanted(&mut text, &self.sample.borrow(), looks);
        }
        if let Some(audit) = self.audit.get() {
            collect::audit(&mut text, audit);
        }
        if let Some(reload) = self.reload.get() {
            collect::reload(&mut text, reload);
        }
        for part in lock(&self.collectors).iter() {
            part(&mut text);
        }
        text.finish()
    }
}
