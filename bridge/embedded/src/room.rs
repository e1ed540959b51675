//! The room that the disk has for new jobs. A reserve stays free of them, so that jobs that were accepted can be finished,
//! cancelled, erased and swept on a disk that takes no more.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use rusqlite::Connection;

use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// How long the last look at the disk counts.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The largest share of its disk that a reserve takes: one in so many bytes.
const SHARE: u64 = 8;
/// The bytes that a write takes beside its own, which are written twice, into the log and into the file: pages that change with them.
const BESIDE: u64 = 16 * 1024;
/// The most of the log that is yet to be copied into the file, unless somebody reads for long.
const LOG_MAX: u64 = 8 * 1024 * 1024;

/// The room for new jobs, as it was at the last look, and what was written since.
#[derive(Clone)]
pub(super) struct Room {
    /// The store's file and the reserve in bytes; `None` in memory, and without a reserve.
    kept: Option<(PathBuf, u64)>,
    looked_at: Option<Duration>,
    left: u64,
    /// Whether there was room then.
    had_room: bool,
}

impl Room {
    pub(super) fn new(path: Option<PathBuf>, reserve: u64) -> Self {
        Self {
            kept: path.filter(|_| reserve > 0).map(|path| (path, reserve)),
            looked_at: None,
            left: 0,
            had_room: false,
        }
    }

    /// Why a new job of `bytes` is not taken at `now`, on the monotonic clock. Looks at the disk once a second, and where what
    /// was left at the last look is written.
    pub(super) fn refuses(
        &mut self,
        conn: &Connection,
        operation: &'static str,
        bytes: u64,
        now: Duration,
    ) -> Option<BrokerError> {
        let (path, reserve) = self.kept.as_ref()?;
        let is_old = self.looked_at.is_none_or(|at| now >= at + LOOK_EVERY);
        if is_old || (self.had_room && cost(bytes) > self.left) {
            // A volume that can't be looked at refuses nothing: a write says itself when it finds no room.
            self.left = spare(path, *reserve, conn).unwrap_or(u64::MAX);
            (self.looked_at, self.had_room) = (Some(now), cost(bytes) <= self.left);
        }
        (cost(bytes) > self.left).then(|| {
            let kind = BrokerErrorKind::Overloaded { retry_after: LOOK_EVERY };
            let why = "the disk of the store is down to its reserve (`disk_reserve`), which is kept for finishing and removing \
                       jobs: make room on it";
            BrokerError::new(kind, operation, why).of_storage()
        })
    }

    /// Notes that so many bytes are being written.
    pub(super) fn write(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(cost(bytes));
    }
}

fn cost(bytes: u64) -> u64 {
    bytes.saturating_mul(2).saturating_add(BESIDE)
}

/// The bytes that new jobs may take: blocks that this user may have and pages of the file that are free, without the reserve and
/// without what the log will take in the file.
fn spare(path: &Path, reserve: u64, conn: &Connection) -> Option<u64> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let volume = statvfs(folder).ok()?;
    // As wide as the platform has them, which differs.
    #[allow(clippy::useless_conversion, reason = "these are of 32 bits elsewhere")]
    let (block, free, all) =
        (u64::from(volume.fragment_size()), u64::from(volume.blocks_available()), u64::from(volume.blocks()));
    let pragma = |name| conn.pragma_query_value(None, name, |row| row.get::<_, u64>(0));
    let unused = pragma("freelist_count").ok()? * pragma("page_size").ok()?;
    let log = std::fs::metadata(format!("{}-wal", path.display())).map_or(0, |log| log.len()).min(LOG_MAX);
    let reserve = reserve.min(all.saturating_mul(block) / SHARE);
    Some(free.saturating_mul(block).saturating_add(unused).saturating_sub(reserve).saturating_sub(log))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Store;
    use crate::writer::Writer;
    use relay_bridge::job_queue::Enqueued;
    use relay_bridge::leasing::{Leasing as _, Recorded};
    use relay_bridge::policy::QueuePolicy;

    #[test]
    fn the_disk_is_looked_at_once_a_second_or_when_its_room_is_written_and_never_for_each_job() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("relay.db");
        let conn = Connection::open(&path).unwrap();
        let mut room = Room::new(Some(path), 1);
        let at = Duration::from_millis;
        assert!(room.refuses(&conn, "enqueue", 0, at(0)).is_none());
        // As if the disk had been full then: nobody looks before a second is over.
        (room.left, room.had_room) = (0, false);
        assert!(room.refuses(&conn, "enqueue", 0, at(999)).is_some());
        assert!(room.refuses(&conn, "enqueue", 0, at(1_000)).is_none());
        room.write(10);
        // The rest is written by now: somebody looks, and finds more.
        (room.left, room.had_room) = (cost(10), true);
        room.write(10);
        assert!(room.refuses(&conn, "enqueue", 10, at(1_001)).is_none() && room.left > cost(10));
    }

    #[test]
    fn a_reserve_larger_than_an_eighth_of_the_disk_is_an_eighth_of_it() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("relay.db");
        let conn = Connection::open(&path).unwrap();
        let volume = statvfs(folder.path()).unwrap();
        let all = volume.blocks() as u64 * volume.fragment_size() as u64;
        let without = spare(&path, 0, &conn).unwrap();
        let with = spare(&path, u64::MAX, &conn).unwrap();
        // Others write to this disk meanwhile.
        let slack = all / 100;
        assert!(with + all / SHARE + slack >= without && with <= without.saturating_sub(all / SHARE) + slack);
    }

    #[tokio::test]
    async fn where_there_is_no_room_jobs_are_finished_cancelled_erased_and_swept_and_replayed() {
        let folder = tempfile::TempDir::new().unwrap();
        let store = Store::open_at(Some(&folder.path().join("relay.db")), |_| {}).await;
        let jobs = store.store.broker().jobs;
        let keyed =
            [store.job("a", Some("one"), 10), store.job("a", Some("two"), 10), store.job("a", Some("three"), 10)];
        for job in &keyed {
            jobs.enqueue(job.clone()).await.unwrap();
        }
        let held = store.lease(2).await;
        store.store.record(&store.result(&held[0])).await.unwrap();
        let fill = |writer: &mut Writer| {
            writer.room =
                Room { left: 0, looked_at: Some(Duration::MAX - LOOK_EVERY), had_room: false, ..writer.room.clone() };
            Ok(())
        };
        store.store.call(fill).await.unwrap();

        let full = BrokerErrorKind::Overloaded { retry_after: LOOK_EVERY };
        // Beside others in one commit, which are not refused with it.
        let result = store.result(&held[1]);
        let (refused, recorded, rerun) = store
            .in_one_batch(async {
                tokio::join!(
                    jobs.enqueue(store.job("a", None, 10)),
                    store.store.record(&result),
                    jobs.rerun(&keyed[0].client, keyed[0].id, 1)
                )
            })
            .await;
        let refused = refused.unwrap_err();
        assert_eq!((refused.kind(), rerun.unwrap_err().kind()), (full, full));
        assert!(refused.is_of_storage());
        assert_eq!(recorded.unwrap(), Recorded::First);
        assert!(matches!(jobs.enqueue(keyed[2].clone()).await.unwrap(), Enqueued::Known(_)));
        jobs.cancel(&keyed[2].client, keyed[2].id).await.unwrap();
        jobs.erase(&keyed[1].client, keyed[1].id).await.unwrap();
        store.clock.advance(QueuePolicy::default().job_ttl + QueuePolicy::default().retention * 2);
        assert_eq!(jobs.sweep(10).await.unwrap().removed, 3);
        store.store.close().await;
    }

    #[test]
    fn without_a_reserve_and_in_memory_nothing_is_refused() {
        let conn = Connection::open_in_memory().unwrap();
        for mut room in [Room::new(None, u64::MAX), Room::new(Some(PathBuf::from("/nowhere/relay.db")), 0)] {
            room.write(u64::MAX);
            assert!(room.refuses(&conn, "enqueue", u64::MAX, Duration::ZERO).is_none());
        }
    }
}
