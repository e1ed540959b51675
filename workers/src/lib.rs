//! The worker runtime of relay: takes jobs under leases, runs a handler on each, and ends every delivery well.
//!
//! A worker needs a [`Leasing`](relay_bridge::leasing::Leasing), which a broker in the same process or a connection to
//! relay gives, and a [`Handler`]. Write the handler as an `async fn` with [`handler::function`], or use the ones that
//! are here: [`handler::exec`] runs a command, [`handler::http`] calls a service. `examples/` shows whole programs.
//!
//! # Layout
//!
//! - [`handler`]: handlers, which run jobs: the trait, its arguments and its results, and the three handlers that are
//!   here.
//! - [`worker`]: the lease loop, bounded by free slots, and the drain.
//! - [`config`], [`stats`]: a worker's configuration and its counts.
//! - `delivery`: one delivery's life, from the lease to the settlement.
//! - `admission`, `decide`, `order`: the decisions, as pure functions.
//! - `starts`: whether the handler can be started on this host, and what may be leased while it can't.
//! - `lease`: the heartbeat, and whether the lease still stands.
//! - `settle`: the one place that applies a decision.
//! - `policies`, `progress`, `retry`: a cache of queue policies, coalesced progress, repeated broker calls.

pub mod config;
pub mod handler;
pub mod stats;
pub mod worker;

mod admission;
mod decide;
mod delivery;
mod lease;
mod order;
mod policies;
mod progress;
mod retry;
mod room;
mod settle;
mod starts;

pub use config::{QueueOrder, WorkerConfig};
pub use handler::{Attempt, Context, Handler, Output};
pub use stats::{WorkerReport, WorkerStats};
pub use worker::Worker;
