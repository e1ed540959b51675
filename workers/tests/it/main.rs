//! The worker runtime against a scripted broker, and the handlers against real commands and a real server.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics; clippy knows only `#[test]` functions")]

mod delivery;
mod drain;
mod embedded;
mod exec;
mod function;
mod http;
mod lease_loop;
mod room;
mod starts;
mod support;
