//! The embedded broker's file: files that are refused in a store's place, restores, checks, and the log after an
//! erasure.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use relay_bridge::clock::Clock;
use relay_bridge::contract::envelope::{WireVersion, encode_dead_letter};
use relay_bridge::contract::{ClientId, Failure, Job, Outcome, Submission, Timestamp};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::JobFilter;
use relay_bridge::policy::QueuePolicy;
use relay_embedded::{Embedded, EmbeddedConfig, store};
use rusqlite::Connection;
use tempfile::TempDir;

async fn try_open(path: &Path, clock: &Clock) -> Result<Embedded, BrokerError> {
    Embedded::open(EmbeddedConfig { path: Some(path.to_owned()), clock: clock.clone(), ..EmbeddedConfig::default() })
        .await
}

async fn open(path: &Path) -> Embedded {
    let store = try_open(path, &Clock::system()).await.unwrap();
    store.broker().policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    store
}

fn client() -> ClientId {
    "alice".parse().unwrap()
}

async fn submit(store: &Embedded, key: &str, payload: &[u8]) -> Job {
    let submission = Submission {
        client: client(),
        queue: "work".parse().unwrap(),
        key: Some(key.parse().unwrap()),
        content_type: "text/plain".to_owned(),
        content_encoding: None,
        headers: Default::default(),
        payload: Bytes::copy_from_slice(payload),
        delay: Duration::ZERO,
        expires_in: None,
    };
    let job = submission.accept(&QueuePolicy::default(), Clock::system().now());
    store.broker().jobs.enqueue(job.clone()).await.unwrap();
    job
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

/// The files that a crash leaves at `to` of the store that is open at `from`: no store is behind its marker.
fn crash(from: &Path, to: &Path) {
    for suffix in [".marker", "", "-wal"] {
        drop(std::fs::copy(beside(from, suffix), beside(to, suffix)));
    }
}

async fn refused(path: &Path, says: &str) {
    let before = std::fs::read(path).ok();
    let Err(refused) = try_open(path, &Clock::system()).await else { panic!("{says}: it was opened") };
    assert_eq!(refused.kind(), BrokerErrorKind::StateConflict, "{refused}");
    let parts = [says, path.to_str().unwrap(), "relay store restore FILE"];
    assert!(parts.iter().all(|part| refused.detail().contains(part)), "{refused}");
    assert_eq!(std::fs::read(path).ok(), before, "{says}: it was touched");
}

#[tokio::test]
async fn a_store_that_lost_its_log_is_refused() {
    let folder = TempDir::new().unwrap();
    let (path, crashed) = (folder.path().join("relay.db"), folder.path().join("crashed.db"));
    let store = open(&path).await;
    submit(&store, "one", b"x").await;
    crash(&path, &crashed);
    store.close().await;
    std::fs::remove_file(beside(&crashed, "-wal")).unwrap();
    refused(&crashed, "lost its write-ahead log").await;
    refused(&crashed, "if another program or an older relay had it open since, nothing is lost: restore this file")
        .await;

    // After a clean end there may be none, and none is missed. SQLite removes it with the last connection, if that may write.
    drop(std::fs::remove_file(beside(&path, "-wal")));
    open(&path).await.close().await;
}

#[tokio::test]
async fn a_young_store_whose_log_is_empty_or_damaged_is_refused() {
    let folder = TempDir::new().unwrap();
    let (path, young) = (folder.path().join("relay.db"), folder.path().join("young.db"));
    let store = open(&path).await;
    let job = submit(&store, "one", b"x").await;
    crash(&path, &young);
    store.close().await;
    // All that there is of it is in its log.
    let log = std::fs::read(beside(&young, "-wal")).unwrap();
    std::fs::write(beside(&young, "-wal"), b"").unwrap();
    refused(&young, "holds no store").await;
    let mut damaged = log.clone();
    damaged[32 + 24..32 + 24 + 100].fill(0xff);
    std::fs::write(beside(&young, "-wal"), damaged).unwrap();
    refused(&young, "holds no store").await;
    // So is another program's file that has nothing in it.
    let bare = folder.path().join("bare.db");
    Connection::open(&bare).unwrap().execute_batch("CREATE TABLE t(x); DROP TABLE t").unwrap();
    let header = std::fs::read(&young).unwrap();
    std::fs::copy(&bare, &young).unwrap();
    refused(&young, "holds no store").await;

    std::fs::write(&young, header).unwrap();
    std::fs::write(beside(&young, "-wal"), log).unwrap();
    let store = open(&young).await;
    assert!(store.broker().jobs.status(&client(), job.id).await.unwrap().is_some());
    store.close().await;
}

#[tokio::test]
async fn a_store_that_lost_its_log_is_refused_also_after_somebody_looked_at_it() {
    let folder = TempDir::new().unwrap();
    let (path, crashed) = (folder.path().join("relay.db"), folder.path().join("a %41?b#c.db"));
    open(&path).await.close().await;
    let store = open(&path).await;
    submit(&store, "one", b"x").await;
    crash(&path, &crashed);
    store.close().await;
    std::fs::remove_file(beside(&crashed, "-wal")).unwrap();

    refused(&crashed, "lost its write-ahead log").await;
    let problems = store::check(&crashed).unwrap().problems;
    assert_eq!(problems, ["the write-ahead log (`-wal`), which held accepted jobs, is gone"]);
    refused(&crashed, "lost its write-ahead log").await;
    assert_eq!(store::stats(&crashed).unwrap().jobs, 0);
    refused(&crashed, "lost its write-ahead log").await;
    store::backup(&crashed, &folder.path().join("backup.db")).unwrap();
    refused(&crashed, "lost its write-ahead log").await;
    relay_embedded::restore(&crashed, &crashed).unwrap();
    open(&crashed).await.close().await;
}

#[tokio::test]
async fn an_empty_a_missing_an_older_and_another_file_in_a_stores_place_are_refused() {
    let folder = TempDir::new().unwrap();
    let (path, other) = (folder.path().join("relay.db"), folder.path().join("other.db"));
    let older = folder.path().join("older");
    open(&other).await.close().await;
    open(&path).await.close().await;
    std::fs::copy(&path, &older).unwrap();
    open(&path).await.close().await;
    let whole = std::fs::read(&path).unwrap();

    std::fs::write(&path, b"").unwrap();
    refused(&path, "is gone or empty").await;
    std::fs::remove_file(&path).unwrap();
    refused(&path, "is gone or empty").await;
    std::fs::copy(&older, &path).unwrap();
    refused(&path, "is older than the store that was there").await;
    std::fs::copy(&other, &path).unwrap();
    refused(&path, "is another store").await;
    std::fs::write(&path, whole).unwrap();
    open(&path).await.close().await;
}

#[tokio::test]
async fn a_store_with_damaged_pages_is_refused_with_the_way_on_by_a_server_and_a_check() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let store = open(&path).await;
    for key in ["one", "two", "three"] {
        submit(&store, key, &[7; 10_000]).await;
    }
    store.close().await;
    // The first page says that it is a store; no other one can be read.
    let mut pages = std::fs::read(&path).unwrap();
    pages[4096..].fill(0xa5);
    std::fs::write(&path, pages).unwrap();
    let opened = try_open(&path, &Clock::system()).await.err().unwrap();
    let checked = store::check(&path).err().unwrap();
    for error in [opened, checked] {
        assert_eq!(error.kind(), BrokerErrorKind::Corrupt, "{error}");
        assert!(error.detail().contains("`relay store restore"), "{error}");
    }
}

#[tokio::test]
async fn a_copy_from_the_same_opening_is_refused_once_the_store_was_written_a_minute_later() {
    let folder = TempDir::new().unwrap();
    let place = |name: &str| folder.path().join(name);
    let (path, older, newer) = (place("relay.db"), place("older.db"), place("newer.db"));
    let clock = Clock::manual(Clock::system().now());
    let store = try_open(&path, &clock).await.unwrap();
    store.broker().policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    let marker = || std::fs::read(beside(&path, ".marker")).unwrap();
    let first = marker();
    submit(&store, "one", b"x").await;
    crash(&path, &older);
    for key in ["two", "three"] {
        submit(&store, key, b"x").await;
    }
    assert_eq!(marker(), first, "the marker is not written for a job");
    clock.advance(Duration::from_secs(61));
    submit(&store, "four", b"x").await;
    submit(&store, "five", b"x").await;
    // Killed when the marker is written, which no job waits for.
    let written = async {
        while marker() == first {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), written).await.expect("the marker is never written");
    crash(&path, &newer);
    store.close().await;
    let put_back = |to: &Path| ["", "-wal"].map(|suffix| std::fs::copy(beside(&older, suffix), beside(to, suffix)));
    let whole = ["", "-wal"].map(|suffix| std::fs::read(beside(&newer, suffix)).unwrap());
    drop(put_back(&newer));
    refused(&newer, "is older than the store that was there").await;
    for (suffix, bytes) in ["", "-wal"].into_iter().zip(whole) {
        std::fs::write(beside(&newer, suffix), bytes).unwrap();
    }
    open(&newer).await.close().await;
    // After a clean end also a copy of the last minute.
    drop(put_back(&path));
    refused(&path, "is older than the store that was there").await;
}

#[tokio::test]
async fn a_store_that_never_had_a_marker_opens_and_is_refused_without_one_from_then_on() {
    let folder = TempDir::new().unwrap();
    let (path, copy) = (folder.path().join("relay.db"), folder.path().join("copy.db"));
    let store = open(&path).await;
    let job = submit(&store, "one", b"x").await;
    store.close().await;
    // As the releases before left a store.
    Connection::open(&path).unwrap().execute_batch("DELETE FROM meta WHERE key = 'openings'").unwrap();
    drop(std::fs::remove_file(beside(&path, ".marker")));

    let store = open(&path).await;
    assert!(store.broker().jobs.status(&client(), job.id).await.unwrap().is_some());
    store.close().await;
    std::fs::copy(&path, &copy).unwrap();
    refused(&copy, "is a copy").await;
    std::fs::remove_file(beside(&path, ".marker")).unwrap();
    refused(&path, "is a copy").await;
}

#[tokio::test]
async fn a_copy_is_restored_into_a_stores_place_and_what_was_there_is_kept() {
    let folder = TempDir::new().unwrap();
    let (path, copy) = (folder.path().join("relay.db"), folder.path().join("copy.db"));
    let store = open(&path).await;
    let before = submit(&store, "before", b"x").await;
    store::backup(&path, &copy).unwrap();
    let after = submit(&store, "after", b"x").await;
    let busy = relay_embedded::restore(&copy, &path).unwrap_err();
    assert!(busy.detail().contains("in use by another relay process"), "{busy}");
    store.close().await;
    refused(&copy, "is a copy").await;

    relay_embedded::restore(&copy, &path).unwrap();
    let store = open(&path).await;
    let broker = store.broker();
    assert!(broker.jobs.status(&client(), before.id).await.unwrap().is_some());
    assert!(broker.jobs.status(&client(), after.id).await.unwrap().is_none());
    store.close().await;
    let again = relay_embedded::restore(&copy, &path).unwrap_err();
    assert!(again.detail().contains("move it away first"), "{again}");

    // Also a file in its own place, and what the first restore replaced.
    let replaced = folder.path().join("moved");
    std::fs::rename(beside(&path, ".replaced"), &replaced).unwrap();
    relay_embedded::restore(&replaced.join("relay.db"), &path).unwrap();
    std::fs::remove_dir_all(beside(&path, ".replaced")).unwrap();
    std::fs::remove_file(beside(&path, ".marker")).unwrap();
    relay_embedded::restore(&path, &path).unwrap();
    let store = open(&path).await;
    assert!(store.broker().jobs.status(&client(), after.id).await.unwrap().is_some());
    store.close().await;
    assert_eq!(store::check(&path).unwrap().problems, Vec::<String>::new());
}

#[tokio::test]
async fn a_check_reads_envelopes_and_compares_payloads_with_their_fingerprints() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let store = open(&path).await;
    for (key, payload) in [("one", b"payload-1"), ("two", b"payload-2"), ("three", b"payload-3")] {
        submit(&store, key, payload).await;
    }
    let mut job = submit(&store, "four", b"payload-4").await;
    store.close().await;
    assert_eq!(store::check(&path).unwrap().problems, Vec::<String>::new());
    let conn = Connection::open(&path).unwrap();
    // Earlier releases kept letters of finished jobs without a key like this.
    job.payload = Bytes::new();
    let letter = DeadLetter {
        attempt: 1,
        outcome: Outcome::Failed,
        failure: Failure::new("exit-code", "it said no"),
        at: job.accepted_at,
        extra: Default::default(),
        job,
    };
    conn.execute(
        "INSERT INTO dead_letters(job, run, queue, remove_at, envelope) VALUES(?1, ?2, 1, 0, ?3)",
        rusqlite::params![
            letter.job.id.as_bytes(),
            letter.job.run_id.as_bytes(),
            encode_dead_letter(&letter, WireVersion::default())
        ],
    )
    .unwrap();
    drop(conn);
    assert_eq!(store::check(&path).unwrap().problems, Vec::<String>::new(), "a letter without its payload");
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch("UPDATE payloads SET envelope = x'00' WHERE seq = 1").unwrap();
    let mut envelope: Vec<u8> =
        conn.query_row("SELECT envelope FROM payloads WHERE seq = 2", [], |row| row.get(0)).unwrap();
    let at = envelope.windows(9).position(|part| part == b"payload-2").unwrap();
    envelope[at] = b'P';
    conn.execute("UPDATE payloads SET envelope = ?1 WHERE seq = 2", [envelope]).unwrap();
    drop(conn);
    let problems = store::check(&path).unwrap().problems;
    assert_eq!(
        problems,
        [
            "1 lines whose bytes are counted wrong",
            "1 jobs that can't be read",
            "1 jobs whose payload is not the one that was accepted"
        ]
    );
}

#[tokio::test]
async fn a_job_that_cannot_be_read_is_left_out_of_lists_and_holds_up_no_other() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let store = open(&path).await;
    let jobs = [submit(&store, "one", b"1").await, submit(&store, "two", b"2").await];
    Connection::open(&path).unwrap().execute_batch("UPDATE payloads SET envelope = x'00' WHERE seq = 1").unwrap();
    let filter = JobFilter { queues: None, state: None, key_prefix: None, after: None, limit: 10 };
    let listed = store.broker().jobs.list(&client(), &filter).await.unwrap();
    assert_eq!(listed.jobs.iter().map(|job| job.job_id).collect::<Vec<_>>(), [jobs[1].id]);
    store.close().await;
}

/// Whether the write-ahead log of `path` holds `text`.
fn log_holds(path: &Path, text: &str) -> bool {
    let log = std::fs::read(beside(path, "-wal")).unwrap_or_default();
    log.windows(text.len()).any(|part| part == text.as_bytes())
}

#[tokio::test]
async fn erased_bytes_are_gone_from_the_log_when_the_call_returns() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let store = open(&path).await;
    let mut jobs = Vec::new();
    for at in 0..8 {
        let job = submit(&store, &format!("k{at}"), b"SECRET-PAYLOAD").await;
        store.broker().jobs.cancel(&client(), job.id).await.unwrap();
        jobs.push(job);
    }
    assert!(log_holds(&path, "SECRET-PAYLOAD"));
    let broker = store.broker();
    let erased = jobs.iter().map(|job| broker.jobs.erase(&job.client, job.id));
    futures_util::future::try_join_all(erased).await.unwrap();
    assert!(!log_holds(&path, "SECRET-PAYLOAD"), "the log still has what was erased");
    store.close().await;
}

#[tokio::test]
async fn an_erasure_that_a_reader_of_the_log_holds_up_is_refused_and_the_next_call_completes_it() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let clock = Clock::manual(Timestamp::from_millis(Clock::system().now().as_millis()));
    let store = try_open(&path, &clock).await.unwrap();
    store.broker().policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    let job = submit(&store, "one", b"SECRET-PAYLOAD").await;
    store.broker().jobs.cancel(&client(), job.id).await.unwrap();
    let reader = Connection::open(&path).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    reader.query_row("SELECT count(*) FROM jobs", [], |row| row.get::<_, i64>(0)).unwrap();

    let broker = store.broker();
    let held_up = {
        let owner = client();
        let mut call = std::pin::pin!(broker.jobs.erase(&owner, job.id));
        let queue = "work".parse().unwrap();
        loop {
            // Time passes only once the writer has done what the call asked of it, and the call waits for the next look.
            tokio::select! {
                biased;
                ended = &mut call => break ended.unwrap_err(),
                policy = broker.policies.policy(&queue) => drop(policy.unwrap()),
            }
            clock.advance(Duration::from_millis(50));
        }
    };
    assert_eq!(held_up.kind(), BrokerErrorKind::Unavailable, "{held_up}");
    assert!(held_up.detail().contains("retry"), "{held_up}");
    assert!(log_holds(&path, "SECRET-PAYLOAD"));
    reader.execute_batch("COMMIT").unwrap();
    broker.jobs.erase(&client(), job.id).await.unwrap();
    assert!(!log_holds(&path, "SECRET-PAYLOAD"), "the log still has what was erased");
    store.close().await;
}
