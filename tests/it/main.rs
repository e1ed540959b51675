//! relay's behaviour, from outside: the built binary, or the parts of the server over real sockets.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail and speak as tests do")]

mod admin;
mod admin_tls;
mod audit;
#[path = "../aws_support/mod.rs"]
mod aws_support;
mod bench;
mod bridge;
mod bridge_foreign;
mod cli;
mod cli_client;
mod cli_identity;
mod cli_operator;
#[path = "../cli_support/mod.rs"]
mod cli_support;
mod cli_waiting;
mod client_feature;
mod clients;
mod config;
mod config_told;
mod conformance_remote;
mod demo;
mod doctor;
mod drain;
mod foreign_results;
mod full_disk;
mod http;
mod kubernetes;
mod listeners;
mod mistakes;
mod nats;
mod nats_cli;
mod python_worker;
mod reload;
mod remote_workers;
mod restarts;
mod scaler;
mod slugs;
mod sqs_cli;
mod sqs_forward;
mod swaps;
mod tcp;
mod tls_support;
mod traces;
mod turns;
mod waits;
mod worker_protocol;
mod worker_starts;
