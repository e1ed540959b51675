//! SQS and DynamoDB when answers are lost, calls are refused, messages vanish and processes stand still.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod answers;
mod batches;
mod between;
mod bounded;
mod closing;
mod cost;
mod endings;
mod erasure;
mod forward;
mod letters;
mod lists;
mod messages;
mod plain;
mod readers;
mod replies;
mod slots;
mod support;
mod sweeping;
mod taking;
