//! Any broker, reached through relay's TCP protocol: [`Remote`] is [`Leasing`] over one connection that comes back by
//! itself. Receipts survive a reconnect, because leases are the broker's and not the connection's.
//!
//! # Layout
//!
//! - `link`: dials, says hello, runs the connection, dials again.
//! - `connection`: the table of unanswered requests, the loop that writes, the loop that reads.
//! - [`stream`]: frames out of a byte stream.
//! - `tls`: TLS under it, where the listener speaks it.

mod connection;
mod link;
pub mod stream;
mod tls;

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use connection::{Connection, LeaseCall, Leased};
use link::Link;
pub use tls::{NoTls, RemoteTls};
use tokio::time::{self, Instant};
use tokio_util::sync::DropGuard;

use relay_bridge::contract::wire::{FRAME_MAX, LEASE_QUEUES_MAX, Request, Response};
use relay_bridge::contract::{JobId, JobResult, QueueName, RunId, WorkerId, envelope};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::{BrokerError, BrokerErrorKind as Kind};
use relay_bridge::leasing::{
    Delivery, Held, LEASE_BATCH_MAX, LEASE_WAIT_MAX, LeaseRequest, Leasing, Progress, Receipt, Recorded,
};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;

/// Where relay is and who comes.
#[derive(Clone)]
pub struct RemoteConfig {
    /// `host:port` of the worker listener.
    pub address: String,
    /// TLS, where the listener speaks it.
    pub tls: Option<RemoteTls>,
    /// The whole key, or a token of an issuer, if the listener asks for one.
    pub key: Option<String>,
    /// The worker name of this process.
    pub worker: WorkerId,
    /// Program and version, for the server's log; at most 128 bytes. Default `relay/<version>`.
    pub build: String,
    /// How long dialling and the hello may take. Default 5 s.
    pub connect_timeout: Duration,
    /// How long a request may wait for a connection and for its answer; a lease also waits what it asks for.
    /// Default 10 s.
    pub request_timeout: Duration,
    /// The most unanswered requests at a time; the server may grant fewer. Default 64.
    pub requests_max: u32,
    /// The longest frame taken and sent, in bytes: 64 KiB to 17 MiB. Default 17 MiB.
    pub frame_max: u32,
    /// The longest wait between two attempts to connect. Default 5 s. While a heartbeat or another request of a job that is
    /// held waits for the connection it is at most 250 ms.
    pub backoff_max: Duration,
}

impl RemoteConfig {
    /// The defaults, without a key.
    #[must_use]
    pub fn new(address: impl Into<String>, worker: WorkerId) -> Self {
        Self {
            address: address.into(),
            tls: None,
            key: None,
            worker,
            build: concat!("relay/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            requests_max: 64,
            frame_max: FRAME_MAX,
            backoff_max: Duration::from_secs(5),
        }
    }
}

impl fmt::Debug for RemoteConfig {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteConfig")
            .field("address", &self.address)
            .field("worker", &self.worker)
            .field("key", &self.key.as_ref().map(|_| "..."))
            .finish_non_exhaustive()
    }
}

/// [`Leasing`] over one connection.
///
/// When the connection is lost, requests of which a byte may have been sent fail `Ambiguous`; later ones wait for the
/// next connection up to `request_timeout` and then fail `Unavailable`. A key that is refused, or a version that is too
/// new, fails them at once, while dialling goes on. Dropping it closes the connection; [`Remote::close`] also waits.
pub struct Remote {
    link: Arc<Link>,
    _close: DropGuard,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("config", &self.link.config).finish_non_exhaustive()
    }
}

impl Remote {
    /// Connects once; from then on it reconnects by itself. Needs a tokio runtime.
    ///
    /// # Errors
    /// `Unavailable`: nobody answers, or the server is stopping; try again. `Unauthorized`: the key is not good.
    /// `NewerVersion`: the two speak no common version. `Invalid`: something else listens there, or somebody who is not trusted.
    pub async fn connect(config: RemoteConfig) -> Result<Self, BrokerError> {
        let first = link::establish(&config).await?;
        let link = Arc::new(Link::new(config, &first));
        link.tasks.spawn(link::supervise(Arc::clone(&link), first));
        Ok(Self { _close: link.close.clone().drop_guard(), link })
    }

    /// Waits until every request is answered and what nobody waits for is handed back, then closes the connection. Takes
    /// at most three times the request timeout. Dropping the remote instead closes at once; deliveries on their way
    /// then go back when their leases end.
    pub async fn close(&self) {
        let patience = self.link.config.request_timeout;
        if let Some(connection) = self.link.up()
            && time::timeout(patience, connection.idle()).await.is_err()
        {
            tracing::warn!("closed before every request was answered");
        }
        self.link.orphans.close();
        if time::timeout(patience, self.link.orphans.wait()).await.is_err() {
            tracing::warn!("closed before every delivery was handed back; they go back when their leases end");
        }
        self.link.close.cancel();
        self.link.tasks.close();
        if time::timeout(patience, self.link.tasks.wait()).await.is_err() {
            tracing::warn!("the connection's tasks did not end in time");
        }
    }

    async fn done(
        &self,
        operation: &'static str,
        request: impl Fn(envelope::WireVersion) -> Request + Send,
    ) -> Result<(), BrokerError> {
        match self.link.call(operation, request).await? {
            Response::Done => Ok(()),
            _ => Err(connection::unexpected(operation)),
        }
    }
}

#[async_trait]
impl Leasing for Remote {
    async fn lease(&self, request: &LeaseRequest) -> Result<Vec<Delivery>, BrokerError> {
        if request.queues.is_empty() || request.queues.len() > LEASE_QUEUES_MAX {
            return Err(BrokerError::new(Kind::Invalid, "lease", "a lease names 1 to 64 queues"));
        }
        let wait = request.wait.min(LEASE_WAIT_MAX);
        let max = request.max.min(const { NonZeroU32::new(LEASE_BATCH_MAX).unwrap() });
        let lease = Request::Lease(LeaseRequest { max, wait, ..request.clone() });
        let deadline = Instant::now() + self.link.config.request_timeout;
        let mut waiting = loop {
            let (connection, permit) = self.link.ready("lease", true, deadline).await?;
            if let Some(call) = connection.begin_lease(lease.clone(), max.get(), permit)? {
                break Waiting { link: Arc::clone(&self.link), connection, call };
            }
        };
        let deadline = Instant::now() + wait + self.link.config.request_timeout;
        let answer = time::timeout_at(deadline, &mut waiting.call.reply).await;
        let leased = match answer {
            Ok(Ok(answer)) => answer?,
            // Dropping what waits cancels the request.
            Ok(Err(_)) | Err(_) => {
                return Err(BrokerError::new(Kind::Unavailable, "lease", "the server did not answer in time"));
            }
        };
        Ok(self.open(leased))
    }

    async fn extend(&self, receipt: &Receipt) -> Result<Held, BrokerError> {
        match self.link.call("extend", |_| Request::Extend(receipt.clone())).await? {
            Response::Held(held) => Ok(held),
            _ => Err(connection::unexpected("extend")),
        }
    }

    async fn ended_early(&self, _: &Receipt) {
        // The protocol has no word for it.
        std::future::pending().await
    }

    async fn progress(&self, receipt: &Receipt, progress: &Progress) -> Result<(), BrokerError> {
        self.done("progress", |_| Request::Progress(receipt.clone(), progress.clone())).await
    }

    async fn dead_letter(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        let request = |version| Request::DeadLetter(Bytes::from(envelope::encode_dead_letter(letter, version)));
        self.done("dead letter", request).await
    }

    async fn retract_dead_letter(&self, job: JobId, run: RunId, _: Option<&[QueueName]>) -> Result<(), BrokerError> {
        self.done("retract dead letter", |_| Request::RetractDeadLetter(job, run)).await
    }

    async fn record(&self, result: &JobResult) -> Result<Recorded, BrokerError> {
        let request = |version| Request::Record(Bytes::from(envelope::encode_result(result, version)));
        match self.link.call("record", request).await? {
            Response::Recorded(recorded) => Ok(recorded),
            _ => Err(connection::unexpected("record")),
        }
    }

    async fn settle(&self, receipt: &Receipt, settlement: &Settlement) -> Result<(), BrokerError> {
        self.done("settle", |_| Request::Settle(receipt.clone(), settlement.clone())).await
    }

    async fn queue_policy(&self, queue: &QueueName) -> Result<QueuePolicy, BrokerError> {
        match self.link.call("queue policy", |_| Request::QueuePolicy(queue.clone())).await? {
            Response::Policy(policy) => Ok(*policy),
            _ => Err(connection::unexpected("queue policy")),
        }
    }
}

impl Remote {
    /// Reads the envelopes. One that can't be read goes back for a while, for a worker that can: never to the dead
    /// letters.
    fn open(&self, leased: Leased) -> Vec<Delivery> {
        let mut unreadable = Vec::new();
        let mut readable = Vec::with_capacity(leased.deliveries.len());
        for delivery in leased.deliveries {
            match envelope::decode_job(&delivery.job) {
                Ok(job) => readable.push(Delivery {
                    job,
                    receipt: delivery.receipt,
                    attempt: delivery.attempt,
                    leased_at: delivery.leased_at,
                    lease: delivery.lease,
                }),
                Err(error) => {
                    let job_id = delivery.receipt.job_id;
                    tracing::error!(%job_id, %error, "a job can't be read by this build and is handed back");
                    unreadable.push(delivery);
                }
            }
        }
        self.link.hand_back(Leased { deliveries: unreadable, permit: leased.permit }, UNREADABLE_AFTER);
        readable
    }
}

/// A lease request that somebody waits for. Dropping it loses nothing: an answer that came is handed back, one that
/// has not come is cancelled, and one that crosses the cancellation is handed back by the reader.
struct Waiting {
    link: Arc<Link>,
    connection: Arc<Connection>,
    call: LeaseCall,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.call.reply.close();
        match self.call.reply.try_recv() {
            Ok(Ok(leased)) => self.link.hand_back(leased, Duration::ZERO),
            Ok(Err(_)) => {}
            // Without effect on a request that was answered.
            Err(_) => self.connection.cancel_lease(self.call.id),
        }
    }
}

/// A job that this build can't read is offered to others again after this long, as the contract says.
const UNREADABLE_AFTER: Duration = Duration::from_secs(30);
