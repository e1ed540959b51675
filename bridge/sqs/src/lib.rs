//! SQS with DynamoDB as the broker of relay, and plain queues of SQS for its bridges.
//!
//! Without the feature `aws` no AWS SDK is built: what a person configures is read and checked all the same, and a connection
//! is refused.
//!
//! # Layout
//!
//! - [`config`]: what a person configures, with [`forward`] (clients that read their results from SQS) and [`share`] (queues that
//!   other accounts use). [`Settings`]: what holds for all of an adapter's work.
//! - [`iam`]: the permissions that each role needs.
//! - `adapter`: the broker itself. `absent`: what stands in its place without the feature `aws`.

#![cfg_attr(not(feature = "aws"), allow(dead_code, reason = "most of it is for the adapter"))]

#[cfg(not(feature = "aws"))]
mod absent;
#[cfg(feature = "aws")]
mod adapter;
pub mod config;
pub mod forward;
pub mod iam;
mod limits;
mod names;
mod settings;
pub mod share;

#[cfg(not(feature = "aws"))]
pub use absent::{Sqs, plain};
#[cfg(feature = "aws")]
pub use adapter::{Sqs, plain};

pub use forward::Render;
pub use limits::PAYLOAD_MAX;
pub use settings::Settings;

/// Whether this build has the broker.
pub const IS_BUILT: bool = cfg!(feature = "aws");
