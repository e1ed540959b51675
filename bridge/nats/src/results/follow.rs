//! Reads all results of a client after a cursor, in the order of the log.
//!
//! Reads go in stretches of the stream that all clients share. How far a stretch was looked at is remembered beside the
//! cursor, so that everybody else's results are not looked through again for a client with few of its own; it is never
//! part of the cursor. A read that comes to the end is confirmed at the leader where there are replicas.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::records::log::{LogReader, TRUSTED_FOR};
use crate::records::policies::Policies;
use crate::results::waiting::{Waiting, Waits, Woken};
use crate::stored::names::{self, RESULTS_STREAM};
use crate::stored::result_entry::{Entry, Place};
use crate::wire::api::Api;
use crate::wire::direct_get::{BATCH_MAX, Stretch};
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, Cursor, LogId};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::result_log::{
    Finished, PAGE_BYTES_MAX, PAGE_ENTRIES_MAX, PASSED_BYTES_MAX, PASSED_MAX, Page, Reset, ResultFilter, Start,
};
use relay_bridge::support::lock;

const OPERATION: &str = "read results";
/// The most places that are remembered, over all clients.
const PLACES_MAX: usize = 16_384;
/// Clocks of two hosts may differ by this much.
const SKEW: Duration = Duration::from_secs(5);

/// The memory of how far the log was looked at, for each client and cursor.
#[derive(Debug, Default)]
pub(crate) struct Positions(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    /// How often the connection had been made by then.
    connections: u64,
    places: HashMap<(ClientId, u64), Known>,
    oldest: VecDeque<(ClientId, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    place: Place,
    /// Nothing of the client is between the place and this sequence.
    looked_to: u64,
    /// When the place was found in the log: reading on from it does not prove that it is still there.
    found: Instant,
    read: Instant,
}

impl Positions {
    fn remembered(&self) -> std::sync::MutexGuard<'_, Remembered> {
        lock(&self.0)
    }

    /// Forgets everything if the connection was made again meanwhile: the server may have been given an older store.
    fn trust(&self, connections: u64) {
        let mut remembered = self.remembered();
        if remembered.connections != connections {
            *remembered = Remembered { connections, ..Remembered::default() };
        }
    }

    fn find(&self, client: &ClientId, place: Place) -> Option<Known> {
        let remembered = self.remembered();
        let known = remembered.places.get(&(client.clone(), place.seq))?;
        (known.place == place && known.read.elapsed() < TRUSTED_FOR).then_some(*known)
    }

    fn forget(&self, client: &ClientId, place: Place) {
        // Its key stays in the order, and is one that is not there when its turn comes.
        self.remembered().places.remove(&(client.clone(), place.seq));
    }

    /// Remembers what was read while the connection had been made `connections` times, unless it was made again meanwhile.
    fn keep(&self, client: &ClientId, known: Known, connections: u64) {
        let key = (client.clone(), known.place.seq);
        let mut remembered = self.remembered();
        if remembered.connections != connections {
            return;
        }
        if remembered.places.insert(key.clone(), known).is_none() {
            remembered.oldest.push_back(key);
        }
        if remembered.oldest.len() > PLACES_MAX
            && let Some(oldest) = remembered.oldest.pop_front()
        {
            remembered.places.remove(&oldest);
        }
    }
}

/// The place where a page begins, and why that is not where the cursor said.
struct Begin {
    log: LogId,
    place: Place,
    looked_to: u64,
    /// When the place was found in the log.
    found: Instant,
    reset: Option<Reset>,
}

/// Reads a client's results.
pub(crate) struct Reader {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
    pub(crate) policies: Arc<Policies>,
    pub(crate) log: Arc<LogReader>,
    pub(crate) waits: Arc<Waits>,
    pub(crate) positions: Positions,
}

impl Reader {
    pub(crate) async fn read_page(
        &self,
        client: &ClientId,
        from: &Start,
        filter: &ResultFilter,
        limit: u32,
        wait: Duration,
    ) -> Result<Page, BrokerError> {
        let limit = usize::try_from(limit.clamp(1, PAGE_ENTRIES_MAX)).unwrap_or(1);
        // Before the first read, so that nothing falls between the two.
        let mut waiting = match wait.is_zero() {
            true => None,
            false => Some(Waiting::of_client(&self.waits, client, wait, OPERATION).await?),
        };
        let mut connections = self.api.connections();
        let (mut begin, mut is_over) = (self.begin(client, from).await?, waiting.is_none());
        let stands = match from {
            // Not another end, should the cursor be looked at again.
            Start::Now => Start::After(begin.place.cursor(client, self.log.id().await?)),
            from => from.clone(),
        };
        loop {
            let read = self.stretch(client, &mut begin, filter, limit, connections).await?;
            let made = self.api.connections();
            let Some((page, passed)) = read.filter(|_| made == connections) else {
                // Another log, or perhaps a server with an older store: the cursor is held against it before anything is
                // answered.
                self.positions.forget(client, begin.place);
                connections = made;
                begin = self.begin(client, &stands).await?;
                continue;
            };
            let Some(waiting) = waiting.as_mut().filter(|waiting| !is_over && !waiting.is_over()) else {
                return Ok(page);
            };
            if !page.entries.is_empty() || passed > 0 || page.reset.is_some() {
                return Ok(page);
            }
            is_over = waiting.woken().await == Woken::Over;
            if begin.place != Place::START && begin.found.elapsed() >= TRUSTED_FOR {
                let asked = Instant::now();
                match self.reset(&begin.place.cursor(client, begin.log)).await? {
                    None => begin.found = asked,
                    Some(reset) => {
                        let log = self.log.id().await?;
                        begin = Begin { log, place: Place::START, looked_to: 0, found: asked, reset: Some(reset) };
                    }
                }
            }
        }
    }

    /// Where to read after, by the rules of a cursor.
    async fn begin(&self, client: &ClientId, from: &Start) -> Result<Begin, BrokerError> {
        let found = Instant::now();
        let at = |log, place: Place, reset| Begin { log, place, looked_to: place.seq, found, reset };
        self.positions.trust(self.api.connections());
        let cursor = match from {
            Start::Oldest => return Ok(at(self.log.id().await?, Place::START, None)),
            Start::Now => {
                let log = self.log.look().await?;
                return Ok(at(log.id, log.last, None));
            }
            Start::After(cursor) => cursor,
        };
        if cursor.client != *client {
            let why = "the cursor is another client's";
            return Err(BrokerError::new(BrokerErrorKind::Invalid, OPERATION, why));
        }
        if cursor.log != self.log.id().await? {
            // The remembered log may be out of date, and the cursor may be from the log that there is now.
            let id = self.log.look().await?.id;
            if cursor.log != id {
                return Ok(at(id, Place::START, Some(Reset::LogReplaced)));
            }
        }
        let place = Place { seq: cursor.sequence, at: cursor.at };
        let known = self.positions.find(client, place);
        let looked_to = known.map_or(place.seq, |known| known.looked_to);
        let there = known.map(|known| known.found).filter(|found| found.elapsed() < TRUSTED_FOR);
        if place != Place::START
            && there.is_none()
            && let Some(reset) = self.reset(cursor).await?
        {
            return Ok(at(self.log.id().await?, Place::START, Some(reset)));
        }
        Ok(Begin { log: cursor.log, place, looked_to, found: there.unwrap_or(found), reset: None })
    }

    /// Whether the log behind `cursor` is not the one that it was given out for.
    async fn reset(&self, cursor: &Cursor) -> Result<Option<Reset>, BrokerError> {
        let log = self.log.look().await?;
        if cursor.log != log.id || cursor.sequence > log.last.seq {
            return Ok(Some(Reset::LogReplaced));
        }
        if cursor.sequence >= log.first_seq {
            // The next message from there on, of any client: it has that sequence if it is still there.
            let next = self.api.next_at_leader(RESULTS_STREAM, cursor.sequence, ">".to_owned(), OPERATION).await?;
            if let Some(found) = next.filter(|found| found.seq == cursor.sequence) {
                if found.at != cursor.at {
                    return Ok(Some(Reset::LogReplaced));
                }
                // The server removes a message some time after it is past its keeping.
                if Entry::read(found).is_ok_and(|entry| !entry.is_past_keeping(self.clock.now())) {
                    return Ok(None);
                }
            }
        }
        // It was replaced, erased or removed. Results after it are kept at least as long as the queue with the shortest
        // memory keeps anything.
        let queues = self.policies.queues().await?;
        let keeps = queues.iter().map(|(_, policy)| policy.job_ttl.saturating_add(policy.retention));
        let shortest = keeps.min().unwrap_or_default().saturating_sub(SKEW);
        let is_young = self.clock.now() < cursor.at + shortest;
        Ok((!is_young).then_some(Reset::OlderThanRetention))
    }

    /// The client's results after `begin` that `filter` wants, at most `limit`, and how many others it passed over. The
    /// stretch that it looked at in vain is remembered in `begin`. `None` if the log is another one by now, or ends
    /// before the place up to which it was looked at.
    async fn stretch(
        &self,
        client: &ClientId,
        begin: &mut Begin,
        filter: &ResultFilter,
        limit: usize,
        connections: u64,
    ) -> Result<Option<(Page, usize)>, BrokerError> {
        let subject = names::client_results(client);
        // As it ended before it was read: there is nothing of the client up to there but what is found now.
        let log = self.log.look().await?;
        if log.id != begin.log || log.last.seq < begin.looked_to {
            return Ok(None);
        }
        let began = Instant::now();
        let mut page = Page { reset: begin.reset, entries: Vec::new(), next: begin.place.cursor(client, log.id) };
        // Results up to the cursor were read; an erased result that stands before it was read as well.
        let read_to = begin.place.seq;
        let (mut from, mut bytes) = (begin.looked_to + 1, 0);
        let mut last = begin.place;
        let (mut passed, mut passed_bytes) = (0, 0);
        let (mut at_leader, mut is_whole) = (false, false);
        'reading: while page.entries.len() < limit
            && bytes < PAGE_BYTES_MAX
            && passed < PASSED_MAX
            && passed_bytes < PASSED_BYTES_MAX
        {
            let (messages, is_end) = if at_leader {
                let next = self.api.next_at_leader(RESULTS_STREAM, from, subject.clone(), OPERATION).await?;
                let is_end = next.is_none();
                (Vec::from_iter(next), is_end)
            } else {
                let left = limit - page.entries.len();
                let messages = if filter.wants_all() { left.min(BATCH_MAX) } else { BATCH_MAX };
                let stretch = Stretch { from, subject: subject.clone(), messages, bytes: PAGE_BYTES_MAX - bytes };
                let batch = self.api.batch(RESULTS_STREAM, &stretch, OPERATION).await?;
                let is_end = batch.is_end || batch.messages.is_empty();
                (batch.messages, is_end)
            };
            for message in messages {
                if page.entries.len() == limit {
                    break 'reading;
                }
                let seq = message.seq;
                let entry = match Entry::read(message) {
                    Ok(entry) => entry,
                    Err(error) if matches!(error.kind(), BrokerErrorKind::NewerVersion { .. }) => {
                        // It is for a reader of that version; a caller that reads on here must not miss it.
                        if page.entries.is_empty() && passed == 0 {
                            return Err(error);
                        }
                        break 'reading;
                    }
                    Err(error) => {
                        // One that nobody can read must not end all reading.
                        tracing::error!(%client, seq, %error, "a result in the log can't be read");
                        from = seq + 1;
                        continue;
                    }
                };
                let was_read = entry.erased && entry.place.seq <= read_to;
                if entry.erased {
                    // Another server may have given it as it was before.
                    page.entries.retain(|read| read.cursor.sequence != entry.place.seq);
                }
                let is_kept = !was_read && !entry.is_past_keeping(self.clock.now());
                if is_kept && !filter.wants(&entry.result.queue, entry.result.key.as_ref()) {
                    passed += 1;
                    passed_bytes += entry.result.byte_len();
                    last = Place { seq, at: entry.stored_at };
                } else if is_kept {
                    bytes += entry.result.byte_len();
                    if bytes > PAGE_BYTES_MAX && !page.entries.is_empty() {
                        break 'reading;
                    }
                    // In the order of the log: an erased result comes where what is left of it is.
                    last = Place { seq, at: entry.stored_at };
                    let finished = entry.finished(log.id);
                    page.entries.push(Finished { cursor: last.cursor(client, log.id), ..finished });
                }
                from = seq + 1;
            }
            if is_end && (at_leader || !log.is_replicated) {
                is_whole = true;
                break;
            }
            at_leader |= is_end;
        }
        // After a reset the old place is worth nothing.
        let is_empty = page.entries.is_empty() && passed == 0;
        if is_empty && begin.reset.is_some() {
            last = log.last;
        }
        let looked_to = if is_whole { log.last.seq.max(from - 1) } else { from - 1 };
        // A place that was read now is one that is there; the one from before is not looked at by reading on.
        let found = if is_empty && begin.reset.is_none() { begin.found } else { began };
        let known = Known { place: last, looked_to: looked_to.max(last.seq), found, read: began };
        self.positions.keep(client, known, connections);
        begin.looked_to = looked_to;
        page.next = last.cursor(client, log.id);
        Ok(Some((page, passed)))
    }
}
