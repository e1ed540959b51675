//! How much waits: of a queue, for people and scalers; of one client, where its `max_queued` is near.
//!
//! The index by time has all open records, of those that run too: a claim must not cost a write of the index. Small numbers
//! are looked up in the records; large ones are estimated.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;

use super::item::Item;
use super::record::Record;
use super::schema::BY_TIME;
use super::table::Query;
use super::{Sqs, names};
use crate::contract::{ClientId, JobState, QueueName, Timestamp};
use crate::error::BrokerError;
use crate::job_queue::Depth;
use crate::rules::refusal;

/// Up to so many open records are looked at one by one.
const EXACT_MAX: u64 = 1_000;
/// How old a count may be. One that is far from its limit may be older: it takes long to get there.
const AGE_MAX: Duration = Duration::from_secs(2);
const FAR_AGE_MAX: Duration = Duration::from_secs(60);
/// Counts that are remembered; beyond, all are forgotten, which costs a look each.
const COUNTS_MAX: usize = 100_000;

/// Open records of clients, as they were counted last.
#[derive(Default)]
pub(super) struct Counts {
    clients: Mutex<HashMap<(QueueName, ClientId), Counted>>,
    queues: Mutex<HashMap<QueueName, (Stand, Instant)>>,
}

/// How a queue stands: what is in it, and since when the job could be taken that waits longest, where that is known.
type Stand = (Depth, Option<Timestamp>);

#[derive(Clone, Copy)]
struct Counted {
    /// Open then, and what this process has added since.
    open: u64,
    added: u64,
    at: Instant,
}

impl Sqs {
    /// This process put one more job of the client in line.
    pub(super) fn counted(&self, queue: &QueueName, client: &ClientId) {
        let mut counts = self.0.counts.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counted) = counts.get_mut(&(queue.clone(), client.clone())) {
            counted.added += 1;
        }
    }

    /// The refusal if the client has `limit` jobs waiting.
    pub(super) async fn over_quota(
        &self,
        queue: &QueueName,
        client: &ClientId,
        limit: u64,
        operation: &'static str,
    ) -> Result<Option<BrokerError>, BrokerError> {
        if self.open_at_most(queue, client, limit).await? < limit {
            return Ok(None);
        }
        let waiting = self.waiting_of(queue, client, limit).await?;
        if waiting < limit {
            return Ok(None);
        }
        Ok(refusal::quota(operation, client, queue, waiting, limit))
    }

    /// At least as many open records as the client has, by the last count.
    async fn open_at_most(&self, queue: &QueueName, client: &ClientId, limit: u64) -> Result<u64, BrokerError> {
        let key = (queue.clone(), client.clone());
        let known = self.0.counts.clients.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if let Some(Counted { open, added, at }) = known {
            let far = open + added < limit / 2 && added < limit / 4;
            if at.elapsed() < if far { FAR_AGE_MAX } else { AGE_MAX } && open + added < limit {
                return Ok(open + added);
            }
        }
        let at = Instant::now();
        let shards = names::shards_of(client).map(|shard| names::open_shard(queue, shard));
        let counts = shards.iter().map(|shard| {
            let query = Query {
                index: Some(BY_TIME),
                partition: ("ix", shard),
                client: Some(client.as_str()),
                ..Query::default()
            };
            self.table().count(query, "enqueue")
        });
        let open = try_join_all(counts).await?.into_iter().sum();
        let mut counts = self.0.counts.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= COUNTS_MAX {
            counts.clear();
        }
        counts.insert(key, Counted { open, added: 0, at });
        Ok(open)
    }

    /// How many of the client's open jobs wait, if that is near `limit`.
    async fn waiting_of(&self, queue: &QueueName, client: &ClientId, limit: u64) -> Result<u64, BrokerError> {
        if limit > EXACT_MAX {
            let [_, hidden, _] = self.sqs_queue(queue, "enqueue").await?.counts("enqueue").await?;
            return Ok(self.open_at_most(queue, client, limit).await?.saturating_sub(hidden));
        }
        let (mut waiting, shards) = (0, names::shards_of(client));
        for shard in shards {
            // No more than can matter: who holds so many leases is not told apart from who waits.
            let records = self.open_records(queue, shard, Some(client), EXACT_MAX * 4, "enqueue").await?;
            waiting += records.iter().filter(|record| record.state() == JobState::Queued).count() as u64;
        }
        Ok(waiting)
    }

    /// Records of one shard of the index by time, as they are now: at most `most`.
    async fn open_records(
        &self,
        queue: &QueueName,
        shard: u8,
        client: Option<&ClientId>,
        most: u64,
        operation: &'static str,
    ) -> Result<Vec<Record>, BrokerError> {
        let partition = names::open_shard(queue, shard);
        let (mut keys, mut after) = (Vec::new(), None);
        loop {
            let query = Query {
                index: Some(BY_TIME),
                partition: ("ix", &partition),
                client: client.map(ClientId::as_str),
                after,
                ..Query::default()
            };
            let found = self.table().query(query, operation).await?;
            let jobs = found.items.iter().filter_map(|item| names::job_of_partition(item.get_text("pk")?));
            keys.extend(jobs.map(names::record));
            after = found.next;
            if after.is_none() || keys.len() as u64 >= most {
                break;
            }
        }
        let items = self.table().get_many(&keys, operation).await?;
        let now = self.clock().now();
        let open = |item: &Item| !item.is_past(now);
        items.into_iter().filter(open).map(Record::read).filter(|record| is_open(record.as_ref())).collect()
    }

    /// How a queue stands: by the records up to [`EXACT_MAX`] of them, else about, as SQS counts, which tells no age. `fresh`
    /// looks anew; otherwise a look of some seconds ago will do.
    pub(super) async fn stand_of(&self, queue: &QueueName, fresh: bool) -> Result<Stand, BrokerError> {
        let known = || self.0.counts.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((stand, at)) = known().get(queue).copied()
            && !fresh
            && at.elapsed() < AGE_MAX
        {
            return Ok(stand);
        }
        let stand = self.look_at_queue(queue).await?;
        let mut known = known();
        if known.len() >= COUNTS_MAX {
            known.clear();
        }
        known.insert(queue.clone(), (stand, Instant::now()));
        Ok(stand)
    }

    /// How many of the client's jobs wait in a queue.
    pub(super) async fn waiting_in(&self, client: &ClientId, queue: &QueueName) -> Result<u64, BrokerError> {
        // Counted anew: nobody asks often.
        let open = self.open_at_most(queue, client, 0).await?;
        if open == 0 { Ok(0) } else { self.waiting_of(queue, client, open).await }
    }

    async fn look_at_queue(&self, queue: &QueueName) -> Result<Stand, BrokerError> {
        const OPERATION: &str = "read depth";
        let [visible, hidden, delayed] = self.sqs_queue(queue, OPERATION).await?.counts(OPERATION).await?;
        if visible + hidden + delayed > EXACT_MAX {
            return Ok((Depth { waiting: visible, parked: delayed, leased: hidden }, None));
        }
        let shards = (0..names::SHARDS).map(|shard| self.open_records(queue, shard, None, EXACT_MAX, OPERATION));
        let now = self.clock().now();
        let (mut depth, mut oldest) = (Depth::default(), None::<Timestamp>);
        for record in try_join_all(shards).await?.into_iter().flatten() {
            match record.state() {
                JobState::Leased => depth.leased += 1,
                JobState::Queued if record.due > now => depth.parked += 1,
                JobState::Queued => {
                    depth.waiting += 1;
                    oldest = Some(oldest.map_or(record.due, |oldest| oldest.min(record.due)));
                }
                JobState::Finished(_) => {}
            }
        }
        Ok((depth, oldest))
    }
}

/// What can't be read is not counted away.
fn is_open(record: Result<&Record, &BrokerError>) -> bool {
    record.is_ok_and(|record| record.ended().is_none())
}
