//! The baseline: a loop over SQLite that writes the rows that relay writes, with the same group commit, and does
//! nothing else: no envelopes, no policies, no fairness, no checks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::{Connection, params};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::support::{Sample, measure};

const TABLES: &str = "
PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -16384;
CREATE TABLE ids(id BLOB PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE jobs(seq INTEGER PRIMARY KEY, queue INTEGER, client INTEGER, id BLOB, run BLOB, generation INTEGER,
  state INTEGER, attempt INTEGER, timer_at INTEGER, due_at INTEGER, expires_at INTEGER, size INTEGER,
  has_payload INTEGER, started_at INTEGER, finished_at INTEGER, outcome TEXT, in_order_at INTEGER);
CREATE INDEX jobs_line ON jobs(queue, client, state, seq);
CREATE INDEX jobs_timer ON jobs(timer_at) WHERE timer_at IS NOT in_order_at;
CREATE TABLE payloads(seq INTEGER PRIMARY KEY, envelope BLOB);
CREATE TABLE results(seq INTEGER PRIMARY KEY, n INTEGER, client INTEGER, run BLOB, outcome TEXT, at INTEGER,
  erased INTEGER, envelope BLOB);
CREATE UNIQUE INDEX results_log ON results(client, n);
CREATE TABLE counters(id INTEGER PRIMARY KEY, next_seq INTEGER, next_n INTEGER);
INSERT INTO counters VALUES(1, 1, 1);
";

enum Operation {
    Enqueue { id: [u8; 16], envelope: Vec<u8>, done: oneshot::Sender<()> },
    Lease { max: u32, done: oneshot::Sender<Vec<i64>> },
    Finish { seq: i64, envelope: Vec<u8>, done: oneshot::Sender<()> },
}

/// Enqueues, leases and finishes `jobs` jobs.
pub(super) async fn cycle(jobs: u64, producers: u64, workers: u64, leased_at_once: u32) -> Sample {
    let folder = TempDir::new().unwrap();
    let conn = Connection::open(folder.path().join("bare.db")).unwrap();
    conn.execute_batch(TABLES).unwrap();
    let (inbox, work) = mpsc::channel(1024);
    let writer = std::thread::spawn(move || write(&conn, work));
    let (next, finished) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let sample = measure(async {
        let mut tasks = JoinSet::new();
        for _ in 0..producers {
            let (inbox, next) = (inbox.clone(), Arc::clone(&next));
            tasks.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= jobs {
                        break;
                    }
                    let id = *blake3::hash(&number.to_be_bytes()).as_bytes().first_chunk::<16>().unwrap();
                    let (done, answer) = oneshot::channel();
                    inbox.send(Operation::Enqueue { id, envelope: vec![b'x'; 540], done }).await.unwrap();
                    answer.await.unwrap();
                }
            });
        }
        for _ in 0..workers {
            let (inbox, finished) = (inbox.clone(), Arc::clone(&finished));
            tasks.spawn(async move {
                while finished.load(Ordering::Relaxed) < jobs {
                    let (done, answer) = oneshot::channel();
                    inbox.send(Operation::Lease { max: leased_at_once, done }).await.unwrap();
                    let mut ends = JoinSet::new();
                    for seq in answer.await.unwrap() {
                        let (inbox, finished) = (inbox.clone(), Arc::clone(&finished));
                        ends.spawn(async move {
                            let (done, answer) = oneshot::channel();
                            inbox.send(Operation::Finish { seq, envelope: vec![b'r'; 280], done }).await.unwrap();
                            answer.await.unwrap();
                            finished.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                    ends.join_all().await;
                }
            });
        }
        tasks.join_all().await;
        jobs
    })
    .await;
    drop(inbox);
    writer.join().unwrap();
    sample
}

fn write(conn: &Connection, mut work: mpsc::Receiver<Operation>) {
    let (mut next_seq, mut next_n, mut batch) = (1i64, 1i64, Vec::new());
    while work.blocking_recv_many(&mut batch, 512) > 0 {
        let mut answers: Vec<Box<dyn FnOnce()>> = Vec::with_capacity(batch.len());
        conn.execute_batch("BEGIN IMMEDIATE").unwrap();
        for operation in batch.drain(..) {
            match operation {
                Operation::Enqueue { id, envelope, done } => {
                    enqueue(conn, next_seq, &id, &envelope);
                    next_seq += 1;
                    answers.push(Box::new(move || assert_eq!(done.send(()), Ok(()))));
                }
                Operation::Lease { max, done } => {
                    let taken = lease(conn, max);
                    answers.push(Box::new(move || drop(done.send(taken))));
                }
                Operation::Finish { seq, envelope, done } => {
                    finish(conn, seq, next_n, &envelope);
                    next_n += 1;
                    answers.push(Box::new(move || assert_eq!(done.send(()), Ok(()))));
                }
            }
        }
        conn.prepare_cached("UPDATE counters SET next_seq = ?1, next_n = ?2 WHERE id = 1")
            .unwrap()
            .execute([next_seq, next_n])
            .unwrap();
        conn.execute_batch("COMMIT").unwrap();
        answers.into_iter().for_each(|answer| answer());
    }
}

fn enqueue(conn: &Connection, seq: i64, id: &[u8], envelope: &[u8]) {
    conn.prepare_cached("INSERT INTO ids(id, seq) VALUES(?1, ?2)").unwrap().execute(params![id, seq]).unwrap();
    conn.prepare_cached("INSERT INTO jobs VALUES(?1, 1, 1, ?2, ?2, 1, 0, 0, ?3, ?3, ?3, 256, 1, NULL, NULL, NULL, ?3)")
        .unwrap()
        .execute(params![seq, id, 1_763_865_086_007i64 + seq])
        .unwrap();
    conn.prepare_cached("INSERT INTO payloads VALUES(?1, ?2)").unwrap().execute(params![seq, envelope]).unwrap();
}

fn lease(conn: &Connection, max: u32) -> Vec<i64> {
    let mut query = conn
        .prepare_cached(
            "SELECT j.seq, p.envelope FROM jobs AS j INDEXED BY jobs_line JOIN payloads AS p ON p.seq = j.seq
             WHERE j.queue = 1 AND j.client = 1 AND j.state = 0 ORDER BY j.seq LIMIT ?1",
        )
        .unwrap();
    let taken: Vec<(i64, Vec<u8>)> =
        query.query_map([max], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect();
    for (seq, _) in &taken {
        conn.prepare_cached("UPDATE jobs SET state = 1, attempt = 1, started_at = 1763865086007 WHERE seq = ?1")
            .unwrap()
            .execute([seq])
            .unwrap();
    }
    taken.into_iter().map(|(seq, _)| seq).collect()
}

fn finish(conn: &Connection, seq: i64, n: i64, envelope: &[u8]) {
    conn.prepare_cached("INSERT OR REPLACE INTO results VALUES(?1, ?2, 1, x'00112233445566778899aabbccddeeff', 'succeeded', 1763865086007, 0, ?3)")
        .unwrap()
        .execute(params![seq, n, envelope])
        .unwrap();
    conn.prepare_cached(
        "UPDATE jobs SET state = 3, timer_at = ?2, finished_at = 1763865086007, outcome = 'succeeded', in_order_at = NULL
         WHERE seq = ?1",
    )
    .unwrap()
    .execute(params![seq, 1_763_965_086_007i64 + seq])
    .unwrap();
}
