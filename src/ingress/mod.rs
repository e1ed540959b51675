//! How jobs come in and results go out. Each protocol is a module of its own over the same broker.
//!
//! Their common parts: `headers` (the values in a request's headers), `jobs`, `batch` and `outcome` (the requests of a
//! client), `events` (the workers' actions, for those who watch), `grants` (the calls that a caller may make),
//! [`authentications`] (how often who was let in), [`budget`] (requests and bytes in flight), [`clients`] (each client's share of them), [`front`] (the
//! way of a new connection to its protocol), [`proxy`] (the header of a balancer in front), [`rates`] (how fast each client
//! submits), `leaving` (telling peers that the process goes), `refusal`, [`refusals`] (how often which), `request_id`, `strangers` (peers without a valid key, in the log).

pub mod authentications;
mod batch;
pub mod budget;
pub mod clients;
mod events;
pub mod front;
mod grants;
mod headers;
pub mod http;
mod jobs;
mod leaving;
pub mod nats;
mod outcome;
pub mod proxy;
pub mod rates;
mod refusal;
pub mod refusals;
mod request_id;
mod strangers;
pub mod tcp;
