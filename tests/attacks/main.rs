//! One peer against all others: each test is an attack on the built server, over loopback, and what must hold all the same. The
//! table of attacks and of what stops them is docs/security.md.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests fail and speak as tests do")]

mod admin;
mod answers;
mod bodies;
#[path = "../cli_support/mod.rs"]
mod cli_support;
mod connections;
mod disk;
mod edges;
mod files;
mod grants;
mod handlers;
mod logs;
mod memory;
mod owners;
mod sessions;
mod shares;
mod support;
mod talk;
mod workers;
