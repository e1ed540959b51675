//! The HTTP ingress over real sockets, against the real embedded store in memory.

mod batch;
mod browsers;
mod connections;
mod docs;
mod echo;
mod events;
pub(crate) mod failing;
mod identity;
mod jobs;
mod naming;
mod policy;
mod proxy;
mod refusals;
mod results;
mod submit;
pub(crate) mod support;
mod tls;
mod unfit;
