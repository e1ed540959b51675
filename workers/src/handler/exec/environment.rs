//! The environment of a command: the facts about its job, and nothing of the worker's own configuration.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use relay_bridge::contract::Job;

use super::Context;
use crate::handler::metadata;

/// The variables that are set for the command. It does *not* inherit those that are [private](is_private).
pub(super) fn of(job: &Job, context: &Context, more: &[(OsString, OsString)]) -> Vec<(OsString, OsString)> {
    let fields = metadata::fields(job, context).into_iter().map(|(name, value)| (variable("RELAY_", name), value));
    let meta = metadata::meta(job).map(|(name, value)| (variable("RELAY_META_", name), value.to_owned()));
    let trace = metadata::trace(job).map(|(name, value)| (variable("", name), value.to_owned()));
    let of_job = fields.chain(meta).chain(trace).map(|(name, value)| (OsString::from(name), OsString::from(value)));
    // A NUL would make the whole start fail; clients choose the values.
    of_job.filter(|(_, value)| !value.as_bytes().contains(&0)).chain(more.iter().cloned()).collect()
}

/// Whether a variable of the worker stays with the worker: its own settings, which may hold its key.
fn is_private(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"RELAY_")
}

/// Names each variable of this process that is private.
pub(super) fn remove_private(mut remove: impl FnMut(&OsStr)) {
    std::env::vars_os().filter(|(name, _)| is_private(name)).for_each(|(name, _)| remove(&name));
}

/// `prefix` and the name in upper case, everything but ASCII letters and digits as `_`.
fn variable(prefix: &str, name: &str) -> String {
    let upper = name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    prefix.chars().chain(upper).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_shell_variables() {
        assert_eq!(variable("RELAY_", "job-id"), "RELAY_JOB_ID");
        assert_eq!(variable("RELAY_META_", "b3.trace id=ü"), "RELAY_META_B3_TRACE_ID__");
        assert_eq!(variable("", "traceparent"), "TRACEPARENT");
    }

    #[test]
    fn the_workers_own_settings_are_private() {
        assert!(is_private(OsStr::new("RELAY_KEY")));
        assert!(!is_private(OsStr::new("PATH")));
    }
}
