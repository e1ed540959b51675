//! An axum handler that awaits the commit of the rows that relay writes for a job, and does nothing else: no identity,
//! no policy, no envelope, no id, no receipt. Its cost is the least that relay's storage costs behind HTTP.

use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use bytes::Bytes;
use rusqlite::{Connection, params};
use tokio::sync::{mpsc, oneshot};

use crate::support::load::listen;

const TABLES: &str = "
PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -12288; PRAGMA wal_autocheckpoint = 2048;
CREATE TABLE jobs(seq INTEGER PRIMARY KEY, queue INTEGER, client INTEGER, id BLOB, run BLOB, generation INTEGER,
  state INTEGER, attempt INTEGER, timer_at INTEGER, due_at INTEGER, expires_at INTEGER, size INTEGER,
  has_payload INTEGER, started_at INTEGER, finished_at INTEGER, outcome TEXT, in_order_at INTEGER);
CREATE INDEX jobs_line ON jobs(queue, client, state, seq);
CREATE INDEX jobs_timer ON jobs(timer_at) WHERE timer_at IS NOT in_order_at;
CREATE TABLE payloads(seq INTEGER PRIMARY KEY, envelope BLOB);
";
const INSERT_JOB: &str = "INSERT INTO jobs VALUES(?1, 1, 1, ?2, ?2, 1, 0, 0, ?3, ?3, ?3, 256, 1, NULL, NULL, NULL, ?3)";
const INSERT_PAYLOAD: &str = "INSERT INTO payloads VALUES(?1, ?2)";
const ID: [u8; 16] = [7; 16];
const EXPIRES_AT: i64 = 1_763_865_086_007;
/// As relay's writer gathers: with fewer it waits once, for as long as the shortest sleep takes.
const ENOUGH: usize = 16;

type Job = (Bytes, oneshot::Sender<()>);

/// Serves until it is killed.
pub(crate) async fn serve() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-http-floor");
    std::fs::remove_dir_all(&folder).ok();
    std::fs::create_dir_all(&folder).unwrap();
    let conn = Connection::open(folder.join("rows.db")).unwrap();
    conn.execute_batch(TABLES).unwrap();
    let (inbox, jobs) = mpsc::channel::<Job>(1024);
    std::thread::spawn(move || write(&conn, jobs));
    let submit = async move |body: Bytes| {
        let (done, committed) = oneshot::channel();
        inbox.send((body, done)).await.unwrap();
        committed.await.unwrap();
        StatusCode::ACCEPTED
    };
    axum::serve(listen().await, Router::new().route("/v1/queues/{queue}/jobs", post(submit))).await.unwrap();
}

#[expect(clippy::disallowed_methods, reason = "this thread runs nothing else")]
fn write(conn: &Connection, mut jobs: mpsc::Receiver<Job>) {
    let (mut seq, mut batch) = (0, Vec::new());
    while jobs.blocking_recv_many(&mut batch, 512) > 0 {
        if (2..ENOUGH).contains(&batch.len()) {
            std::thread::sleep(Duration::from_micros(1));
            while let Ok(job) = jobs.try_recv() {
                batch.push(job);
            }
        }
        conn.execute_batch("BEGIN IMMEDIATE").unwrap();
        for (body, _) in &batch {
            seq += 1;
            conn.prepare_cached(INSERT_JOB).unwrap().execute(params![seq, ID, EXPIRES_AT + seq]).unwrap();
            conn.prepare_cached(INSERT_PAYLOAD).unwrap().execute(params![seq, &body[..]]).unwrap();
        }
        conn.execute_batch("COMMIT").unwrap();
        for (_, done) in batch.drain(..) {
            done.send(()).ok();
        }
    }
}
