//! The changes that one step of the writer made in memory. If its transaction is not committed, all of them are taken
//! back: leases, lines, turns and ids are then what they were before, and nobody but the callers of that step notices.

use std::collections::VecDeque;

use rusqlite::Connection;

use super::state::{ClientRow, Lease, QueueRow, State};
use crate::contract::{JobId, Timestamp};
use crate::error::BrokerError;
use crate::policy::QueuePolicy;

/// The changes of the step that is being run, in their order.
#[derive(Default)]
pub(super) struct Undo {
    counters: Counters,
    changes: Vec<Change>,
}

/// The numbers that a step may move.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    /// When the next parked job is due.
    pub(super) next_due: Option<Timestamp>,
    pub(super) next_seq: i64,
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
    IdAdded(JobId),
    IdRemoved(JobId, i64),
}

impl Undo {
    pub(super) fn note(&mut self, change: Change) {
        self.changes.push(change);
    }
}

impl State {
    /// The changes from now on belong to one step.
    pub(super) fn begin_step(&mut self) {
        self.undo.changes.clear();
        self.undo.counters = self.counters;
        self.lines.begin_step();
        self.ids.begin_step();
    }

    /// Takes back what the step changed.
    pub(super) fn undo_step(&mut self) {
        let changes = std::mem::take(&mut self.undo.changes);
        for change in changes.into_iter().rev() {
            self.undo(change);
        }
        self.lines.undo_step();
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

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::clock::Clock;
    use crate::contract::result::End;
    use crate::contract::{Failure, Job, JobResult, JobState, Outcome, QueueName, Submission};
    use crate::embedded::lines::Line;
    use crate::embedded::writer::Writer;
    use crate::embedded::{Embedded, EmbeddedConfig};
    use crate::error::BrokerErrorKind;
    use crate::job_queue::Depth;
    use crate::leasing::{Delivery, Held, LeaseRequest, Leasing as _, Recorded};
    use crate::settlement::Settlement;

    struct Store {
        clock: Clock,
        store: Embedded,
    }

    impl Store {
        async fn open(change: impl Fn(&mut QueuePolicy)) -> Self {
            let clock = Clock::manual(Timestamp::from_millis(1_790_000_000_000));
            let store = Embedded::open(EmbeddedConfig { clock: clock.clone(), ..Default::default() }).await.unwrap();
            let mut policy = QueuePolicy::default();
            change(&mut policy);
            store.broker().policies.put_policy(&"work".parse().unwrap(), &policy, None).await.unwrap();
            Self { clock, store }
        }

        fn job(&self, client: &str, key: Option<&str>, bytes: usize) -> Job {
            let submission = Submission {
                client: client.parse().unwrap(),
                queue: "work".parse().unwrap(),
                key: key.map(|key| key.parse().unwrap()),
                content_type: "text/plain".to_owned(),
                content_encoding: None,
                headers: Default::default(),
                payload: Bytes::from(vec![b'x'; bytes]),
                delay: Duration::ZERO,
                expires_in: None,
            };
            submission.accept(&QueuePolicy::default(), self.clock.now())
        }

        async fn submit(&self, client: &str) -> Job {
            let job = self.job(client, None, 10);
            self.store.broker().jobs.enqueue(job.clone()).await.unwrap();
            job
        }

        async fn lease(&self, max: u32) -> Vec<Delivery> {
            self.store.lease(&request(max)).await.unwrap()
        }

        fn result(&self, delivery: &Delivery) -> JobResult {
            let now = self.clock.now();
            let end = End { attempt: delivery.attempt, started_at: Some(now), finished_at: now };
            JobResult::succeeded(&delivery.job, end, "text/plain", Bytes::from_static(b"done"))
        }

        /// Lets the file grow no further, or again.
        async fn fill(&self, full: bool) {
            let set = move |writer: &mut Writer| {
                let pages: i64 = writer.conn.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
                let most = if full { pages } else { i64::from(i32::MAX) };
                writer.conn.query_row(&format!("PRAGMA max_page_count = {most}"), [], |_| Ok(())).unwrap();
                Ok(())
            };
            self.store.call(set).await.unwrap();
        }

        /// Lets every transaction fail that changes a line, at its end.
        async fn break_lines(&self, broken: bool) {
            let (from, to) = if broken { ("lines", "hidden") } else { ("hidden", "lines") };
            let rename = format!("ALTER TABLE {from} RENAME TO {to}");
            self.sql(&rename).await;
        }

        async fn sql(&self, text: &str) {
            let text = text.to_owned();
            let run = move |writer: &mut Writer| {
                writer.conn.execute_batch(&text).unwrap();
                Ok(())
            };
            self.store.call(run).await.unwrap();
        }

        /// Awaits calls that the writer finds in one batch.
        async fn in_one_batch<T>(&self, calls: impl Future<Output = T>) -> T {
            let (free, busy) = std::sync::mpsc::channel::<()>();
            let wait = move |_: &mut Writer| {
                busy.recv().unwrap();
                None
            };
            self.store.inbox().unwrap().send(Box::new(wait)).await.unwrap();
            // Each of the calls sends what it wants when it is polled first.
            tokio::join!(calls, async { free.send(()).unwrap() }).0
        }

        /// All that the writer has in memory.
        async fn picture(&self) -> Vec<String> {
            let picture = |writer: &mut Writer| {
                let state = &writer.state;
                let mut all: Vec<String> = Vec::new();
                all.extend(state.lines.iter().map(|(key, line)| {
                    let Line { waiting, parked, running, credit, in_turn, .. } = line;
                    format!("line {key:?}: {waiting} {parked} {running} {credit} {in_turn}")
                }));
                // A line that nobody is in may stay behind.
                all.retain(|line| !line.ends_with(": 0 0 0 0 false"));
                all.extend(state.leases.iter().map(|(seq, lease)| format!("lease {seq}: {lease:?}")));
                all.extend(state.queues.iter().map(|(row, queue)| format!("queue {row}: {:?}", queue.policy)));
                all.extend(state.queue_rows.iter().map(|row| format!("queue row {row:?}")));
                all.extend(state.clients.iter().map(|row| format!("client {row:?}")));
                all.extend(state.client_rows.iter().map(|row| format!("client row {row:?}")));
                all.sort();
                all.extend(state.queues.values().map(|queue| format!("turns {:?}", queue.turns)));
                all.push(format!("{:?}", state.lease_ends));
                all.push(format!("{:?}", state.counters));
                Ok(all)
            };
            self.store.call(picture).await.unwrap()
        }
    }

    fn request(max: u32) -> LeaseRequest {
        LeaseRequest {
            worker: "w1".parse().unwrap(),
            queues: vec!["work".parse().unwrap()],
            max: NonZeroU32::new(max).unwrap(),
            wait: Duration::ZERO,
        }
    }

    #[tokio::test]
    async fn a_step_that_is_not_committed_leaves_everything_in_memory_as_it_was() {
        let store = Store::open(|policy| policy.client_defaults.weight = 2).await;
        for client in ["a", "b", "a", "c", "b", "a", "a"] {
            store.submit(client).await;
        }
        let keyed = store.job("a", Some("key"), 10);
        store.store.broker().jobs.enqueue(keyed.clone()).await.unwrap();
        let held = store.lease(3).await;
        assert_eq!(held.len(), 3);
        store.store.record(&store.result(&held[0])).await.unwrap();
        let before = store.picture().await;

        // In one step: a new client, a new queue, all kinds of settlements, a cancel, a rerun, and a lease.
        let broker = store.store.broker();
        let (work, new): (QueueName, QueueName) = ("work".parse().unwrap(), "new".parse().unwrap());
        let policy = QueuePolicy { max_attempts: 77, ..QueuePolicy::default() };
        let seen = broker.policies.policy(&work).await.unwrap();
        let result = store.result(&held[1]);
        let back = Settlement::HandBack(Duration::from_secs(5));
        let request = request(5);
        store.break_lines(true).await;
        let failed = store.in_one_batch(async {
            tokio::join!(
                broker.jobs.enqueue(store.job("new", None, 10)),
                broker.leasing.record(&result),
                broker.leasing.settle(&held[1].receipt, &Settlement::Complete),
                broker.leasing.settle(&held[2].receipt, &back),
                broker.leasing.settle(&held[0].receipt, &Settlement::Complete),
                broker.jobs.cancel(&keyed.client, keyed.id),
                broker.jobs.rerun(&keyed.client, keyed.id, 1),
                broker.policies.put_policy(&work, &policy, seen.as_ref()),
                broker.policies.put_policy(&new, &policy, None),
                broker.leasing.lease(&request),
            )
        });
        let (a, b, c, d, e, f, g, h, i, j) = failed.await;
        let kinds = [
            a.unwrap_err().kind(),
            b.unwrap_err().kind(),
            c.unwrap_err().kind(),
            d.unwrap_err().kind(),
            e.unwrap_err().kind(),
            f.unwrap_err().kind(),
            g.unwrap_err().kind(),
            h.unwrap_err().kind(),
            i.unwrap_err().kind(),
            j.unwrap_err().kind(),
        ];
        assert_eq!(kinds, [BrokerErrorKind::Unavailable; 10]);
        store.break_lines(false).await;
        assert_eq!(store.picture().await, before);

        // Everything goes on from there.
        store.store.settle(&held[0].receipt, &Settlement::Complete).await.unwrap();
        assert_eq!(store.store.record(&store.result(&held[1])).await.unwrap(), Recorded::First);
        let order: Vec<_> = store.lease(10).await.iter().map(|d| d.job.client.to_string()).collect();
        assert_eq!(order.len(), 5, "{order:?}");
        let depth = store.store.broker().jobs.depth(&"work".parse().unwrap()).await.unwrap();
        assert_eq!((depth.waiting, depth.parked), (0, 0), "{depth:?}");
    }

    #[tokio::test]
    async fn refused_submissions_of_one_client_end_no_lease_of_another_and_spend_no_attempt() {
        let store = Store::open(|_| {}).await;
        let lease = QueuePolicy::default().lease;
        let job = store.submit("a").await;
        let held = store.lease(1).await.remove(0);
        store.fill(true).await;
        for submission in 0..50 {
            let refused = store.store.broker().jobs.enqueue(store.job("b", None, 100_000)).await.unwrap_err();
            assert_eq!(
                (refused.kind(), refused.detail()),
                (BrokerErrorKind::Unavailable, "the store has no space left")
            );
            if submission % 5 == 0 {
                store.clock.advance(lease / 2);
                assert_eq!(store.store.extend(&held.receipt).await.unwrap(), Held::Until(lease));
            }
        }
        let status = store.store.broker().jobs.status(&job.client, job.id).await.unwrap().unwrap();
        assert_eq!((status.state, status.attempt), (JobState::Leased, 1));
        store.fill(false).await;
        assert_eq!(store.store.record(&store.result(&held)).await.unwrap(), Recorded::First);
        store.store.settle(&held.receipt, &Settlement::Complete).await.unwrap();
        let depth = store.store.broker().jobs.depth(&"work".parse().unwrap()).await.unwrap();
        assert_eq!(depth, Depth { waiting: 0, parked: 0, leased: 0 });
    }

    #[tokio::test]
    async fn a_heartbeat_is_answered_although_the_transaction_beside_it_fails() {
        let store = Store::open(|_| {}).await;
        store.submit("a").await;
        let held = store.lease(1).await.remove(0);
        store.fill(true).await;
        let jobs = store.store.broker().jobs;
        let (before, after) = (store.job("b", None, 100_000), store.job("b", None, 100_000));
        let answers = store.in_one_batch(async {
            tokio::join!(jobs.enqueue(before), store.store.extend(&held.receipt), jobs.enqueue(after))
        });
        let (first, extended, second) = answers.await;
        assert!(first.is_err() && second.is_err());
        assert_eq!(extended.unwrap(), Held::Until(QueuePolicy::default().lease));
    }

    #[tokio::test]
    async fn a_lease_that_ends_while_nothing_can_be_written_ends_when_it_can() {
        let store = Store::open(|_| {}).await;
        let job = store.submit("a").await;
        let held = store.lease(1).await.remove(0);
        store.sql("PRAGMA query_only = ON").await;
        store.clock.advance(QueuePolicy::default().lease);
        // It could not be put back in line, so its worker still has it.
        assert!(store.store.broker().jobs.enqueue(store.job("b", None, 10)).await.is_err());
        let status = store.store.broker().jobs.status(&job.client, job.id).await.unwrap().unwrap();
        assert_eq!((status.state, status.attempt), (JobState::Leased, 1));
        store.sql("PRAGMA query_only = OFF").await;
        store.clock.advance(Duration::from_secs(1));
        let again = store.lease(1).await.remove(0);
        assert_eq!((again.job.id, again.attempt), (held.job.id, 2));
        let failure = Failure::new("test", "over");
        let end = End { attempt: 2, started_at: None, finished_at: store.clock.now() };
        let result = JobResult::unsuccessful(&again.job, Outcome::Failed, end, failure);
        assert_eq!(store.store.record(&result).await.unwrap(), Recorded::First);
    }
}
