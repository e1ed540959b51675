//! `relay store restore`: puts a copy of a store in a store's place, so that its end at any step loses nothing.

use std::fs::File;
use std::io::{self, ErrorKind::NotFound};
use std::path::{Path, PathBuf};

use super::marker::{Marker, Restoring, forget_number, sync_folder};
use super::private;
use super::schema;
use super::sql::{log_id, unavailable};
use super::store::copy;
use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// Puts a copy of `from`, a backup or any other file of a store, at `to`, where relay opens it; `from` may be the file at
/// `to` itself. The file that is there is kept, with its log, in the folder `to` with `.replaced` behind its name. The store has
/// a log id of its own then, as a backup has. Answers its size in bytes.
///
/// From the first change on the place is refused, until a call has put a store there: one that failed or was killed is repeated,
/// with the same file or another.
///
/// # Errors
/// As for opening the store; `StateConflict` if something was replaced before and is still there.
pub fn restore(from: &Path, to: &Path) -> Result<u64, BrokerError> {
    restore_by(from, to, &mut || Ok(()))
}

/// `step` comes before each change of what is there; a failure of it is a process that ends there.
fn restore_by(from: &Path, to: &Path, step: &mut dyn FnMut() -> io::Result<()>) -> Result<u64, BrokerError> {
    let sql = |e| unavailable(e, "restore");
    let failed = |e: io::Error| {
        let why = format!("can't put {} at {}: {e}: repeat it, which is safe", from.display(), to.display());
        BrokerError::new(BrokerErrorKind::Unavailable, "restore", why).with_source(e)
    };
    let lock = schema::lock(to)?;
    let replaced = Replaced::of(to);
    // A damaged marker is one of the reasons for a restore.
    let interrupted = Marker::restoring(to).ok().flatten();
    match interrupted {
        None if replaced.folder.exists() => {
            let why = format!("{} is what an earlier restore replaced: move it away first", replaced.folder.display());
            return Err(BrokerError::new(BrokerErrorKind::StateConflict, "restore", why));
        }
        // The file and its log belong together, also as what is copied below.
        Some(Restoring::Moving) => replaced.take(to, step).map_err(failed)?,
        Some(Restoring::Placing) | None => {}
    }
    let from = if interrupted.is_some() && whole(from) == whole(to) && replaced.file.exists() {
        replaced.file.as_path()
    } else {
        from
    };
    let partial = beside(to, ".partial");
    if interrupted.is_some() || whole(from) != whole(&partial) {
        step().and_then(|()| gone(&partial)).map_err(failed)?;
    }
    let copy = copy(from, &partial)?;
    forget_number(&copy).map_err(sql)?;
    let log = log_id(&copy, &partial.display().to_string())?;
    copy.close().map_err(|(_, e)| sql(e))?;
    File::open(&partial).and_then(|file| file.sync_all()).map_err(failed)?;
    let marker = Marker::of_new(log);
    if interrupted.is_none() {
        step().map_err(failed)?;
        marker.while_restoring(Restoring::Moving).write(to)?;
        replaced.take(to, step).map_err(failed)?;
    }
    step().map_err(failed)?;
    marker.while_restoring(Restoring::Placing).write(to)?;
    step().and_then(|()| std::fs::rename(&partial, to)).and_then(|()| sync_folder(to)).map_err(failed)?;
    step().map_err(failed)?;
    marker.write(to)?;
    drop(lock);
    Ok(std::fs::metadata(to).map_or(0, |metadata| metadata.len()))
}

/// The folder of what was replaced: a store's file with its log beside it.
struct Replaced {
    folder: PathBuf,
    file: PathBuf,
}

impl Replaced {
    fn of(path: &Path) -> Self {
        let folder = beside(path, ".replaced");
        let file = folder.join(path.file_name().unwrap_or_default());
        Self { folder, file }
    }

    /// Moves the store at `path` here, or the files of it that are left.
    fn take(&self, path: &Path, step: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let moves = [(path.to_owned(), self.file.clone()), (beside(path, "-wal"), beside(&self.file, "-wal"))];
        for (from, to) in moves.iter().filter(|(from, to)| from.exists() && !to.exists()) {
            step()?;
            private::create_folder(&self.folder)?;
            std::fs::rename(from, to)?;
            sync_folder(to)?;
        }
        // The index of a log that is gone.
        gone(&beside(path, "-shm"))?;
        sync_folder(path)
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

/// Removes a file, if it is there.
fn gone(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path).or_else(|e| if e.kind() == NotFound { Ok(()) } else { Err(e) })
}

/// The path from the root, also of a file that was moved away.
fn whole(path: &Path) -> Option<PathBuf> {
    let in_folder = || {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(folder.canonicalize().ok()?.join(path.file_name()?))
    };
    path.canonicalize().ok().or_else(in_folder)
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;
    use tempfile::TempDir;

    use super::super::testing::{open_file, submit_to};
    use super::*;
    use crate::store;
    use relay_bridge::job_queue::JobFilter;

    /// The files that a crash leaves in `folder` of a store with the jobs `before` and `after`, and a backup that has `before`
    /// only.
    async fn crashed(folder: &Path, has_marker: bool) {
        let (open, place) = (folder.join("open.db"), folder.join("relay.db"));
        open_file(&open).await.unwrap().close().await;
        let store = open_file(&open).await.unwrap();
        submit_to(&store, "before").await;
        store::backup(&open, &folder.join("backup.db")).unwrap();
        submit_to(&store, "after").await;
        for suffix in ["", "-wal", ".marker"] {
            std::fs::copy(beside(&open, suffix), beside(&place, suffix)).unwrap();
        }
        store.close().await;
        if !has_marker {
            // As the releases before left a store.
            std::fs::remove_file(beside(&place, ".marker")).unwrap();
            let conn = Connection::open(&place).unwrap();
            schema::keep_log(&conn, true).unwrap();
            forget_number(&conn).unwrap();
        }
    }

    async fn keys(path: &Path) -> Result<Vec<String>, BrokerError> {
        let store = open_file(path).await?;
        let filter = JobFilter { queues: None, state: None, key_prefix: None, after: None, limit: 10 };
        let listed = store.broker().jobs.list(&"alice".parse().unwrap(), &filter).await.unwrap();
        store.close().await;
        let mut keys: Vec<_> = listed.jobs.into_iter().filter_map(|job| Some(job.key?.to_string())).collect();
        keys.sort();
        Ok(keys)
    }

    /// Fails at the step with this number, as the end of the process there would.
    fn ends_at(step: usize) -> impl FnMut() -> io::Result<()> {
        let mut taken = 0;
        move || {
            taken += 1;
            if taken == step { Err(io::Error::other("it ended here")) } else { Ok(()) }
        }
    }

    #[tokio::test]
    async fn a_restore_that_ends_anywhere_opens_no_other_store_and_its_repetition_completes_it() {
        for (has_marker, from_itself) in [(false, false), (true, true)] {
            let crash = TempDir::new().unwrap();
            crashed(crash.path(), has_marker).await;
            let mut step = 0;
            loop {
                step += 1;
                let what = format!("marker: {has_marker}, from itself: {from_itself}, ended at step {step}");
                let folder = TempDir::new().unwrap();
                let place = folder.path().join("relay.db");
                for file in ["relay.db", "relay.db-wal", "relay.db.marker"] {
                    drop(std::fs::copy(crash.path().join(file), folder.path().join(file)));
                }
                let from = if from_itself { place.clone() } else { crash.path().join("backup.db") };
                if restore_by(&from, &place, &mut ends_at(step)).is_ok() {
                    break;
                }
                match keys(&place).await {
                    Ok(there) => assert_eq!(there, ["after", "before"], "{what}: the old store as it was, or none"),
                    Err(refused) => assert_eq!(refused.kind(), BrokerErrorKind::StateConflict, "{what}: {refused}"),
                }
                // Its repetitions may be cut short as well.
                let repeated = [step, step / 2, 0].map(|end| restore_by(&from, &place, &mut ends_at(end)));
                assert!(repeated.iter().any(Result::is_ok), "{what}: {repeated:?}");
                let expected: &[&str] = if from_itself { &["after", "before"] } else { &["before"] };
                assert_eq!(keys(&place).await.unwrap(), expected, "{what}");
                let kept = store::stats(&Replaced::of(&place).file).unwrap();
                assert_eq!(kept.jobs, 2, "{what}: the store that was there is kept, with its log");
                assert!(!beside(&place, ".partial").exists(), "{what}");
            }
            assert!(step > 5, "no step was interrupted");
        }
    }
}
