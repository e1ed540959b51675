//! The log of the code under test.

use std::fmt::Write as _;
use std::sync::{Arc, LazyLock, Mutex};

use tracing::dispatcher::{DefaultGuard, Dispatch, set_default};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The lines that one thread said, of every level, with their fields. Clones share them. A test that runs on a current-thread
/// runtime hears all of its tasks.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<(Level, String)>>>);

impl Log {
    /// Listens to this thread until the guard is dropped.
    #[must_use]
    pub fn listen() -> (Self, DefaultGuard) {
        // With one dispatcher alone, a line that another thread says first is never heard in this one either.
        static SEVERAL: LazyLock<[Dispatch; 2]> = LazyLock::new(|| [(); 2].map(|()| Dispatch::new(Log::default())));
        LazyLock::force(&SEVERAL);
        let log = Self::default();
        let guard = set_default(&Dispatch::new(log.clone()));
        (log, guard)
    }

    /// How many lines of a level have `text` in their message or their fields, which are written `name=value`.
    #[must_use]
    pub fn count(&self, level: Level, text: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|(of, line)| *of == level && line.contains(text)).count()
    }
}

/// A line: the message and its fields.
#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => write!(self.0, "{value:?} "),
            name => write!(self.0, "{name}={value:?} "),
        }
        .unwrap();
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        self.0.lock().unwrap().push((*event.metadata().level(), line.0));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
