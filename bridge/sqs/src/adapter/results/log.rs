//! A client's log: pages of entries that only say which run ended, and when. A page is written in the transaction that
//! ends the runs in it, so consistent reads of the log's partition miss nothing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::adapter::aws::item::Item;
use crate::adapter::aws::table::{Query, Table};
use crate::adapter::stored::record::{Record, result_key};
use crate::adapter::stored::schema::TableMeta;
use crate::names;
use crate::settings::Settings;
use relay_bridge::contract::result::{DETAIL_BYTES_MAX, End};
use relay_bridge::contract::{ClientId, Cursor, Failure, JobId, JobResult, LogId, Outcome, RunId, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::result_log::{Finished, PAGE_BYTES_MAX, PASSED_MAX, Page, Reset, ResultFilter, Start};

/// The most runs that end in one transaction: with the page and the log's head it has at most 100 items.
pub(crate) const TOGETHER_MAX: usize = 50;
const OPERATION: &str = "read results";
/// Sequence numbers of one page: more than the entries it has.
const STRIDE: u64 = 64;
/// A place behind every entry of a page: for a cursor at the end of a page that retention removed.
const BEHIND: u64 = STRIDE - 1;
/// Bytes of an entry: job, run, time.
const ENTRY_BYTES: usize = 16 + 16 + 8;
/// Pages of one query.
const PAGES: i32 = 25;

/// One run's place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) job: JobId,
    pub(crate) run: RunId,
    pub(crate) at: Timestamp,
}

/// The sequence number of an entry.
pub(crate) fn sequence(page: u64, place: usize) -> u64 {
    page * STRIDE + u64::try_from(place).unwrap_or(BEHIND)
}

pub(crate) fn write_entries(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * ENTRY_BYTES);
    for entry in entries {
        bytes.extend_from_slice(entry.job.as_bytes());
        bytes.extend_from_slice(entry.run.as_bytes());
        bytes.extend_from_slice(&entry.at.as_millis().to_be_bytes());
    }
    bytes
}

fn read_entries(bytes: &Bytes) -> Vec<Entry> {
    let entry = |bytes: &[u8]| {
        let (job, rest) = bytes.split_first_chunk()?;
        let (run, rest) = rest.split_first_chunk()?;
        let at = Timestamp::from_millis(i64::from_be_bytes(*rest.first_chunk()?));
        Some(Entry { job: JobId::from_bytes(*job), run: RunId::from_bytes(*run), at })
    };
    bytes.chunks_exact(ENTRY_BYTES).filter_map(entry).collect()
}

/// A reader's position in the log: a page, and a place in it.
#[derive(Clone, Copy, Debug)]
struct Position {
    page: u64,
    /// The first place not read.
    place: u64,
    at: Timestamp,
}

impl Position {
    const OLDEST: Self = Self { page: 0, place: STRIDE, at: Timestamp::EPOCH };

    fn cursor(self, client: &ClientId, log: LogId) -> Cursor {
        let sequence = if self.page == 0 { 0 } else { self.page * STRIDE + self.place - 1 };
        Cursor { client: client.clone(), log, sequence, at: self.at }
    }
}

/// A page of results that is being filled.
struct Filling<'a> {
    filter: &'a ResultFilter,
    limit: usize,
    page: Page,
    bytes: usize,
    /// How many results were not wanted; their payloads are not read.
    passed: usize,
}

impl Filling<'_> {
    fn is_full(&self) -> bool {
        self.page.entries.len() >= self.limit || self.passed >= PASSED_MAX
    }

    /// Whether the filter wants the record's result. The key is read from the record's job.
    fn wants(&self, record: &Record) -> Result<bool, BrokerError> {
        if self.filter.key_prefix.is_none() {
            return Ok(self.filter.wants(&record.queue, None));
        }
        Ok(self.filter.wants(&record.queue, record.job()?.key.as_ref()))
    }
}

/// Reads clients' logs.
pub(crate) struct LogReader {
    pub(crate) meta: Arc<TableMeta>,
    pub(crate) settings: Settings,
    pub(crate) table: Table,
}

impl LogReader {
    /// The number of the last page of a client's log.
    pub(crate) async fn last_page(&self, client: &ClientId) -> Result<u64, BrokerError> {
        let head = self.table.get(&names::log_head(client), OPERATION).await?;
        Ok(head.and_then(|head| head.get_number("last")).unwrap_or(0))
    }

    async fn entries(&self, client: &ClientId, page: u64) -> Result<Option<Vec<Entry>>, BrokerError> {
        let item = self.table.get(&names::log_page(client, page), OPERATION).await?;
        let item = item.filter(|item| !item.is_past(self.settings.clock.now()));
        item.map(|item| Ok(read_entries(&item.need_binary("entries")?))).transpose()
    }

    /// Where reading from `from` begins, and why it starts over if it does.
    async fn begin(
        &self,
        client: &ClientId,
        from: &Start,
        log: LogId,
    ) -> Result<(Position, Option<Reset>), BrokerError> {
        match from {
            Start::Oldest => Ok((Position::OLDEST, None)),
            Start::Now => {
                let page = self.last_page(client).await?;
                if page == 0 {
                    return Ok((Position::OLDEST, None));
                }
                let entries = self.entries(client, page).await?.unwrap_or_default();
                let place = u64::try_from(entries.len()).unwrap_or(STRIDE);
                Ok((
                    match entries.last() {
                        Some(last) => Position { page, place, at: last.at },
                        None => Position { page, place: STRIDE, at: Timestamp::EPOCH },
                    },
                    None,
                ))
            }
            Start::After(cursor) => self.resume(client, cursor, log).await,
        }
    }

    async fn resume(
        &self,
        client: &ClientId,
        cursor: &Cursor,
        log: LogId,
    ) -> Result<(Position, Option<Reset>), BrokerError> {
        if cursor.client != *client {
            return Err(BrokerError::new(BrokerErrorKind::Invalid, OPERATION, "the cursor is another client's"));
        }
        let replaced = Ok((Position::OLDEST, Some(Reset::LogReplaced)));
        if cursor.log != log {
            return replaced;
        }
        if cursor.sequence == 0 {
            return Ok((Position::OLDEST, None));
        }
        let (page, place) = (cursor.sequence / STRIDE, cursor.sequence % STRIDE);
        let position = Position { page, place: place + 1, at: cursor.at };
        match self.entries(client, page).await? {
            Some(entries) => {
                let entry = usize::try_from(place).ok().and_then(|place| entries.get(place));
                let behind = place == BEHIND && cursor.at == Timestamp::EPOCH;
                if behind || entry.is_some_and(|entry| entry.at == cursor.at) { Ok((position, None)) } else { replaced }
            }
            None if page > self.last_page(client).await? => replaced,
            // At the end of a log whose last page had gone already when the cursor was given out.
            None if place == BEHIND && cursor.at == Timestamp::EPOCH => Ok((position, None)),
            None => Ok((Position::OLDEST, Some(Reset::OlderThanRetention))),
        }
    }

    /// The results after `from` that `filter` wants, at most `limit`, and how many others were passed over.
    pub(crate) async fn page_now(
        &self,
        client: &ClientId,
        from: &Start,
        filter: &ResultFilter,
        limit: usize,
    ) -> Result<(Page, usize), BrokerError> {
        let log = self.meta.get(OPERATION).await?.log;
        let (mut position, reset) = self.begin(client, from, log).await?;
        let page = Page { reset, entries: Vec::new(), next: position.cursor(client, log) };
        let mut filling = Filling { filter, limit, page, bytes: 0, passed: 0 };
        loop {
            let first = if position.place >= STRIDE { position.page.saturating_add(1) } else { position.page };
            let (from, to) = (names::page_place(first), names::page_place(u64::MAX));
            let query = Query {
                partition: ("pk", &names::log_partition(client)),
                places: Some(("sk", &from, &to)),
                limit: Some(PAGES),
                ..Query::default()
            };
            let found = self.table.query(query, OPERATION).await?;
            let mut unread = Vec::new();
            for item in &found.items {
                let number: u64 = item.get_text("sk").and_then(|place| place.get(5..)?.parse().ok()).unwrap_or(0);
                let past = item.is_past(self.settings.clock.now());
                let entries = if past { Vec::new() } else { read_entries(&item.need_binary("entries")?) };
                for (place, entry) in (0_u64..).zip(entries) {
                    if number > position.page || place >= position.place {
                        unread.push((Position { page: number, place: place + 1, at: entry.at }, entry));
                    }
                }
            }
            let full = self.fill(client, &unread, &mut filling, &mut position).await?;
            if full || found.next.is_none() {
                filling.page.next = position.cursor(client, log);
                return Ok((filling.page, filling.passed));
            }
            // All of these pages were read, also those that were past their keeping.
            let last = found.items.last().and_then(|item| item.get_text("sk")?.get(5..)?.parse().ok());
            let page = last.unwrap_or(0).max(position.page);
            position = Position { page, place: STRIDE, at: Timestamp::EPOCH };
        }
    }

    /// Adds the results of these entries to the page, as far as they are still their jobs' results. Returns whether the
    /// page is full.
    async fn fill(
        &self,
        client: &ClientId,
        unread: &[(Position, Entry)],
        filling: &mut Filling<'_>,
        position: &mut Position,
    ) -> Result<bool, BrokerError> {
        let at_once = if filling.filter.wants_all() { filling.limit.clamp(1, 100) } else { 100 };
        for chunk in unread.chunks(at_once) {
            let mut keys: Vec<_> = chunk.iter().map(|(_, entry)| names::record(entry.job)).collect();
            keys.sort_by(|a, b| a.pk.cmp(&b.pk));
            keys.dedup();
            let now = self.settings.clock.now();
            let items = self.table.get_many(&keys, OPERATION).await?;
            let records: Vec<_> = items.into_iter().filter(|item| !item.is_past(now)).map(Record::read).collect();
            let records = records.into_iter().collect::<Result<Vec<_>, _>>()?;
            for (at, entry) in chunk {
                let current = |record: &&Record| {
                    record.job_id == entry.job && record.result_run() == Some(entry.run) && record.client == *client
                };
                if let Some(record) = records.iter().find(current) {
                    if filling.is_full() {
                        return Ok(true);
                    }
                    if filling.wants(record)? {
                        let size = entry_size(record);
                        if filling.bytes + size > PAGE_BYTES_MAX && !filling.page.entries.is_empty() {
                            return Ok(true);
                        }
                        filling.bytes += size;
                        filling.page.entries.push(self.finished(record, OPERATION).await?);
                    } else {
                        filling.passed += 1;
                    }
                }
                *position = *at;
            }
        }
        Ok(filling.is_full())
    }

    /// The result that a record has, with its payload.
    pub(crate) async fn finished(&self, record: &Record, operation: &'static str) -> Result<Finished, BrokerError> {
        let log = self.meta.get(operation).await?.log;
        let cursor = Cursor {
            client: record.client.clone(),
            log,
            sequence: record.item.need_number("log")?,
            at: record.item.need_time("log_at")?,
        };
        let stored = match record.item.get_binary("result") {
            Some(inline) => Some(inline),
            None => match result_key(record) {
                Some(key) => self.table.get(&key, operation).await?.and_then(|item: Item| item.get_binary("result")),
                None => None,
            },
        };
        match stored {
            Some(stored) => {
                let mut result = relay_bridge::contract::envelope::decode_result(&stored)
                    .map_err(crate::adapter::stored::record::unreadable)?;
                if let Ok(job) = record.job() {
                    (result.meta, result.key) = (job.meta(), job.key);
                }
                Ok(Finished { result, cursor, erased: record.is_erased() })
            }
            None => finished_without_payload(record, cursor),
        }
    }

    /// How often a call that waits looks at the log for results that other processes wrote.
    pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(1_000);
}

/// The most bytes that a record's result takes in a page, by the sizes in the record.
fn entry_size(record: &Record) -> usize {
    let payload: usize = record.item.get_number("result_size").unwrap_or(0);
    let failure = if record.last_outcome() == Some(Outcome::Succeeded) { 0 } else { DETAIL_BYTES_MAX };
    payload + failure + record.item.get_binary("job").map_or(0, |job| job.len())
}

/// A result whose own item is gone before its record: outcome and times are known, the payload is not.
pub(crate) fn finished_without_payload(record: &Record, cursor: Cursor) -> Result<Finished, BrokerError> {
    let job = record.job()?;
    let outcome = record.last_outcome().unwrap_or(Outcome::Failed);
    let finished_at = record.item.need_time("ended")?;
    let end = End { attempt: record.attempt, started_at: record.started_at(), finished_at };
    let mut result = match outcome {
        Outcome::Succeeded => JobResult::succeeded(&job, end, "application/octet-stream", Bytes::new()),
        other => JobResult::unsuccessful(&job, other, end, Failure::new(other.as_str(), "")),
    };
    result.payload = Bytes::new();
    Ok(Finished { result, cursor, erased: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_they_were_written() {
        let now = Timestamp::from_millis(1_763_865_086_007);
        let entries: Vec<_> = (0..50)
            .map(|at| Entry {
                job: JobId::mint(),
                run: RunId::mint(now, None),
                at: Timestamp::from_millis(now.as_millis() + at),
            })
            .collect();
        assert_eq!(read_entries(&write_entries(&entries).into()), entries);
        assert!(read_entries(&Bytes::from_static(b"short")).is_empty());
    }

    #[test]
    fn sequence_numbers_grow_from_page_to_page() {
        assert!(sequence(1, 0) > 0);
        assert!(sequence(1, TOGETHER_MAX - 1) < sequence(2, 0));
        assert!(u64::try_from(TOGETHER_MAX).unwrap() <= BEHIND);
    }
}
