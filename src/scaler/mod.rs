//! How many slots the workers of a queue should have, for those who scale them: KEDA by its own protocol, and others by the
//! metrics and a route of the admin port. All three say the same.
//!
//! The counts come from the broker, and so does the measurement that is made of them: which process is asked does not matter,
//! and neither does the one through which jobs come.
//!
//! # Layout
//!
//! - `wanted`: the figure, a pure function. `pace`: how long attempts take and how often they come, by the counts of two looks.
//! - `looks`: the looks at the broker, one at a time for each queue, and what was measured by them.
//! - `trigger`: what a trigger asks, and the name of its metric.
//! - `service`: the calls of KEDA; `serve`: their listener; `proto`: their messages, generated.
//! - `simulation`: the figure in the loop of an autoscaler, compared with others.

mod looks;
mod pace;
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
#[rustfmt::skip]
pub mod proto;
mod serve;
mod service;
#[cfg(test)]
mod simulation;
mod trigger;
mod wanted;

pub(crate) use looks::ANSWER_MAX;
pub use looks::{Looked, Looks};
pub(crate) use pace::Measured;
pub use serve::serve;
pub use trigger::{InvalidTrigger, Trigger};
pub use wanted::{Pace, Targets, Work, wanted};
