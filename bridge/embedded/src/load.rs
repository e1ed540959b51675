//! The memory, rebuilt from the file in one pass over queues x clients: when the store is opened, and when it was lost.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use super::change::Counters;
use super::ids::{Ids, Recent};
use super::lease::Lease;
use super::lines::{Key, Line};
use super::map::Map;
use super::sql::unavailable;
use super::state::{Queue, State, damaged, next_due};
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, JobId, QueueName, RunId, Timestamp};
use relay_bridge::error::BrokerError;

/// A row's facts about the lease that it is under.
struct LeasedRow {
    seq: i64,
    job: JobId,
    run: RunId,
    number: Option<i64>,
    is_here: bool,
    started_at: Option<Timestamp>,
}

impl State {
    /// Rebuilds everything from the file. A job that a worker elsewhere holds stays leased: the lease begins anew, for as
    /// much of `lease_max` as is left. Jobs of handlers that ended with the process wait again, with their attempts.
    ///
    /// `before` are the leases that this process gave out before it lost the file; they stand as they are. Nobody was told
    /// of any other lease in the file, so its job waits again without the attempt.
    pub(super) fn load(
        conn: &Connection,
        recent: Arc<Recent>,
        clock: &Clock,
        before: Option<&Map<i64, Lease>>,
    ) -> Result<Self, BrokerError> {
        let sql = |e| unavailable(e, "load store");
        let (next_seq, next_n, in_order_to) = conn
            .query_row("SELECT next_seq, next_n, in_order_to FROM counters WHERE id = 1", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .map_err(sql)?;
        let random = Uuid::now_v7().as_u128() & u128::from(u64::MAX >> 2);
        let mut state = Self {
            counters: Counters {
                next_due: None,
                next_seq,
                next_n,
                in_order_to,
                saved: (next_seq, next_n, in_order_to),
                first_in_order: next_seq,
            },
            ids: Ids::load(conn, recent)?,
            next_lease: i64::try_from(random).unwrap_or(0),
            ..Self::default()
        };
        state.load_names(conn)?;
        state.begin_step();
        conn.execute_batch("BEGIN IMMEDIATE").map_err(sql)?;
        let loaded =
            number_on(conn).and_then(|()| state.load_lines(conn, clock, before)).and_then(|()| state.save(conn));
        conn.execute_batch(if loaded.is_ok() { "COMMIT" } else { "ROLLBACK" }).map_err(sql)?;
        loaded?;
        state.counters.next_due = next_due(conn)?;
        Ok(state)
    }

    fn load_names(&mut self, conn: &Connection) -> Result<(), BrokerError> {
        let sql = |e| unavailable(e, "load store");
        let mut queues = conn.prepare("SELECT id, name, policy FROM queues").map_err(sql)?;
        let mut rows = queues.query([]).map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            let (id, name, policy): (i64, String, String) =
                (row.get(0).map_err(sql)?, row.get(1).map_err(sql)?, row.get(2).map_err(sql)?);
            let name: QueueName = name.parse().map_err(damaged)?;
            let policy = serde_json::from_str(&policy).map_err(damaged)?;
            self.queue_rows.insert(name.clone(), id);
            self.queues.insert(id, Queue { name, policy, turns: Default::default(), ended: Default::default() });
        }
        let mut clients = conn.prepare("SELECT id, name FROM clients").map_err(sql)?;
        let mut rows = clients.query([]).map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            let (id, name): (i64, String) = (row.get(0).map_err(sql)?, row.get(1).map_err(sql)?);
            let name: ClientId = name.parse().map_err(damaged)?;
            self.client_rows.insert(name.clone(), id);
            self.clients.insert(id, name);
        }
        Ok(())
    }

    fn load_lines(
        &mut self,
        conn: &Connection,
        clock: &Clock,
        before: Option<&Map<i64, Lease>>,
    ) -> Result<(), BrokerError> {
        let sql = |e| unavailable(e, "load store");
        let mut lines = conn.prepare("SELECT queue, client, waiting, parked, stored FROM lines").map_err(sql)?;
        let lines: Vec<(Key, Line)> = lines
            .query_map([], |row| Ok(((row.get(0)?, row.get(1)?), Line::new(row.get(2)?, row.get(3)?, row.get(4)?))))
            .and_then(Iterator::collect)
            .map_err(sql)?;
        for (key, line) in lines {
            let (queue, client) = key;
            self.lines.insert(key, line);
            for row in leased_rows(conn, key)? {
                self.load_lease(conn, key, &row, clock, before)?;
            }
            let line = self.lines.at(key);
            if line.waiting + line.parked + u64::from(line.running) > 0 {
                // One look at the index for each of the three states.
                let first: Option<i64> = conn
                    .prepare_cached(
                        "SELECT min(seq) FROM
                         (SELECT MIN(seq) AS seq FROM jobs WHERE queue = ?1 AND client = ?2 AND state = 0 UNION ALL
                          SELECT MIN(seq) FROM jobs WHERE queue = ?1 AND client = ?2 AND state = 1 UNION ALL
                          SELECT MIN(seq) FROM jobs WHERE queue = ?1 AND client = ?2 AND state = 2)",
                    )
                    .and_then(|mut query| query.query_row([queue, client], |row| row.get(0)))
                    .map_err(sql)?;
                let upto = &mut self.counters.first_in_order;
                *upto = first.map_or(*upto, |first| first.min(*upto));
            }
            self.line_changed(key);
        }
        Ok(())
    }

    /// Goes on with the lease of a row, or puts its job back in line.
    fn load_lease(
        &mut self,
        conn: &Connection,
        line: Key,
        row: &LeasedRow,
        clock: &Clock,
        before: Option<&Map<i64, Lease>>,
    ) -> Result<(), BrokerError> {
        let now = clock.monotonic();
        let lease = match before {
            Some(before) => before.get(&row.seq).filter(|lease| Some(lease.number) == row.number).cloned(),
            None => row.number.filter(|_| !row.is_here).map(|number| Lease {
                number,
                job: row.job,
                run: row.run,
                known: None,
                line,
                until: now,
                started: now,
                held_before: row.started_at.map_or(Duration::ZERO, |at| clock.now().since(at)),
                ended: None,
                has_letter: false,
            }),
        };
        if let (Some(mut lease), Some(queue)) = (lease, self.queues.get(&line.0)) {
            if before.is_none() {
                lease.until = lease.extended(now, &queue.policy);
            }
            self.begin_lease(row.seq, lease);
            return Ok(());
        }
        let refund = i64::from(before.is_some());
        conn.prepare_cached("UPDATE jobs SET state = 0, attempt = max(attempt - ?2, 0) WHERE seq = ?1")
            .and_then(|mut update| update.execute(params![row.seq, refund]))
            .map_err(|e| unavailable(e, "load store"))?;
        self.lines.at(line).waiting += 1;
        Ok(())
    }
}

/// Where a relay of 1.3 wrote, cursors that it gave out stand at numbers of all results: clients go on behind them.
fn number_on(conn: &Connection) -> Result<(), BrokerError> {
    let numbered = conn.execute("UPDATE counters SET own_n = next_n WHERE own_n <> next_n", []);
    numbered
        .and_then(|changed| match changed {
            0 => Ok(0),
            _ => conn.execute("UPDATE clients SET from_n = (SELECT next_n - 1 FROM counters)", []),
        })
        .map(drop)
        .map_err(|e| unavailable(e, "load store"))
}

/// The jobs of a line that are leased, as the file has them.
fn leased_rows(conn: &Connection, (queue, client): Key) -> Result<Vec<LeasedRow>, BrokerError> {
    let read = |row: &Row<'_>| {
        Ok(LeasedRow {
            seq: row.get(0)?,
            job: JobId::from_bytes(row.get(1)?),
            run: RunId::from_bytes(row.get(2)?),
            number: row.get(3)?,
            is_here: row.get::<_, Option<bool>>(4)?.unwrap_or(false),
            started_at: row.get::<_, Option<i64>>(5)?.map(Timestamp::from_millis),
        })
    };
    conn.prepare_cached(
        "SELECT seq, id, run, lease, lease_here, started_at FROM jobs WHERE queue = ?1 AND client = ?2 AND state = 1",
    )
    .and_then(|mut query| query.query_map([queue, client], read)?.collect())
    .map_err(|e| unavailable(e, "load store"))
}
