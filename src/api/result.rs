//! Results as list entries. A single result is not wrapped: its body is the handler's output, its headers the rest.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use relay_bridge::contract::{Failure, IdempotencyKey, JobId, Outcome, QueueName, RunId, Timestamp};
use relay_bridge::result_log::{Finished, Reset};
use serde::{Deserialize, Serialize};

#[cfg(feature = "server")]
use super::schema;
use super::{Links, fit};

/// The largest payload that an entry holds itself, in bytes; a larger one is linked.
pub const INLINE_BYTES_MAX: usize = 16 * 1024;

/// One result among a client's results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct ResultView {
    /// The job.
    #[cfg_attr(feature = "server", schema(value_type = schema::JobId))]
    pub job_id: JobId,
    /// The run that ended; deduplicate on it.
    #[cfg_attr(feature = "server", schema(value_type = schema::RunId))]
    pub run_id: RunId,
    /// The run's number, from 1.
    pub generation: u32,
    /// Where the job was.
    #[cfg_attr(feature = "server", schema(value_type = schema::QueueName))]
    pub queue: QueueName,
    /// The job's idempotency key; `null` if the client gave none.
    #[serde(default)]
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Key>))]
    pub key: Option<IdempotencyKey>,
    /// The job's `Relay-Meta-*` headers, without the prefix, in lower case; none once it is erased.
    #[serde(default)]
    pub meta: BTreeMap<String, String>,
    /// How it ended.
    #[cfg_attr(feature = "server", schema(value_type = schema::Outcome))]
    pub outcome: Outcome,
    /// The attempt that ended it; 0 if no handler ever started.
    pub attempt: u32,
    /// The payload's content type.
    pub content_type: String,
    /// The payload's size in bytes; 0 if it was erased.
    pub size: u64,
    /// When relay accepted the job.
    #[cfg_attr(feature = "server", schema(value_type = schema::Time))]
    pub accepted_at: Timestamp,
    /// When the attempt that ended it started.
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Time>))]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[cfg_attr(feature = "server", schema(value_type = schema::Time))]
    pub finished_at: Timestamp,
    /// Why it did not succeed; `null` exactly if it did.
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Failure>))]
    pub failure: Option<Failure>,
    /// The payload in base64 (RFC 4648, padded), up to [`INLINE_BYTES_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
    /// Where a larger payload is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Where it is in the client's results: read on from here.
    pub cursor: String,
}

impl ResultView {
    /// The entry of a finished run. Without `payload_base64` and `link` the payload was erased.
    #[must_use]
    pub fn new(finished: &Finished) -> Self {
        Self::with_payload(finished, finished.result.payload.len() <= INLINE_BYTES_MAX)
    }

    /// The same, as text for a queue of SQS: with a payload of any size if the whole is at most `limit` bytes, else with its
    /// link.
    #[cfg(feature = "server")]
    pub(crate) fn message(finished: &Finished, limit: usize) -> String {
        let text = |with_payload| {
            let text = serde_json::to_string(&Self::with_payload(finished, with_payload)).unwrap_or_default();
            // The only characters of JSON that SQS takes for none.
            text.replace('\u{fffe}', "\\ufffe").replace('\u{ffff}', "\\uffff")
        };
        let with_payload = finished.result.payload.len() <= limit;
        let whole = text(with_payload);
        if with_payload && whole.len() > limit { text(false) } else { whole }
    }

    fn with_payload(finished: &Finished, with_payload: bool) -> Self {
        let result = &finished.result;
        let inline = !finished.erased && with_payload;
        let linked = !finished.erased && !inline;
        Self {
            job_id: result.job_id,
            run_id: result.run_id,
            generation: result.generation,
            queue: result.queue.clone(),
            key: result.key.clone(),
            meta: fit::meta(result),
            outcome: result.outcome,
            attempt: result.attempt,
            content_type: fit::content_type(result).to_owned(),
            size: result.payload.len() as u64,
            accepted_at: result.accepted_at,
            started_at: result.started_at,
            finished_at: result.finished_at,
            failure: fit::failure(result),
            payload_base64: inline.then(|| STANDARD.encode(&result.payload)),
            link: linked.then(|| Links::of(result.job_id).result),
            cursor: finished.cursor.to_string(),
        }
    }
}

/// A page of the caller's results, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct ResultsPage {
    /// Set if the cursor could not be continued and reading restarted at the oldest result that is kept.
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Reset>))]
    pub reset: Option<Reset>,
    /// The results.
    pub entries: Vec<ResultView>,
    /// Pass it as `after` to read on; also set if there are no entries.
    pub next: String,
}

#[cfg(test)]
#[cfg(feature = "server")]
mod tests {
    use super::*;
    use crate::api::testing::finished;

    #[test]
    fn a_message_has_the_payload_where_it_fits_and_else_a_link() {
        for (bytes, limit, fits) in
            [(0, 2_000, true), (1_000, 2_000, true), (1_400, 2_000, false), (9_000, 2_000, false)]
        {
            let text = ResultView::message(&finished("text/plain", vec![7; bytes]), limit);
            assert!(text.len() <= limit, "{} bytes", text.len());
            let view: ResultView = serde_json::from_str(&text).unwrap();
            assert_eq!((view.payload_base64.is_some(), view.link.is_none()), (fits, fits), "{bytes} bytes");
            assert_eq!(view.size, bytes as u64);
        }
    }

    #[test]
    fn a_message_has_no_character_that_sqs_refuses() {
        let failure = Failure::new("no", "a\u{fffe}\u{ffff}\u{1}");
        let mut finished = finished("text/plain", Vec::new());
        (finished.result.outcome, finished.result.failure) = (Outcome::Failed, Some(failure.clone()));
        let text = ResultView::message(&finished, 10_000);
        assert!(!text.contains(['\u{fffe}', '\u{ffff}', '\u{1}']), "{text}");
        assert_eq!(serde_json::from_str::<ResultView>(&text).unwrap().failure, Some(failure));
    }
}
