//! The environment of a command: the facts about its job, and nothing of the worker's own configuration.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use relay_bridge::contract::Job;

use super::Context;
use crate::handler::metadata;

/// The variables that are set for the command. It does *not* inherit those that are [private](Private).
pub(super) fn of(job: &Job, context: &Context, more: &[(OsString, OsString)]) -> Vec<(OsString, OsString)> {
    let fields = metadata::fields(job, context).into_iter().map(|(name, value)| (variable("RELAY_", name), value));
    let meta = metadata::meta(job).map(|(name, value)| (variable("RELAY_META_", name), value.to_owned()));
    let trace = metadata::trace(job).map(|(name, value)| (variable("", name), value.to_owned()));
    let of_job = fields.chain(meta).chain(trace).map(|(name, value)| (OsString::from(name), OsString::from(value)));
    // A NUL would make the whole start fail; clients choose the values.
    of_job.filter(|(_, value)| !value.as_bytes().contains(&0)).chain(more.iter().cloned()).collect()
}

/// The variables of the worker that its commands do not inherit: its own settings and credentials.
#[derive(Clone, Copy, Debug)]
pub(super) struct Private<'a> {
    /// Whether `AWS_*` are the worker's credentials.
    pub(super) uses_aws: bool,
    /// Names that commands inherit all the same; `*` in one stands for any text.
    pub(super) passed: &'a [String],
}

impl Private<'_> {
    /// All that may be a credential, for a process that needs none.
    pub(super) const ALL: Self = Self { uses_aws: true, passed: &[] };

    /// Whether a variable stays with the worker.
    fn holds(self, name: &OsStr) -> bool {
        let name = name.as_bytes();
        // The job has its own variables of this prefix.
        if name.starts_with(b"RELAY_") {
            return true;
        }
        let of_traces = name.starts_with(b"OTEL_") && name.ends_with(b"HEADERS");
        let of_aws = self.uses_aws && name.starts_with(b"AWS_");
        (of_traces || of_aws) && !self.passed.iter().any(|pattern| matches(pattern.as_bytes(), name))
    }

    /// The names of those that this process has, in their order.
    pub(super) fn names(self) -> Vec<OsString> {
        let mut names: Vec<_> = std::env::vars_os().map(|(name, _)| name).filter(|name| self.holds(name)).collect();
        names.sort();
        names
    }
}

/// Whether the pattern fits the whole name.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let mut parts = pattern.split(|byte| *byte == b'*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut parts: Vec<_> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        // The first place is as good as any later one: what is between two parts is free.
        let Some(at) = rest.windows(part.len()).position(|found| found == part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
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
    fn the_workers_own_settings_and_credentials_are_private() {
        let patterns = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let on_sqs = Private { uses_aws: true, passed: &[] };
        for (name, elsewhere, on_sqs_too) in [
            ("RELAY_KEY", true, true),
            ("OTEL_EXPORTER_OTLP_HEADERS", true, true),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", true, true),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", false, false),
            ("AWS_SECRET_ACCESS_KEY", false, true),
            ("AWS_REGION", false, true),
            ("MY_AWS_KEY", false, false),
            ("PATH", false, false),
        ] {
            assert_eq!(Private { uses_aws: false, ..on_sqs }.holds(OsStr::new(name)), elsewhere, "{name}");
            assert_eq!(on_sqs.holds(OsStr::new(name)), on_sqs_too, "{name} on SQS");
        }
        let passed = patterns(&["AWS_*", "OTEL_EXPORTER_OTLP_HEADERS", "*"]);
        for (count, name, held) in [
            (1, "AWS_REGION", false),
            (1, "OTEL_EXPORTER_OTLP_HEADERS", true),
            (2, "OTEL_EXPORTER_OTLP_HEADERS", false),
            (2, "OTEL_EXPORTER_OTLP_TRACES_HEADERS", true),
            (3, "OTEL_EXPORTER_OTLP_TRACES_HEADERS", false),
            (3, "RELAY_WORKER_KEY", true),
        ] {
            let private = Private { uses_aws: true, passed: &passed[..count] };
            assert_eq!(private.holds(OsStr::new(name)), held, "{name}, {:?}", private.passed);
        }
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, fits) in [
            ("AWS_*", "AWS_", true),
            ("AWS_*", "XAWS_A", false),
            ("*_KEY", "AWS_KEY", true),
            ("*_KEY", "AWS_KEYS", false),
            ("A*B*C", "AxBxBxC", true),
            ("A*B*C", "AxC", false),
            ("A*A", "A", false),
            ("**", "", true),
            ("A", "A", true),
            ("A", "AB", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), fits, "{pattern} {name}");
        }
    }
}
