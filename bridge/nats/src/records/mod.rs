//! What is kept of jobs: records, results, dead letters, timers, policies, and what is held.

pub(crate) mod end_run;
pub(crate) mod find;
pub(crate) mod held;
pub(crate) mod hinting;
pub(crate) mod letters;
pub(crate) mod log;
pub(crate) mod policies;
pub(crate) mod policy_changes;
pub(crate) mod results;
pub(crate) mod timers;
