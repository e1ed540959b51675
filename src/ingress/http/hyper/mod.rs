//! Work around hyper 1: two things that relay promises and hyper does not do.
//!
//! - [`bare_answers`]: hyper answers a head that it can't read with a status and nothing else; the answer is replaced by a problem
//!   document. It can go when hyper lets a server write such answers.
//! - [`lingering`]: the rest of a refused body is read, within bounds, so that a reset does not overtake the answer (RFC 9112,
//!   section 9.6). It can go when hyper does so for HTTP/1.1.

pub(crate) mod bare_answers;
pub(crate) mod lingering;
