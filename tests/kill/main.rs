//! `kill -9` of everything in turn, while clients submit: every acknowledged job has exactly one result, on every broker and
//! through every bridge. One round at a time: each takes all that a machine has.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail and speak as tests do")]

#[path = "../aws_support/mod.rs"]
mod aws_support;
mod bridge;
#[path = "../cli_support/mod.rs"]
mod cli_support;
mod embedded;
mod foreign;
mod library;
mod nats;
mod sqs;
mod support;
