//! The numbers of a queue's jobs, for people and scalers. An estimate comes from the counts of SQS, and takes one call
//! and one read however many jobs wait. An exact count looks at the records one by one.
//!
//! The index by time has all open records, also those of running jobs, because a claim must not cost a write of the
//! index.

use std::sync::Arc;

use futures_util::future::try_join_all;

use crate::adapter::aws::item::Item;
use crate::adapter::aws::queue::SqsQueues;
use crate::adapter::aws::table::{Query, Table};
use crate::adapter::jobs::spares::Spares;
use crate::adapter::stored::record::Record;
use crate::adapter::stored::schema::BY_TIME;
use crate::names;
use crate::settings::Settings;
use relay_bridge::contract::{ClientId, JobState, QueueName, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::{Depth, Exact};

const OPERATION: &str = "read depth";
/// Up to so many open records of one of [`names::SHARDS`] shards are looked at one by one.
const SHARD_MAX: u64 = 25_000;

/// Counts jobs.
pub(crate) struct Counting {
    pub(crate) queues: Arc<SqsQueues>,
    pub(crate) settings: Settings,
    pub(crate) spares: Arc<Spares>,
    pub(crate) table: Table,
}

impl Counting {
    /// Estimates how many jobs of a queue wait, are parked and are leased. A job that is parked for longer than SQS
    /// delays has no message, and is not counted.
    pub(crate) async fn look_at_queue(&self, queue: &QueueName) -> Result<Depth, BrokerError> {
        let [visible, hidden, delayed] = self.queues.of(queue, OPERATION).await?.counts(OPERATION).await?;
        let spares = self.spares.of(queue).await?;
        if spares > 0 && visible + hidden + delayed == 0 {
            self.spares.forget(queue).await?;
        }
        Ok(Depth { waiting: visible.saturating_sub(spares), parked: delayed, leased: hidden })
    }

    /// Counts the jobs of a queue by their records.
    pub(crate) async fn count_queue(&self, queue: &QueueName) -> Result<Exact, BrokerError> {
        let shards = (0..names::SHARDS).map(|shard| async move {
            let records = self.open_records(queue, shard, None, SHARD_MAX, OPERATION).await?;
            if records.len() as u64 >= SHARD_MAX {
                let why = format!(
                    "`{queue}` has about {} open jobs, too many to count one by one: ask for about how many",
                    SHARD_MAX * u64::from(names::SHARDS)
                );
                return Err(BrokerError::new(BrokerErrorKind::StateConflict, OPERATION, why));
            }
            Ok(records)
        });
        let now = self.settings.clock.now();
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
        Ok(Exact { depth, oldest })
    }

    /// Records of one shard of the index by time, as they are now: at most about `most`.
    pub(crate) async fn open_records(
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
            let found = self.table.query(query, operation).await?;
            let jobs = found.items.iter().filter_map(|item| names::job_of_partition(item.get_text("pk")?));
            keys.extend(jobs.map(names::record));
            after = found.next;
            if after.is_none() || keys.len() as u64 >= most {
                break;
            }
        }
        let items = self.table.get_many(&keys, operation).await?;
        let now = self.settings.clock.now();
        let open = |item: &Item| !item.is_past(now);
        items.into_iter().filter(open).map(Record::read).filter(|record| is_open(record.as_ref())).collect()
    }
}

/// Whether a record is open. A record that can't be read is left out.
fn is_open(record: Result<&Record, &BrokerError>) -> bool {
    record.is_ok_and(|record| record.ended().is_none())
}
