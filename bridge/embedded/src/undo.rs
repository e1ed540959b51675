//! The changes that one step of the writer made in memory. If its transaction is not committed, all of them are taken
//! back: leases, lines, turns and ids are then what they were before, and nobody but the callers of that step notices.

use std::collections::VecDeque;

use rusqlite::Connection;

use super::change::Change;
use super::lines::{ClientRow, QueueRow};
use super::state::State;
use relay_bridge::contract::JobId;
use relay_bridge::error::BrokerError;

impl State {
    /// The changes from now on belong to one step.
    pub(super) fn begin_step(&mut self) {
        self.undo.changes.clear();
        self.undo.counters = self.counters;
        self.lines.begin_step();
        self.parked.clear();
        self.ids.begin_step();
    }

    /// How much the step has changed up to now.
    pub(super) fn changes(&self) -> usize {
        self.undo.changes.len() + self.lines.touched()
    }

    /// Takes back what the step changed.
    pub(super) fn undo_step(&mut self) {
        let changes = std::mem::take(&mut self.undo.changes);
        for change in changes.into_iter().rev() {
            self.undo(change);
        }
        self.lines.undo_step();
        self.parked.clear();
        self.ids.undo_step();
        self.counters = self.undo.counters;
    }

    fn undo(&mut self, change: Change) {
        match change {
            Change::Lease(seq, before) => {
                if let Some(now) = self.leases.remove(&seq) {
                    self.lease_ends.remove(&(now.until, seq));
                }
                if let Some(before) = before {
                    self.lease_ends.insert((before.until, seq));
                    self.leases.insert(seq, before);
                }
            }
            Change::TurnTaken(queue, client) => self.turns(queue, |turns| turns.push_front(client)),
            Change::TurnKept(queue) => self.turns(queue, |turns| {
                turns.pop_front();
            }),
            Change::TurnGiven(queue) => self.turns(queue, |turns| {
                turns.pop_back();
            }),
            Change::ClientAdded(row) => {
                if let Some(name) = self.clients.remove(&row) {
                    self.client_rows.remove(&name);
                }
            }
            Change::QueueAdded(row) => {
                if let Some(queue) = self.queues.remove(&row) {
                    self.queue_rows.remove(&queue.name);
                }
            }
            Change::Policy(row, before) => {
                if let Some(queue) = self.queues.get_mut(&row) {
                    queue.policy = *before;
                }
            }
            // The file knows, once the result is gone from it.
            Change::Numbered(client) => drop(self.last_n.remove(&client)),
            Change::IdAdded(id) => self.ids.forget(id),
            Change::IdRemoved(id, seq) => self.ids.add(id, seq),
        }
    }

    fn turns(&mut self, queue: QueueRow, change: impl FnOnce(&mut VecDeque<ClientRow>)) {
        if let Some(queue) = self.queues.get_mut(&queue) {
            change(&mut queue.turns);
        }
    }

    /// Adds an id that leads to `seq`.
    pub(super) fn add_id(&mut self, id: JobId, seq: i64) {
        self.ids.add(id, seq);
        self.undo.note(Change::IdAdded(id));
    }

    /// Removes the id of a row that is being removed.
    pub(super) fn remove_id(&mut self, conn: &Connection, id: JobId, seq: i64) -> Result<(), BrokerError> {
        if self.ids.is_recent(id) {
            self.undo.note(Change::IdRemoved(id, seq));
        }
        self.ids.remove(conn, id, seq)
    }
}
