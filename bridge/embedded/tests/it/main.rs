//! The embedded store keeps every promise of the suite, and its own.

#![expect(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod bounds;
mod erasure;
mod faults;
mod file;
mod fixture;
mod losing;
mod policies;
mod store;
mod whole;

relay_conformance::conformance_tests!(embedded_memory, crate::fixture::Fixture::memory().await);
relay_conformance::conformance_tests!(embedded_disk, crate::fixture::Fixture::disk().await);
