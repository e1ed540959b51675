//! From a job's id to its row, at a cost that does not grow with the backlog.
//!
//! Derived ids are random, so an index over a million of them dirties a page of its own for nearly every job. New ids are
//! therefore kept in memory first (at most twice [`MERGE_FROM`] of them), and written into the index in sorted runs, a
//! stretch with each commit: neighbours share pages. The rows of `jobs` after `counters.ids_upto` are what is not in the
//! index yet; opening the store reads them back.

use std::sync::{Arc, PoisonError, RwLock};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::filter::Filter;
use super::map::Map;
use super::sql::unavailable;
use relay_bridge::contract::JobId;
use relay_bridge::error::BrokerError;

/// A sorted run begins when so many ids are not in the index.
const MERGE_FROM: usize = 32 * 1024;
/// The fewest ids that a commit adds to the index while a run is being written.
const STRETCH_MIN: usize = 256;

/// Ids that are not in the index, or only in a part of it that is not committed: read by every reader, written by the
/// writer. A reader asks here before its snapshot begins, and ids leave only after the commit that indexed them.
#[derive(Default)]
pub(super) struct Recent {
    seqs: RwLock<Map<JobId, i64>>,
    /// Spares the index look-ups for ids that are new.
    pub(super) indexed: Filter,
}

impl Recent {
    fn seq(&self, id: JobId) -> Option<i64> {
        self.seqs.read().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Map<JobId, i64>) -> T) -> T {
        change(&mut self.seqs.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The row that an id leads to. It may be gone, or not yet committed: the caller looks at the row itself.
pub(super) fn find_seq(conn: &Connection, recent: &Recent, id: JobId) -> Result<Option<i64>, BrokerError> {
    if let Some(seq) = recent.seq(id) {
        return Ok(Some(seq));
    }
    if !recent.indexed.may_contain(id) {
        return Ok(None);
    }
    conn.prepare_cached("SELECT seq FROM ids WHERE id = ?1")
        .and_then(|mut query| query.query_row([id.as_bytes()], |row| row.get(0)).optional())
        .map_err(|e| unavailable(e, "find job"))
}

/// The row that an id leads to; for an id that is nowhere, the row of a neighbour in the index, or 0 if there is none. Always
/// the same steps, so that their time does not tell which it was: the caller compares the row's id.
pub(super) fn nearest_seq(conn: &Connection, recent: &Recent, id: JobId) -> Result<i64, BrokerError> {
    let recent = recent.seq(id);
    let indexed: Option<i64> = conn
        .prepare_cached("SELECT seq FROM ids WHERE id >= ?1 ORDER BY id LIMIT 1")
        .and_then(|mut query| query.query_row([id.as_bytes()], |row| row.get(0)).optional())
        .map_err(|e| unavailable(e, "find job"))?;
    Ok(recent.or(indexed).unwrap_or(0))
}

/// The writer's side: the recent ids, and the progress of the sorted run.
#[derive(Default)]
pub(super) struct Ids {
    recent: Arc<Recent>,
    merge_from: usize,
    /// Every row up to here is in the index.
    upto: i64,
    run: Option<Run>,
    /// Whether the index may hold ids beyond `upto`: a run may have been broken off before the store was opened.
    maybe_ahead: bool,
    /// The index got complete up to here in the transaction that is open.
    completed: Option<i64>,
    /// How much of the run was written before the step that is being run; `None` if there was no run.
    written_before: Option<usize>,
}

struct Run {
    sorted: Vec<(JobId, i64)>,
    next: usize,
    upto: i64,
}

impl Ids {
    /// Reads back what is not in the index.
    pub(super) fn load(conn: &Connection, recent: Arc<Recent>) -> Result<Self, BrokerError> {
        let sql = |e| unavailable(e, "load store");
        let upto = conn.query_row("SELECT ids_upto FROM counters", [], |row| row.get(0)).map_err(sql)?;
        let mut query = conn.prepare_cached("SELECT id, seq FROM jobs WHERE seq > ?1").map_err(sql)?;
        let rows = query.query_map([upto], |row| Ok((JobId::from_bytes(row.get(0)?), row.get(1)?)));
        let found: Map<JobId, i64> = rows.and_then(Iterator::collect).map_err(sql)?;
        recent.change(|ids| *ids = found);
        Ok(Self {
            recent,
            merge_from: MERGE_FROM,
            upto,
            run: None,
            maybe_ahead: true,
            completed: None,
            written_before: None,
        })
    }

    pub(super) fn recent(&self) -> &Arc<Recent> {
        &self.recent
    }

    pub(super) fn add(&self, id: JobId, seq: i64) {
        self.recent.change(|ids| ids.insert(id, seq));
    }

    /// Whether the id is in memory.
    pub(super) fn is_recent(&self, id: JobId) -> bool {
        self.recent.seq(id).is_some()
    }

    /// Takes back [`add`](Self::add).
    pub(super) fn forget(&self, id: JobId) {
        self.recent.change(|ids| ids.remove(&id));
    }

    pub(super) fn begin_step(&mut self) {
        self.written_before = self.run.as_ref().map(|run| run.next);
    }

    /// The writes into the index since [`begin_step`](Self::begin_step) were rolled back.
    pub(super) fn undo_step(&mut self) {
        self.completed = None;
        match (self.written_before, &mut self.run) {
            (Some(next), Some(run)) => run.next = next,
            _ => self.run = None,
        }
    }

    /// Forgets a job whose row is being removed.
    pub(super) fn remove(&self, conn: &Connection, id: JobId, seq: i64) -> Result<(), BrokerError> {
        self.recent.change(|ids| ids.remove(&id));
        if seq > self.upto && self.run.is_none() && !self.maybe_ahead {
            return Ok(());
        }
        conn.prepare_cached("DELETE FROM ids WHERE id = ?1")
            .and_then(|mut delete| delete.execute([id.as_bytes()]))
            .map_err(|e| unavailable(e, "remove job"))?;
        Ok(())
    }

    /// Adds a stretch to the index in the open transaction: twice as much as came in, so that a run always ends before
    /// the next one is due. `last` is the newest row there is.
    pub(super) fn write_some(&mut self, conn: &Connection, came_in: usize, last: i64) -> Result<(), BrokerError> {
        if self.run.is_none() {
            self.run = self.recent.change(|ids| {
                (ids.len() >= self.merge_from).then(|| {
                    let mut sorted: Vec<_> = ids.iter().map(|(id, seq)| (*id, *seq)).collect();
                    sorted.sort_unstable();
                    Run { sorted, next: 0, upto: last }
                })
            });
        }
        let Some(run) = &mut self.run else { return Ok(()) };
        let sql = |e| unavailable(e, "index ids");
        let end = run.sorted.len().min(run.next + STRETCH_MIN.max(2 * came_in));
        let mut insert = conn
            .prepare_cached("INSERT INTO ids(id, seq) VALUES(?1, ?2) ON CONFLICT DO UPDATE SET seq = ?2")
            .map_err(sql)?;
        for (id, seq) in &run.sorted[run.next..end] {
            // It may have been removed since the run was sorted.
            if self.recent.seq(*id) == Some(*seq) {
                self.recent.indexed.add(*id);
                insert.execute(params![id.as_bytes(), seq]).map_err(sql)?;
            }
        }
        run.next = end;
        if end == run.sorted.len() {
            let upto = run.upto;
            conn.prepare_cached("UPDATE counters SET ids_upto = ?1 WHERE id = 1")
                .and_then(|mut update| update.execute([upto]))
                .map_err(sql)?;
            self.completed = Some(upto);
        }
        Ok(())
    }

    /// Called after the commit: ids that are in the index now need not stay in memory.
    pub(super) fn committed(&mut self) {
        if let Some(upto) = self.completed.take() {
            self.upto = upto;
            self.run = None;
            self.maybe_ahead = false;
            self.recent.change(|ids| {
                ids.retain(|_, seq| *seq > upto);
                ids.shrink_to(MERGE_FROM);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::shared::Shared;
    use crate::{READERS_MAX, SCAN_MAX, scan_ids, schema};

    /// A job row with nothing in it but its id.
    fn add_row(conn: &Connection, id: JobId, seq: i64) {
        conn.execute(
            "INSERT INTO jobs(seq, queue, client, id, run, generation, state, attempt, timer_at, due_at, expires_at, size,
             payload) VALUES(?1, 1, 1, ?2, x'00', 1, 0, 0, 0, 0, 0, 0, 0)",
            params![seq, id.as_bytes()],
        )
        .unwrap();
    }

    fn id(number: i64) -> JobId {
        JobId::from_bytes(*blake3::hash(&number.to_be_bytes()).as_bytes().first_chunk().unwrap())
    }

    #[test]
    fn every_id_is_found_before_during_and_after_its_run_and_after_a_restart_in_between() {
        let conn = schema::open(None).unwrap().connection;
        let recent = Arc::new(Recent::default());
        let mut ids = Ids { merge_from: 1_000, ..Ids::load(&conn, Arc::clone(&recent)).unwrap() };
        let mut gone = Vec::new();
        for seq in 1..=4_000 {
            add_row(&conn, id(seq), seq);
            ids.add(id(seq), seq);
            if seq % 7 == 0 {
                // Removed at any time: not indexed, in the run, or indexed.
                let old = seq - seq % 900 / 2;
                conn.execute("DELETE FROM jobs WHERE seq = ?1", [old]).unwrap();
                ids.remove(&conn, id(old), old).unwrap();
                gone.push(old);
            }
            if seq % 50 == 0 {
                // A transaction that is not committed, and then one that is.
                ids.begin_step();
                conn.execute_batch("BEGIN").unwrap();
                ids.write_some(&conn, 50, seq).unwrap();
                conn.execute_batch("ROLLBACK").unwrap();
                ids.undo_step();
                ids.write_some(&conn, 50, seq).unwrap();
                ids.committed();
            }
            if seq == 3_100 {
                // Anywhere: from here on the filter counts.
                assert_eq!(recent.indexed.scan(&conn, JobId::from_bytes([0; 16]), 1_000_000).unwrap(), None);
                assert!(!recent.indexed.may_contain(id(-1)));
            }
            if seq == 1_150 || seq == 2_900 {
                ids = Ids { merge_from: 1_000, ..Ids::load(&conn, Arc::clone(&recent)).unwrap() };
            }
            if seq % 125 == 0 {
                for known in 1..=seq {
                    let found = find_seq(&conn, &recent, id(known)).unwrap();
                    assert_eq!(found, (!gone.contains(&known)).then_some(known), "after {seq}");
                }
            }
        }
        let orphans = "SELECT count(*) FROM ids WHERE seq NOT IN (SELECT seq FROM jobs)";
        assert_eq!(conn.query_row(orphans, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
        let indexed: i64 = conn.query_row("SELECT count(*) FROM ids", [], |row| row.get(0)).unwrap();
        assert!(indexed > 2_000 && recent.change(|ids| ids.len()) < 2_000, "{indexed} indexed");
    }

    #[tokio::test]
    async fn the_scan_of_ids_reads_in_its_turn_and_lets_an_erasure_in_between() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("relay.db");
        let conn = schema::open(Some(&path)).unwrap().connection;
        let ids = i64::from(SCAN_MAX) + 1;
        conn.execute_batch("BEGIN").unwrap();
        for seq in 1..=ids {
            conn.execute("INSERT INTO ids(id, seq) VALUES(?1, ?2)", params![id(seq).as_bytes(), seq]).unwrap();
        }
        conn.execute_batch("COMMIT").unwrap();
        let (shared, reading) = (Arc::new(Shared::default()), Arc::new(Semaphore::new(READERS_MAX as usize)));
        let mut scan = std::pin::pin!(scan_ids(path, Arc::clone(&shared), Arc::clone(&reading)));
        let is_complete = || !shared.recent.indexed.may_contain(id(-1));

        let erasure = reading.acquire_many(READERS_MAX).await.unwrap();
        assert!((&mut scan).now_or_never().is_none(), "it reads while an erasure empties the log");
        let mut next_erasure = std::pin::pin!(reading.acquire_many(READERS_MAX));
        assert!((&mut next_erasure).now_or_never().is_none());
        drop(erasure);
        assert!((&mut scan).now_or_never().is_none(), "an erasure waits for the whole scan");
        let next_erasure = next_erasure.await.unwrap();
        assert!(!is_complete());
        drop(next_erasure);
        scan.await;
        assert!(is_complete() && (1..=ids).all(|known| shared.recent.indexed.may_contain(id(known))));
    }
}
