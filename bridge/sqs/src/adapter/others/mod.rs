//! Queues that are not relay's: clients' own, and plain ones.

pub(crate) mod forwarder;
pub(crate) mod grants;
pub(crate) mod mailbox;
pub mod plain;
