//! The command line on real NATS servers: provisioning, serving, workers, and what happens while the server is away.

mod bridge;
mod documented;
mod full;
mod lanes;
mod listen;
mod provision;
mod readiness;
mod serving;
mod sizes;
mod waits;
