//! The audit: a line for each call that changes something, and for everybody who was not let in. A line is a record of the past,
//! for people who look for who did it; nothing in relay reads it.
//!
//! # Layout
//!
//! - [`record`]: a line, and its words.
//! - `writer`: the thread that writes them.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::contract::Timestamp;
use relay_bridge::support::lock;
use tokio::sync::{mpsc, oneshot};

use crate::api::Slug;

pub mod record;
#[cfg(test)]
mod tests;
mod writer;

use record::{Action, Door, Outcome, Record};
use writer::{Message, Sink};

/// The lines that may wait for the writer, those included that are held for calls in hand.
const QUEUE_MAX: usize = 16 * 1024;
/// How often there is a line of one kind of refusal.
const REFUSAL_EVERY: Duration = Duration::from_secs(1);
/// How long opening the file anew may take.
const REOPEN_MAX: Duration = Duration::from_secs(2);

/// Which calls are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Those that change something and leave no record of their own, and refusals of access.
    Changes,
    /// Every one: submissions, reads and leases, too.
    All,
}

/// Where lines go, and which.
#[derive(Clone, Debug)]
pub struct AuditConfig {
    /// The file, which is appended to and has mode 0600; `None` for the log.
    pub file: Option<PathBuf>,
    /// Which calls are written.
    pub level: Level,
    /// Whether a call is refused for which no line can be kept.
    pub required: bool,
}

/// The audit of one process.
pub struct Audit {
    level: Level,
    file: Option<PathBuf>,
    clock: Clock,
    queue: mpsc::Sender<Message>,
    shared: Arc<Shared>,
    refusals: Mutex<Vec<Kind>>,
}

/// The state that the writer has as well.
struct Shared {
    required: bool,
    /// The file could not be written when it was tried last.
    failing: AtomicBool,
    /// Nothing is waited for any more.
    closing: AtomicBool,
    dropped: AtomicU64,
}

/// The refusals of one kind.
struct Kind {
    door: Door,
    action: Action,
    slug: Slug,
    /// When the last line was written; monotonic.
    said: Duration,
    /// Refusals since then.
    unsaid: u64,
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audit").field("level", &self.level).field("file", &self.file).finish_non_exhaustive()
    }
}

/// There is no room for another line, and every call has to be on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the audit can't be written, and this relay does nothing that is not on record; nothing was done: send it again later"
)]
pub struct Full;

impl Audit {
    /// Opens the file, if there is to be one, and starts the writer.
    ///
    /// # Errors
    /// If the file can't be opened for writing, or the system has no room for a thread.
    pub fn start(config: AuditConfig, clock: Clock) -> io::Result<Arc<Self>> {
        let AuditConfig { file, level, required } = config;
        let sink = match &file {
            Some(path) => Sink::File(path.clone(), writer::open(path)?),
            None => Sink::Log,
        };
        let shared = Arc::new(Shared {
            required,
            failing: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
        });
        let (queue, incoming) = mpsc::channel(QUEUE_MAX);
        let of_writer = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("audit".to_owned());
        thread.spawn(move || writer::run(&of_writer, sink, incoming))?;
        Ok(Arc::new(Self { level, file, clock, queue, shared, refusals: Mutex::default() }))
    }

    /// Whether calls of this kind are written.
    #[must_use]
    pub fn wants(&self, action: Action) -> bool {
        self.level == Level::All || action.is_change()
    }

    /// Holds a line for a call that is about to be done, if calls of its kind are written. Dropping it writes that nobody knows
    /// how the call ended.
    ///
    /// # Errors
    /// [`Full`], where every call has to be on record: it must not be done.
    pub fn begin(&self, door: Door, action: Action) -> Result<Option<Line>, Full> {
        if !self.wants(action) {
            return Ok(None);
        }
        let shared = &self.shared;
        let place = if shared.required && shared.failing.load(Ordering::Relaxed) {
            None
        } else {
            self.queue.clone().try_reserve_owned().ok()
        };
        match place {
            Some(place) => {
                let record = Box::new(Record::new(self.clock.now(), door, action));
                Ok(Some(Line { record: Some(record), place: Some(place) }))
            }
            None if shared.required => Err(Full),
            None => {
                shared.dropped.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
        }
    }

    /// Writes a line of something that has happened already.
    pub fn write(&self, record: Record) {
        if self.wants(record.action) {
            self.send(record);
        }
    }

    /// Somebody was not let in at `door`: there is one line a second of each kind, with how many there were since the one before,
    /// so that strangers can't fill the disk. `record` makes it where one is due.
    pub fn refused(&self, door: Door, slug: Slug, record: impl FnOnce(Record) -> Record) {
        self.refused_at(door, Action::Authenticate, slug, record);
    }

    /// A peer was not let in at `door`, because of the certificate that it showed or did not show; its lines are bounded as those of
    /// [`refused`](Self::refused), and hide none of them.
    pub(crate) fn refused_handshake(&self, door: Door, record: impl FnOnce(Record) -> Record) {
        self.refused_at(door, Action::Handshake, Slug::Unauthenticated, record);
    }

    fn refused_at(&self, door: Door, action: Action, slug: Slug, record: impl FnOnce(Record) -> Record) {
        let Some(count) = self.due(door, action, slug) else { return };
        let bare = Record::new(self.clock.now(), door, action);
        let bare = Record { outcome: Outcome::Refused, slug: Some(slug), count: Some(count), ..bare };
        self.send(record(bare));
    }

    /// One more was refused. If a line is due: how many were since the last line, this one included.
    fn due(&self, door: Door, action: Action, slug: Slug) -> Option<u64> {
        let now = self.clock.monotonic();
        let mut kinds = lock(&self.refusals);
        let of_kind = |kind: &&mut Kind| (kind.door, kind.action, kind.slug) == (door, action, slug);
        let Some(kind) = kinds.iter_mut().find(of_kind) else {
            kinds.push(Kind { door, action, slug, said: now, unsaid: 0 });
            return Some(1);
        };
        kind.unsaid += 1;
        if now.saturating_sub(kind.said) < REFUSAL_EVERY {
            return None;
        }
        kind.said = now;
        Some(std::mem::take(&mut kind.unsaid))
    }

    fn send(&self, record: Record) {
        if self.queue.try_send(Message::Line(Box::new(record))).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether lines go into a file of their own.
    #[must_use]
    pub fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// The time of a line that is written now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Lines that were lost: the queue was full, or the file could not be written.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Opens the file anew, once all that came before is written into the old one: for whoever has moved it away.
    ///
    /// # Errors
    /// Every mistake, each with the file's name; lines go on into the old one.
    pub fn reopen(&self) -> Result<(), Vec<String>> {
        let Some(path) = &self.file else { return Ok(()) };
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let wrong = |what: String| Err(vec![format!("{}: {what}", path.display())]);
        if self.queue.try_send(Message::Reopen(answer)).is_err() {
            return wrong("the audit is behind, and the file stays open: try again".to_owned());
        }
        match answered.recv_timeout(REOPEN_MAX) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => wrong(error.to_string()),
            Err(_) => wrong("the file that is open can't be written to its end".to_owned()),
        }
    }

    /// Writes what waits, for as long as `within`. Lines that come later are lost.
    pub async fn close(&self, within: Duration) {
        let (end, ended) = oneshot::channel();
        let written = async {
            if self.queue.send(Message::End(end)).await.is_ok() {
                ended.await.ok();
            }
        };
        if tokio::time::timeout(within, written).await.is_err() {
            tracing::warn!("the audit could not be written to its end");
        }
        self.shared.closing.store(true, Ordering::Relaxed);
    }
}

/// A line that is held for a call in hand.
#[derive(Debug)]
pub struct Line {
    record: Option<Box<Record>>,
    place: Option<mpsc::OwnedPermit<Message>>,
}

impl Line {
    /// The line as far as it is known.
    pub fn set(&mut self, change: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            change(record);
        }
    }

    /// Writes it: the call was answered with `status` of HTTP, and `slug` if that is a problem.
    pub fn end(mut self, status: u16, slug: Option<Slug>) {
        self.set(|record| (record.outcome, record.slug) = (Outcome::of_status(status), slug));
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let (Some(record), Some(place)) = (self.record.take(), self.place.take()) {
            place.send(Message::Line(record));
        }
    }
}
