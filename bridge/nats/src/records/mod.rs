//! The stored state of jobs: records, result entries, dead letters, timers, policies; and the deliveries that this
//! process holds.

pub(crate) mod changed_streams;
pub(crate) mod end_run;
pub(crate) mod find;
pub(crate) mod held;
pub(crate) mod hinting;
pub(crate) mod lately;
pub(crate) mod letter_heads;
pub(crate) mod letters;
pub(crate) mod log;
pub(crate) mod policies;
pub(crate) mod policy_changes;
pub(crate) mod results;
pub(crate) mod timers;
