//! How many parked jobs each client has by the second in which they are due, so that a look ahead reads no job. A commit adds what its
//! step changed; jobs that are never parked cost nothing here.

use rusqlite::{Connection, params};

use super::lines::{ClientRow, Key, QueueRow};
use super::map::Map;
use super::sql::unavailable;
use relay_bridge::contract::Timestamp;
use relay_bridge::error::BrokerError;

/// The most rows that a look ahead reads, one for each client and second; what is due after those is not foreseen.
const ROWS_MAX: u32 = 10_000;

const DUE_UNTIL: &str = "SELECT client, jobs FROM parked WHERE queue = ?1 AND second <= ?2 ORDER BY second LIMIT ?3";

/// The changes of the step that is being run, in jobs.
#[derive(Default)]
pub(super) struct Parked {
    changes: Map<(QueueRow, i64, ClientRow), i64>,
}

impl Parked {
    pub(super) fn add(&mut self, key: Key, due: Timestamp) {
        self.change(key, due, 1);
    }

    pub(super) fn remove(&mut self, key: Key, due: Timestamp) {
        self.change(key, due, -1);
    }

    fn change(&mut self, (queue, client): Key, due: Timestamp, jobs: i64) {
        *self.changes.entry((queue, second(due), client)).or_default() += jobs;
    }

    /// Nothing is changed yet, or any more.
    pub(super) fn clear(&mut self) {
        self.changes.clear();
    }

    /// Writes what the step changed into its transaction.
    pub(super) fn save(&mut self, conn: &Connection) -> Result<(), BrokerError> {
        for ((queue, second, client), jobs) in self.changes.drain().filter(|(_, jobs)| *jobs != 0) {
            conn.prepare_cached(
                "INSERT INTO parked(queue, second, client, jobs) VALUES(?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET jobs = jobs + excluded.jobs",
            )
            .and_then(|mut add| add.execute(params![queue, second, client, jobs]))
            .and_then(|changed| match jobs {
                ..0 => conn
                    .prepare_cached("DELETE FROM parked WHERE queue = ?1 AND second = ?2 AND client = ?3 AND jobs <= 0")
                    .and_then(|mut remove| remove.execute(params![queue, second, client])),
                _ => Ok(changed),
            })
            .map_err(|e| unavailable(e, "count parked jobs"))?;
        }
        Ok(())
    }
}

/// How many parked jobs of each client are due by the end of the second of `until`.
pub(super) fn due_until(
    conn: &Connection,
    queue: QueueRow,
    until: Timestamp,
) -> Result<Map<ClientRow, u64>, BrokerError> {
    let sql = |e| unavailable(e, "look at parked jobs");
    let mut query = conn.prepare_cached(DUE_UNTIL).map_err(sql)?;
    let mut rows = query.query(params![queue, second(until), ROWS_MAX]).map_err(sql)?;
    let mut due = Map::default();
    while let Some(row) = rows.next().map_err(sql)? {
        let (client, jobs): (ClientRow, u64) = (row.get(0).map_err(sql)?, row.get(1).map_err(sql)?);
        *due.entry(client).or_default() += jobs;
    }
    Ok(due)
}

/// As in `recount.rs`: SQLite divides in the same way.
fn second(at: Timestamp) -> i64 {
    at.as_millis() / 1_000
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use rusqlite::{Connection, StatementStatus};
    use tempfile::TempDir;

    use super::DUE_UNTIL;
    use crate::marker::COUNTED_PARKED;
    use crate::store;
    use crate::testing::{Store, open_file};
    use crate::writer::Writer;
    use relay_bridge::load::SOON_MAX;

    const LEAD: Duration = Duration::from_secs(30);

    fn problems(path: &Path) -> Vec<String> {
        store::check(path).unwrap().problems
    }

    /// Parks jobs that are due at even distances in the next two minutes.
    async fn park(store: &Store, jobs: i64) {
        for nth in 0..jobs {
            let delay = Duration::from_millis((120_000 * nth / jobs).unsigned_abs() + 1);
            let job = store.delayed("a", delay);
            store.store.call(move |writer| writer.enqueue(job)).await.unwrap();
        }
    }

    /// The steps that SQLite's machine made for looks since this was asked last.
    async fn steps(store: &Store) -> i32 {
        let steps = |writer: &mut Writer| {
            let query = writer.conn.prepare_cached(DUE_UNTIL).unwrap();
            Ok(query.reset_status(StatementStatus::VmStep))
        };
        store.store.call(steps).await.unwrap()
    }

    #[tokio::test]
    async fn a_look_ahead_costs_the_same_however_many_jobs_are_parked() {
        let store = Store::open(|_| {}).await;
        let mut costs = Vec::new();
        for more in [100, 19_900] {
            park(&store, more).await;
            steps(&store).await;
            assert!(store.startable(LEAD).await >= u64::try_from(more / 4).unwrap());
            costs.push(steps(&store).await);
        }
        assert!(costs[0] > 0 && costs[1] * 2 <= costs[0] * 3, "{costs:?}");
    }

    #[tokio::test]
    async fn a_look_ahead_counts_the_whole_of_its_last_second_and_no_other_queue() {
        let store = Store::open(|_| {}).await;
        for millis in [1, 29_999, 30_000, 30_999, 31_000] {
            store.store.broker().jobs.enqueue(store.delayed("a", Duration::from_millis(millis))).await.unwrap();
        }
        assert_eq!(store.startable(LEAD).await, 4);
        assert_eq!(store.startable(SOON_MAX).await, 5);
        store.store.broker().policies.put_policy(&"other".parse().unwrap(), &Default::default(), None).await.unwrap();
        let other = store.store.broker().jobs.load(&"other".parse().unwrap(), LEAD).await.unwrap();
        assert_eq!(other.startable, 0);
    }

    /// A store with three parked jobs and one in line, closed.
    async fn closed(path: &Path) {
        let store = Store::open_at(Some(path), |_| {}).await;
        for delay in [0, 5, 5, 20] {
            let job = store.delayed("a", Duration::from_secs(delay));
            store.store.broker().jobs.enqueue(job).await.unwrap();
        }
        store.store.close().await;
    }

    #[tokio::test]
    async fn parked_jobs_of_a_store_of_1_4_are_counted_when_it_is_opened() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("relay.db");
        closed(&path).await;
        let conn = Connection::open(&path).unwrap();
        let old = "DROP TABLE parked; DELETE FROM meta WHERE key = 'counted_parked'; PRAGMA user_version = 1004;";
        conn.execute_batch(old).unwrap();
        assert_eq!(problems(&path), Vec::<String>::new());

        let store = Store::open_at(Some(&path), |_| {}).await;
        assert_eq!(store::stats(&path).unwrap().version, "1.5");
        assert_eq!([store.startable(LEAD / 3).await, store.startable(LEAD).await], [3, 4]);
        store.store.close().await;
        assert_eq!(problems(&path), Vec::<String>::new());
    }

    #[tokio::test]
    async fn parked_jobs_are_counted_anew_where_a_release_that_does_not_count_them_wrote() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("relay.db");
        closed(&path).await;
        let conn = Connection::open(&path).unwrap();
        // That release raises the number under the keys that it knows, and parks a job for longer.
        conn.execute("UPDATE meta SET value = x'00' WHERE key = ?1", [COUNTED_PARKED]).unwrap();
        conn.execute("UPDATE jobs SET due_at = due_at + 100000 WHERE seq = 4", []).unwrap();
        assert_eq!(problems(&path), Vec::<String>::new(), "it is known that they are not counted");

        let store = Store::open_at(Some(&path), |_| {}).await;
        assert_eq!([store.startable(LEAD).await, store.startable(SOON_MAX).await], [3, 4]);
        store.store.close().await;
        assert_eq!(problems(&path), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_count_that_is_wrong_is_found_by_a_check() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("relay.db");
        open_file(&path).await.unwrap().close().await;
        Connection::open(&path).unwrap().execute("INSERT INTO parked VALUES(1, 0, 1, 2)", []).unwrap();
        assert_eq!(problems(&path), ["1 seconds in which parked jobs are due and are counted wrong"]);
    }
}
