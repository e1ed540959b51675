//! The Rust client: submits jobs and fetches results. It needs the API types and nothing of the server.
//!
//! # Layout
//!
//! - [`http`]: the client over HTTP, one method per call.
//! - [`operator`]: what an operator does at the admin port.
//! - [`retry`]: the same calls, repeated where repeating is harmless.
//! - [`tls`]: whom it trusts, and what it shows.
//! - [`error`]: what went wrong, and whether the call may be repeated.

pub mod error;
pub mod http;
pub mod operator;
pub mod retry;
pub mod tls;

pub use error::ClientError;
pub use http::{Client, JobsFilter, NewJob, ResultsFilter, RunResult, Submitted};
pub use operator::{LettersFilter, Operator};
pub use tls::ClientTls;
