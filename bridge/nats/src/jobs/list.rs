//! Lists a client's jobs, newest first. The stream can be read forwards only, so spans of it are read from its end to
//! its beginning, some at once, each so wide that about one message is in it. Batches are not used: for a client with
//! many records the server would look at each of them for every batch. Payloads come with the records and are dropped
//! as soon as they are read.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use futures_util::StreamExt as _;
use serde::Deserialize;

use crate::records::find::{Found, Records};
use crate::records::results::ResultEntries;
use crate::stored::names;
use crate::stored::record::{Record, Stored, is_unreadable};
use crate::wire::api::Api;
use crate::wire::refusal::refused;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, IdempotencyKey, Job, JobId, JobStatus, QueueName, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::{JobFilter, Listed};

const OPERATION: &str = "list";
/// The most jobs of one list.
const LIST_MAX: u32 = 1_000;
/// How many records one call reads for each job that it may answer, over all queues; of each queue a few at least, and more
/// if it takes more to find the first.
const LOOK_MAX: usize = 2;
/// The least that each queue may have.
const LOOK_MIN: usize = 8;
/// How many bytes of records, and of results, one call reads, over all queues, about.
const LOOK_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How many of them each queue may have, however many queues there are.
const LOOK_BYTES_MIN: usize = 64 * 1024;
/// How many spans are read at once.
const SPANS_MAX: u64 = 16;
/// How many messages one span may have in it.
const SPAN_MAX: usize = 2;
/// How many jobs are looked up at once.
const AT_ONCE: usize = 8;
/// How many bytes of records are read at once, about.
const BYTES_MAX: usize = 1024 * 1024;

/// The order of a list: when the record was written, then the job.
type Rank = (Timestamp, JobId);

/// A job of a list, without its payload.
struct Line {
    record: Record,
    job: Job,
    /// The bytes of the payload.
    size: u64,
}

impl Line {
    fn rank(&self) -> Rank {
        (self.record.at, self.job.id)
    }
}

/// How far one queue is looked at.
struct Look {
    before: Option<Rank>,
    /// So many jobs are enough.
    jobs: usize,
    /// The most records that are read, and about how many bytes, once there is a job.
    records: usize,
    bytes: usize,
}

/// How much of a stream is read at once: so many spans of so many sequences each, next to each other.
struct Pace {
    spans: u64,
    width: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { spans: 2, width: 1 }
    }
}

/// The messages and bytes that spans brought.
#[derive(Default)]
struct Read {
    messages: usize,
    bytes: usize,
    largest: usize,
    /// Whether a span had too much in it.
    too_wide: bool,
}

impl Read {
    fn add(&mut self, bytes: usize) {
        (self.messages, self.bytes, self.largest) = (self.messages + 1, self.bytes + bytes, self.largest.max(bytes));
    }
}

impl Pace {
    /// The last spans before `end`, the last one first.
    fn spans(&self, first: u64, end: u64) -> Vec<Range<u64>> {
        let mut spans = Vec::new();
        let mut end = end;
        while end > first && (spans.len() as u64) < self.spans {
            let from = end.saturating_sub(self.width).max(first);
            spans.push(from..end);
            end = from;
        }
        spans
    }

    /// Chooses the next spans by what the last ones brought, so that about one message is in each and all have about
    /// `bytes` together.
    fn follow(&mut self, read: &Read, bytes: usize) {
        if read.too_wide {
            // As little as can be is read in vain.
            (self.spans, self.width) = (1, (self.width / 4).max(1));
            return;
        }
        if read.messages == 0 {
            // Each request has the server look from the span's start to the next message, wherever that is.
            (self.spans, self.width) = (1, self.width.saturating_mul(4));
            return;
        }
        if (read.messages as u64) < self.spans / 2 {
            self.width = self.width.saturating_mul(2);
        }
        self.spans = (self.spans * 2).min(SPANS_MAX).min((bytes / read.largest.max(1)) as u64).max(1);
    }
}

/// Lists a client's jobs.
pub(crate) struct Listing {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
    pub(crate) records: Arc<Records>,
    pub(crate) results: Arc<ResultEntries>,
}

impl Listing {
    pub(crate) async fn list_jobs(&self, client: &ClientId, filter: &JobFilter) -> Result<Listed, BrokerError> {
        let queues = match &filter.queues {
            Some(queues) => queues.clone(),
            None => self.records.queues(true).await?,
        };
        let before = match filter.after {
            None => None,
            Some(after) => match self.place_of(client, after, filter.queues.as_deref()).await? {
                // A job of a queue that is left out looks like one that is not there.
                None => return Ok(Listed::default()),
                place => place,
            },
        };
        let limit = filter.limit.clamp(1, LIST_MAX) as usize;
        let records = (LOOK_MAX * limit / queues.len().max(1)).max(LOOK_MIN);
        let look = Look {
            before,
            // A filter by state or key needs more jobs: a job's state has to be looked up, and its key is in the
            // record.
            jobs: if filter.state.is_some() || filter.key_prefix.is_some() { records } else { limit },
            records,
            bytes: (LOOK_BYTES_MAX / queues.len().max(1)).max(LOOK_BYTES_MIN),
        };
        let (mut lines, mut cut) = (Vec::<Line>::new(), None);
        for queue in &queues {
            let (found, unread) = match self.newest(queue, client, &look).await {
                Err(error) if error.kind() == BrokerErrorKind::NotFound => continue,
                read => read?,
            };
            lines.extend(found);
            lines.sort_by_key(|line| std::cmp::Reverse(line.rank()));
            // Jobs that may come after something unread are for the next call.
            cut = cut.max(unread).max(lines.get(LOOK_MAX * LIST_MAX as usize).map(|line| line.record.at));
            lines.retain(|line| cut.is_none_or(|cut| line.record.at > cut));
        }
        let mut listed = Listed { after_known: filter.after.is_some(), ..Listed::default() };
        let (mut last, count) = (None, lines.len());
        let mut statuses = futures_util::stream::iter(lines)
            .map(|line| async move {
                let begins = IdempotencyKey::begins_with(line.job.key.as_ref(), filter.key_prefix.as_deref());
                let job = line.job.id;
                (job, if begins { self.shown(line).await } else { Ok((0, None)) })
            })
            .buffered(AT_ONCE);
        let (mut looked_at, mut bytes) = (0, 0);
        while let Some((job, shown)) = statuses.next().await {
            looked_at += 1;
            let (size, status) = shown?;
            bytes += size;
            if let Some(status) = status.filter(|status| wanted(status, filter)) {
                listed.jobs.push(status);
            }
            last = Some(job);
            if listed.jobs.len() == limit || bytes >= LOOK_BYTES_MAX {
                break;
            }
        }
        listed.next = last.filter(|_| looked_at < count || cut.is_some());
        Ok(listed)
    }

    /// The place of a job in the order of lists, if it is in one of `queues`: of a job in another one nothing is read but its
    /// names and its headers.
    async fn place_of(
        &self,
        client: &ClientId,
        job: JobId,
        queues: Option<&[QueueName]>,
    ) -> Result<Option<Rank>, BrokerError> {
        let record = match queues {
            Some(queues) => self.records.find_in(queues, client, job).await?,
            None => self.records.find(client, job).await?,
        };
        if let Some(record) = record {
            return Ok(Some((record.at, record.address.job)));
        }
        // A job without a key has no record once it ended. Its result tells about when that was written.
        if let Some(queues) = queues
            && !self.results.is_of(client, job, queues).await?
        {
            return Ok(None);
        }
        let kept = self.results.kept_result(client, job).await?;
        let kept = kept.filter(|kept| queues.is_none_or(|queues| queues.contains(&kept.result.queue)));
        Ok(kept.map(|kept| (kept.result.accepted_at, job)))
    }

    /// The client's newest jobs in one queue, and the latest time at which the newest unread record can have been
    /// written: `None` if all were read.
    async fn newest(
        &self,
        queue: &QueueName,
        client: &ClientId,
        look: &Look,
    ) -> Result<(Vec<Line>, Option<Timestamp>), BrokerError> {
        #[derive(Deserialize)]
        struct Info {
            state: State,
        }
        #[derive(Deserialize)]
        struct State {
            first_seq: u64,
            last_seq: u64,
        }
        let (stream, subject) = (names::jobs_stream(queue), names::client_records(queue, client));
        let Info { state } = self.api.call(format!("STREAM.INFO.{stream}"), &serde_json::json!({}), OPERATION).await?;
        let mut end = match look.before {
            None => None,
            // Times are known to the millisecond.
            Some((at, _)) => self.first_since(&stream, &subject, at + Duration::from_millis(1)).await?,
        }
        .unwrap_or(state.last_seq + 1);
        let (mut newest, mut seen) = (Vec::<Line>::new(), HashSet::new());
        let (mut records, mut bytes, mut pace) = (0, 0, Pace::default());
        // Records of one millisecond are in another order than that of ranks.
        let mut oldest = Timestamp::MAX;
        while end > state.first_seq {
            let settled = newest.iter().filter(|line| line.record.at > oldest).count();
            if settled >= look.jobs || settled > 0 && (records >= look.records || bytes >= look.bytes) {
                return Ok((newest, Some(oldest)));
            }
            let spans = pace.spans(state.first_seq, end);
            let reads = spans.iter().map(|span| self.span(&stream, &subject, span.clone()));
            let mut read = Read::default();
            for (span, found) in spans.iter().zip(futures_util::future::try_join_all(reads).await?) {
                let Some(found) = found else {
                    read.too_wide = true;
                    break;
                };
                end = span.start;
                for stored in found.into_iter().rev() {
                    read.add(stored.payload.len());
                    oldest = oldest.min(stored.at);
                    newest.extend(self.line_of(stored, look.before, &mut seen));
                }
            }
            (records, bytes) = (records + read.messages, bytes + read.bytes);
            pace.follow(&read, BYTES_MAX.min(look.bytes));
        }
        Ok((newest, None))
    }

    /// The messages on `subject` in a span of sequences; `None` if there are more than [`SPAN_MAX`].
    async fn span(&self, stream: &str, subject: &str, span: Range<u64>) -> Result<Option<Vec<Stored>>, BrokerError> {
        let (mut found, mut from) = (Vec::new(), span.start);
        while from < span.end {
            match self.api.next(stream, from, subject, OPERATION).await? {
                Some(stored) if stored.seq < span.end => {
                    if found.len() == SPAN_MAX {
                        return Ok(None);
                    }
                    from = stored.seq + 1;
                    found.push(stored);
                }
                _ => break,
            }
        }
        Ok(Some(found))
    }

    /// The sequence of the first message on `subject` that was stored at `at` or later, as the leader has it.
    async fn first_since(&self, stream: &str, subject: &str, at: Timestamp) -> Result<Option<u64>, BrokerError> {
        #[derive(Deserialize)]
        struct Found {
            message: Message,
        }
        #[derive(Deserialize)]
        struct Message {
            seq: u64,
        }
        let body = serde_json::json!({ "start_time": at.to_string(), "next_by_subj": subject });
        match self.api.call_raw(&format!("STREAM.MSG.GET.{stream}"), &body, OPERATION).await? {
            Ok(Found { message }) => Ok(Some(message.seq)),
            Err(error) if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => Ok(None),
            Err(error) => Err(refused(&error, OPERATION)),
        }
    }

    /// The line of a list for a record; `None` if the record is past its keeping, cannot be read, belongs to another
    /// page, or is one that a crash left: of a job in `seen`, the newer record counts.
    fn line_of(&self, stored: Stored, before: Option<Rank>, seen: &mut HashSet<JobId>) -> Option<Line> {
        let (seq, subject) = (stored.seq, stored.subject.clone());
        let read = Record::read(stored).and_then(|record| record.job().map(|job| (record, job)));
        let (mut record, mut job) = read
            .inspect_err(|unreadable| tracing::warn!(%subject, seq, error = %unreadable, "left out of a list"))
            .ok()?;
        let size = job.payload.len() as u64;
        (record.envelope, job.payload) = Default::default();
        let line = Line { record, job, size };
        let is_newest = seen.insert(line.job.id);
        let is_here = before.is_none_or(|before| line.rank() < before);
        (is_newest && is_here && line.job.keep_until() > self.clock.now()).then_some(line)
    }

    /// The bytes of the job's result, and the job's status as it is now; `None` if that can't be read.
    async fn shown(&self, Line { record, job, size }: Line) -> Result<(usize, Option<JobStatus>), BrokerError> {
        let kept = match self.results.kept_result(&job.client, job.id).await {
            Err(error) if is_unreadable(&error) => {
                tracing::warn!(job_id = %job.id, %error, "left out of a list");
                return Ok((0, None));
            }
            kept => kept?,
        };
        let read = kept.as_ref().map_or(0, |kept| kept.result.payload.len());
        let status = self.records.status_of(&Found { record: Some((record, job)), kept }).await?;
        Ok((read, status.map(|status| JobStatus { size, ..status })))
    }
}

fn wanted(status: &JobStatus, filter: &JobFilter) -> bool {
    filter.state.is_none_or(|state| state == status.state)
}
