//! Result entries of the log: one is written once per run under a condition, read at the leaders, and erased.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::log::LogReader;
use crate::stored::names::{self, RESULTS_STREAM};
use crate::stored::record::Stored;
use crate::stored::result_entry::{self, Entry};
use crate::wire::api::{Api, Written};
use crate::wire::stream_calls;
use relay_bridge::clock::Clock;
use relay_bridge::contract::envelope::WireVersion;
use relay_bridge::contract::{ClientId, JobId, JobResult, Outcome, QueueName, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::result_log::Finished;
use relay_bridge::rules;
use relay_bridge::rules::refusal::contended;

/// How often a condition that fails because others write is tried again.
const TRIES: usize = 8;
const READ: &str = "read result";

/// Reads and writes result entries.
pub(crate) struct ResultEntries {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
    pub(crate) wire: WireVersion,
    pub(crate) log: Arc<LogReader>,
}

impl ResultEntries {
    /// Writes a result if the last one of its job has sequence `expected` (0: there is none).
    pub(crate) async fn write_result(
        &self,
        result: &JobResult,
        due_at: Timestamp,
        expected: u64,
        operation: &'static str,
    ) -> Result<Written, BrokerError> {
        let now = self.clock.now();
        let keep_until = rules::record::keep_until(result, due_at, now);
        self.api.publish(result_entry::record(result, keep_until, now, self.wire, expected), operation).await
    }

    /// The job's result that is kept, of any run, as the leader has it. An entry that nobody can read counts as none.
    pub(crate) async fn kept_result(&self, client: &ClientId, job: JobId) -> Result<Option<Finished>, BrokerError> {
        let found = self.last_result(client, job).await?.and_then(|last| last.entry);
        match found.filter(|entry| !entry.is_past_keeping(self.clock.now())) {
            Some(entry) => Ok(Some(entry.finished(self.log.id().await?))),
            None => Ok(None),
        }
    }

    /// Whether the job has a result, and it is of one of `queues`. Its subject has its owner and not its queue: its headers
    /// are read for that, and its payload only where they can't be had.
    pub(crate) async fn is_of(&self, client: &ClientId, job: JobId, queues: &[QueueName]) -> Result<bool, BrokerError> {
        // At the leader: who has no result is told so, also where a replica lags.
        let filter = names::result_anywhere(client, job);
        let (subjects, _) = stream_calls::subjects(&self.api, RESULTS_STREAM, &filter, 0, READ).await?;
        if subjects.is_empty() {
            return Ok(false);
        }
        let headers = self.api.headers(RESULTS_STREAM, &subjects, READ).await.unwrap_or_else(|error| {
            tracing::debug!(job_id = %job, %error, "the headers of a result can't be read: it is read whole");
            HashMap::new()
        });
        if headers.is_empty() {
            let kept = self.kept_result(client, job).await?;
            return Ok(kept.is_some_and(|kept| queues.contains(&kept.result.queue)));
        }
        let now = self.clock.now();
        // A job has one queue for ever: of a result and the entry that stays when it is erased, either one tells.
        for (subject, headers) in headers {
            let head = Stored { subject, seq: 0, headers, payload: Bytes::new(), at: Timestamp::EPOCH };
            let kept = readable(head)?.filter(|entry| !entry.is_past_keeping(now));
            if kept.is_some_and(|kept| queues.contains(&kept.result.queue)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The sequence of the last message about the job's result (0: there is none), and the result in it that counts: one that
    /// is kept still, and of the job's queue.
    pub(crate) async fn standing_result(
        &self,
        client: &ClientId,
        queue: &QueueName,
        job: JobId,
    ) -> Result<(u64, Option<Entry>), BrokerError> {
        let Some(Last { seq, entry }) = self.last_result(client, job).await? else { return Ok((0, None)) };
        let now = self.clock.now();
        Ok((seq, entry.filter(|entry| entry.result.queue == *queue && !entry.is_past_keeping(now))))
    }

    /// The last message about the job's result.
    ///
    /// # Errors
    /// `NewerVersion`: a newer relay wrote it.
    async fn last_result(&self, client: &ClientId, job: JobId) -> Result<Option<Last>, BrokerError> {
        let subject = names::result_anywhere(client, job);
        let found = self.api.last_if_any(RESULTS_STREAM, subject, READ).await?;
        found.map(Last::read).transpose()
    }

    /// Removes the payload of the job's result for good; its outcome and its place stay. Idempotent. `None` if the job has
    /// no result.
    ///
    /// An entry that can't be read is deleted. Otherwise the part that stays is written first, then the result is
    /// deleted: a crash between the two leaves the call unanswered and the result as it was, to be erased again.
    pub(crate) async fn erase_result(&self, client: &ClientId, job: JobId) -> Result<Option<Outcome>, BrokerError> {
        const OPERATION: &str = "erase";
        for _ in 0..TRIES {
            let Some(last) = self.last_result(client, job).await? else { return Ok(None) };
            let Some(entry) = last.entry else {
                // It is to be gone, whatever it says.
                self.api.overwrite(RESULTS_STREAM, last.seq, OPERATION).await?;
                continue;
            };
            let (outcome, run) = (entry.result.outcome, entry.result.run_id);
            if !entry.erased {
                let stub = entry.erase(self.wire, self.clock.now());
                if let Written::Conflict(_) = self.api.publish(stub, OPERATION).await? {
                    continue;
                }
            }
            let subject = names::result(client, job);
            let Some(left) = self.api.last_at_leader(RESULTS_STREAM, subject, OPERATION).await? else {
                return Ok(Some(outcome));
            };
            let seq = left.seq;
            if readable(left)?.is_some_and(|left| left.result.run_id > run) {
                return Ok(Some(outcome));
            }
            // The loop looks again to see that it is gone: the server gives one error for a message that was gone and
            // for one that it could not delete.
            self.api.overwrite(RESULTS_STREAM, seq, OPERATION).await?;
        }
        Err(contended(OPERATION, job))
    }
}

/// The last message about a job's result.
struct Last {
    seq: u64,
    /// The message as an entry; `None` if nobody can read it.
    entry: Option<Entry>,
}

impl Last {
    fn read(found: Stored) -> Result<Self, BrokerError> {
        let seq = found.seq;
        Ok(Self { seq, entry: readable(found)? })
    }
}

/// The result entry in a message; `None` if it is none. A program that may write there may write anything: that is
/// logged, and ends no reading.
fn readable(stored: Stored) -> Result<Option<Entry>, BrokerError> {
    match Entry::read(stored) {
        Err(error) if error.kind() == BrokerErrorKind::Corrupt => {
            tracing::error!(%error, "a result can't be read: it counts as absent");
            Ok(None)
        }
        read => read.map(Some),
    }
}
