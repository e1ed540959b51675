//! `max_queued`, the bound on how many of a client's jobs wait in a queue. For a bound up to [`COUNTED_MAX`], an item
//! of the table counts the client's waiting jobs: one conditional update takes a place in line, and another gives it
//! back, so that processes together never let one job too many in. Other clients pay nothing for it. A larger bound is
//! compared with the number of open records, which is counted by the index now and then.
//!
//! The count is not written in one transaction with the records, which would cost three times as much: if a process
//! dies in between, the count is off by one. A count that was not written for long is made anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::ReturnValue;
use futures_util::future::try_join_all;

use crate::adapter::aws::item::{Item, expires};
use crate::adapter::aws::queue::SqsQueues;
use crate::adapter::aws::table::{Query, Table, Written};
use crate::adapter::jobs::count::Counting;
use crate::adapter::stored::policies::Policies;
use crate::adapter::stored::schema::BY_TIME;
use crate::names;
use crate::settings::Settings;
use relay_bridge::contract::{ClientId, JobState, QueueName, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::rules::refusal;
use relay_bridge::support::lock;

/// The largest bound that is counted. Of a larger one, the jobs that run are a small part.
const COUNTED_MAX: u64 = 50_000;
/// How long a count is not written before it is made anew: `FULL_FOR` for each thousand of its bound if the count is
/// full, else `STALE_AFTER`. Both are longer than any call takes, so that every job that was counted is in line.
const FULL_FOR: Duration = Duration::from_secs(60);
const STALE_AFTER: Duration = Duration::from_secs(3_600);
/// How long a count is kept after it was last written, so that nothing is left of a client that is gone.
const KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 3_600);
/// How often a place is asked for while other processes make the count anew.
const TRIES: u32 = 5;
/// The part of a larger bound by which other processes together may be wrong: a fiftieth is promised.
const PARTS: u64 = 50;
/// How many jobs of one client all other processes together are assumed to add in a second.
const RATE: u64 = 1_000;
/// The most counts that are remembered. Beyond it all are forgotten, and each costs a look again.
const COUNTS_MAX: usize = 100_000;
/// The most entries of one shard that are counted for a caller that only wants to know their number: of up to 150 bytes
/// each, so that two such reads are a unit.
const FEW: i32 = 50;

/// Open records of clients with large bounds, as they were counted last.
#[derive(Default)]
pub(crate) struct Counts(Mutex<HashMap<(QueueName, ClientId), Counted>>);

#[derive(Clone, Copy, Debug)]
struct Counted {
    /// The records that were open then, and the jobs that this process has added since.
    open: u64,
    added: u64,
    at: Instant,
}

impl Counted {
    /// For how long the count is good enough beside `limit`: other processes may be adding as many jobs as this one, or
    /// as many as [`RATE`] lets them.
    fn good_for(&self, limit: u64) -> Duration {
        let sum = self.open.saturating_add(self.added);
        let filled_in = |most: u64| Duration::from_secs((limit.saturating_sub(sum) / RATE).min(most));
        if sum < limit / 4 && self.added < limit / 8 {
            return filled_in(600);
        }
        if sum < limit - limit / 10 && self.added < limit / 20 {
            return filled_in(60);
        }
        match self.added < limit / (PARTS * 4) {
            // A count of many costs more: 18 units for a thousand.
            true => Duration::from_secs((sum / 20_000).clamp(2, 60)),
            false => Duration::ZERO,
        }
    }
}

/// Places in clients' lines.
pub(crate) struct Places {
    pub(crate) counts: Counts,
    pub(crate) policies: Arc<Policies>,
    pub(crate) queues: Arc<SqsQueues>,
    pub(crate) settings: Settings,
    pub(crate) table: Table,
    pub(crate) counting: Arc<Counting>,
}

impl Places {
    /// Takes a place in line for one more job of the client; returns the refusal if `limit` of its jobs wait already.
    pub(crate) async fn take_place(
        &self,
        queue: &QueueName,
        client: &ClientId,
        limit: u64,
        operation: &'static str,
    ) -> Result<Option<BrokerError>, BrokerError> {
        if limit > COUNTED_MAX {
            return self.over_large_bound(queue, client, limit, operation).await;
        }
        let (key, by) = (names::queued(queue, client), token());
        let full_for = FULL_FOR * u32::try_from(limit / 1_000).unwrap_or(u32::MAX).max(1);
        for _ in 0..TRIES {
            let now = self.settings.clock.now();
            let before = |age: Duration| now - age;
            let values =
                written(now, &by).number(":one", 1).number(":limit", limit).time(":stale", before(STALE_AFTER));
            let change = format!("SET #waiting = #waiting + :one, {WRITTEN}");
            let condition = "#waiting < :limit AND #at > :stale AND #by <> :by";
            let told = ReturnValue::None;
            let found = match self.table.update_telling(told, &key, &change, condition, values, operation).await? {
                Written::Done(_) => return Ok(None),
                Written::Refused(found) => found,
            };
            if let Some(item) = &found {
                if item.get_text("by") == Some(&by) {
                    // The SDK repeated a write whose answer was lost, and found its own write.
                    return Ok(None);
                }
                let (waiting, at) = (item.need_number::<u64>("waiting")?, item.need_time("at")?);
                if at > before(STALE_AFTER) && waiting >= limit && at > before(full_for) {
                    return Ok(refusal::quota(operation, client, queue, waiting, limit));
                }
            }
            self.count_anew(queue, client, limit, found, operation).await?;
        }
        let kind = BrokerErrorKind::Overloaded { retry_after: Duration::from_secs(1) };
        Err(BrokerError::new(kind, operation, "the waiting jobs of the client are being counted"))
    }

    /// Counts the jobs of the client that wait by their records and writes the number, unless another process changed
    /// the item `found` meanwhile.
    async fn count_anew(
        &self,
        queue: &QueueName,
        client: &ClientId,
        limit: u64,
        found: Option<Item>,
        operation: &'static str,
    ) -> Result<(), BrokerError> {
        let waiting = self.count_waiting(queue, client, limit, operation).await?;
        let values = written(self.settings.clock.now(), &token()).number(":waiting", waiting);
        let change = format!("SET #waiting = :waiting, {WRITTEN}");
        let (condition, values) = match found {
            None => ("attribute_not_exists(#pk)", values),
            Some(item) => {
                let (by, at) = (item.need_text("by")?.to_owned(), item.need_time("at")?);
                ("#by = :before AND #at = :at", values.text(":before", by).time(":at", at))
            }
        };
        let key = names::queued(queue, client);
        self.table.update_telling(ReturnValue::None, &key, &change, condition, values, operation).await?;
        Ok(())
    }

    /// How many of the client's jobs wait, counted by their records one by one, as far as it can matter for `limit`.
    async fn count_waiting(
        &self,
        queue: &QueueName,
        client: &ClientId,
        limit: u64,
        operation: &'static str,
    ) -> Result<u64, BrokerError> {
        let mut waiting = 0;
        for shard in names::shards_of(client) {
            // A client that holds so many leases is not told apart from one whose jobs wait.
            let most = limit.saturating_mul(2) + 4_000;
            let records = self.counting.open_records(queue, shard, Some(client), most, operation).await?;
            waiting += records.iter().filter(|record| record.state() == JobState::Queued).count() as u64;
        }
        Ok(waiting)
    }

    /// Gives a place back: a job of the client no longer waits, or a job for which a place was taken was not put in
    /// line.
    ///
    /// If that fails, the client has one place less for a while.
    pub(crate) async fn leave_line(&self, queue: &QueueName, client: &ClientId, operation: &'static str) {
        self.change_places(queue, client, "SET #waiting = #waiting - :one", "#waiting >= :one", operation).await;
    }

    /// Takes a place for a job of the client that is never refused: it was accepted before, or an operator starts it
    /// again.
    pub(crate) async fn join_line(&self, queue: &QueueName, client: &ClientId, operation: &'static str) {
        self.change_places(queue, client, "SET #waiting = #waiting + :one", "attribute_exists(#waiting)", operation)
            .await;
    }

    async fn change_places(
        &self,
        queue: &QueueName,
        client: &ClientId,
        change: &str,
        condition: &str,
        operation: &'static str,
    ) {
        let changed = async {
            if self.policies.require(queue, operation).await?.client(client).max_queued > COUNTED_MAX {
                return Ok(());
            }
            let values = written(self.settings.clock.now(), &token()).number(":one", 1);
            // With `by`, the SDK's repetition of a write whose answer was lost changes nothing. Without an item there
            // is nothing to change.
            let (change, condition) = (format!("{change}, {WRITTEN}"), format!("{condition} AND #by <> :by"));
            let key = names::queued(queue, client);
            self.table.update_telling(ReturnValue::None, &key, &change, &condition, values, operation).await?;
            Ok::<_, BrokerError>(())
        };
        if let Err(error) = changed.await {
            tracing::warn!(%queue, %client, %error, "the waiting jobs of a client are counted wrong until they are counted anew");
        }
    }

    /// Notes that this process put one more job of the client in line, for which it had taken a place.
    pub(crate) fn counted(&self, queue: &QueueName, client: &ClientId) {
        let mut counts = lock(&self.counts.0);
        if let Some(counted) = counts.get_mut(&(queue.clone(), client.clone())) {
            counted.added += 1;
        }
    }

    async fn over_large_bound(
        &self,
        queue: &QueueName,
        client: &ClientId,
        limit: u64,
        operation: &'static str,
    ) -> Result<Option<BrokerError>, BrokerError> {
        let open = self.open_of(queue, client, limit).await?;
        if open < limit {
            return Ok(None);
        }
        // Jobs that run don't wait, but SQS does not say which clients have how many.
        let [_, hidden, _] = self.queues.of(queue, operation).await?.counts(operation).await?;
        let waiting = open.saturating_sub(hidden.min(limit / PARTS));
        Ok(if waiting < limit { None } else { refusal::quota(operation, client, queue, waiting, limit) })
    }

    /// How many records of the client are open, by a count that is good enough beside `limit`.
    async fn open_of(&self, queue: &QueueName, client: &ClientId, limit: u64) -> Result<u64, BrokerError> {
        if let Some(known) = self.known_open(queue, client)
            && known.at.elapsed() < known.good_for(limit)
        {
            return Ok(known.open + known.added);
        }
        let at = Instant::now();
        let shards = names::shards_of(client).map(|shard| names::open_shard(queue, shard));
        let counts = shards.iter().map(|shard| self.table.count(of_client(shard, client, None), "enqueue"));
        let open = try_join_all(counts).await?.into_iter().sum();
        let mut counts = lock(&self.counts.0);
        if counts.len() >= COUNTS_MAX {
            counts.clear();
        }
        counts.insert((queue.clone(), client.clone()), Counted { open, added: 0, at });
        Ok(open)
    }

    fn known_open(&self, queue: &QueueName, client: &ClientId) -> Option<Counted> {
        let counts = lock(&self.counts.0);
        counts.get(&(queue.clone(), client.clone())).copied()
    }

    /// How many of the client's jobs wait in a queue, for people. If its bound is large: how many are open, those that
    /// run included; `None` if they are many and this process has not counted them within the last minute.
    pub(crate) async fn waiting_in(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        const OPERATION: &str = "count jobs";
        let limit = self.policies.require(queue, OPERATION).await?.client(client).max_queued;
        if limit <= COUNTED_MAX {
            if let Some(item) = self.table.get(&names::queued(queue, client), OPERATION).await? {
                return item.need_number("waiting").map(Some);
            }
        } else if let Some(known) = self.known_open(queue, client)
            && known.at.elapsed() < known.good_for(limit).min(Duration::from_secs(60))
            && known.open > 0
        {
            return Ok(Some(known.open + known.added));
        }
        let mut open = 0;
        for shard in names::shards_of(client) {
            let partition = names::open_shard(queue, shard);
            let found = self.table.query(of_client(&partition, client, Some(FEW)), OPERATION).await?;
            if found.next.is_some() {
                return Ok(None);
            }
            open += found.items.len() as u64;
        }
        Ok(Some(open))
    }
}

fn of_client<'a>(shard: &'a str, client: &'a ClientId, limit: Option<i32>) -> Query<'a> {
    Query { index: Some(BY_TIME), partition: ("ix", shard), client: Some(client.as_str()), limit, ..Query::default() }
}

/// The attributes that every write sets, with the values of [`written`].
const WRITTEN: &str = "#at = :now, #by = :by, #expires = :expires";

fn written(now: Timestamp, by: &str) -> Item {
    Item::default().time(":now", now).text(":by", by).number(":expires", expires(now + KEPT_FOR))
}

/// Names a write, so that its repetition is known.
fn token() -> String {
    uuid::Uuid::new_v4().simple().to_string()[..12].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_beside_a_large_bound_is_looked_up_again_before_five_processes_are_off_by_a_fiftieth() {
        for limit in [COUNTED_MAX + 1, 1_000_000] {
            for open in [limit / 2, limit - limit / 10, limit - 1] {
                let good = |added| Counted { open, added, at: Instant::now() }.good_for(limit);
                let most = (0..limit).step_by(50).take_while(|added| !good(*added).is_zero()).last().unwrap();
                let off = if open + most < limit - limit / 10 { 0 } else { most * 4 };
                assert!(off <= limit / 50, "{limit}, {open}: {most}");
            }
        }
        let idle = Counted { open: 10, added: 0, at: Instant::now() };
        assert_eq!(idle.good_for(1_000_000), Duration::from_secs(600));
        assert_eq!(idle.good_for(60_000), Duration::from_secs(59), "others could have filled it by then");
    }
}
