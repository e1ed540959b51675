//! Tests of the adapter on the emulator, beside the promises that every broker keeps.

#![expect(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod faults;
mod iam;
mod provision;
