//! Submitting: one conditional write makes the record and its place in line. A key that is known is answered from its
//! record, before any quota refuses it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Nats;
use crate::operate::estimate::RECORD_OVERHEAD;
use crate::records::find::{Found, status_of_new};
use crate::stored::bookings::Booking;
use crate::stored::names::{self, Address, Lane};
use crate::stored::record::Draft;
use crate::wire::api::Written;
use crate::wire::direct_get::Stretch;
use crate::wire::single_flight::Alone;
use relay_bridge::contract::{ClientId, Job, JobStatus, QueueName, RunId};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Enqueued;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::rules::refusal;

const OPERATION: &str = "enqueue";
/// How often a condition that fails because others write is tried again.
const TRIES: usize = 8;
/// How old a count of what waits may be in any case while it is far below the limit, and how old at most.
const COUNT_AGE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
/// The most jobs that other processes add to a line in a second, as far as the age of a count goes: what is left for them
/// takes them longer than the count is used.
const OTHERS_ADD: u64 = 100_000;
/// How long a consumer may not count yet what its stream has confirmed.
const COUNT_LAG: Duration = Duration::from_millis(100);
/// The most lines whose counts are remembered.
const COUNTS_MAX: usize = 65_536;

/// How much waits in each client's line, as far as this process knows.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Mutex<HashMap<(QueueName, ClientId), Line>>);

#[derive(Debug, Default)]
struct Line {
    counted: Option<Counted>,
    lately: Lately,
    asking: Arc<Alone>,
}

/// How many this process added to a line within [`COUNT_LAG`], and up to as long before.
#[derive(Clone, Copy, Debug, Default)]
struct Lately {
    since: Option<Instant>,
    added: u64,
    before: u64,
}

impl Lately {
    fn count(&mut self, now: Instant) -> u64 {
        let passed = self.since.map_or(Duration::MAX, |since| now - since);
        if passed >= COUNT_LAG {
            let before = if passed < 2 * COUNT_LAG { self.added } else { 0 };
            *self = Self { since: Some(now), added: 0, before };
        }
        self.added + self.before
    }

    fn add(&mut self, now: Instant) {
        self.count(now);
        self.added += 1;
    }
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    at: Instant,
    /// What the server said then, and what this process added since.
    waiting: u64,
    /// What this process had added just before, as far as the server seems not to have counted it.
    uncounted: u64,
}

impl Waiting {
    fn of<T>(&self, queue: &QueueName, client: &ClientId, with: impl FnOnce(&mut Line) -> T) -> T {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= COUNTS_MAX {
            lines.clear();
        }
        with(lines.entry((queue.clone(), client.clone())).or_default())
    }

    /// Whether one more is surely below `limit`, without asking the server; counts it if so.
    fn is_far_below(&self, queue: &QueueName, client: &ClientId, limit: u64) -> bool {
        self.of(queue, client, |line| {
            let Some(counted) = &mut line.counted else { return false };
            let below = counted.waiting < limit / 10 * 9 && counted.at.elapsed() < good_for(limit - counted.waiting);
            if below {
                counted.waiting += 1;
                line.lately.add(Instant::now());
            }
            below
        })
    }

    fn asking(&self, queue: &QueueName, client: &ClientId) -> Arc<Alone> {
        self.of(queue, client, |line| line.asking.clone())
    }

    /// Whether the server has answered since `called`.
    fn is_newer(&self, queue: &QueueName, client: &ClientId, called: Instant) -> bool {
        self.of(queue, client, |line| line.counted.is_some_and(|counted| counted.at >= called))
    }

    fn note(&self, queue: &QueueName, client: &ClientId, waiting: u64) {
        self.of(queue, client, |line| {
            let at = Instant::now();
            let expected = line.counted.map_or(0, |counted| counted.waiting + counted.uncounted);
            let uncounted = line.lately.count(at).min(expected.saturating_sub(waiting));
            line.counted = Some(Counted { at, waiting, uncounted });
        });
    }

    /// Whether there may be as many as `limit` with what the server did not count yet.
    fn is_unsure(&self, queue: &QueueName, client: &ClientId, limit: u64) -> bool {
        self.of(queue, client, |line| {
            line.counted.is_some_and(|counted| {
                counted.waiting < limit && counted.waiting.saturating_add(counted.uncounted) >= limit
            })
        })
    }

    /// Counts one more if it is below `limit`, else says how many there are.
    fn add(&self, queue: &QueueName, client: &ClientId, limit: u64) -> Result<(), u64> {
        self.of(queue, client, |line| match &mut line.counted {
            Some(counted) if counted.waiting >= limit => Err(counted.waiting),
            Some(counted) => {
                counted.waiting += 1;
                line.lately.add(Instant::now());
                Ok(())
            }
            None => Ok(()),
        })
    }
}

impl Nats {
    pub(crate) async fn accept(&self, mut job: Job) -> Result<Enqueued, BrokerError> {
        let (actual, limit) = (job.payload.len() as u64, self.payload_max());
        if actual > limit {
            return Err(refusal::too_large(OPERATION, actual, limit));
        }
        self.hear_of_policies();
        let policy = self.policies().require(&job.queue, OPERATION).await?;
        let address = Address::new(&job.queue, &job.client, job.id);
        let mut booking = match self.taken(&job, &policy).await? {
            Ok(booking) => booking,
            Err(refused) => {
                return Box::pin(self.known(&address))
                    .await?
                    .map_or(Err(refused), |status| Ok(Enqueued::Known(status)));
            }
        };
        let line = self.lane_for(&job.queue, &job.client, &policy).await?.place();
        self.note_deadline(&job, Some(policy.job_ttl)).await?;
        let mut old = None;
        for _ in 0..TRIES {
            let draft = match &old {
                None => Draft::new(&job, self.wire()),
                Some(old) => Draft::instead_of(old, &job, self.wire()),
            };
            let now = self.clock().now();
            let due = job.due(now);
            let message = if due > now {
                let keep = self.keep_on_timer(due, Some(&job));
                draft.on_timer(due, keep, line)
            } else {
                draft.to(line)
            };
            if let Written::At(_) = self.api().publish_booked(message, &mut booking, OPERATION).await? {
                let next_attempt_at = Some(due).filter(|due| *due > now);
                return Ok(Enqueued::Created(JobStatus { next_attempt_at, ..status_of_new(&job) }));
            }
            let Some(record) = self.record_at(&address, OPERATION).await? else {
                old = None;
                continue;
            };
            let found = record.job()?;
            let now = self.clock().now();
            if found.keep_until() > now {
                let found = Found { kept: None, record: Some((record, found)) };
                return Box::pin(self.status_known(found)).await.map(Enqueued::Known);
            }
            // Past its keeping it counts as absent: the key starts anew, in a greater run.
            if job.run_id <= found.run_id {
                job.run_id = RunId::mint(now, Some(found.run_id));
            }
            old = Some(record);
        }
        Err(refusal::contended(OPERATION, job.id))
    }

    /// The job, if it is known.
    async fn known(&self, address: &Address) -> Result<Option<JobStatus>, BrokerError> {
        let Some(record) = self.record_at(address, OPERATION).await? else { return Ok(None) };
        let job = record.job()?;
        if job.keep_until() <= self.clock().now() {
            return Ok(None);
        }
        self.status_known(Found { kept: None, record: Some((record, job)) }).await.map(Some)
    }

    async fn status_known(&self, mut found: Found) -> Result<JobStatus, BrokerError> {
        if let Some((record, job)) = &found.record {
            found.kept = self.kept_result(&record.address.client, job.id).await?;
        }
        let gone = || BrokerError::new(BrokerErrorKind::Ambiguous, OPERATION, "the job went away meanwhile: try again");
        self.status_of(&found).await?.ok_or_else(gone)
    }

    /// The bytes of a job that is not known yet, or why it is not taken.
    async fn taken(&self, job: &Job, policy: &QueuePolicy) -> Result<Result<Booking, BrokerError>, BrokerError> {
        let actual = job.payload.len() as u64;
        if actual > policy.payload_max {
            return Ok(Err(refusal::too_large(OPERATION, actual, policy.payload_max)));
        }
        self.room_for(job, policy, OPERATION).await
    }

    /// The bytes of one more job in line, which counts from now on; or why it is not put there.
    pub(crate) async fn room_for(
        &self,
        job: &Job,
        policy: &QueuePolicy,
        operation: &'static str,
    ) -> Result<Result<Booking, BrokerError>, BrokerError> {
        let booking = match self.admit(stored_bytes(job)).await {
            Ok(booking) => booking,
            Err(full) => return Ok(Err(full)),
        };
        let (queue, client) = (&job.queue, &job.client);
        let limit = policy.client(client).max_queued;
        if self.0.line.waiting.is_far_below(queue, client, limit) {
            return Ok(Ok(booking));
        }
        let added = Box::pin(self.count_and_add(queue, client, policy, limit)).await?;
        let refused = added.err().and_then(|waiting| refusal::quota(operation, client, queue, waiting, limit));
        Ok(refused.map_or(Ok(booking), Err))
    }

    /// Counts the line, and the job if it is below `limit`; else how many there are.
    async fn count_and_add(
        &self,
        queue: &QueueName,
        client: &ClientId,
        policy: &QueuePolicy,
        limit: u64,
    ) -> Result<Result<(), u64>, BrokerError> {
        let counts = &self.0.line.waiting;
        // The last of them after a time without additions: then the server has counted all.
        for again in (0..=3).rev() {
            let called = Instant::now();
            let count = async {
                let waiting = self.count_waiting(queue, client, policy).await?;
                counts.note(queue, client, waiting);
                Ok(())
            };
            let known = || counts.is_newer(queue, client, called).then_some(());
            counts.asking(queue, client).ask(known, count).await?;
            if again == 0 || !counts.is_unsure(queue, client, limit) {
                break;
            }
            sleep(COUNT_LAG).await;
        }
        Ok(counts.add(queue, client, limit))
    }

    /// The client's jobs on timers, and in the lane that takes its next one: never delivered yet.
    pub(crate) async fn count_waiting(
        &self,
        queue: &QueueName,
        client: &ClientId,
        policy: &QueuePolicy,
    ) -> Result<u64, BrokerError> {
        let in_lane = async {
            match self.lane_info(queue, client, policy).await? {
                None => Ok(0),
                Some((Lane::Own(_), info)) => Ok(info.num_pending),
                // The consumer counts all of them.
                Some((lane, info)) => {
                    let subject = lane.place().of_client(queue, client);
                    self.count(queue, subject, info.delivered.stream_seq + 1).await
                }
            }
        };
        let timers = self.count(queue, names::client_timers(queue, client), 1);
        let (in_lane, timers) = tokio::try_join!(in_lane, timers)?;
        Ok(in_lane + timers)
    }

    /// How many messages there are from sequence `from` on, on a subject with wildcards in the queue's stream. Costs the
    /// first one's bytes.
    pub(crate) async fn count(&self, queue: &QueueName, subject: String, from: u64) -> Result<u64, BrokerError> {
        let stretch = Stretch { from, subject, messages: 1, bytes: 1 };
        let batch = self.api().batch(&names::jobs_stream(queue), &stretch, "count").await?;
        Ok(batch.messages.len() as u64 + batch.left)
    }
}

/// How long a count is used that leaves room for so many more.
fn good_for(left: u64) -> Duration {
    let [least, most] = COUNT_AGE;
    Duration::from_millis(left.saturating_mul(1_000) / OTHERS_ADD).clamp(least, most)
}

/// The bytes that a job takes in its queue's stream, about.
fn stored_bytes(job: &Job) -> u64 {
    let headers = job.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    (job.payload.len() + headers + job.content_type.len()) as u64 + RECORD_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_used_for_as_long_as_others_could_not_fill_the_line() {
        assert_eq!([0, 10_000, 200_000, 1_000_000, u64::MAX].map(|left| good_for(left).as_secs()), [1, 1, 2, 10, 10]);
    }
}
