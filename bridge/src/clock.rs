//! Wall and monotonic time behind one handle, so that a test can move both past every edge of a retention.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::contract::Timestamp;

/// Tells the time. [`Clock::system`] is real; [`Clock::manual`] stands still until [`Clock::advance`].
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    System { start: Instant },
    Manual(Arc<Manual>),
}

#[derive(Debug)]
struct Manual {
    wall_start: Timestamp,
    elapsed: Mutex<Duration>,
    moved: Condvar,
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl Clock {
    /// The machine's clocks.
    #[must_use]
    pub fn system() -> Self {
        Self(Kind::System { start: Instant::now() })
    }

    /// A clock that stands at `wall` until it is advanced; wall and monotonic time move together.
    #[must_use]
    pub fn manual(wall: Timestamp) -> Self {
        Self(Kind::Manual(Arc::new(Manual {
            wall_start: wall,
            elapsed: Mutex::new(Duration::ZERO),
            moved: Condvar::new(),
        })))
    }

    /// Wall-clock time, for what is stored.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Kind::System { .. } => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
            }
            Kind::Manual(manual) => manual.wall_start + self.monotonic(),
        }
    }

    /// Time since the clock was made, never stepping back, for leases and waits.
    #[must_use]
    pub fn monotonic(&self) -> Duration {
        match &self.0 {
            Kind::System { start } => start.elapsed(),
            Kind::Manual(manual) => *manual.elapsed.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Whether a test moves this clock. Whoever sleeps until a moment of a manual clock must also wake when it moves.
    #[must_use]
    pub fn is_manual(&self) -> bool {
        matches!(self.0, Kind::Manual(_))
    }

    /// Moves a manual clock forward. Without effect on the system clock.
    pub fn advance(&self, by: Duration) {
        if let Kind::Manual(manual) = &self.0 {
            *manual.elapsed.lock().unwrap_or_else(PoisonError::into_inner) += by;
            manual.moved.notify_all();
        }
    }
}
