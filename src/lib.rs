//! Jobs into a private cluster and results back, over connections that the client opened.
//!
//! # Layout
//!
//! - [`api`]: the HTTP contract as types: receipts, jobs, results, problems. A client needs this and nothing of the server.
//! - [`auth`]: who is calling, and what they may do.
//! - [`ingress`]: how jobs come in and results go out.

#[cfg(any(feature = "client", feature = "server"))]
pub mod api;
#[cfg(feature = "server")]
pub mod auth;
#[cfg(feature = "server")]
pub mod ingress;
