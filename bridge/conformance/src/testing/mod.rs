//! Servers for tests, on loopback: real NATS, one node or a cluster, with its store in a directory of its own; and an
//! emulator of SQS and DynamoDB. Also a reader of the log lines of the code under test.
//!
//! ```no_run
//! # async fn example() {
//! use relay_conformance::testing::NatsServer;
//!
//! let mut server = NatsServer::start().await;
//! server.kill(); // SIGKILL
//! server.restart().await; // on the same port, with the same store
//! # }
//! ```
//!
//! A server is ready when its JetStream is, never after a pause. It ends when it is dropped, and also when the process
//! of the test is killed. A step that can't be done panics, with the last words of the server.
//!
//! # Layout
//!
//! - [`server`]: one node of NATS. [`cluster`]: several that are routed together. [`aws`]: SQS and DynamoDB.
//!   [`aws_proxy`]: faults on the way there. [`aws_units`]: the units that calls of DynamoDB are charged.
//! - [`binary`]: where their programs are found, and how they get there.
//! - [`log`]: the lines of a test's thread.
//! - [`process`]: a child that never outlives its test, and its ports.

#![allow(clippy::unwrap_used, reason = "a test whose server can't be started fails by panicking")]

mod aws;
mod aws_proxy;
mod aws_units;
mod binary;
mod cluster;
mod log;
mod process;
mod server;

pub use aws::AwsEmulator;
pub use aws_proxy::{AwsFault, AwsProxy};
pub use cluster::NatsCluster;
pub use log::Log;
pub use server::{NatsServer, NatsServerBuilder};
