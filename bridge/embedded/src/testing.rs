//! A store for tests of what is inside, whose writes can be made to fail.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use super::lines::Line;
use super::writer::Writer;
use super::{Embedded, EmbeddedConfig};
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Job, JobResult, Submission, Timestamp};
use relay_bridge::error::BrokerError;
use relay_bridge::leasing::{Delivery, LeaseRequest, Leasing as _};
use relay_bridge::policy::QueuePolicy;

pub(super) struct Store {
    pub(super) clock: Clock,
    pub(super) store: Embedded,
}

impl Store {
    /// In memory.
    pub(super) async fn open(change: impl Fn(&mut QueuePolicy)) -> Self {
        Self::open_at(None, change).await
    }

    pub(super) async fn open_at(path: Option<&Path>, change: impl Fn(&mut QueuePolicy)) -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_790_000_000_000));
        let path = path.map(Path::to_owned);
        let store = Embedded::open(EmbeddedConfig { path, clock: clock.clone(), ..Default::default() }).await.unwrap();
        let mut policy = QueuePolicy::default();
        change(&mut policy);
        store.broker().policies.put_policy(&"work".parse().unwrap(), &policy, None).await.unwrap();
        Self { clock, store }
    }

    pub(super) fn job(&self, client: &str, key: Option<&str>, bytes: usize) -> Job {
        job_at(&self.clock, client, key, bytes)
    }

    /// A job that its client wants to run after `delay`.
    pub(super) fn delayed(&self, client: &str, delay: Duration) -> Job {
        let job = self.job(client, None, 10);
        let due_at = job.accepted_at + delay;
        Job { due_at, expires_at: due_at + Duration::from_secs(3_600), ..job }
    }

    /// The jobs that could start within this time, as a scaler sees them.
    pub(super) async fn startable(&self, within: Duration) -> u64 {
        self.store.broker().jobs.load(&"work".parse().unwrap(), within).await.unwrap().startable
    }

    pub(super) async fn submit(&self, client: &str) -> Job {
        let job = self.job(client, None, 10);
        self.store.broker().jobs.enqueue(job.clone()).await.unwrap();
        job
    }

    pub(super) async fn lease(&self, max: u32) -> Vec<Delivery> {
        self.store.lease(&request(max)).await.unwrap()
    }

    pub(super) fn result(&self, delivery: &Delivery) -> JobResult {
        let now = self.clock.now();
        let end = End { attempt: delivery.attempt, started_at: Some(now), finished_at: now };
        JobResult::succeeded(&delivery.job, end, "text/plain", Bytes::from_static(b"done"))
    }

    /// Lets the file grow no further, or again.
    pub(super) async fn fill(&self, full: bool) {
        let set = move |writer: &mut Writer| {
            let pages: i64 = writer.conn.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
            let most = if full { pages } else { i64::from(i32::MAX) };
            writer.conn.query_row(&format!("PRAGMA max_page_count = {most}"), [], |_| Ok(())).unwrap();
            Ok(())
        };
        self.store.call(set).await.unwrap();
    }

    /// Lets every transaction fail that changes a line, at its end.
    pub(super) async fn break_lines(&self, broken: bool) {
        let (from, to) = if broken { ("lines", "hidden") } else { ("hidden", "lines") };
        let rename = format!("ALTER TABLE {from} RENAME TO {to}");
        self.sql(&rename).await;
    }

    pub(super) async fn sql(&self, text: &str) {
        let text = text.to_owned();
        let run = move |writer: &mut Writer| {
            writer.conn.execute_batch(&text).unwrap();
            Ok(())
        };
        self.store.call(run).await.unwrap();
    }

    /// Awaits calls that the writer finds in one batch.
    pub(super) async fn in_one_batch<T>(&self, calls: impl Future<Output = T>) -> T {
        let (free, busy) = std::sync::mpsc::channel::<()>();
        let (begun, waits) = tokio::sync::oneshot::channel();
        let wait = move |_: &mut Writer| {
            begun.send(()).unwrap();
            busy.recv().unwrap();
            None
        };
        self.store.inbox().unwrap().send(Box::new(wait)).await.unwrap();
        // Or it might find some of them beside what it waits in, and the others later.
        waits.await.unwrap();
        // Each of the calls sends what it wants when it is polled first.
        tokio::join!(calls, async { free.send(()).unwrap() }).0
    }

    /// All that the writer has in memory.
    pub(super) async fn picture(&self) -> Vec<String> {
        let picture = |writer: &mut Writer| {
            let state = &writer.state;
            let mut all: Vec<String> = Vec::new();
            all.extend(state.lines.iter().map(|(key, line)| {
                let Line { waiting, parked, running, stored, credit, in_turn, .. } = line;
                format!("line {key:?}: {stored} {waiting} {parked} {running} {credit} {in_turn}")
            }));
            // A line that nobody is in may stay behind.
            all.retain(|line| !line.ends_with(": 0 0 0 0 0 false"));
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

pub(super) fn request(max: u32) -> LeaseRequest {
    LeaseRequest {
        worker: "w1".parse().unwrap(),
        queues: vec!["work".parse().unwrap()],
        max: NonZeroU32::new(max).unwrap(),
        wait: Duration::ZERO,
    }
}

/// The store at `path`, with the queue `work`.
pub(super) async fn open_file(path: &Path) -> Result<Embedded, BrokerError> {
    let store = Embedded::open(EmbeddedConfig { path: Some(path.to_owned()), ..Default::default() }).await?;
    store.broker().policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default(), None).await?;
    Ok(store)
}

/// Has a job accepted, of the client `alice`.
pub(super) async fn submit_to(store: &Embedded, key: &str) {
    store.broker().jobs.enqueue(job_at(store.clock(), "alice", Some(key), 10)).await.unwrap();
}

fn job_at(clock: &Clock, client: &str, key: Option<&str>, bytes: usize) -> Job {
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
    submission.accept(&QueuePolicy::default(), clock.now())
}
