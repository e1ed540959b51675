//! The metadata of a job that `exec` and `http` pass on: one list, spelled as environment or as headers.

use relay_bridge::contract::Job;

use super::Context;

/// The prefix of a client's own headers.
const META: &str = "relay-meta-";

/// `(name, value)`, names in lower case with hyphens and without the prefix `relay-`; fields that the job lacks are
/// left out.
pub(crate) fn fields(job: &Job, context: &Context) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("job-id", job.id.to_string()),
        ("run-id", job.run_id.to_string()),
        ("generation", job.generation.to_string()),
        ("client", job.client.to_string()),
        ("queue", job.queue.to_string()),
        ("attempt", context.attempt.to_string()),
        ("max-attempts", context.max_attempts.to_string()),
        ("content-type", job.content_type.clone()),
        ("accepted-at", job.accepted_at.to_string()),
        ("expires-at", job.expires_at.to_string()),
        ("deadline", context.deadline.to_string()),
    ];
    fields.extend(job.content_encoding.clone().map(|encoding| ("content-encoding", encoding)));
    fields.extend(job.key.as_ref().map(|key| ("idempotency-key", key.to_string())));
    fields
}

/// The client's own headers, each without the prefix `relay-meta-`.
pub(crate) fn meta(job: &Job) -> impl Iterator<Item = (&str, &str)> {
    job.headers.iter().filter_map(|(name, value)| Some((name.strip_prefix(META)?, value.as_str())))
}

/// The W3C trace context headers that the job came with.
pub(crate) fn trace(job: &Job) -> impl Iterator<Item = (&'static str, &str)> {
    ["traceparent", "tracestate"].into_iter().filter_map(|name| Some((name, job.headers.get(name)?.as_str())))
}
