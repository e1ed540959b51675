//! The settings of a process, and where each comes from: defaults, `relay.toml`, variables and flags. A file is read whole: every
//! mistake in it is found at once, each with its place and what to write instead. Nothing is corrected silently.
//!
//! # Layout
//!
//! - [`settings`]: every setting of a process, a field each; [`policy`]: everything that holds for a queue, a row each.
//! - [`kind`]: the kinds of values; [`values`]: how durations and sizes are written.
//! - [`mod@file`]: reads a file, with `reader`; [`queues`]: its queues; `bridges`: its bridges; `admin_tokens`: its tokens;
//!   `authorities`: its authorities for certificates; [`listeners`]: where it listens.
//! - [`layers`]: puts defaults, file, variables and flags on top of each other.
//! - [`contradictions`]: what can't be true together in the whole.
//! - [`mistake`]: a mistake, its place, and what to write instead.

pub(crate) mod admin_tokens;
mod authorities;
mod bridges;
pub(crate) mod contradictions;
pub(crate) mod file;
pub(crate) mod kind;
pub(crate) mod layers;
pub(crate) mod listeners;
pub(crate) mod mistake;
pub(crate) mod policy;
pub(crate) mod queues;
mod reader;
pub(crate) mod settings;
pub(crate) mod values;
