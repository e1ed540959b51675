//! The work of operators: dead letters and their redrive, provisioning, estimates.

pub(crate) mod dead_letters;
pub(crate) mod estimate;
pub(crate) mod provision;
pub(crate) mod redrive;
