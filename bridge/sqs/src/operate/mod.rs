//! What operators do: dead letters, provisioning, permissions.

pub(crate) mod dead_letters;
pub mod iam;
pub(crate) mod provision;
