//! What operators do: dead letters, provisioning, permissions.

pub(crate) mod dead_letters;
pub(crate) mod provision;
