//! Access to NATS: the connection, requests, calls of JetStream, direct reads, hints and shared subscriptions.

pub(crate) mod api;
pub mod connection;
pub(crate) mod direct_get;
pub(crate) mod header_reads;
pub(crate) mod headers;
pub(crate) mod hints;
pub(crate) mod link;
pub(crate) mod refusal;
pub(crate) mod requests;
pub(crate) mod single_flight;
pub(crate) mod stream_calls;
pub(crate) mod subscriptions;
pub(crate) mod version;
