//! The bridge: what is queued on one broker is done on another, and the results come back.
//!
//! It stands here, and not with the handlers of `relay-workers`, because a handler there may not know a queue, and not
//! in `relay-bridge`, because that knows no handlers: this is the one package that may join the two.
//!
//! # Layout
//!
//! - [`relay`]: from relay to relay, as a handler of the source's worker.
//! - [`stats`]: what a bridge counts.

pub mod relay;
pub mod stats;
