//! Queues of SQS that are not relay's own: those from which clients read results, those that other accounts use, and
//! plain ones.

pub(crate) mod forwarder;
pub(crate) mod grants;
pub(crate) mod mailbox;
pub mod plain;
