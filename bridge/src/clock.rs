//! Wall and monotonic time behind one handle, so that a test can move both past every edge of a retention.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::contract::Timestamp;
use crate::support::lock;

/// Tells the time. [`Clock::system`] is real; [`Clock::manual`] stands still until [`Clock::advance`].
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    System { start: Instant },
    Manual(Arc<Manual>),
}

struct Manual {
    wall_start: Timestamp,
    moving: Mutex<Moving>,
}

#[derive(Default)]
struct Moving {
    elapsed: Duration,
    sleepers: Vec<Waker>,
    listeners: Vec<Box<dyn Fn() + Send>>,
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
        Self(Kind::Manual(Arc::new(Manual { wall_start: wall, moving: Mutex::default() })))
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
            Kind::Manual(manual) => manual.moving().elapsed,
        }
    }

    /// Moves a manual clock forward and wakes all that wait on it. Without effect on the system clock.
    pub fn advance(&self, by: Duration) {
        if let Kind::Manual(manual) = &self.0 {
            let mut moving = manual.moving();
            moving.elapsed += by;
            moving.listeners.iter().for_each(|listener| listener());
            std::mem::take(&mut moving.sleepers).into_iter().for_each(Waker::wake);
        }
    }

    /// Calls `listener` at each [`Clock::advance`]; never on the system clock. It must not call the clock.
    pub fn on_advance(&self, listener: impl Fn() + Send + 'static) {
        if let Kind::Manual(manual) = &self.0 {
            manual.moving().listeners.push(Box::new(listener));
        }
    }

    /// Waits until [`Clock::monotonic`] has reached `moment`.
    pub async fn sleep_until(&self, moment: Duration) {
        match &self.0 {
            Kind::System { start } => tokio::time::sleep_until((*start + moment).into()).await,
            Kind::Manual(manual) => {
                std::future::poll_fn(|context| {
                    let mut moving = manual.moving();
                    if moving.elapsed >= moment {
                        return std::task::Poll::Ready(());
                    }
                    if !moving.sleepers.iter().any(|waker| waker.will_wake(context.waker())) {
                        moving.sleepers.push(context.waker().clone());
                    }
                    std::task::Poll::Pending
                })
                .await;
            }
        }
    }
}

impl Manual {
    fn moving(&self) -> MutexGuard<'_, Moving> {
        lock(&self.moving)
    }
}

impl fmt::Debug for Manual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manual").field("elapsed", &self.moving().elapsed).finish_non_exhaustive()
    }
}
