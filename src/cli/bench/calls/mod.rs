//! Calls of a server, one try each, over connections that are kept. Nothing is repeated: a benchmark counts what happened.
//!
//! # Layout
//!
//! - `http`, `tcp`, `nats`: a protocol each.
//! - `pushed`: the jobs whose results a follower waits for.

mod http;
mod nats;
mod pushed;
mod tcp;

use std::sync::Arc;
use std::time::Duration;

use relay_bridge::contract::ClientId;
use relay_nats::config::NatsConfig;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::target::{Protocol, Target};
use super::workload::{Operation, Workload};
use crate::client::ClientTls;
use http::Http;
use nats::Nats;
use pushed::Pushed;
use tcp::Tcp;

/// The slug of a result that did not come within the wait.
pub(super) const NO_RESULT: &str = "no-result-in-time";

/// A call that was answered.
#[derive(Debug, Default)]
pub(super) struct Answered {
    /// Jobs that the server took, or whose result came.
    pub(super) jobs: u64,
    /// Jobs that it refused.
    pub(super) refused: Vec<Failure>,
}

impl Answered {
    fn one() -> Self {
        Self { jobs: 1, refused: Vec::new() }
    }
}

/// A call, or a job of a batch, that did not go well.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// The problem's slug, or a word of our own where there was no problem.
    pub(super) slug: String,
    pub(super) detail: String,
    /// Nobody is there.
    pub(super) away: bool,
}

impl Failure {
    pub(super) fn new(slug: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { slug: slug.into(), detail: detail.into(), away: false }
    }

    /// No connection can be made.
    fn unreachable(detail: impl Into<String>) -> Self {
        Self { away: true, ..Self::new("unreachable", detail) }
    }

    /// The connection broke before the answer.
    fn interrupted(detail: impl Into<String>) -> Self {
        Self::new("interrupted", detail)
    }

    /// The server answered something else than it may.
    fn not_relay(detail: impl Into<String>) -> Self {
        Self::new("not-relay", detail)
    }

    /// The run ended otherwise than well.
    fn outcome(outcome: &str) -> Self {
        Self::new(format!("outcome-{outcome}"), "the worker's handler ended the job so")
    }

    fn no_result() -> Self {
        Self::new(NO_RESULT, "the answer was the receipt")
    }
}

/// How to come.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) key: Option<String>,
    pub(super) client: Option<ClientId>,
    pub(super) tls: ClientTls,
    /// The connection of NATS, where that is spoken.
    pub(super) nats: Option<NatsConfig>,
}

/// The connections of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Width {
    pub(super) connections: usize,
    /// Unanswered calls on each.
    pub(super) in_flight: usize,
    /// Unanswered jobs on each.
    pub(super) jobs: usize,
    /// How long an answer may take. A wait asks for a result within half of it.
    pub(super) timeout: Duration,
}

/// The server, as it says of itself: the part of `GET /v1/whoami` that is shown.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Who {
    pub(super) client: Option<String>,
    pub(super) version: Option<String>,
    /// An accepted job survives so much.
    pub(super) durability: Option<String>,
}

/// The connections to a server.
pub(super) struct Caller {
    link: Link,
    pushed: Arc<Pushed>,
    timeout: Duration,
}

enum Link {
    Http(Http),
    Tcp(Tcp),
    Nats(Nats),
}

impl Caller {
    /// Connects, and asks the server who it is.
    ///
    /// # Errors
    /// It is away, or lets nobody in.
    pub(super) async fn connect(target: &Target, access: &Access, width: Width) -> Result<(Self, Who), Failure> {
        let (link, who) = match target.protocol {
            Protocol::Http => {
                let http = Http::new(target, access, width)?;
                let who = http.who().await?;
                (Link::Http(http), who)
            }
            Protocol::Tcp => {
                let (tcp, who) = Tcp::connect(target, access, width).await?;
                (Link::Tcp(tcp), who)
            }
            Protocol::Nats => {
                let (nats, who) = Nats::connect(access, width).await?;
                (Link::Nats(nats), who)
            }
        };
        Ok((Self { link, pushed: Arc::default(), timeout: width.timeout }, who))
    }

    /// Makes the call with number `number` on a connection of `slot`. Ends by itself a little after the timeout.
    ///
    /// # Errors
    /// There is no good answer.
    pub(super) async fn call(&self, slot: usize, workload: &Workload, number: u64) -> Result<Answered, Failure> {
        let called = async {
            let expected = (workload.operation == Operation::Follow).then(|| self.pushed.expect(number));
            let answered = match &self.link {
                Link::Http(http) => http.call(slot, workload, number).await,
                Link::Tcp(tcp) => tcp.call(slot, workload, number).await,
                Link::Nats(nats) => nats.call(slot, workload, number).await,
            }?;
            match expected {
                Some(expected) => expected.came().await,
                None => Ok(answered),
            }
        };
        let late = || Failure::new("timeout", format!("no answer in {:?}", self.timeout));
        tokio::time::timeout(self.timeout, called).await.unwrap_or_else(|_| Err(late()))
    }

    /// Follows the results of the run until `stop`, or until it can't. `ready` is cancelled once results can't be missed.
    ///
    /// # Errors
    /// Results do not come any more.
    pub(super) async fn follow(
        &self,
        workload: &Workload,
        ready: &CancellationToken,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let follow = async {
            match &self.link {
                Link::Http(http) => http.follow(workload, &self.pushed, ready).await,
                Link::Tcp(tcp) => tcp.follow(workload, &self.pushed, ready).await,
                Link::Nats(nats) => nats.follow(workload, &self.pushed, ready).await,
            }
        };
        tokio::select! {
            ended = follow => ended,
            () = stop.cancelled() => Ok(()),
        }
    }

    /// Closes what has to be closed.
    pub(super) async fn close(&self) {
        match &self.link {
            Link::Http(_) => {}
            Link::Tcp(tcp) => tcp.close().await,
            Link::Nats(nats) => nats.close().await,
        }
    }
}

/// The result of a call that waited, by the word for its outcome.
fn finished(outcome: &str) -> Result<Answered, Failure> {
    if outcome == "succeeded" { Ok(Answered::one()) } else { Err(Failure::outcome(outcome)) }
}
