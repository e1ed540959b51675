//! The adapter that makes SQS with DynamoDB the broker of relay, and access to plain queues of SQS for relay's bridges.
//!
//! A build without the feature `aws` has no AWS SDK. It reads and checks the configuration all the same, and refuses to
//! connect.
//!
//! # Layout
//!
//! - [`config`]: the configuration, with [`forward`] (clients that read their results from SQS) and [`share`] (queues
//!   that other accounts use). [`Settings`]: the clock, the envelope version and the intervals of an adapter.
//! - [`iam`]: the permissions that each role needs.
//! - `limits`: limits of AWS. `names`: keys of items in the table, and names of queues.
//! - `adapter`: the broker itself. `absent`: its stand-in in a build without the feature `aws`.

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
