//! The command line on real NATS servers: provisioning, serving, workers, and what happens while the server is away.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and prints its transcript")]

mod bridge;
#[path = "../cli_support/mod.rs"]
mod cli_support;
mod documented;
mod full;
mod lanes;
mod listen;
mod provision;
mod readiness;
mod serving;
mod sizes;
mod waits;
