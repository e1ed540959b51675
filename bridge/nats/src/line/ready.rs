//! Jobs that came and that nobody took yet. They are leased from the moment at which they were asked for, and the worker that
//! asked may have gone meanwhile: so a job that comes is there for the next call, and goes back, without spending an
//! attempt, if none takes it in time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::Nats;
use crate::leases::deliver::{Asked, Grant};
use crate::line::line::Line;

/// How long what came is kept for somebody who asks.
const TAKEN_WITHIN: Duration = Duration::from_millis(100);

/// The jobs that are there for the next call, in the order in which they came.
#[derive(Default)]
pub(crate) struct Ready(Mutex<State>);

#[derive(Default)]
struct State {
    came: VecDeque<Came>,
    /// Whether a task sees to it that what nobody takes goes back.
    is_kept: bool,
}

/// A job that nobody took yet.
struct Came {
    grant: Grant,
    asked_at: Instant,
    until: Instant,
}

impl Ready {
    /// Whether a task is to see to it that they go back.
    fn put(&self, jobs: impl Iterator<Item = Grant>, asked_at: Instant) -> bool {
        let (mut state, until) = (self.state(), Instant::now() + TAKEN_WITHIN);
        state.came.extend(jobs.map(|grant| Came { grant, asked_at, until }));
        !state.came.is_empty() && !std::mem::replace(&mut state.is_kept, true)
    }

    /// The jobs that came first, at most `max`.
    fn take(&self, max: usize) -> Vec<Came> {
        let mut state = self.state();
        let max = max.min(state.came.len());
        state.came.drain(..max).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state().came.is_empty()
    }

    /// The jobs that nobody took in their time, and when to look again, if there are more.
    fn overdue(&self, now: Instant) -> (Vec<Came>, Option<Instant>) {
        let mut state = self.state();
        let overdue = std::iter::from_fn(|| state.came.pop_front_if(|came| came.until <= now)).collect();
        let next = state.came.front().map(|came| came.until);
        state.is_kept = next.is_some();
        (overdue, next)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Nats {
    /// The jobs that are there for a call that was made at `called`, up to `max`, the queues in the order given: its leases are
    /// shorter by what had passed by then.
    pub(crate) fn ready(&self, asked: &[Asked], max: u32, called: Instant) -> Grant {
        let mut grant = Grant::nothing(self.clone());
        for Asked { line, policy } in asked {
            if policy.paused {
                continue;
            }
            let came = line.ready.take((max as usize).saturating_sub(grant.len()));
            if came.is_empty() {
                continue;
            }
            self.places().release(&line.queue, u32::try_from(came.len()).unwrap_or(u32::MAX));
            for Came { grant: mut job, asked_at, .. } in came {
                job.shorten(called.saturating_duration_since(asked_at));
                grant.join(job);
            }
            if !line.ready.is_empty() {
                // For another call.
                line.woken.notify_one();
            }
        }
        grant
    }

    /// Keeps jobs for whoever asks next, for a short time; then they go back. Their places are held.
    pub(crate) fn offer(&self, line: &Arc<Line>, jobs: impl Iterator<Item = Grant>, asked_at: Instant) {
        if line.ready.put(jobs, asked_at) {
            // One for all that comes in a row: a task for each would be woken when what it keeps is taken.
            self.0.tasks.spawn(keep(self.clone(), Arc::clone(line)));
        }
        line.woken.notify_one();
    }
}

/// Gives back what nobody took, until there is nothing left.
async fn keep(nats: Nats, line: Arc<Line>) {
    let mut next = Some(Instant::now() + TAKEN_WITHIN);
    while let Some(at) = next {
        let is_over = nats.closing().run_until_cancelled(sleep_until(at)).await.is_none();
        let (overdue, more) = line.ready.overdue(if is_over { at + TAKEN_WITHIN } else { Instant::now() });
        nats.places().release(&line.queue, u32::try_from(overdue.len()).unwrap_or(u32::MAX));
        // Dropped, it goes back.
        drop(overdue);
        next = more;
    }
}
