//! The adapter on real servers: tests beside the promises that every broker keeps.

#![expect(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod connection;
mod consumers;
mod faults;
mod housekeeping;
mod lanes;
mod lately;
mod line;
mod log;
mod servers;
mod taking;
mod waits;
