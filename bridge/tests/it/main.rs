//! The written forms of the contract stay readable: golden envelopes, vectors of derived values, properties of every
//! text and byte form, and the frames of the protocol.

#![expect(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod golden;
mod properties;
mod samples;
mod vectors;
mod wire;
mod wire_client;
