//! A client's jobs, newest first. The stream is read forwards only, so windows of it are read from its end to its
//! beginning, each twice as wide as the one before.

use std::collections::HashMap;

use futures_util::StreamExt as _;
use serde::Deserialize;

use super::Nats;
use super::batch::{BATCH_MAX, Stretch};
use super::find::Found;
use super::names;
use super::record::{Record, Stored};
use crate::contract::{ClientId, JobId, JobStatus, QueueName, Timestamp};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::job_queue::{JobFilter, Listed};

const OPERATION: &str = "list";
/// The most jobs of one list.
const LIST_MAX: u32 = 1_000;
/// The most records that one call looks at.
const LOOK_MAX: usize = 4_000;
/// The width of the first window, in sequences of the stream.
const WINDOW: u64 = 512;
/// How many jobs are looked up at once.
const AT_ONCE: usize = 32;
/// How many bytes of records come in one read, about.
const BYTES_MAX: usize = 1024 * 1024;

/// What orders a list: when the record was written, then the job.
type Rank = (Timestamp, JobId);

impl Nats {
    pub(super) async fn list_jobs(&self, client: &ClientId, filter: &JobFilter) -> Result<Listed, BrokerError> {
        let queues = match &filter.queue {
            Some(queue) => vec![queue.clone()],
            None => self.queues(true).await?,
        };
        let before = match filter.after {
            None => None,
            Some(after) => match self.find(client, after).await? {
                Some(record) => Some((record.at, record.address.job)),
                None => return Ok(Listed::default()),
            },
        };
        let limit = filter.limit.clamp(1, LIST_MAX) as usize;
        let share = (LOOK_MAX / queues.len().max(1)).max(BATCH_MAX);
        let (mut records, mut cut) = (Vec::new(), None::<Rank>);
        for queue in &queues {
            let read = self.newest(queue, client, before, share.min(LOOK_MAX)).await;
            let (found, complete) = match read {
                Err(error) if error.kind() == BrokerErrorKind::NotFound => continue,
                read => read?,
            };
            // What is older than the oldest one seen of a queue that was not read to its beginning is for the next call.
            if let Some(oldest) = found.last().map(rank).filter(|_| !complete) {
                cut = Some(cut.map_or(oldest, |cut| cut.max(oldest)));
            }
            records.extend(found);
        }
        records.retain(|record| cut.is_none_or(|cut| rank(record) >= cut));
        records.sort_by_key(|record| std::cmp::Reverse(rank(record)));
        let mut listed = Listed::default();
        let (mut last, count) = (None, records.len());
        let mut statuses = futures_util::stream::iter(records)
            .map(|record| async move { (record.address.job, self.shown(record).await) })
            .buffered(AT_ONCE);
        let mut looked_at = 0;
        while let Some((job, status)) = statuses.next().await {
            looked_at += 1;
            if let Some(status) = status?.filter(|status| wanted(status, filter)) {
                listed.jobs.push(status);
            }
            last = Some(job);
            if listed.jobs.len() == limit {
                break;
            }
        }
        listed.next = last.filter(|_| looked_at < count || cut.is_some());
        Ok(listed)
    }

    /// The client's newest records in one queue, newest first, and whether there are no older ones.
    async fn newest(
        &self,
        queue: &QueueName,
        client: &ClientId,
        before: Option<Rank>,
        max: usize,
    ) -> Result<(Vec<Record>, bool), BrokerError> {
        #[derive(Deserialize)]
        struct Info {
            state: State,
        }
        #[derive(Deserialize)]
        struct State {
            first_seq: u64,
            last_seq: u64,
        }
        let stream = names::jobs_stream(queue);
        let Info { state } =
            self.api().call(format!("STREAM.INFO.{stream}"), &serde_json::json!({}), OPERATION).await?;
        // The newest record of a job counts: an older one is what a crash left.
        let mut newest: HashMap<JobId, Record> = HashMap::new();
        let (mut end, mut width) = (state.last_seq + 1, WINDOW);
        while end > state.first_seq && newest.len() < max {
            let start = end.saturating_sub(width).max(state.first_seq);
            for stored in self.window(&stream, queue, client, start, end).await? {
                let record = Record::read(stored)?;
                if before.is_none_or(|before| rank(&record) < before) {
                    let known = newest.entry(record.address.job).or_insert_with(|| record.clone());
                    if known.seq < record.seq {
                        *known = record;
                    }
                }
            }
            (end, width) = (start, width.saturating_mul(2));
        }
        let mut newest: Vec<_> = newest.into_values().collect();
        newest.sort_by_key(|record| std::cmp::Reverse(rank(record)));
        Ok((newest, end <= state.first_seq))
    }

    async fn window(
        &self,
        stream: &str,
        queue: &QueueName,
        client: &ClientId,
        start: u64,
        end: u64,
    ) -> Result<Vec<Stored>, BrokerError> {
        let (mut from, mut found) = (start, Vec::new());
        loop {
            let subject = names::client_records(queue, client);
            let stretch = Stretch { from, subject, messages: BATCH_MAX, bytes: BYTES_MAX };
            let batch = self.api().batch(stream, &stretch, OPERATION).await?;
            let last = batch.messages.last().map(|stored| stored.seq);
            found.extend(batch.messages.into_iter().filter(|stored| stored.seq < end));
            match last {
                Some(last) if !batch.is_end && last + 1 < end => from = last + 1,
                _ => return Ok(found),
            }
        }
    }

    /// What a list shows of a job; `None` if it is past its keeping, or cannot be read.
    async fn shown(&self, record: Record) -> Result<Option<JobStatus>, BrokerError> {
        let job = match record.job() {
            Ok(job) => job,
            Err(unreadable) => {
                tracing::warn!(job_id = %record.address.job, error = %unreadable, "job left out of a list");
                return Ok(None);
            }
        };
        if job.keep_until() <= self.clock().now() {
            return Ok(None);
        }
        let kept = self.kept_result(&job.client, job.id).await?;
        self.status_of(&Found { record: Some((record, job)), kept }).await
    }
}

fn rank(record: &Record) -> Rank {
    (record.at, record.address.job)
}

fn wanted(status: &JobStatus, filter: &JobFilter) -> bool {
    filter.state.is_none_or(|state| state == status.state)
}
