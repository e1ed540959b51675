//! Chooses the next job. Within a queue the clients that have work take turns, each turn as long as its weight (deficit
//! round robin with every job of cost one), so a backlog delays only its own client. Taking a job is one index lookup,
//! however many jobs wait behind it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::params;
use tracing::{error, warn};

use super::change::Change;
use super::grant::{Grant, Pending};
use super::lease::{Lease, token};
use super::lines::{Key, QueueRow};
use super::row::{JobRow, LEASED, PARKED, WAITING, job_columns};
use super::sql::unavailable;
use super::writer::{After, Writer};
use relay_bridge::contract::envelope::{EnvelopeError, decode_job};
use relay_bridge::contract::{Job, JobId, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::{Delivery, LEASE_BYTES_MAX, Receipt, Taking};

/// The most `lease` calls that wait at once.
pub(super) const PENDING_MAX: usize = 16 * 1024;
/// How long a job whose envelope this build can't read is set aside before it is offered again.
pub(super) const UNREADABLE_FOR: Duration = Duration::from_secs(30);
/// The most leases and due jobs looked at in one commit.
const STEP_MAX: usize = 512;

impl Writer {
    /// Ends leases whose time is over, takes back leases nobody took, and puts due jobs in line.
    pub(super) fn run_due_work(&mut self) -> Result<(), BrokerError> {
        for at in 0..self.take_abandoned() {
            if let Some(Ok(seq)) = self.abandoned.get(at).map(|receipt| self.state.leased_seq(receipt)) {
                self.put_back(seq, Duration::ZERO, true)?;
            }
        }
        let now = self.clock.monotonic();
        for _ in 0..STEP_MAX {
            let Some((_, seq)) = self.state.lease_ends.first().copied().filter(|(until, _)| *until <= now) else {
                break;
            };
            self.put_back(seq, Duration::ZERO, false)?;
        }
        self.wake_due()
    }

    fn wake_due(&mut self) -> Result<(), BrokerError> {
        let now = self.clock.now();
        if self.state.counters.next_due.is_none_or(|due| due > now) {
            return Ok(());
        }
        self.begin()?;
        let sql = |e| unavailable(e, "wake due jobs");
        let due: Vec<(i64, Key, i64)> = {
            let mut query = self
                .conn
                .prepare_cached(
                    "SELECT seq, queue, client, due_at FROM jobs WHERE state = 2 AND due_at <= ?1 ORDER BY due_at LIMIT ?2",
                )
                .map_err(sql)?;
            let rows = query.query_map(params![now.as_millis(), STEP_MAX], |row| {
                Ok((row.get(0)?, (row.get(1)?, row.get(2)?), row.get(3)?))
            });
            rows.and_then(Iterator::collect).map_err(sql)?
        };
        for (seq, line, due_at) in due {
            self.conn
                .prepare_cached("UPDATE jobs SET state = 0 WHERE seq = ?1")
                .and_then(|mut update| update.execute([seq]))
                .map_err(sql)?;
            self.state.unpark(line, Timestamp::from_millis(due_at));
            self.state.lines.at(line).waiting += 1;
            self.state.line_changed(line);
        }
        self.state.counters.next_due = super::state::next_due(&self.conn)?;
        Ok(())
    }

    /// Ends a lease and puts its job back in line, or aside for `after`. The run may have ended meanwhile.
    pub(super) fn put_back(&mut self, seq: i64, after: Duration, refund: bool) -> Result<(), BrokerError> {
        let Some(lease) = self.let_go(seq, !refund) else { return Ok(()) };
        // The line may have waited for `max_running`.
        self.state.line_changed(lease.line);
        if lease.ended.is_some() {
            return Ok(());
        }
        self.begin()?;
        // Its worker gave a letter and hands the job back: the next attempt has the same number, and knows of none.
        if refund && (lease.has_letter || lease.known.is_none()) && self.remove_dead_letter(lease.job, lease.run)? {
            self.done.letters_retracted += 1;
        }
        let due = self.clock.now() + after;
        let state = if after.is_zero() { WAITING } else { PARKED };
        self.conn
            .prepare_cached("UPDATE jobs SET state = ?2, attempt = max(attempt - ?3, 0), due_at = ?4 WHERE seq = ?1")
            .and_then(|mut update| update.execute(params![seq, state, i64::from(refund), due.as_millis()]))
            .map_err(|e| unavailable(e, "put back"))?;
        self.join_line(lease.line, state, due);
        Ok(())
    }

    /// Serves waiting `lease` calls in their order; answers those whose time is over with nothing.
    pub(super) fn serve_pending(&mut self, after: &mut Vec<After>) -> Result<(), BrokerError> {
        let now = self.clock.monotonic();
        let mut given = 0;
        for _ in 0..self.pending.len() {
            // Heartbeats and submissions do not wait until all of a backlog of large jobs is read.
            if given >= LEASE_BYTES_MAX {
                self.again = true;
                break;
            }
            let Some(pending) = self.pending.pop_front() else { break };
            if pending.reply.is_closed() {
                continue;
            }
            let mut taking = Taking::up_to(usize::try_from(pending.max.get()).unwrap_or(usize::MAX));
            let taken = self.take(&pending, &mut taking);
            given += taking.bytes();
            let failed = taken.as_ref().err().map(BrokerError::kind);
            if taken.is_ok() && taking.is_empty() && pending.deadline > now {
                self.pending.push_back(pending);
                continue;
            }
            let Pending { reply, give_back, .. } = pending;
            let result = taken.map(|()| Grant::new(taking.take(), give_back));
            after.push(Box::new(move |decided| {
                let answer = match decided {
                    Ok(()) => result,
                    Err(failure) => {
                        // Rolled back: there is nothing to give back.
                        drop(result.map(Grant::take));
                        Err(failure.clone())
                    }
                };
                drop(reply.send(answer));
            }));
            if matches!(failed, Some(BrokerErrorKind::Unavailable | BrokerErrorKind::Corrupt)) {
                return Err(BrokerError::new(BrokerErrorKind::Unavailable, "lease", "the store did not do it"));
            }
        }
        Ok(())
    }

    fn take(&mut self, pending: &Pending, taking: &mut Taking) -> Result<(), BrokerError> {
        // All names first: nothing may be leased for a call that is then refused.
        let queues: Vec<(QueueRow, bool)> = pending
            .queues
            .iter()
            .map(|name| self.state.queue(name).map(|(queue, found)| (queue, found.policy.paused)))
            .collect::<Result<_, _>>()?;
        for queue in queues.into_iter().filter_map(|(queue, paused)| (!paused).then_some(queue)) {
            self.take_from(queue, pending.is_here, taking)?;
            if taking.left() == 0 {
                break;
            }
        }
        Ok(())
    }

    fn take_from(&mut self, queue: QueueRow, is_here: bool, taking: &mut Taking) -> Result<(), BrokerError> {
        let mut passed_over = 0;
        while taking.left() > 0 {
            let Some(found) = self.state.queues.get_mut(&queue) else { return Ok(()) };
            if passed_over >= found.turns.len() {
                return Ok(());
            }
            let Some(client) = found.turns.pop_front() else { return Ok(()) };
            self.state.undo.note(Change::TurnTaken(queue, client));
            let policy =
                self.state.clients.get(&client).map_or(&found.policy.client_defaults, |name| found.policy.client(name));
            let (weight, max_running) = (policy.weight.max(1), policy.max_running);
            let line = self.state.lines.at((queue, client));
            let room = u64::from(max_running.saturating_sub(line.running));
            if line.waiting == 0 {
                line.in_turn = false;
                continue;
            }
            if room == 0 {
                found.turns.push_back(client);
                self.state.undo.note(Change::TurnGiven(queue));
                passed_over += 1;
                continue;
            }
            passed_over = 0;
            if line.credit == 0 {
                line.credit = weight;
            }
            let wanted = u64::from(line.credit).min(line.waiting).min(room).min(taking.left() as u64);
            let taken = self.lease_rows((queue, client), wanted, is_here, taking)?;
            let Some(found) = self.state.queues.get_mut(&queue) else { return Ok(()) };
            let line = self.state.lines.at((queue, client));
            if taken < wanted && taking.left() > 0 {
                error!(queue = %found.name, counted = line.waiting, "fewer jobs wait than were counted: run `relay store check`");
                line.waiting = taken;
            }
            line.waiting -= taken;
            line.credit = line.credit.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
            if line.waiting == 0 {
                line.in_turn = false;
            } else if line.credit == 0 {
                found.turns.push_back(client);
                self.state.undo.note(Change::TurnGiven(queue));
            } else {
                found.turns.push_front(client);
                self.state.undo.note(Change::TurnKept(queue));
            }
            self.state.line_changed((queue, client));
        }
        Ok(())
    }

    /// Leases the oldest `wanted` waiting jobs of one line, as far as they fit. Answers how many rows left the line.
    fn lease_rows(
        &mut self,
        (queue, client): Key,
        wanted: u64,
        is_here: bool,
        taking: &mut Taking,
    ) -> Result<u64, BrokerError> {
        let sql = |e| unavailable(e, "lease");
        self.begin()?;
        let rows: Vec<(JobRow, Vec<u8>)> = {
            let mut query = self
                .conn
                .prepare_cached(concat!(
                    "SELECT ",
                    job_columns!(),
                    ", p.envelope FROM jobs AS j INDEXED BY jobs_line JOIN payloads AS p ON p.seq = j.seq
                     WHERE j.queue = ?1 AND j.client = ?2 AND j.state = 0 ORDER BY j.seq LIMIT ?3"
                ))
                .map_err(sql)?;
            let mut found = query.query(params![queue, client, wanted]).map_err(sql)?;
            let mut rows = Vec::new();
            while let Some(row) = found.next().map_err(sql)? {
                let job = JobRow::read(row).map_err(sql)?;
                // The envelope of one that does not fit is not read.
                if !taking.fits(job.size) {
                    break;
                }
                rows.push((job, row.get(17).map_err(sql)?));
            }
            rows
        };
        let taken = rows.len() as u64;
        let (now, monotonic) = (self.clock.now(), self.clock.monotonic());
        let held = self.state.queues.get(&queue).map_or(Duration::from_secs(30), |queue| queue.policy.lease);
        for (row, envelope) in rows {
            let attempt = row.attempt + 1;
            let job = match decode_job(&envelope.into()) {
                Ok(job) => job,
                Err(unreadable) => {
                    self.set_aside(&row, &unreadable)?;
                    continue;
                }
            };
            let job = row.in_current_run(job);
            let number = self.state.take_lease();
            self.conn
                .prepare_cached(
                    "UPDATE jobs SET state = ?2, attempt = ?3, started_at = ?4, lease = ?5, lease_here = ?6
                     WHERE seq = ?1",
                )
                .and_then(|mut update| {
                    update.execute(params![row.seq, LEASED, attempt, now.as_millis(), number, is_here])
                })
                .map_err(sql)?;
            let lease = Lease {
                number,
                job: row.id,
                run: row.run,
                known: Some(Arc::new(Job { payload: Bytes::new(), ..job.clone() })),
                line: (queue, client),
                until: monotonic + held,
                started: monotonic,
                held_before: Duration::ZERO,
                ended: None,
                has_letter: false,
            };
            self.state.begin_lease(row.seq, lease);
            let receipt = Receipt {
                job_id: row.id,
                run_id: row.run,
                client: job.client.clone(),
                queue: job.queue.clone(),
                token: token(number, row.seq),
            };
            taking.push(Delivery { job, receipt, attempt, leased_at: now, lease: held });
        }
        Ok(taken)
    }

    /// A job that this build can't read spends no attempt and is never dead-lettered: a newer relay may read it.
    fn set_aside(&mut self, row: &JobRow, unreadable: &EnvelopeError) -> Result<(), BrokerError> {
        let job: JobId = row.id;
        match unreadable {
            EnvelopeError::Newer { found } => {
                warn!(job_id = %job, version = found, "job of a newer relay set aside");
                self.note_newer();
            }
            EnvelopeError::Malformed(what) => {
                error!(job_id = %job, %what, "damaged job set aside: run `relay store check`")
            }
        }
        let due = self.clock.now() + UNREADABLE_FOR;
        self.conn
            .prepare_cached("UPDATE jobs SET state = ?2, due_at = ?3 WHERE seq = ?1")
            .and_then(|mut update| update.execute(params![row.seq, PARKED, due.as_millis()]))
            .map_err(|e| unavailable(e, "set aside"))?;
        self.state.park((row.queue, row.client), due);
        Ok(())
    }
}
