//! The Rust client: submits jobs and fetches results. It needs the API types and nothing of the server.
//!
//! # Layout
//!
//! - [`http`]: the client over HTTP, one method per call.
//! - [`operator`]: what an operator does at the admin port.
//! - [`retry`]: the same calls, repeated where repeating is harmless.
//! - [`error`]: what went wrong, and whether the call may be repeated.

pub mod error;
pub mod http;
pub mod operator;
pub mod retry;

pub use error::ClientError;
pub use http::{Client, JobsFilter, NewJob, ResultsFilter, RunResult, Submitted};
pub use operator::{LettersFilter, Operator};
