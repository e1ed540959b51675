//! The parts of a process that read their files again while it runs: when it is asked to, and by themselves when a file
//! changed. Each part takes what it read as a whole or not at all, so that a mistake leaves everything as it was.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use relay_bridge::support::lock;
use tracing::{info, warn};

use crate::api::operator::ReloadedPart;

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Reads a part's files again. The error is every mistake in them, each with the file and, where it has one, the line:
/// `keys.toml:12: ...`.
type Again = Box<dyn Fn() -> Result<(), Vec<String>> + Send + Sync>;

/// Whether a part has what its files say. It is quick.
type Holds = Box<dyn Fn() -> bool + Send + Sync>;

/// The parts, in the order in which they were registered.
#[derive(Default)]
pub struct Reload {
    parts: Mutex<Vec<Part>>,
    /// Whether each has what its files say, for those who must not wait until files are read.
    known: Mutex<Vec<(&'static str, Holds)>>,
}

struct Part {
    name: &'static str,
    /// The files whose change is noticed.
    files: Vec<PathBuf>,
    /// How they were when they were read last.
    seen: Vec<Option<Stamp>>,
    again: Again,
    /// Whether there was no mistake when they were read last.
    ok: Arc<AtomicBool>,
}

/// Changes whenever the file behind a path, or behind a link in it, is replaced or edited.
type Stamp = (u64, u64, i64, i64);

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").field("parts", &self.parts()).finish_non_exhaustive()
    }
}

impl Reload {
    /// Adds a part that has just read its `files`. `again` reads them once more, and takes all of it or nothing; it may keep its
    /// thread waiting for as long as the files take to be read.
    pub fn register(
        &self,
        name: &'static str,
        files: Vec<PathBuf>,
        again: impl Fn() -> Result<(), Vec<String>> + Send + Sync + 'static,
    ) {
        let ok = Arc::new(AtomicBool::new(true));
        let holds = Arc::clone(&ok);
        self.add(
            Part { name, seen: stamps(&files), files, again: Box::new(again), ok },
            Box::new(move || holds.load(Ordering::Relaxed)),
        );
    }

    /// Adds a part that looks at its files by itself; `holds` says whether it has what they say.
    pub fn register_watched(
        &self,
        name: &'static str,
        again: impl Fn() -> Result<(), Vec<String>> + Send + Sync + 'static,
        holds: impl Fn() -> bool + Send + Sync + 'static,
    ) {
        let (files, ok) = (Vec::new(), Arc::default());
        self.add(Part { name, seen: Vec::new(), files, again: Box::new(again), ok }, Box::new(holds));
    }

    fn add(&self, part: Part, holds: Holds) {
        lock(&self.known).push((part.name, holds));
        lock(&self.parts).push(part);
    }

    /// Has every part read its files again, whether they changed or not. It blocks as long as they take to be read.
    pub fn all(&self) -> Vec<ReloadedPart> {
        let mut parts = lock(&self.parts);
        parts.iter_mut().map(Part::reload).collect()
    }

    /// Has those parts read their files again of which one changed since.
    fn changed(&self) {
        for part in lock(&self.parts).iter_mut().filter(|part| !part.files.is_empty()) {
            if stamps(&part.files) != part.seen {
                part.reload();
            }
        }
    }

    /// Looks at the files once a second. Never ends by itself.
    pub async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let this = Arc::clone(&self);
            tokio::task::spawn_blocking(move || this.changed()).await.ok();
        }
    }

    /// Each part, and whether what its files say holds.
    #[must_use]
    pub fn parts(&self) -> Vec<(&'static str, bool)> {
        lock(&self.known).iter().map(|(name, holds)| (*name, holds())).collect()
    }
}

impl Part {
    fn reload(&mut self) -> ReloadedPart {
        // Before they are read: a change in between is then seen at the next look.
        self.seen = stamps(&self.files);
        let name = self.name;
        let mistakes = match (self.again)() {
            Ok(()) => {
                info!(part = name, "files were read again");
                Vec::new()
            }
            Err(mistakes) => {
                for mistake in &mistakes {
                    warn!(part = name, mistake, "files can't be read again; those read before stand");
                }
                mistakes
            }
        };
        let ok = mistakes.is_empty();
        self.ok.store(ok, Ordering::Relaxed);
        ReloadedPart { part: name.to_owned(), ok, mistakes }
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |path: &Path| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()))
    };
    files.iter().map(|file| stamp(file)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn a_part_is_read_again_when_its_file_changed_and_a_mistake_is_told_until_it_is_mended() {
        let folder = tempfile::tempdir().unwrap();
        let (file, reads) = (folder.path().join("file"), Arc::new(AtomicU32::new(0)));
        std::fs::write(&file, "good").unwrap();
        let reload = Reload::default();
        let (path, counted) = (file.clone(), Arc::clone(&reads));
        reload.register("part", vec![file.clone()], move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let text = std::fs::read_to_string(&path).unwrap();
            if text == "good" { Ok(()) } else { Err(vec![format!("file:1: {text}")]) }
        });
        reload.changed();
        assert_eq!((reads.load(Ordering::Relaxed), reload.parts()), (0, vec![("part", true)]));
        std::fs::write(&file, "wrong").unwrap();
        reload.changed();
        reload.changed();
        assert_eq!((reads.load(Ordering::Relaxed), reload.parts()), (1, vec![("part", false)]));
        let refused = reload.all();
        assert_eq!((refused[0].ok, &refused[0].mistakes[..]), (false, &["file:1: wrong".to_owned()][..]));
        std::fs::write(&file, "good").unwrap();
        reload.changed();
        assert_eq!((reads.load(Ordering::Relaxed), reload.parts()), (3, vec![("part", true)]));
    }

    #[test]
    fn a_file_that_is_swapped_behind_a_link_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (place, text) in [("one", "1"), ("two", "2")] {
            std::fs::create_dir(at(place)).unwrap();
            std::fs::write(at(place).join("file"), text).unwrap();
        }
        std::os::unix::fs::symlink("one", at("..data")).unwrap();
        std::os::unix::fs::symlink("..data/file", at("file")).unwrap();
        let before = stamps(&[at("file")]);
        std::os::unix::fs::symlink("two", at("..new")).unwrap();
        std::fs::rename(at("..new"), at("..data")).unwrap();
        assert_ne!(stamps(&[at("file")]), before);
    }
}
