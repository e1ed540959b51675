//! What the contract writes down stays readable: golden envelopes, vectors of derived values, and properties of every
//! text and byte form.

mod golden;
mod properties;
mod samples;
mod vectors;
