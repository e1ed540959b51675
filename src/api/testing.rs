//! A job and its result, for tests of what is told of them.

use relay_bridge::contract::result::End;
use relay_bridge::contract::{Cursor, JobResult, LogId, Submission, Timestamp};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::Finished;

/// A result of a job without a key.
pub(crate) fn result(content_type: &str, payload: Vec<u8>) -> JobResult {
    let (client, queue) = ("shop".parse().unwrap(), "orders".parse().unwrap());
    let at = Timestamp::from_millis(1_763_865_086_007);
    let job = Submission::plain(client, queue, "text/plain", "").accept(&QueuePolicy::default(), at);
    let end = End { attempt: 1, started_at: Some(at), finished_at: at };
    JobResult::succeeded(&job, end, content_type, payload.into())
}

/// The same as it stands in the log.
#[cfg(feature = "server")]
pub(crate) fn finished(content_type: &str, payload: Vec<u8>) -> Finished {
    let result = result(content_type, payload);
    let cursor = Cursor { client: result.client.clone(), log: LogId([7; 16]), sequence: 1, at: result.finished_at };
    Finished { result, cursor, erased: false }
}
