//! The one binary of relay and the library behind it: jobs into a private cluster and results back, over connections
//! that the client opens.
//!
//! # Layout
//!
//! - [`api`]: the contract's shapes of HTTP as types: receipts, jobs, results, problems. A client needs this and nothing of the server.
//! - [`auth`]: the identity of callers, and their rights.
//! - [`audit`]: a line for each call that changes something. [`reload`]: the files that a running process reads again.
//! - [`ingress`]: how jobs come in and results go out.
//! - [`client`]: submits jobs and fetches results over HTTP or TCP; needs nothing of the server.
//! - [`admin`]: health and metrics, on a port of their own.
//! - [`scaler`]: how many workers a queue needs, for KEDA and other autoscalers.
//! - [`kubernetes`]: whether a worker is at work, told to Kubernetes.
//! - [`telemetry`]: the counts of jobs, whichever way they come.
//! - [`app`]: opens the broker, serves what it is given, drains in order.
//! - [`broker`]: the choice of the broker, and what must be there before anything is served.
//! - [`bridge`]: work that is queued on one broker is done on another.
//! - [`config`]: the settings that may be written in `relay.toml`.
//! - [`cli`]: the commands, one file each.
//! - [`tls`]: certificates of the listeners and of clients, read again when they change.
//! - [`ranges`]: ranges of addresses.
//! - `private_file`: how a file of keys is written; `evicting`: places of connections that make room for newer ones.

#[cfg(feature = "server")]
pub mod admin;
#[cfg(any(feature = "client", feature = "server"))]
pub mod api;
#[cfg(feature = "server")]
pub mod app;
#[cfg(feature = "server")]
pub mod audit;
#[cfg(feature = "server")]
pub mod auth;
#[cfg(all(feature = "client", feature = "server"))]
pub mod bridge;
#[cfg(feature = "server")]
pub mod broker;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "cli")]
pub mod config;
#[cfg(feature = "server")]
mod evicting;
#[cfg(feature = "server")]
pub mod ingress;
#[cfg(feature = "server")]
pub mod kubernetes;
#[cfg(feature = "server")]
mod private_file;
#[cfg(feature = "server")]
pub mod ranges;
#[cfg(feature = "server")]
pub mod reload;
#[cfg(feature = "server")]
pub mod scaler;
#[cfg(feature = "server")]
pub mod telemetry;
#[cfg(feature = "server")]
pub mod tls;
