//! The settings that an operator may write in `relay.toml`. A file is read whole: every mistake in it is found at once,
//! each with its place and what to write instead. Nothing is corrected silently.
//!
//! A setting of the file stands for the flag of the same meaning, so that there is one way to resolve both. The order is:
//! flag, variable, file, default.
//!
//! # Layout
//!
//! - [`settings`]: the table of everything that can be set, from which the reference is written.
//! - [`kind`]: the kinds of values; [`values`]: how durations and sizes are written.
//! - [`mod@file`]: reads a file; [`queues`]: its queues; `bridges`: its bridges; [`contradictions`]: what can't be true together.
//! - [`mistake`]: a mistake, its place, and what to write instead.

mod bridges;
pub mod contradictions;
pub mod file;
pub mod kind;
pub mod mistake;
pub mod queues;
pub mod settings;
pub mod values;
