//! The Rust client: submits jobs and fetches results, over HTTP or TCP. It needs the API types and nothing of the server.
//!
//! # Layout
//!
//! - [`calls`]: the client, one method per call; repeats them where repeating is harmless, up to a deadline.
//! - [`many`], [`results`]: streams of jobs and of results.
//! - [`job`]: the values that go there and come back.
//! - [`retry`]: how long to keep trying, and how fast.
//! - [`error`]: what went wrong, and whether the call may be repeated.
//! - [`tls`]: whom it trusts, and what it shows.
//! - [`operator`]: what an operator does at the admin port.
//! - `transport`: one try of each call over one of the protocols: `http` with its `pool`, or `tcp`.
//! - `addresses`: the addresses of a name, in turn, and how old a connection becomes.

mod addresses;
pub mod calls;
pub mod error;
pub(crate) mod http;
pub mod job;
pub mod many;
pub mod operator;
mod pool;
pub mod results;
pub mod retry;
mod tcp;
pub mod tls;
mod transport;

pub use addresses::{Connecting, Resolver};
pub use calls::Client;
pub use error::ClientError;
pub use job::{JobsFilter, NewJob, Payload, ResultEntry, ResultsFilter, RunResult, Sent, Submitted};
pub use operator::{LettersFilter, Operator};
pub use results::Results;
pub use retry::Patience;
pub use tls::ClientTls;
