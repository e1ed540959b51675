//! The NATS ingress over a real NATS server, against the real embedded store in memory. The tests do what the `nats`
//! CLI does: requests with headers, `$SRV` questions, several replies until an empty one.

mod congestion;
mod connection;
mod limits;
mod malformed;
mod permissions;
mod results;
mod service;
mod submit;
mod support;
mod unfit;
mod waiting;
