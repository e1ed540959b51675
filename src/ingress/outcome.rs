//! A finished run as every protocol gives it out: its facts as headers, its payload as it is.

use std::borrow::Cow;
use std::collections::BTreeMap;

use relay_bridge::contract::job::meta_lines;
use relay_bridge::contract::{ClientId, Cursor, IdempotencyKey, JobResult};
use relay_bridge::result_log::{Finished, Start};

use super::refusal::Refusal;
use crate::api::{Problem, Slug, fit, header};

/// The facts in the headers of a result, by name. Its key and its meta have the names under which the client submitted
/// them.
pub(super) fn facts(finished: &Finished) -> impl Iterator<Item = (Cow<'static, str>, String)> {
    let result = &finished.result;
    let facts = [
        (header::OUTCOME, result.outcome.to_string()),
        (header::ATTEMPT, result.attempt.to_string()),
        (header::RUN_ID, result.run_id.to_string()),
        (header::JOB_ID, result.job_id.to_string()),
        (header::CURSOR, finished.cursor.to_string()),
    ];
    let parent = fit::traceparent(result).map(|parent| (header::TRACEPARENT, parent.to_owned()));
    let facts = facts.into_iter().chain(parent).map(|(name, value)| (Cow::Borrowed(name), value));
    facts.chain(own(result.key.as_ref(), &result.meta))
}

/// A client's own key and meta as headers: none of what no header can carry.
pub(super) fn own<'a>(
    key: Option<&IdempotencyKey>,
    meta: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = (Cow<'static, str>, String)> + use<'a> {
    let key = key.map(|key| (Cow::Borrowed(header::IDEMPOTENCY_KEY), key.to_header()));
    key.into_iter().chain(meta_lines(meta).map(|(name, value)| (Cow::Owned(name), value.to_owned())))
}

/// The prefix that keys are to have, where `name` says it.
///
/// # Errors
/// `malformed-request` if no key begins so.
pub(super) fn key_prefix(name: &str, text: Option<&str>) -> Result<Option<String>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    let prefix = text.parse::<IdempotencyKey>().map_err(|_| {
        Refusal::malformed(format!("{name} is what no key begins with: write 1 to 255 visible ASCII characters"))
    })?;
    Ok(Some(prefix.as_str().to_owned()))
}

/// The result, if its payload is there.
///
/// # Errors
/// `result-expired` if it was erased.
pub(super) fn readable(finished: Finished) -> Result<JobResult, Refusal> {
    let Finished { result, erased, .. } = finished;
    if erased {
        let detail = "the job is finished and its result's payload is gone: outcome and times are here";
        let mut problem = Problem::new(Slug::ResultExpired, detail).with_job(result.job_id);
        problem.outcome = Some(result.outcome);
        problem.finished_at = Some(result.finished_at);
        return Err(problem.into());
    }
    Ok(result)
}

/// Where `client` wants to read on in its results; `name` is what `after` is called.
///
/// # Errors
/// `malformed-request`: another client's cursor is told apart from garbage by nothing.
pub(super) fn start(client: &ClientId, name: &str, after: Option<&str>) -> Result<Start, Refusal> {
    match after {
        None => Ok(Start::Oldest),
        Some("now") => Ok(Start::Now),
        Some(text) => {
            let cursor = text.parse::<Cursor>().ok().filter(|cursor| cursor.client == *client);
            cursor.map(Start::After).ok_or_else(|| {
                Refusal::malformed(format!(
                    "{name} is not a cursor of this client's results: pass `next` or Relay-Cursor unchanged, `now`, or \
                     leave it out"
                ))
            })
        }
    }
}
