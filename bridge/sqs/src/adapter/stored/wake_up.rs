//! The content of a message in SQS. A message only wakes a worker up: nothing is decided from it. A small payload comes
//! along, so that it need not be read from the table.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::adapter::stored::record::INLINE_MAX;
use relay_bridge::contract::{ClientId, Job, JobId, QueueName, RunId};

/// Payloads up to this many bytes come along: ten of them in base64 are four of the 64 KiB chunks that AWS counts as a
/// request each.
const CARRIED_MAX: usize = 16 * 1_024;

/// The body of a message, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wake {
    pub(crate) job: JobId,
    pub(crate) run: RunId,
    pub(crate) client: ClientId,
    pub(crate) queue: QueueName,
    /// The payload in base64, if it is not in the record and not too large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
}

impl Wake {
    pub(crate) fn of(job: &Job) -> Self {
        let carried = (INLINE_MAX + 1..=CARRIED_MAX).contains(&job.payload.len());
        Self {
            job: job.id,
            run: job.run_id,
            client: job.client.clone(),
            queue: job.queue.clone(),
            payload: carried.then(|| STANDARD.encode(&job.payload)),
        }
    }

    /// The payload that came along.
    pub(crate) fn payload(&self) -> Option<Bytes> {
        self.payload.as_ref().and_then(|text| STANDARD.decode(text).ok()).map(Bytes::from)
    }
}

/// The kind of a job's message that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sending {
    /// The first message of its run.
    First,
    /// A message in the place of another that is gone, or is about to go. Without an id of its own, a FIFO queue would
    /// take it for the first.
    Again,
    /// Such a message beside another that is in line, as far as is known.
    Beside,
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_bridge::contract::{Submission, Timestamp};
    use relay_bridge::policy::QueuePolicy;

    fn job(bytes: usize) -> Job {
        let (client, queue) = ("shop".parse().unwrap(), "orders".parse().unwrap());
        Submission::plain(client, queue, "text/plain", vec![7; bytes])
            .accept(&QueuePolicy::default(), Timestamp::from_millis(1))
    }

    #[test]
    fn a_payload_comes_along_unless_the_record_has_it_or_it_is_large() {
        for (bytes, comes) in [(0, false), (INLINE_MAX, false), (INLINE_MAX + 1, true), (CARRIED_MAX + 1, false)] {
            let job = job(bytes);
            let body = serde_json::to_string(&Wake::of(&job)).unwrap();
            let read: Wake = serde_json::from_str(&body).unwrap();
            assert_eq!((read.job, read.run), (job.id, job.run_id));
            assert_eq!(read.payload(), comes.then_some(job.payload), "{bytes} bytes");
        }
    }
}
