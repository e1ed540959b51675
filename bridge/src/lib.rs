//! The contract of relay (`docs/contract.md`) as values and bytes, the seams that a broker fills, and the rules that every
//! broker keeps. The brokers are crates of their own beside it: `relay-embedded`, `relay-nats`, `relay-sqs`, `relay-remote`.
//!
//! Ingress accepts a job, a broker keeps it until a worker settles it, and the result log keeps the one outcome
//! until the client has read it. This crate knows neither HTTP nor handlers.
//!
//! # Layout
//!
//! - [`contract`]: ids, jobs, results, fingerprints, cursors and their MessagePack envelope. No runtime, no broker.
//! - [`broker`]: [`Broker`](broker::Broker), a struct of the capabilities that an adapter fills.
//! - [`job_queue`]: the submitter's calls: enqueue, look up, cancel, rerun, list, erase.
//! - [`leasing`]: the worker's calls: lease, extend, report progress, dead-letter, record, settle.
//! - [`result_log`]: the reader's calls: get, wait, page through a client's results after a cursor.
//! - [`dead_letters`], [`policy`], [`provision`]: the operator's calls.
//! - [`settlement`]: the pure decision that ends a delivery.
//! - [`load`]: the work that a queue has and had, for those who scale its workers.
//! - [`newer_jobs`]: jobs that an adapter hands back because a newer relay wrote them.
//! - [`error`]: the cause of a failed call, whether it took effect, and what the caller can do.
//! - [`policy_cache`]: policies remembered for a second, for what is asked with each job.
//! - [`policy_copies`]: an adapter's copies of policies, dropped when a change is told.
//! - [`rules`]: the contract's decisions, which every adapter asks.
//! - [`backoff`]: how long to wait before a call is tried again.
//! - [`clock`]: wall and monotonic time, real or moved by a test.
//! - [`histogram`]: sizes and durations, counted without a lock.

pub mod backoff;
pub mod broker;
pub mod clock;
pub mod contract;
pub mod dead_letters;
pub mod error;
pub mod histogram;
pub mod job_queue;
pub mod leasing;
pub mod load;
pub mod newer_jobs;
pub mod policy;
pub mod policy_cache;
pub mod policy_copies;
pub mod provision;
pub mod result_log;
pub mod rules;
pub mod settlement;
pub mod support;
