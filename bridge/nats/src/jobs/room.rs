//! Finds whether there is room for one more job: in storage, and in the quota of its client's line.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::storage_limit::StorageLimit;
use crate::line::lanes::Lanes;
use crate::operate::estimate::RECORD_OVERHEAD;
use crate::stored::bookings::Booking;
use crate::stored::names::{self, Lane};
use crate::wire::api::Api;
use crate::wire::direct_get::Stretch;
use crate::wire::single_flight::SingleFlight;
use relay_bridge::contract::{ClientId, Job, QueueName};
use relay_bridge::error::BrokerError;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::rules::refusal;
use relay_bridge::support::lock;

/// How old a count of jobs that wait may be in any case while it is far below the limit, and how old at most.
const COUNT_AGE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
/// The most jobs that other processes add to a line in a second, as far as the age of a count goes: filling the room
/// that is left takes them longer than the count is used.
const OTHERS_ADD: u64 = 100_000;
/// How long a consumer may not count yet what its stream has confirmed.
const COUNT_LAG: Duration = Duration::from_millis(100);
/// The most lines whose counts are remembered.
const COUNTS_MAX: usize = 65_536;

/// The number of jobs that wait in each client's line, as far as this process knows.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Mutex<HashMap<(QueueName, ClientId), Line>>);

#[derive(Debug, Default)]
struct Line {
    counted: Option<Counted>,
    recently: RecentlyAdded,
    asking: Arc<SingleFlight>,
}

/// How many this process added to a line within [`COUNT_LAG`], and up to as long before.
#[derive(Clone, Copy, Debug, Default)]
struct RecentlyAdded {
    since: Option<Instant>,
    added: u64,
    before: u64,
}

impl RecentlyAdded {
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
    /// The server's count at that time, and the jobs that this process added since.
    waiting: u64,
    /// Jobs that this process had added just before, as far as the server seems not to have counted them.
    uncounted: u64,
}

impl Waiting {
    fn of<T>(&self, queue: &QueueName, client: &ClientId, with: impl FnOnce(&mut Line) -> T) -> T {
        let mut lines = lock(&self.0);
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
                line.recently.add(Instant::now());
            }
            below
        })
    }

    fn asking(&self, queue: &QueueName, client: &ClientId) -> Arc<SingleFlight> {
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
            let uncounted = line.recently.count(at).min(expected.saturating_sub(waiting));
            line.counted = Some(Counted { at, waiting, uncounted });
        });
    }

    /// Whether there may be as many as `limit`, together with jobs that the server did not count yet.
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
                line.recently.add(Instant::now());
                Ok(())
            }
            None => Ok(()),
        })
    }
}

/// Admits jobs for which there is room.
pub(crate) struct Room {
    pub(crate) api: Api,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) storage: Arc<StorageLimit>,
    pub(crate) counts: Waiting,
}

impl Room {
    /// The booked bytes of one more job in line, which counts from now on; or why the job is not put there.
    pub(crate) async fn room_for(
        &self,
        job: &Job,
        policy: &QueuePolicy,
        operation: &'static str,
    ) -> Result<Result<Booking, BrokerError>, BrokerError> {
        let booking = match self.storage.admit(stored_bytes(job)).await {
            Ok(booking) => booking,
            Err(full) => return Ok(Err(full)),
        };
        let (queue, client) = (&job.queue, &job.client);
        let limit = policy.client(client).max_queued;
        if self.counts.is_far_below(queue, client, limit) {
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
        let counts = &self.counts;
        // The last of them after a time without additions: then the server has counted all.
        for again in (0..=3).rev() {
            let called = Instant::now();
            let count = async {
                let waiting = self.count_waiting(queue, client, policy).await?;
                counts.note(queue, client, waiting);
                Ok(())
            };
            let known = || counts.is_newer(queue, client, called).then_some(());
            counts.asking(queue, client).run(known, count).await?;
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
            match self.lanes.lane_info(queue, client, policy).await? {
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
        let batch = self.api.batch(&names::jobs_stream(queue), &stretch, "count").await?;
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
