//! The rules of this repository that a machine can check. Each rule is a function from files to findings, and each has
//! a test with a bad input: a rule that can't fail guards nothing. Slugs have a test of their own in `tests/it/slugs.rs`.
//!
//! # Layout
//!
//! - `files`: the repository's files, and a finding in one of them.
//! - `code`: Rust source without comments and strings, and the paths that it names.
//! - `circles`: files that know each other. `layers`: who may use whom. `seams`: what a broker's traits may not have.
//! - `sources`: rules for every source file. `words`: how sentences of comments begin.
//! - `documents`: links and decision records. `contract`: promises and the tests that they name. `dependencies`: manifests,
//!   the lockfile and the bans.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod circles;
mod code;
mod contract;
mod dependencies;
mod documents;
mod files;
mod layers;
mod seams;
mod sources;
mod words;
