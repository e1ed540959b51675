//! AWS as relay needs it, without relay's rules: clients, queues of SQS, the table of DynamoDB.

pub(crate) mod attempts;
pub(crate) mod coalesce;
pub(crate) mod connect;
pub(crate) mod item;
pub(crate) mod queue;
pub(crate) mod table;
