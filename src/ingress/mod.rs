//! The doors of relay: each protocol that clients and workers speak has a folder of its own.

pub mod tcp;
