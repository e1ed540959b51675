//! The forms of things in the table and in the queues, and the code that reads and writes them.

pub(crate) mod creating;
pub(crate) mod letters;
pub(crate) mod policies;
pub(crate) mod receipt;
pub(crate) mod record;
pub(crate) mod records;
pub(crate) mod schema;
pub(crate) mod wake_up;
