//! The nouns of the contract (`docs/contract.md`, section 2) and how they are written down. Nothing here does I/O or knows a
//! broker.
//!
//! # Layout
//!
//! - [`time`]: [`Timestamp`], milliseconds on the wall clock.
//! - [`ids`]: [`ClientId`], [`QueueName`], [`IdempotencyKey`], [`JobId`], [`RunId`].
//! - [`fingerprint`]: decides whether two submissions under one key are the same.
//! - [`media`]: [`MediaRange`], content types that a queue takes; [`rate`]: [`Rate`], how many in which time.
//! - [`job`]: a submission, the [`Job`] it becomes, and the [`JobStatus`] a client sees.
//! - [`result`]: [`Outcome`], [`Failure`], [`JobResult`].
//! - [`dead_letter`]: a job whose run ended badly. [`extra`]: fields of a newer writer.
//! - [`trace`]: W3C trace context.
//! - [`cursor`]: a position in one client's results.
//! - [`envelope`]: jobs and results in MessagePack, version n and n-1.
//! - [`wire`]: the frames of the TCP protocol.

pub mod cursor;
pub mod dead_letter;
pub mod envelope;
pub mod extra;
pub mod fingerprint;
mod hashing;
pub mod ids;
pub mod job;
pub mod media;
pub mod rate;
pub mod result;
pub mod time;
pub mod trace;
pub mod wire;

pub use cursor::{Cursor, LogId};
pub use fingerprint::Fingerprint;
pub use ids::{ClientId, IdempotencyKey, JobId, QueueName, RunId, WorkerId};
pub use job::{Job, JobState, JobStatus, Submission};
pub use media::MediaRange;
pub use rate::Rate;
pub use result::{Failure, JobResult, Outcome};
pub use time::Timestamp;
pub use trace::TraceParent;
