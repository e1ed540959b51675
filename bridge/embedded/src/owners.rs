//! Another client's job: nothing of it is read but its narrow row, and nothing tells of it.

use std::time::Duration;

use super::testing::Store;
use relay_bridge::contract::{ClientId, Cursor, JobId, Timestamp};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::job_queue::JobFilter;
use relay_bridge::leasing::Leasing as _;
use relay_bridge::result_log::{Lookup, Page, ResultFilter, Start};

fn client(name: &str) -> ClientId {
    name.parse().unwrap()
}

impl Store {
    /// Has a job of the client done.
    async fn finished(&self, client: &str) -> JobId {
        let job = self.submit(client).await;
        let delivery = self.lease(1).await.remove(0);
        self.store.record(&self.result(&delivery)).await.unwrap();
        job.id
    }

    /// The cursors of the client's results.
    async fn cursors(&self, name: &str) -> Vec<Cursor> {
        self.page(name, Start::Oldest).await.entries.into_iter().map(|entry| entry.cursor).collect()
    }

    async fn cursor_of_now(&self, name: &str) -> Cursor {
        self.page(name, Start::Now).await.next
    }

    async fn page(&self, name: &str, from: Start) -> Page {
        let results = self.store.broker().results;
        results.page(&client(name), &from, &ResultFilter::ALL, 100, Duration::ZERO).await.unwrap()
    }
}

#[tokio::test]
async fn no_payload_and_no_result_is_read_before_the_owner_is_compared() {
    let store = Store::open(|_| {}).await;
    let (finished, open) = (store.finished("owner").await, store.submit("owner").await.id);
    store.submit("other").await;
    // From here on a read of either fails.
    store.sql("ALTER TABLE payloads RENAME TO hidden_payloads; ALTER TABLE results RENAME TO hidden_results").await;
    let (owner, other, unknown) = (client("owner"), client("other"), client("nobody"));
    let (jobs, results) = (store.store.broker().jobs, store.store.broker().results);
    for job in [finished, open] {
        assert!(jobs.status(&owner, job).await.is_err(), "the owner's look reads what is hidden");
        // A key that is held to other queues is told nothing, and learns nothing from the time that takes.
        let (own, elsewhere) = (["work".parse().unwrap()], ["other".parse().unwrap()]);
        assert!(!jobs.is_in(&owner, job, &elsewhere).await.unwrap());
        assert!(jobs.is_in(&owner, job, &own).await.unwrap());
        for asker in [&other, &unknown] {
            assert!(!jobs.is_in(asker, job, &own).await.unwrap());
            assert_eq!(jobs.status(asker, job).await.unwrap(), None);
            assert!(matches!(results.lookup(asker, job).await.unwrap(), Lookup::Absent));
            assert!(matches!(results.wait(asker, job, Duration::ZERO).await.unwrap(), Lookup::Absent));
            let refused = [
                jobs.cancel(asker, job).await.unwrap_err(),
                jobs.rerun(asker, job, 1).await.unwrap_err(),
                jobs.erase(asker, job).await.unwrap_err(),
            ];
            assert_eq!(refused.map(|refused| refused.kind()), [BrokerErrorKind::NotFound; 3]);
            let filter = JobFilter { queues: None, state: None, key_prefix: None, after: Some(job), limit: 10 };
            assert!(!jobs.list(asker, &filter).await.unwrap().after_known);
        }
    }
}

#[tokio::test]
async fn a_cursor_tells_nothing_of_the_results_of_other_clients() {
    let store = Store::open(|_| {}).await;
    let places = |cursors: Vec<Cursor>| cursors.into_iter().map(|cursor| cursor.sequence).collect::<Vec<_>>();
    store.finished("me").await;
    for _ in 0..40 {
        store.finished("other").await;
    }
    store.finished("me").await;
    assert_eq!(places(store.cursors("me").await), [1, 2]);
    assert_eq!(store.cursor_of_now("me").await.sequence, 2);
    assert_eq!(store.cursor_of_now("nobody").await.sequence, 0);
}

/// Numbers results as a relay of 1.3 does: one count over all clients.
const AS_BEFORE: &str = "
UPDATE results SET n = 1000 + rowid;
UPDATE results SET n = n - 1000;
UPDATE counters SET next_n = (SELECT max(n) + 1 FROM results);
";

#[tokio::test]
async fn cursors_of_the_release_before_go_on_where_they_stood() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("relay.db");
    let store = Store::open_at(Some(&path), |_| {}).await;
    for name in ["me", "other", "me", "other", "other"] {
        store.finished(name).await;
    }
    store.store.close().await;
    let conn = rusqlite::Connection::open(&path).unwrap();
    let without = "ALTER TABLE counters DROP COLUMN own_n; ALTER TABLE clients DROP COLUMN from_n; ALTER TABLE lines DROP COLUMN stored; DROP TABLE parked; PRAGMA user_version = 1003";
    conn.execute_batch(&format!("{AS_BEFORE}{without}")).unwrap();

    let store = Store::open_at(Some(&path), |_| {}).await;
    let cursors = store.cursors("me").await;
    assert_eq!(cursors.iter().map(|cursor| cursor.sequence).collect::<Vec<_>>(), [1, 3]);
    // As that relay gave it to a reader that asked for what comes from now on.
    let end = Cursor { sequence: 5, at: Timestamp::EPOCH, ..cursors[0].clone() };
    let from = [Start::Oldest, Start::After(cursors[0].clone()), Start::After(cursors[1].clone()), Start::After(end)];
    let seen = async |store: &Store| {
        let mut seen = Vec::new();
        for from in &from {
            let page = store.page("me", from.clone()).await;
            seen.push((page.reset, page.entries.len()));
        }
        seen
    };
    assert_eq!(seen(&store).await, [(None, 2), (None, 1), (None, 0), (None, 0)]);
    store.finished("me").await;
    assert_eq!(seen(&store).await, [(None, 3), (None, 2), (None, 1), (None, 1)]);
    store.finished("new").await;
    assert_eq!(store.cursor_of_now("new").await.sequence, 1, "and new clients are told nothing of others");

    // That relay again, and this one once more.
    store.store.close().await;
    conn.execute_batch(AS_BEFORE).unwrap();
    let store = Store::open_at(Some(&path), |_| {}).await;
    let end = store.cursor_of_now("me").await;
    store.finished("me").await;
    let page = store.page("me", Start::After(end)).await;
    assert_eq!((page.reset, page.entries.len()), (None, 1));
    store.store.close().await;
}
