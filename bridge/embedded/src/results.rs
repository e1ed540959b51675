//! The reader's half: one result, a wait for it, and a client's results after a cursor.
//!
//! Wake-ups say *look again*: the answer comes from an ordered read of the log. Only a caller that waited for a run
//! before it began is told its result.

use std::pin::pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::Embedded;
use super::ids::Recent;
use super::row::JobRow;
use super::sql::unavailable;
use super::state::{last_n, unreadable};
use relay_bridge::contract::envelope::decode_result;
use relay_bridge::contract::{ClientId, Cursor, JobId, LogId, RunId, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::result_log::{
    Finished, Lookup, PAGE_BYTES_MAX, PAGE_ENTRIES_MAX, PASSED_BYTES_MAX, PASSED_MAX, Page, Reset, ResultFilter,
    ResultLog, Start,
};

/// The longest wait; a caller that asks for more is long gone by then. It keeps the sum of times within what a clock
/// can hold.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3_600);

#[async_trait]
impl ResultLog for Embedded {
    async fn lookup(&self, client: &ClientId, job: JobId) -> Result<Lookup, BrokerError> {
        let (client, now, log, shared) = (client.clone(), self.clock().now(), self.log(), self.shared());
        self.read(move |conn| lookup(conn, &shared.recent, &client, job, now, log)).await
    }

    async fn wait(&self, client: &ClientId, job: JobId, wait: Duration) -> Result<Lookup, BrokerError> {
        let deadline = self.clock().monotonic() + wait.min(WAIT_MAX);
        let shared = self.shared();
        let place = shared.jobs.register(job);
        loop {
            // Asked for before the look-up, so that no wake-up falls between the two.
            let woken = place.notify.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            let found = self.lookup(client, job).await?;
            if !matches!(found, Lookup::Open(_)) || self.clock().monotonic() >= deadline {
                return Ok(found);
            }
            tokio::select! {
                () = woken => {}
                () = self.clock().sleep_until(deadline) => {}
                () = self.closing() => return Ok(found),
            }
        }
    }

    async fn wait_ahead(
        &self,
        client: &ClientId,
        job: JobId,
        run: RunId,
        wait: Duration,
    ) -> Result<Option<Box<Finished>>, BrokerError> {
        let deadline = self.clock().monotonic() + wait.min(WAIT_MAX);
        let shared = self.shared();
        let place = shared.jobs.register(job);
        let mut woken = pin!(place.notify.notified());
        woken.as_mut().enable();
        loop {
            tokio::select! {
                () = woken.as_mut() => {}
                () = self.clock().sleep_until(deadline) => return Ok(None),
                () = self.closing() => return Ok(None),
            }
            // Asked for before the look-up, so that no wake-up falls between the two.
            woken.set(place.notify.notified());
            woken.as_mut().enable();
            let told = place.news().filter(|new| new.run >= run && new.client == *client);
            if let Some(new) = told {
                let columns = (new.n, new.at.as_millis(), false, new.envelope.clone());
                return entry(columns, client, self.log()).map(|finished| Some(Box::new(finished)));
            }
            match self.lookup(client, job).await? {
                Lookup::Finished(finished) if finished.result.run_id >= run => return Ok(Some(finished)),
                _ => {}
            }
        }
    }

    async fn page(
        &self,
        client: &ClientId,
        from: &Start,
        filter: &ResultFilter,
        limit: u32,
        wait: Duration,
    ) -> Result<Page, BrokerError> {
        let deadline = self.clock().monotonic() + wait.min(WAIT_MAX);
        let shared = self.shared();
        let place = shared.clients.register(client.clone());
        let mut from = from.clone();
        loop {
            let woken = place.notify.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            let (reader, start, filter, log) = (client.clone(), from, filter.clone(), self.log());
            // On the heap while it lasts, so that one who waits does not hold its place too.
            let read = Box::pin(self.read(move |conn| page(conn, &reader, &start, &filter, limit, log)));
            let (page, passed) = read.await?;
            let is_news = !page.entries.is_empty() || passed > 0 || page.reset.is_some();
            if is_news || self.clock().monotonic() >= deadline {
                return Ok(page);
            }
            from = Start::After(page.next.clone());
            tokio::select! {
                () = woken => {}
                () = self.clock().sleep_until(deadline) => {}
                () = self.closing() => return Ok(page),
            }
        }
    }
}

fn lookup(
    conn: &Connection,
    recent: &Recent,
    client: &ClientId,
    job: JobId,
    now: Timestamp,
    log: LogId,
) -> Result<Lookup, BrokerError> {
    let row = JobRow::find_owned(conn, recent, client, job)?;
    let Some(row) = row.filter(|row| !row.is_past_keeping(now)) else { return Ok(Lookup::Absent) };
    // Finished: there is a result whose run is the record's.
    let found = conn
        .prepare_cached("SELECT n, at, erased, envelope FROM results WHERE seq = ?1 AND run = ?2")
        .and_then(|mut query| query.query_row(params![row.seq, row.run.as_bytes()], entry_columns).optional())
        .map_err(|e| unavailable(e, "look up result"))?;
    match found {
        Some(columns) => Ok(Lookup::Finished(Box::new(entry(columns, client, log)?))),
        None => Ok(Lookup::Open(Box::new(row.status(conn, now)?))),
    }
}

/// A page, and how many results it passed over.
fn page(
    conn: &Connection,
    client: &ClientId,
    from: &Start,
    filter: &ResultFilter,
    limit: u32,
    log: LogId,
) -> Result<(Page, usize), BrokerError> {
    let sql = |e| unavailable(e, "read results");
    let known: Option<(i64, u64)> = conn
        .prepare_cached("SELECT id, removed_n FROM clients WHERE name = ?1")
        .and_then(|mut query| query.query_row([client.as_str()], |row| Ok((row.get(0)?, row.get(1)?))).optional())
        .map_err(sql)?;
    let (row, removed) = known.unwrap_or((-1, 0));
    // A client without a row has no results, and a cursor of its own tells no more than that.
    let end = if row < 0 { 0 } else { last_n(conn, row)?.unsigned_abs() };
    let (after, reset) = start(conn, client, row, removed, from, end, log)?;
    let mut query = conn
        .prepare_cached("SELECT n, at, erased, envelope FROM results WHERE client = ?1 AND n > ?2 ORDER BY n LIMIT ?3")
        .map_err(sql)?;
    let limit = limit.clamp(1, PAGE_ENTRIES_MAX) as usize;
    let most = if filter.wants_all() { limit } else { limit + PASSED_MAX };
    let mut rows = query.query(params![row, after, most]).map_err(sql)?;
    let (mut entries, mut bytes) = (Vec::<Finished>::new(), 0);
    let (mut passed, mut passed_bytes, mut last) = (0, 0, None);
    while entries.len() < limit
        && passed < PASSED_MAX
        && passed_bytes < PASSED_BYTES_MAX
        && let Some(row) = rows.next().map_err(sql)?
    {
        let next = entry(entry_columns(row).map_err(sql)?, client, log)?;
        if !filter.wants(&next.result.queue, next.result.key.as_ref()) {
            passed += 1;
            passed_bytes += next.result.byte_len();
            last = Some(next.cursor);
            continue;
        }
        bytes += next.result.byte_len();
        if bytes > PAGE_BYTES_MAX && !entries.is_empty() {
            break;
        }
        last = Some(next.cursor.clone());
        entries.push(next);
    }
    let next = match last {
        Some(last) => last,
        None => position(conn, client, row, after, log)?,
    };
    Ok((Page { reset, entries, next }, passed))
}

/// The sequence to read after, and why that is not where the cursor said.
fn start(
    conn: &Connection,
    client: &ClientId,
    row: i64,
    removed: u64,
    from: &Start,
    end: u64,
    log: LogId,
) -> Result<(u64, Option<Reset>), BrokerError> {
    let cursor = match from {
        Start::Oldest => return Ok((0, None)),
        Start::Now => return Ok((end, None)),
        Start::After(cursor) => cursor,
    };
    if cursor.client != *client {
        let why = "the cursor is another client's";
        return Err(BrokerError::new(BrokerErrorKind::Invalid, "read results", why));
    }
    if cursor.log != log || cursor.sequence > end {
        return Ok((0, Some(Reset::LogReplaced)));
    }
    match at(conn, row, cursor.sequence)? {
        Some(at) if at != cursor.at => Ok((0, Some(Reset::LogReplaced))),
        // While the cursor's own entry is there, reading goes on. Queues keep for different times, so something behind
        // it may be gone: to start over for that would never get past the first page.
        None if cursor.sequence > 0 && cursor.sequence < removed => Ok((0, Some(Reset::OlderThanRetention))),
        _ => Ok((cursor.sequence, None)),
    }
}

/// When the client's entry `n` was recorded, if it is still there.
fn at(conn: &Connection, row: i64, n: u64) -> Result<Option<Timestamp>, BrokerError> {
    conn.prepare_cached("SELECT at FROM results WHERE client = ?1 AND n = ?2")
        .and_then(|mut query| query.query_row(params![row, n], |row| row.get(0)).optional())
        .map(|at: Option<i64>| at.map(Timestamp::from_millis))
        .map_err(|e| unavailable(e, "read results"))
}

/// A cursor that stands at `n`, whether or not the client has an entry there.
fn position(conn: &Connection, client: &ClientId, row: i64, n: u64, log: LogId) -> Result<Cursor, BrokerError> {
    let at = at(conn, row, n)?.unwrap_or(Timestamp::from_millis(0));
    Ok(Cursor { client: client.clone(), log, sequence: n, at })
}

type Columns = (u64, i64, bool, Bytes);

fn entry_columns(row: &rusqlite::Row<'_>) -> rusqlite::Result<Columns> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, Vec<u8>>(3)?.into()))
}

fn entry((n, at, erased, envelope): Columns, client: &ClientId, log: LogId) -> Result<Finished, BrokerError> {
    let result = decode_result(&envelope).map_err(unreadable)?;
    let cursor = Cursor { client: client.clone(), log, sequence: n, at: Timestamp::from_millis(at) };
    Ok(Finished { result, cursor, erased })
}
