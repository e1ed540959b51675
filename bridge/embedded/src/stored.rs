//! The bytes that are kept of each client in each queue: of payloads and results, as they are stored. The writer adds and takes
//! away what each operation changes, and saves the sums with it.

use rusqlite::{OptionalExtension as _, params};

use super::row::JobRow;
use super::sql::unavailable;
use super::writer::Writer;
use relay_bridge::contract::Job;
use relay_bridge::contract::envelope::encode_job;
use relay_bridge::error::BrokerError;

impl Writer {
    /// Counts `added` bytes of the row's client as kept, and `gone` ones as kept no more.
    pub(super) fn keep(&mut self, row: &JobRow, added: usize, gone: u64) {
        self.keep_in((row.queue, row.client), added, gone);
    }

    pub(super) fn keep_in(&mut self, line: (i64, i64), added: usize, gone: u64) {
        let line = self.state.lines.at(line);
        line.stored = line.stored.saturating_add(added as u64).saturating_sub(gone);
        if added > 0 {
            self.room.write(added as u64);
        }
    }

    /// The bytes of the row's payload, which is not read for that.
    pub(super) fn payload_bytes(&self, row: &JobRow) -> Result<u64, BrokerError> {
        self.bytes("SELECT length(envelope) FROM payloads WHERE seq = ?1", row)
    }

    /// The bytes of the row's result, if it has one.
    pub(super) fn result_bytes(&self, row: &JobRow) -> Result<u64, BrokerError> {
        self.bytes("SELECT length(envelope) FROM results WHERE seq = ?1", row)
    }

    fn bytes(&self, of: &str, row: &JobRow) -> Result<u64, BrokerError> {
        self.conn
            .prepare_cached(of)
            .and_then(|mut query| query.query_row([row.seq], |row| row.get(0)).optional())
            .map(|bytes| bytes.unwrap_or(0))
            .map_err(|e| unavailable(e, "count bytes"))
    }

    /// Writes the job in place of the row's payload.
    pub(super) fn replace_payload(&mut self, row: &JobRow, job: &Job) -> Result<(), BrokerError> {
        let before = self.payload_bytes(row)?;
        let envelope = encode_job(job, self.wire);
        self.conn
            .prepare_cached("UPDATE payloads SET envelope = ?2 WHERE seq = ?1")
            .and_then(|mut update| update.execute(params![row.seq, envelope]))
            .map_err(|e| unavailable(e, "remove payload"))?;
        self.keep(row, envelope.len(), before);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rusqlite::Connection;
    use tempfile::TempDir;

    use crate::marker::NUMBER;
    use crate::store;
    use crate::testing::Store;
    use relay_bridge::leasing::Leasing as _;
    use relay_bridge::settlement::Settlement;

    async fn kept(store: &Store) -> Option<u64> {
        store.store.broker().jobs.stored(&"a".parse().unwrap(), &"work".parse().unwrap()).await.unwrap()
    }

    fn problems(path: &Path) -> Vec<String> {
        store::check(path).unwrap().problems
    }

    /// Everything that changes what is kept: jobs with keys and without, results, a rerun, an erasure, a removal.
    async fn busy(path: &Path) -> Store {
        let store = Store::open_at(Some(path), |_| {}).await;
        let jobs = store.store.broker().jobs;
        let mut done = Vec::new();
        for key in [Some("one"), Some("two"), None, Some("three"), Some("four")] {
            let job = store.job("a", key, 1_000);
            jobs.enqueue(job.clone()).await.unwrap();
            let delivery = store.lease(1).await.remove(0);
            store.store.record(&store.result(&delivery)).await.unwrap();
            store.store.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
            done.push(job);
        }
        jobs.rerun(&done[0].client, done[0].id, 1).await.unwrap();
        let again = store.lease(1).await.remove(0);
        store.store.record(&store.result(&again)).await.unwrap();
        jobs.erase(&done[1].client, done[1].id).await.unwrap();
        store
    }

    #[tokio::test]
    async fn the_bytes_that_are_kept_are_counted_through_everything_that_happens_to_a_job() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("relay.db");
        let store = busy(&path).await;
        assert!(kept(&store).await > Some(3_000));
        assert_eq!(problems(&path), Vec::<String>::new());
        store.clock.advance(std::time::Duration::from_secs(40 * 3_600));
        while store.store.broker().jobs.sweep(100).await.unwrap().more {}
        assert_eq!(kept(&store).await, Some(0));
        assert_eq!(problems(&path), Vec::<String>::new());
        store.store.close().await;
    }

    #[tokio::test]
    async fn bytes_are_counted_anew_where_a_release_that_counts_none_wrote() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("relay.db");
        let store = busy(&path).await;
        let before = kept(&store).await;
        store.store.close().await;
        let conn = Connection::open(&path).unwrap();
        // That release opens the store, raises its number, and writes lines without the sum.
        let number: Vec<u8> =
            conn.query_row("SELECT value FROM meta WHERE key = ?1", [NUMBER], |row| row.get(0)).unwrap();
        let raised = u64::from_be_bytes(number.try_into().unwrap()) + 1;
        conn.execute("UPDATE meta SET value = ?2 WHERE key = ?1", rusqlite::params![NUMBER, raised.to_be_bytes()])
            .unwrap();
        conn.execute("UPDATE lines SET stored = 0", []).unwrap();
        assert_eq!(problems(&path), Vec::<String>::new(), "it is known that they are not counted");
        let store = Store::open_at(Some(&path), |_| {}).await;
        assert_eq!(kept(&store).await, before);
        store.store.close().await;
        assert_eq!(problems(&path), Vec::<String>::new());
    }
}
