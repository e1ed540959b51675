//! A finished run as every protocol gives it out: its facts as headers, its payload as it is.

use relay_bridge::contract::{ClientId, Cursor, JobResult};
use relay_bridge::result_log::{Finished, Start};

use super::refusal::Refusal;
use crate::api::{Problem, Slug, fit, header};

/// What the headers of a result say, by name.
pub(super) fn facts(finished: &Finished) -> impl Iterator<Item = (&'static str, String)> + use<> {
    let result = &finished.result;
    let facts = [
        (header::OUTCOME, result.outcome.to_string()),
        (header::ATTEMPT, result.attempt.to_string()),
        (header::RUN_ID, result.run_id.to_string()),
        (header::JOB_ID, result.job_id.to_string()),
        (header::CURSOR, finished.cursor.to_string()),
    ];
    let parent = fit::traceparent(result).map(|parent| (header::TRACEPARENT, parent.to_owned()));
    facts.into_iter().chain(parent)
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
