//! The bridge: work that is queued on one broker is done on another, and the results come back.
//!
//! It stands here, and not with the handlers of `relay-workers`, because a handler there may not know a queue, and not
//! in `relay-bridge`, because that knows no handlers: this is the one package that may join the two.
//!
//! # Layout
//!
//! - [`config`]: a bridge as it is configured.
//! - [`relay`]: from relay to relay, as a handler of the source's worker.
//! - [`foreign`]: from queues that know nothing of relay.
//! - [`stats`]: the numbers that a bridge counts; [`metrics`]: these numbers for Prometheus.
//! - `target`: the broker that jobs go to; `hops`: circles end.

pub mod config;
pub mod foreign;
pub mod metrics;
pub mod relay;
pub mod stats;

mod hops;
mod target;
