//! A client's jobs, newest first. The index by client gives their places, and the records give their status.

use std::collections::HashMap;

use futures_util::future::try_join_all;

use crate::adapter::aws::table::{Query, Table};
use crate::adapter::stored::record::Record;
use crate::adapter::stored::schema::BY_CLIENT;
use crate::names;
use crate::settings::Settings;
use relay_bridge::contract::{ClientId, IdempotencyKey, JobId};
use relay_bridge::error::BrokerError;
use relay_bridge::job_queue::{JobFilter, Listed};

const OPERATION: &str = "list";
/// The most records that one page looks at.
const LOOKED_AT_MAX: usize = 2_000;

/// Lists a client's jobs.
pub(crate) struct Listing {
    pub(crate) settings: Settings,
    pub(crate) table: Table,
}

impl Listing {
    pub(crate) async fn list_jobs(&self, client: &ClientId, filter: &JobFilter) -> Result<Listed, BrokerError> {
        let limit = usize::try_from(filter.limit.clamp(1, 1_000)).unwrap_or(1);
        let mut before = match filter.after {
            None => names::client_place(relay_bridge::contract::Timestamp::MAX, JobId::from_bytes([0xff; 16])),
            Some(job) => match self.place_of(client, job, filter).await? {
                Some(place) => place,
                None => return Ok(Listed::default()),
            },
        };
        let mut listed = Listed { after_known: filter.after.is_some(), ..Listed::default() };
        let (mut looked_at, mut last_kept) = (0, None);
        let begun = before.clone();
        // A position that stands for no job has to be of another moment than the page before it.
        let goes_on = |looked_at, before: &str| {
            looked_at < LOOKED_AT_MAX || filter.queues.is_some() && names::is_of_one_moment(&begun, before)
        };
        while goes_on(looked_at, &before) {
            let places = self.places_before(client, &before, limit).await?;
            let Some(last) = places.last() else {
                listed.next = None;
                return Ok(listed);
            };
            before = last.clone();
            looked_at += places.len();
            let jobs: Vec<_> = places.iter().filter_map(|place| names::job_of_place(place)).collect();
            let keys: Vec<_> = jobs.iter().map(|job| names::record(*job)).collect();
            let now = self.settings.clock.now();
            let found = self.table.get_many(&keys, OPERATION).await?;
            let found = found.into_iter().filter(|item| !item.is_past(now)).filter_map(|item| Record::read(item).ok());
            let found: HashMap<_, _> = found.map(|record| (record.job_id, record)).collect();
            for job in &jobs {
                // A record that a newer release wrote is left out: it must not hold up the jobs that this build can
                // read.
                let record = found.get(job).filter(|record| filter.wants_queue(&record.queue));
                let Some(Ok(status)) = record.map(|record| record.status(now)) else { continue };
                let wanted = status.client == *client
                    && filter.state.is_none_or(|state| status.state == state)
                    && IdempotencyKey::begins_with(status.key.as_ref(), filter.key_prefix.as_deref());
                if !wanted {
                    continue;
                }
                if listed.jobs.len() == limit {
                    listed.next = listed.jobs.last().map(|status| status.job_id);
                    return Ok(listed);
                }
                listed.jobs.push(status);
            }
            // The next page goes on after a job that the reader can ask for: a job past its keeping is the last resort.
            let is_told = |record: &Record| filter.wants_queue(&record.queue);
            let kept = jobs.iter().rev().find(|job| found.get(job).is_some_and(is_told));
            last_kept = kept.copied().or(last_kept);
            // Where only some queues are listed, no job of another one is named.
            let last = || if filter.queues.is_some() { names::position(last) } else { jobs.last().copied() };
            listed.next = last_kept.or_else(last);
        }
        Ok(listed)
    }

    /// The place of the client's job in its list, also if the record is past its keeping: a page may have ended there. A job
    /// of a queue that is left out has none.
    async fn place_of(&self, client: &ClientId, job: JobId, filter: &JobFilter) -> Result<Option<String>, BrokerError> {
        if let Some(place) = names::place_of_position(job) {
            return Ok(Some(place));
        }
        let item = self.table.get(&names::record(job), OPERATION).await?;
        let in_queues = |queue: Option<&str>| {
            let queues = filter.queues.as_ref();
            queues.is_none_or(|queues| queues.iter().any(|wanted| Some(wanted.as_str()) == queue))
        };
        let own =
            item.filter(|item| item.get_text("client") == Some(client.as_str()) && in_queues(item.get_text("queue")));
        own.map(|item| item.need_text("cl_at").map(str::to_owned)).transpose()
    }

    /// The next places of the client's jobs before `before`, newest first, at most `limit`.
    async fn places_before(&self, client: &ClientId, before: &str, limit: usize) -> Result<Vec<String>, BrokerError> {
        let shards: Vec<_> = (0..names::CLIENT_SHARDS).map(|shard| names::client_shard(client, shard)).collect();
        let asked = i32::try_from(limit + 1).unwrap_or(i32::MAX);
        let queries = shards.iter().map(|shard| {
            let query = Query {
                index: Some(BY_CLIENT),
                partition: ("cl", shard),
                places: Some(("cl_at", "0", before)),
                backwards: true,
                limit: Some(asked),
                ..Query::default()
            };
            self.table.query(query, OPERATION)
        });
        // Each shard gave its newest: the newest of all of them are the newest there are.
        let found = try_join_all(queries).await?.into_iter().flat_map(|found| found.items);
        let mut places: Vec<_> = found.filter_map(|item| item.get_text("cl_at").map(str::to_owned)).collect();
        places.retain(|place| place.as_str() < before);
        places.sort_unstable_by(|a, b| b.cmp(a));
        places.truncate(limit);
        Ok(places)
    }
}
