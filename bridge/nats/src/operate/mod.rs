//! What operators do: dead letters, provisioning, estimates.

pub(crate) mod dead_letters;
pub(crate) mod estimate;
pub(crate) mod provision;
pub(crate) mod redrive;
