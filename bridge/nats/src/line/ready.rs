//! Jobs that came and that no call took yet. They are leased from the moment at which they were asked for, and the
//! worker that asked may have gone meanwhile. So a job that comes is there for the next call, and goes back, without
//! spending an attempt, if no call takes it in time.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use relay_bridge::leasing::Delivery;
use relay_bridge::support::lock;

/// How long a job that came is kept for a call.
pub(crate) const TAKEN_WITHIN: Duration = Duration::from_millis(100);

/// The jobs that are there for the next call, in the order in which they came.
#[derive(Default)]
pub(crate) struct Ready(Mutex<State>);

#[derive(Default)]
struct State {
    came: VecDeque<Came>,
    /// Whether a task is running that hands back the jobs that nobody takes.
    is_kept: bool,
}

/// A job that nobody took yet.
pub(crate) struct Came {
    pub(crate) delivery: Delivery,
    pub(crate) asked_at: Instant,
    until: Instant,
}

impl Ready {
    /// Adds jobs. `true` if the caller has to start the task that hands them back.
    pub(crate) fn put(&self, jobs: impl Iterator<Item = Delivery>, asked_at: Instant) -> bool {
        let (mut state, until) = (self.state(), Instant::now() + TAKEN_WITHIN);
        state.came.extend(jobs.map(|delivery| Came { delivery, asked_at, until }));
        !state.came.is_empty() && !std::mem::replace(&mut state.is_kept, true)
    }

    /// The jobs that came first, at most `max`, as far as each `fits`.
    pub(crate) fn take(&self, max: usize, mut fits: impl FnMut(&Delivery) -> bool) -> Vec<Came> {
        let mut state = self.state();
        let next = || state.came.pop_front_if(|came| fits(&came.delivery));
        std::iter::from_fn(next).take(max).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state().came.is_empty()
    }

    /// The jobs that nobody took in their time, and when to look again, if there are more.
    pub(crate) fn overdue(&self, now: Instant) -> (Vec<Came>, Option<Instant>) {
        let mut state = self.state();
        let overdue = std::iter::from_fn(|| state.came.pop_front_if(|came| came.until <= now)).collect();
        let next = state.came.front().map(|came| came.until);
        state.is_kept = next.is_some();
        (overdue, next)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}
