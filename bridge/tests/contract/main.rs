//! What the contract writes down stays readable: golden envelopes, vectors of derived values, and properties of every
//! text and byte form.

#![expect(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod golden;
mod properties;
mod samples;
mod vectors;
