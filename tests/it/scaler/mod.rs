//! The scaler over a real socket: KEDA's calls, and what it is told of a queue's work.

mod bad_input;
mod keda;
mod nats;
mod process;
mod protocol;
mod support;
mod tls;
