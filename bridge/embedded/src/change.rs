//! The changes that one step of the writer makes in memory, with what it takes to take them back.

use super::lease::Lease;
use super::lines::{ClientRow, QueueRow};
use relay_bridge::contract::{JobId, Timestamp};
use relay_bridge::policy::QueuePolicy;

/// The changes of the step that is being run, in their order.
#[derive(Default)]
pub(super) struct Undo {
    pub(super) counters: Counters,
    pub(super) changes: Vec<Change>,
}

/// The numbers that a step may move.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    /// When the next parked job is due.
    pub(super) next_due: Option<Timestamp>,
    pub(super) next_seq: i64,
    /// The number of all results, and one.
    pub(super) next_n: i64,
    /// The latest deadline of the jobs whose deadlines are in order.
    pub(super) in_order_to: i64,
    /// As they are in the file: `next_seq` and `in_order_to` ahead of what was used.
    pub(super) saved: (i64, i64, i64),
    /// No row before this one has a deadline that is in order.
    pub(super) first_in_order: i64,
}

/// One change, with what it takes to undo it.
pub(super) enum Change {
    /// The lease of a row as it was before; `None` if there was none.
    Lease(i64, Option<Lease>),
    /// The client was taken from the front of the queue's turns.
    TurnTaken(QueueRow, ClientRow),
    /// A client was put at the front.
    TurnKept(QueueRow),
    /// A client was put at the end.
    TurnGiven(QueueRow),
    ClientAdded(ClientRow),
    QueueAdded(QueueRow),
    Policy(QueueRow, Box<QueuePolicy>),
    /// A result of the client took its place.
    Numbered(ClientRow),
    IdAdded(JobId),
    IdRemoved(JobId, i64),
}

impl Undo {
    pub(super) fn note(&mut self, change: Change) {
        self.changes.push(change);
    }
}
