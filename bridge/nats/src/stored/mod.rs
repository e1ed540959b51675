//! The layout of relay's data at the server: names, messages, streams. No I/O.

pub(crate) mod bookings;
pub(crate) mod control;
pub(crate) mod kept;
pub mod names;
pub(crate) mod receipt;
pub(crate) mod record;
pub(crate) mod result_entry;
pub(crate) mod streams;
