//! What the writer keeps in memory: queues, clients, who has work, and leases. It grows with what runs and with the
//! number of clients, never with what waits, and can be rebuilt from the file in one pass over queues x clients.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, params};
use uuid::Uuid;

use super::ids::{Ids, Recent};
use super::map::{Map, Set};
use super::schema::unavailable;
use crate::contract::envelope::{EnvelopeError, NEWEST};
use crate::contract::{ClientId, Job, Outcome, QueueName, Timestamp};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::leasing::Receipt;
use crate::policy::QueuePolicy;

/// Counters are saved ahead of what was used, so that most commits need not touch their page. After a restart so many
/// places in line are left out at most, and so many milliseconds of deadlines count as out of order.
const SEQ_AHEAD: i64 = 4_096;
const IN_ORDER_AHEAD_MS: i64 = 10_000;

/// A row of `queues` or `clients`.
pub(super) type QueueRow = i64;
pub(super) type ClientRow = i64;

#[derive(Default)]
pub(super) struct State {
    pub(super) queue_rows: Map<QueueName, QueueRow>,
    pub(super) queues: Map<QueueRow, Queue>,
    pub(super) client_rows: Map<ClientId, ClientRow>,
    pub(super) clients: Map<ClientRow, ClientId>,
    pub(super) lines: Map<(QueueRow, ClientRow), Line>,
    changed_lines: Set<(QueueRow, ClientRow)>,
    pub(super) leases: Map<i64, Lease>,
    /// Ends of leases in their order, with the job's `seq`.
    pub(super) lease_ends: BTreeSet<(Duration, i64)>,
    /// When the next parked job is due.
    pub(super) next_due: Option<Timestamp>,
    next_seq: i64,
    next_n: i64,
    /// The latest deadline of the jobs whose deadlines are in order.
    in_order_to: i64,
    /// As they are in the file: `next_seq` and `in_order_to` ahead of what was used.
    saved_counters: (i64, i64, i64),
    /// No row before this one has a deadline that is in order.
    pub(super) first_in_order: i64,
    pub(super) ids: Ids,
    /// Tells receipts of this opening of the store from those of any other.
    epoch: u64,
    next_lease: u64,
}

/// A queue: its policy and the clients that have work, in their turn.
pub(super) struct Queue {
    pub(super) name: QueueName,
    pub(super) policy: QueuePolicy,
    pub(super) turns: VecDeque<ClientRow>,
}

/// One client's part of one queue.
#[derive(Default)]
pub(super) struct Line {
    pub(super) waiting: u64,
    pub(super) parked: u64,
    pub(super) running: u32,
    /// How many more jobs its turn is good for.
    pub(super) credit: u32,
    /// Whether it stands in `Queue::turns`.
    pub(super) in_turn: bool,
}

/// A job in a worker's hands.
pub(super) struct Lease {
    pub(super) number: u64,
    /// The job in the run that was leased, without its payload.
    pub(super) job: Job,
    pub(super) line: (QueueRow, ClientRow),
    pub(super) until: Duration,
    pub(super) started: Duration,
    /// Set when the run ended while the worker held it.
    pub(super) ended: Option<Outcome>,
}

impl State {
    /// Rebuilds everything from the file. Leases start afresh: jobs that were leased wait again, with their attempts.
    pub(super) fn load(conn: &Connection, recent: Arc<Recent>) -> Result<Self, BrokerError> {
        let sql = |e| unavailable(e, "load store");
        let (next_seq, next_n, in_order_to) = conn
            .query_row("SELECT next_seq, next_n, in_order_to FROM counters WHERE id = 1", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .map_err(sql)?;
        let epoch = Uuid::now_v7().as_u128();
        let mut state = Self {
            next_seq,
            next_n,
            in_order_to,
            saved_counters: (next_seq, next_n, in_order_to),
            first_in_order: next_seq,
            ids: Ids::load(conn, recent)?,
            epoch: u64::try_from(epoch & u128::from(u64::MAX)).unwrap_or(0),
            ..Self::default()
        };
        state.load_names(conn)?;
        conn.execute_batch("BEGIN IMMEDIATE").map_err(sql)?;
        let loaded = state.load_lines(conn).and_then(|()| state.save(conn));
        conn.execute_batch(if loaded.is_ok() { "COMMIT" } else { "ROLLBACK" }).map_err(sql)?;
        loaded?;
        state.next_due = next_due(conn)?;
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
            self.queues.insert(id, Queue { name, policy, turns: VecDeque::new() });
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

    fn load_lines(&mut self, conn: &Connection) -> Result<(), BrokerError> {
        let sql = |e| unavailable(e, "load store");
        let mut lines = conn.prepare("SELECT queue, client, waiting, parked FROM lines").map_err(sql)?;
        let lines: Vec<(i64, i64, u64, u64)> = lines
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
            .and_then(Iterator::collect)
            .map_err(sql)?;
        for (queue, client, waiting, parked) in lines {
            let returned = conn
                .prepare_cached("UPDATE jobs SET state = 0 WHERE queue = ?1 AND client = ?2 AND state = 1")
                .and_then(|mut update| update.execute([queue, client]))
                .map_err(sql)?;
            let line = Line { waiting: waiting + returned as u64, parked, ..Line::default() };
            if line.waiting + line.parked > 0 {
                // One look at the index for each of the two states.
                let first: Option<i64> = conn
                    .prepare_cached(
                        "SELECT min(coalesce(w.seq, p.seq), coalesce(p.seq, w.seq)) FROM
                         (SELECT MIN(seq) AS seq FROM jobs WHERE queue = ?1 AND client = ?2 AND state = 0) AS w,
                         (SELECT MIN(seq) AS seq FROM jobs WHERE queue = ?1 AND client = ?2 AND state = 2) AS p",
                    )
                    .and_then(|mut query| query.query_row([queue, client], |row| row.get(0)))
                    .map_err(sql)?;
                self.first_in_order = first.map_or(self.first_in_order, |first| first.min(self.first_in_order));
            }
            self.lines.insert((queue, client), line);
            self.line_changed((queue, client));
        }
        Ok(())
    }

    /// Writes what a commit must hold beside the rows that operations wrote.
    pub(super) fn save(&mut self, conn: &Connection) -> Result<(), BrokerError> {
        let sql = |e| unavailable(e, "save counters");
        let (seq, n, in_order) = self.saved_counters;
        let counters = (
            if self.next_seq > seq { self.next_seq + SEQ_AHEAD } else { seq },
            self.next_n,
            if self.in_order_to > in_order { self.in_order_to + IN_ORDER_AHEAD_MS } else { in_order },
        );
        if counters != (seq, n, in_order) {
            conn.prepare_cached("UPDATE counters SET next_seq = ?1, next_n = ?2, in_order_to = ?3 WHERE id = 1")
                .and_then(|mut update| update.execute(counters))
                .map_err(sql)?;
            self.saved_counters = counters;
        }
        for (queue, client) in self.changed_lines.drain() {
            let Some(line) = self.lines.get(&(queue, client)) else { continue };
            conn.prepare_cached("INSERT OR REPLACE INTO lines(queue, client, waiting, parked) VALUES(?1, ?2, ?3, ?4)")
                .and_then(|mut update| update.execute(params![queue, client, line.waiting, line.parked]))
                .map_err(sql)?;
        }
        Ok(())
    }

    /// Gives the line a turn if it has work, and marks it to be saved.
    pub(super) fn line_changed(&mut self, key: (QueueRow, ClientRow)) {
        self.changed_lines.insert(key);
        if let (Some(line), Some(queue)) = (self.lines.get_mut(&key), self.queues.get_mut(&key.0))
            && line.waiting > 0
            && !line.in_turn
        {
            line.in_turn = true;
            line.credit = 0;
            queue.turns.push_back(key.1);
        }
    }

    /// The queue of this name. `NotFound` says what to do.
    pub(super) fn queue(&self, name: &QueueName) -> Result<(QueueRow, &Queue), BrokerError> {
        let found = self.queue_rows.get(name).and_then(|row| self.queues.get(row).map(|queue| (*row, queue)));
        found.ok_or_else(|| {
            BrokerError::new(BrokerErrorKind::NotFound, "find queue", format!("there is no queue `{name}`"))
        })
    }

    /// The client's row, made at its first job.
    pub(super) fn client_row(&mut self, conn: &Connection, name: &ClientId) -> Result<ClientRow, BrokerError> {
        if let Some(row) = self.client_rows.get(name) {
            return Ok(*row);
        }
        let sql = |e| unavailable(e, "add client");
        conn.execute("INSERT INTO clients(name) VALUES(?1)", [name.as_str()]).map_err(sql)?;
        let row = conn.last_insert_rowid();
        self.client_rows.insert(name.clone(), row);
        self.clients.insert(row, name.clone());
        Ok(row)
    }

    pub(super) fn line(&mut self, key: (QueueRow, ClientRow)) -> &mut Line {
        self.lines.entry(key).or_default()
    }

    /// The newest `seq` that was given.
    pub(super) fn last_seq(&self) -> i64 {
        self.next_seq - 1
    }

    pub(super) fn take_seq(&mut self) -> i64 {
        self.next_seq += 1;
        self.next_seq - 1
    }

    /// Whether the deadline of a job that is being added is in order: no job before it that is has a later one.
    pub(super) fn takes_in_order(&mut self, deadline: Timestamp) -> bool {
        let in_order = deadline.as_millis() >= self.in_order_to;
        if in_order {
            self.in_order_to = deadline.as_millis();
        }
        in_order
    }

    pub(super) fn take_n(&mut self) -> i64 {
        self.next_n += 1;
        self.next_n - 1
    }

    /// A number for a lease that no other lease of any opening of this store has, with the epoch before it.
    pub(super) fn take_lease(&mut self) -> u64 {
        self.next_lease += 1;
        self.next_lease - 1
    }

    /// What a receipt holds: epoch, lease number, `seq`.
    pub(super) fn token(&self, number: u64, seq: i64) -> Vec<u8> {
        [self.epoch.to_be_bytes(), number.to_be_bytes(), seq.to_be_bytes()].concat()
    }

    /// The `seq` of the lease a receipt names, if that lease still stands. Job, run and queue must be the lease's own:
    /// a worker is granted queues by name, so a token alone must not open another queue's lease.
    pub(super) fn leased_seq(&self, receipt: &Receipt) -> Result<i64, BrokerError> {
        let lost = || BrokerError::new(BrokerErrorKind::LeaseLost, "find lease", "the lease ended before");
        let (epoch, rest) = receipt.token.split_first_chunk::<8>().ok_or_else(lost)?;
        let (number, rest) = rest.split_first_chunk::<8>().ok_or_else(lost)?;
        let seq = i64::from_be_bytes(rest.try_into().map_err(|_| lost())?);
        let stands = u64::from_be_bytes(*epoch) == self.epoch
            && self.leases.get(&seq).is_some_and(|lease| {
                let queue = self.queues.get(&lease.line.0);
                lease.number == u64::from_be_bytes(*number)
                    && (lease.job.id, lease.job.run_id) == (receipt.job_id, receipt.run_id)
                    && queue.is_some_and(|queue| queue.name == receipt.queue)
            });
        stands.then_some(seq).ok_or_else(lost)
    }

    /// Moves the end of a lease.
    pub(super) fn extend_lease(&mut self, seq: i64, until: Duration) {
        if let Some(lease) = self.leases.get_mut(&seq) {
            self.lease_ends.remove(&(lease.until, seq));
            lease.until = until;
            self.lease_ends.insert((until, seq));
        }
    }

    /// Takes a lease away.
    pub(super) fn end_lease(&mut self, seq: i64) -> Option<Lease> {
        let lease = self.leases.remove(&seq)?;
        self.lease_ends.remove(&(lease.until, seq));
        if let Some(line) = self.lines.get_mut(&lease.line) {
            line.running = line.running.saturating_sub(1);
        }
        Some(lease)
    }

    /// A parked job is due at `due`: wake up for it.
    pub(super) fn note_due(&mut self, due: Timestamp) {
        self.next_due = Some(self.next_due.map_or(due, |next| next.min(due)));
    }
}

/// When the next parked job is due.
pub(super) fn next_due(conn: &Connection) -> Result<Option<Timestamp>, BrokerError> {
    conn.prepare_cached("SELECT due_at FROM jobs WHERE state = 2 ORDER BY due_at LIMIT 1")
        .and_then(|mut query| query.query_row([], |row| row.get(0)).optional())
        .map(|due: Option<i64>| due.map(Timestamp::from_millis))
        .map_err(|e| unavailable(e, "find due jobs"))
}

/// An envelope in the store that this build can't read. A newer relay's is no damage: an upgrade reads it.
pub(super) fn unreadable(source: EnvelopeError) -> BrokerError {
    match source {
        EnvelopeError::Newer { found } => {
            let why = format!("a newer relay wrote it (version {found}, this one reads up to {NEWEST}): upgrade");
            BrokerError::new(BrokerErrorKind::NewerVersion { found, newest: NEWEST }, "read store", why)
        }
        EnvelopeError::Malformed(_) => damaged(source),
    }
}

/// A value in the store that no relay wrote.
pub(super) fn damaged(source: impl std::error::Error + Send + Sync + 'static) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Corrupt, "read store", "the store is damaged: run `relay store check`")
        .with_source(source)
}
