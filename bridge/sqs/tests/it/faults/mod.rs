//! SQS and DynamoDB when answers are lost, calls are refused, messages vanish and processes stand still.

mod answers;
mod batches;
mod between;
mod bounded;
mod closing;
mod cost;
mod counts;
mod endings;
mod erasure;
mod forged;
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
