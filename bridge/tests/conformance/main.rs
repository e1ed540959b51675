//! Every adapter that needs no server keeps every promise of the suite.

#![expect(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod bounds;
mod embedded;
mod erasure;
mod losing;
mod whole;

relay_bridge::conformance_tests!(embedded_memory, crate::embedded::Fixture::memory().await);
relay_bridge::conformance_tests!(embedded_disk, crate::embedded::Fixture::disk().await);
