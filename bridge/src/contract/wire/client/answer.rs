//! The messages that go to a client.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::super::WireError;
use super::super::error::Retry;
use crate::contract::{ClientId, Failure, IdempotencyKey, JobId, JobState, Outcome, QueueName, RunId, Timestamp};
use crate::result_log::Reset;

/// A message to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToClient {
    /// The hello was accepted.
    Welcome(Box<Welcome>),
    /// The job is durable.
    Receipt {
        /// Of the request.
        id: u64,
        /// The receipt.
        receipt: Box<WireReceipt>,
    },
    /// A finished run: the answer to a wait or a submission, or one of a follow request's.
    Result {
        /// Of the request.
        id: u64,
        /// Whether an earlier request did the work; of a submission only.
        replayed: bool,
        /// The result.
        result: Box<WireResult>,
    },
    /// A job as the HTTP API's JSON has it.
    Job {
        /// Of the request.
        id: u64,
        /// The JSON.
        document: String,
    },
    /// The caller as the HTTP API's JSON has it.
    Whoami {
        /// Of the request.
        id: u64,
        /// The JSON.
        document: String,
    },
    /// A follow request could not go on behind its cursor, and begins at the oldest result that is kept.
    Reset {
        /// Of the follow request.
        id: u64,
        /// Why.
        reason: Reset,
    },
    /// A follow request has come to this cursor, without a result that it wants.
    Position {
        /// Of the follow request.
        id: u64,
        /// Where it is.
        cursor: String,
    },
    /// A follow request ends.
    Followed {
        /// Of the follow request.
        id: u64,
        /// Where to go on; `None` if nothing was read.
        cursor: Option<String>,
        /// Why, as a word: `stopped` or `going-away`.
        reason: String,
    },
    /// A request was refused.
    Problem {
        /// Of the request.
        id: u64,
        /// Why.
        problem: Box<WireProblem>,
    },
    /// The connection is refused, and is closed now.
    Error(Box<WireError>),
    /// The server stops soon: connect elsewhere.
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

/// The server's answer to a hello it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version that both speak from here on.
    pub version: u16,
    /// The longest frame either side sends from here on, in bytes without its length.
    pub frame_max: u32,
    /// The most requests that may be unanswered at a time on this connection.
    pub requests_max: u32,
    /// The most bytes of frames with unanswered submissions; a single larger frame still comes, alone.
    pub bytes_max: u64,
    /// The longest wait for a result that is honoured.
    pub wait_max: Duration,
    /// How often each side sends a ping. A side that hears nothing for three times as long closes the connection.
    pub ping: Duration,
    /// The client that the server knows.
    pub client: ClientId,
    /// The server's wall clock.
    pub server_time: Timestamp,
    /// Program and version, for logs.
    pub build: String,
}

/// The server's promise when it accepts a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireReceipt {
    /// The job; under a key it is the same for every retry.
    pub job: JobId,
    /// The current run.
    pub run: RunId,
    /// The current run's number, from 1.
    pub generation: u32,
    /// The client that the job belongs to.
    pub client: ClientId,
    /// Where it waits.
    pub queue: QueueName,
    /// The idempotency key.
    pub key: Option<IdempotencyKey>,
    /// The client's own notes, by name without a prefix.
    pub meta: BTreeMap<String, String>,
    /// `queued`, `leased`, or the outcome.
    pub state: JobState,
    /// Whether an earlier request did the work.
    pub replayed: bool,
    /// When the job's first run was accepted.
    pub accepted_at: Timestamp,
    /// The run's deadline.
    pub expires_at: Timestamp,
}

/// A finished run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireResult {
    /// Where it is in the client's results.
    pub cursor: String,
    /// The job.
    pub job: JobId,
    /// The run: deduplicate on it.
    pub run: RunId,
    /// The run's number, from 1.
    pub generation: u32,
    /// Where the job was.
    pub queue: QueueName,
    /// The job's idempotency key.
    pub key: Option<IdempotencyKey>,
    /// The client's own notes, by name without a prefix.
    pub meta: BTreeMap<String, String>,
    /// How the run ended.
    pub outcome: Outcome,
    /// The attempt that ended it; 0 if none started.
    pub attempt: u32,
    /// The payload's content type.
    pub content_type: String,
    /// The handler's output.
    pub payload: Body,
    /// Why it did not succeed.
    pub failure: Option<Failure>,
    /// When the run was accepted.
    pub accepted_at: Timestamp,
    /// When the attempt started that ended it.
    pub started_at: Option<Timestamp>,
    /// When the run ended.
    pub finished_at: Timestamp,
    /// The trace context that the job carries.
    pub traceparent: Option<String>,
}

/// The output of a handler, as far as it comes with its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// It is here.
    Here(Bytes),
    /// It was erased.
    Erased,
    /// It has so many bytes and does not fit into a frame of this connection.
    TooLarge(u64),
}

/// The refusal of one request: the problem document of the HTTP API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireProblem {
    /// The kind, as a word of the HTTP API.
    pub slug: String,
    /// Whether the same request may be sent again.
    pub retry: Retry,
    /// The fault and the way out, for people; at most 1 KiB.
    pub detail: String,
    /// Names the request: `urn:relay:request:<id>`.
    pub instance: String,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// The number that is allowed.
    pub limit: Option<u64>,
    /// The number that there was.
    pub actual: Option<u64>,
    /// The job in question.
    pub job: Option<JobId>,
    /// When the first request with the same key came.
    pub first_at: Option<Timestamp>,
    /// How the job ended.
    pub outcome: Option<Outcome>,
    /// When the job ended.
    pub finished_at: Option<Timestamp>,
}
