//! The one binary of relay and the library behind it: jobs into a private cluster and results back, over connections
//! that the client opens.
//!
//! # Layout
//!
//! - [`api`]: the HTTP contract as types: receipts, jobs, results, problems. A client needs this and nothing of the server.
//! - [`auth`]: who is calling, and what they may do.
//! - [`ingress`]: how jobs come in and results go out.
//! - [`client`]: submits jobs and fetches results over HTTP; needs nothing of the server.

#[cfg(any(feature = "client", feature = "server"))]
pub mod api;
#[cfg(feature = "server")]
pub mod auth;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod ingress;
