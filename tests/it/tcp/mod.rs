//! The client role of the TCP protocol over real sockets, beside HTTP on the same relay.

mod follow;
mod library;
mod library_faults;
mod malformed;
mod one_port;
mod refusals;
mod sessions;
mod submit;
mod support;
