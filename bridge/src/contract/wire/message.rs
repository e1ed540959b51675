//! The messages of the worker role. Jobs, results and dead letters travel as envelopes (see
//! [`contract::envelope`](crate::contract::envelope)): here they are bytes that the codec carries without a look.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::WireError;
use crate::contract::{JobId, QueueName, RunId, Timestamp, WorkerId};
use crate::leasing::{Held, LeaseRequest, Progress, Receipt, Recorded};
use crate::policy::QueuePolicy;
use crate::settlement::Settlement;

/// The purpose of a peer's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// Takes jobs and settles them.
    Worker,
}

/// The first message of a connection. Nothing is answered before it.
#[derive(Clone, PartialEq, Eq)]
pub struct Hello {
    /// The oldest protocol version the worker speaks.
    pub version_min: u16,
    /// The newest protocol version the worker speaks.
    pub version_max: u16,
    /// The newest envelope version the worker reads; jobs are sent in no newer one.
    pub envelope_max: u16,
    /// The purpose of the connection.
    pub role: Role,
    /// The worker's name in logs and leases.
    pub worker: WorkerId,
    /// The whole key, or a token of an issuer, if the listener asks for one.
    pub key: Option<String>,
    /// Program and version, for logs; at most 128 bytes.
    pub build: String,
    /// The longest frame the worker takes, in bytes without its length.
    pub frame_max: u32,
}

impl fmt::Debug for Hello {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hello")
            .field("versions", &(self.version_min..=self.version_max))
            .field("worker", &self.worker)
            .field("key", &self.key.as_ref().map(|_| "..."))
            .field("build", &self.build)
            .finish_non_exhaustive()
    }
}

/// The server's answer to a hello it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version that both speak from here on.
    pub version: u16,
    /// The newest envelope version the server reads.
    pub envelope_max: u16,
    /// The longest frame either side sends from here on, in bytes without its length.
    pub frame_max: u32,
    /// The most requests that may be unanswered at a time on this connection.
    pub requests_max: u32,
    /// How often each side sends a ping. A side that hears nothing for three times as long closes the connection.
    pub ping: Duration,
    /// The server's wall clock.
    pub server_time: Timestamp,
    /// Program and version, for logs.
    pub build: String,
}

/// A message from a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum FromWorker {
    /// The worker introduces itself; first and once.
    Hello(Hello),
    /// A request that is answered under the same `id`, in any order.
    Request {
        /// Chosen by the worker; not that of a request that is unanswered.
        id: u64,
        /// The request.
        request: Request,
    },
    /// The lease request `id` is not waited for any more: it is answered now, mostly with nothing.
    CancelLease {
        /// Of the lease request.
        id: u64,
    },
    /// Answered by a pong with the same number.
    Ping(u64),
    /// The answer to a ping.
    Pong(u64),
}

/// A worker's request: one variant per method of [`Leasing`](crate::leasing::Leasing).
#[derive(Clone, Debug)]
pub enum Request {
    /// Answered by [`Response::Deliveries`].
    Lease(LeaseRequest),
    /// Answered by [`Response::Held`].
    Extend(Receipt),
    /// Answered by [`Response::Done`].
    Progress(Receipt, Progress),
    /// A dead letter's envelope. Answered by [`Response::Done`].
    DeadLetter(Bytes),
    /// Answered by [`Response::Done`].
    RetractDeadLetter(JobId, RunId),
    /// A result's envelope. Answered by [`Response::Recorded`].
    Record(Bytes),
    /// Answered by [`Response::Done`].
    Settle(Receipt, Settlement),
    /// Answered by [`Response::Policy`].
    QueuePolicy(QueueName),
}

impl Request {
    /// The name of the request in logs and errors.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        match self {
            Self::Lease(_) => "lease",
            Self::Extend(_) => "extend",
            Self::Progress(..) => "progress",
            Self::DeadLetter(_) => "dead letter",
            Self::RetractDeadLetter(..) => "retract dead letter",
            Self::Record(_) => "record",
            Self::Settle(..) => "settle",
            Self::QueuePolicy(_) => "queue policy",
        }
    }
}

impl PartialEq for Request {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Lease(a), Self::Lease(b)) => {
                (&a.worker, &a.queues, a.max, a.wait) == (&b.worker, &b.queues, b.max, b.wait)
            }
            (Self::Extend(a), Self::Extend(b)) => a == b,
            (Self::Progress(a, c), Self::Progress(b, d)) => (a, c) == (b, d),
            (Self::DeadLetter(a), Self::DeadLetter(b)) | (Self::Record(a), Self::Record(b)) => a == b,
            (Self::RetractDeadLetter(a, c), Self::RetractDeadLetter(b, d)) => (a, c) == (b, d),
            (Self::Settle(a, c), Self::Settle(b, d)) => (a, c) == (b, d),
            (Self::QueuePolicy(a), Self::QueuePolicy(b)) => a == b,
            _ => false,
        }
    }
}

/// A message from the server.
#[derive(Clone, Debug, PartialEq)]
pub enum FromServer {
    /// The hello was accepted.
    Welcome(Welcome),
    /// The answer to a request.
    Response {
        /// Of the request.
        id: u64,
        /// The answer.
        response: Response,
    },
    /// A request was refused; without `id`: the connection was, and is closed now.
    Error {
        /// Of the request.
        id: Option<u64>,
        /// Why.
        error: WireError,
    },
    /// The server stops soon. Lease no more here; settle what is held.
    GoAway {
        /// Why, as a word: `draining`.
        reason: String,
        /// How long the connection stays at most.
        within: Duration,
    },
    /// Answered by a pong with the same number.
    Ping(u64),
    /// The answer to a ping.
    Pong(u64),
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// Leased jobs. The request is answered by the first one without `more`.
    Deliveries {
        /// None, if the wait passed.
        deliveries: Vec<WireDelivery>,
        /// Whether another message of deliveries follows for the same request.
        more: bool,
    },
    /// The job is held, or its run has ended.
    Held(Held),
    /// Whether the result became the run's result.
    Recorded(Recorded),
    /// A queue's policy.
    Policy(Box<QueuePolicy>),
    /// It is done.
    Done,
}

/// A leased job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireDelivery {
    /// The job's envelope.
    pub job: Bytes,
    /// Names the delivery; sent back as it came.
    pub receipt: Receipt,
    /// The attempt's number in the run, from 1.
    pub attempt: u32,
    /// When it was handed out, on the broker's clock.
    pub leased_at: Timestamp,
    /// How long it is held without a heartbeat.
    pub lease: Duration,
}
