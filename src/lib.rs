//! x

#[cfg(feature = "server")]
pub mod ingress;
