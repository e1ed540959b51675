//! The operators' calls: dead letters and provisioning.

pub(crate) mod dead_letters;
pub(crate) mod provision;
