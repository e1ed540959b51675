//! The NATS front door over a real NATS server, against the real embedded store in memory. The tests do what the `nats`
//! CLI does: requests with headers, `$SRV` questions, several replies until an empty one.
#![cfg(feature = "cli")]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

#[path = "../cli_support/mod.rs"]
mod cli_support;
mod congestion;
mod connection;
#[path = "../foreign_results/mod.rs"]
mod foreign_results;
mod limits;
mod malformed;
mod permissions;
mod results;
mod service;
mod submit;
mod support;
mod unfit;
mod waiting;
