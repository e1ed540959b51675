//! How jobs come in and results go out. Each protocol is a module of its own over the same broker.
//!
//! What they have in common: `headers` (what a request's headers say), `jobs`, `batch` and `outcome` (what a client asks for),
//! `events` (what workers do, for those who watch), `policies` (what holds for a queue, remembered for a second),
//! [`budget`] (what is in flight), [`rates`] (how fast each client submits), `refusal`, [`refusals`] (how often which).

mod batch;
pub mod budget;
mod events;
mod headers;
pub mod http;
mod jobs;
pub mod nats;
mod outcome;
mod policies;
pub mod rates;
mod refusal;
pub mod refusals;
pub mod tcp;
