//! The HTTP ingress over real sockets, against the real embedded store in memory.
#![cfg(all(feature = "client", feature = "server"))]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod batch;
mod browsers;
mod connections;
mod docs;
mod events;
mod failing;
#[path = "../foreign_results/mod.rs"]
mod foreign_results;
mod jobs;
mod naming;
mod policy;
mod refusals;
mod results;
mod submit;
mod support;
mod unfit;
