//! How jobs come in and results go out. Each protocol is a module of its own over the same broker.

pub mod http;
pub mod tcp;
