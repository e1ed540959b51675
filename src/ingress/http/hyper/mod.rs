//! Work around hyper 1: four things that a server of relay's promises and load needs and hyper does not do.
//!
//! - [`repoll`]: hyper's connection wakes its own task twice for each request with a body. It is polled again at once instead of
//!   going through the runtime's queue. It can go when hyper reads a body without waking itself.
//! - [`side_poll`]: a connection's guard (idle time, drain) is polled only when it was woken itself, not at each turn of the
//!   connection. It can go when hyper has timers for idle connections over HTTP/1.1 and HTTP/2.
//! - [`bare_answers`]: hyper answers a head that it can't read with a status and nothing else; the answer is replaced by a problem
//!   document. It can go when hyper lets a server write such answers.
//! - [`lingering`]: the rest of a refused body is read, within bounds, so that a reset does not overtake the answer (RFC 9112,
//!   section 9.6). It can go when hyper does so for HTTP/1.1.

pub(crate) mod bare_answers;
pub(crate) mod lingering;
pub(crate) mod repoll;
pub(crate) mod side_poll;
