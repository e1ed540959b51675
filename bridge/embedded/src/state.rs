//! The writer's state in memory: queues, clients, the clients that have work, and leases. It grows with running jobs
//! and with the number of clients, never with waiting jobs, and can be [rebuilt](super::load) from the file.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, params};

use super::change::{Change, Counters, Undo};
use super::ids::Ids;
use super::lease::{Ended, Lease, read_token};
use super::lines::{ClientRow, Key, Lines, QueueRow};
use super::map::Map;
use super::parked::Parked;
use super::sql::unavailable;
use relay_bridge::contract::envelope::{EnvelopeError, NEWEST};
use relay_bridge::contract::{ClientId, Outcome, QueueName, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::Receipt;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::rules::refusal::no_queue;

/// Counters are saved ahead of what was used, so that most commits need not touch their page. After a restart so many
/// places in line are left out at most, and so many milliseconds of deadlines count as out of order.
const SEQ_AHEAD: i64 = 4_096;
const IN_ORDER_AHEAD_MS: i64 = 10_000;

#[derive(Default)]
pub(super) struct State {
    pub(super) queue_rows: Map<QueueName, QueueRow>,
    pub(super) queues: Map<QueueRow, Queue>,
    pub(super) client_rows: Map<ClientId, ClientRow>,
    pub(super) clients: Map<ClientRow, ClientId>,
    pub(super) lines: Lines,
    pub(super) parked: Parked,
    pub(super) leases: Map<i64, Lease>,
    /// Ends of leases in their order, with the job's `seq`.
    pub(super) lease_ends: BTreeSet<(Duration, i64)>,
    pub(super) counters: Counters,
    pub(super) ids: Ids,
    /// The changes to all this by the step that is being run.
    pub(super) undo: Undo,
    /// The last number in the log of each client that had a result since the store was opened.
    pub(super) last_n: Map<ClientRow, i64>,
    /// The number of the next lease. It starts at random with each opening of the store.
    pub(super) next_lease: i64,
}

/// A queue: its policy and the clients that have work, in their turn.
pub(super) struct Queue {
    pub(super) name: QueueName,
    pub(super) policy: QueuePolicy,
    pub(super) turns: VecDeque<ClientRow>,
    pub(super) ended: Ended,
}

impl Lease {
    /// Until when it may be held if it is extended `now`.
    pub(super) fn extended(&self, now: Duration, policy: &QueuePolicy) -> Duration {
        (now + policy.lease).min(self.started + policy.lease_max.saturating_sub(self.held_before))
    }
}

impl State {
    /// Writes what a commit must hold beside the rows that operations wrote.
    pub(super) fn save(&mut self, conn: &Connection) -> Result<(), BrokerError> {
        let sql = |e| unavailable(e, "save counters");
        let used = &mut self.counters;
        let (seq, n, in_order) = used.saved;
        let counters = (
            if used.next_seq > seq { used.next_seq + SEQ_AHEAD } else { seq },
            used.next_n,
            if used.in_order_to > in_order { used.in_order_to + IN_ORDER_AHEAD_MS } else { in_order },
        );
        if counters != (seq, n, in_order) {
            conn.prepare_cached(
                "UPDATE counters SET next_seq = ?1, next_n = ?2, own_n = ?2, in_order_to = ?3 WHERE id = 1",
            )
            .and_then(|mut update| update.execute(counters))
            .map_err(sql)?;
            used.saved = counters;
        }
        for ((queue, client), [waiting, parked, stored]) in self.lines.changed() {
            conn.prepare_cached(
                "INSERT OR REPLACE INTO lines(queue, client, waiting, parked, stored) VALUES(?1, ?2, ?3, ?4, ?5)",
            )
            .and_then(|mut update| update.execute(params![queue, client, waiting, parked, stored]))
            .map_err(sql)?;
        }
        self.lines.saved();
        self.parked.save(conn)
    }

    /// Gives the line a turn if it has work.
    pub(super) fn line_changed(&mut self, key: Key) {
        let (line, queue) = (self.lines.at(key), self.queues.get_mut(&key.0));
        if let Some(queue) = queue.filter(|_| line.waiting > 0 && !line.in_turn) {
            line.in_turn = true;
            line.credit = 0;
            queue.turns.push_back(key.1);
            self.undo.note(Change::TurnGiven(key.0));
        }
    }

    /// The queue of this name. `NotFound` says what to do.
    pub(super) fn queue(&self, name: &QueueName) -> Result<(QueueRow, &Queue), BrokerError> {
        let found = self.queue_rows.get(name).and_then(|row| self.queues.get(row).map(|queue| (*row, queue)));
        found.ok_or_else(|| no_queue("find queue", name))
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
        self.undo.note(Change::ClientAdded(row));
        Ok(row)
    }

    /// Sets the policy of a queue, which may be new.
    pub(super) fn set_policy(&mut self, row: QueueRow, name: &QueueName, policy: QueuePolicy) {
        match self.queues.get_mut(&row) {
            Some(queue) => {
                let before = std::mem::replace(&mut queue.policy, policy);
                self.undo.note(Change::Policy(row, Box::new(before)));
            }
            None => {
                self.queue_rows.insert(name.clone(), row);
                self.queues
                    .insert(row, Queue { name: name.clone(), policy, turns: VecDeque::new(), ended: Ended::default() });
                self.undo.note(Change::QueueAdded(row));
            }
        }
    }

    /// The newest `seq` that was given.
    pub(super) fn last_seq(&self) -> i64 {
        self.counters.next_seq - 1
    }

    pub(super) fn take_seq(&mut self) -> i64 {
        self.counters.next_seq += 1;
        self.counters.next_seq - 1
    }

    /// Whether the deadline of a job that is being added is in order: no job before it that is has a later one.
    pub(super) fn takes_in_order(&mut self, deadline: Timestamp) -> bool {
        let in_order = deadline.as_millis() >= self.counters.in_order_to;
        if in_order {
            self.counters.in_order_to = deadline.as_millis();
        }
        in_order
    }

    /// The next place in the client's log. Other clients' results do not move it, so a cursor tells nothing of them.
    pub(super) fn take_n(&mut self, conn: &Connection, client: ClientRow) -> Result<i64, BrokerError> {
        let last = match self.last_n.get(&client) {
            Some(last) => *last,
            None => last_n(conn, client)?,
        };
        self.last_n.insert(client, last + 1);
        self.undo.note(Change::Numbered(client));
        self.counters.next_n += 1;
        Ok(last + 1)
    }

    /// A number that no other lease of the same row has, in any opening of this store.
    pub(super) fn take_lease(&mut self) -> i64 {
        self.next_lease += 1;
        self.next_lease - 1
    }

    /// The `seq` of the lease a receipt names, if that lease still stands. Job, run and queue must be the lease's own:
    /// a worker is granted queues by name, so a token alone must not open another queue's lease.
    pub(super) fn leased_seq(&self, receipt: &Receipt) -> Result<i64, BrokerError> {
        let lost = || BrokerError::new(BrokerErrorKind::LeaseLost, "find lease", "the lease ended before");
        let (number, seq) = read_token(receipt).ok_or_else(lost)?;
        let stands = self.leases.get(&seq).is_some_and(|lease| {
            let (queue, client) = (self.queues.get(&lease.line.0), self.clients.get(&lease.line.1));
            lease.number == number
                && (lease.job, lease.run) == (receipt.job_id, receipt.run_id)
                && queue.is_some_and(|queue| queue.name == receipt.queue)
                && client.is_some_and(|client| *client == receipt.client)
        });
        stands.then_some(seq).ok_or_else(lost)
    }

    /// Adds a lease that was not there.
    pub(super) fn begin_lease(&mut self, seq: i64, lease: Lease) {
        self.lines.at(lease.line).running += 1;
        self.lease_ends.insert((lease.until, seq));
        self.leases.insert(seq, lease);
        self.undo.note(Change::Lease(seq, None));
    }

    /// The run of a leased job ended: its holder is told when it asks. `false` if nobody holds it.
    pub(super) fn end_leased_run(&mut self, seq: i64, outcome: Outcome) -> bool {
        let Some(lease) = self.leases.get_mut(&seq) else { return false };
        self.undo.note(Change::Lease(seq, Some(lease.clone())));
        lease.ended = Some(outcome);
        true
    }

    /// Moves the end of a lease. Only between two steps: it is not undone.
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
        let line = self.lines.at(lease.line);
        line.running = line.running.saturating_sub(1);
        self.undo.note(Change::Lease(seq, Some(lease.clone())));
        Some(lease)
    }

    /// A job of the line is parked until `due`: wake up for it.
    pub(super) fn park(&mut self, line: Key, due: Timestamp) {
        self.lines.at(line).parked += 1;
        self.parked.add(line, due);
        self.counters.next_due = Some(self.counters.next_due.map_or(due, |next| next.min(due)));
    }

    /// A job of the line that was parked until `due` is not any more.
    pub(super) fn unpark(&mut self, line: Key, due: Timestamp) {
        self.parked.remove(line, due);
        let line = self.lines.at(line);
        line.parked = line.parked.saturating_sub(1);
    }
}

/// The last place in the client's log that was given, whether or not a result is there still.
pub(super) fn last_n(conn: &Connection, client: ClientRow) -> Result<i64, BrokerError> {
    conn.prepare_cached(
        "SELECT max(coalesce((SELECT max(n) FROM results WHERE client = ?1), 0), removed_n, from_n) FROM clients WHERE id = ?1",
    )
    .and_then(|mut query| query.query_row([client], |row| row.get(0)))
    .map_err(|e| unavailable(e, "number result"))
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
