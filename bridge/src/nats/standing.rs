//! Standing pulls: while somebody waits for jobs of a queue, one pull for one job stands at the server, for the lane
//! whose job came last. If that lane's next job comes, it needs neither a hint nor a request to get here.
//!
//! What a pull brings is leased from the moment at which the server sends it, and a pull can't be called off without
//! losing what is on its way. So each is owned by a task until its short time is over, and what it brought goes back, without
//! spending an attempt, if nobody takes it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Nats;
use super::deliver::{Asked, Grant};
use super::dispatch::Line;
use super::names::Lane;
use super::turns::Wanted;
use crate::error::BrokerError;

/// How long a pull stands. Short, because it lasts longer than the call for which it was made, and is renewed.
const STANDS_FOR: Duration = Duration::from_millis(250);
/// For how long after a lane's last job its next one is waited for in this way.
const EXPECTED_WITHIN: Duration = Duration::from_secs(60);
/// How long what came is kept for somebody who asks: longer than a call may be busy with other pulls.
const TAKEN_WITHIN: Duration = Duration::from_millis(100);

/// The standing pull of a line, and what is there for whoever asks next.
#[derive(Default)]
pub(super) struct Standing {
    state: Mutex<State>,
    /// Told of each thing that came.
    came: Notify,
}

#[derive(Default)]
struct State {
    /// Whose job came last, and when.
    last: Option<(Lane, Instant)>,
    /// Whether a pull stands.
    is_out: bool,
    /// What nobody took yet, in the order in which it came. Each is kept for [`TAKEN_WITHIN`].
    brought: VecDeque<Brought>,
    /// Whether a task sees to that.
    is_kept: bool,
}

/// Jobs that nobody took yet.
struct Brought {
    grant: Grant,
    asked_at: Instant,
    until: Instant,
}

impl Standing {
    /// A job of this lane was given out.
    pub(super) fn served(&self, lane: &Lane) {
        let mut state = self.state();
        let now = Instant::now();
        match &mut state.last {
            Some((last, at)) if last == lane => *at = now,
            last => *last = Some((lane.clone(), now)),
        }
    }

    /// Whether a pull stands, or has brought what nobody took yet.
    pub(super) fn is_out(&self) -> bool {
        let state = self.state();
        state.is_out || !state.brought.is_empty()
    }

    /// Whom a pull is to stand for, if none stands.
    fn begin(&self) -> Option<Lane> {
        let mut state = self.state();
        if state.is_out {
            return None;
        }
        let (lane, at) = state.last.as_ref()?;
        let lane = (at.elapsed() < EXPECTED_WITHIN).then(|| lane.clone())?;
        state.is_out = true;
        Some(lane)
    }

    /// It ended; `in_vain` and before its time, it is not made again until the lane's next job.
    fn over(&self, in_vain: bool) {
        let mut state = self.state();
        state.is_out = false;
        if in_vain {
            state.last = None;
        }
    }

    /// Whether somebody is to see to it that it goes back.
    fn put(&self, grant: Grant, asked_at: Instant) -> bool {
        let mut state = self.state();
        state.brought.push_back(Brought { grant, asked_at, until: Instant::now() + TAKEN_WITHIN });
        !std::mem::replace(&mut state.is_kept, true)
    }

    /// What came first, as much of it as that.
    fn take(&self, max: u32) -> Option<Brought> {
        let mut state = self.state();
        let first = state.brought.front_mut()?;
        if first.grant.len() > max as usize {
            return Some(Brought { grant: first.grant.first(max as usize), ..*first });
        }
        state.brought.pop_front()
    }

    /// What nobody took in its time, and when to look again, if there is more.
    fn overdue(&self, now: Instant) -> (Vec<Brought>, Option<Instant>) {
        let mut state = self.state();
        let overdue = std::iter::from_fn(|| state.brought.pop_front_if(|brought| brought.until <= now)).collect();
        let next = state.brought.front().map(|brought| brought.until);
        state.is_kept = next.is_some();
        (overdue, next)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Nats {
    /// What came without this call, which was made at `called`: its lease is shorter by what had passed then.
    pub(super) fn stood(&self, asked: &[Asked], max: u32, called: Instant) -> Option<Grant> {
        let Brought { mut grant, asked_at, .. } = asked.iter().find_map(|asked| asked.line.standing.take(max))?;
        grant.shorten(called.saturating_duration_since(asked_at));
        Some(grant)
    }

    /// What `taking` brings, or what a standing pull brings before.
    pub(super) async fn stood_or(
        &self,
        asked: &[Asked],
        max: u32,
        called: Instant,
        taking: impl Future<Output = Result<Grant, BrokerError>>,
    ) -> Result<Grant, BrokerError> {
        tokio::pin!(taking);
        loop {
            let came = select_all(asked.iter().map(|asked| Box::pin(asked.line.standing.came.notified())));
            tokio::select! {
                biased;
                taken = &mut taking => return taken,
                _ = came => {}
            }
            if let Some(stood) = self.stood(asked, max, called) {
                return Ok(stood);
            }
        }
    }

    /// Keeps jobs for whoever asks next, for a short time; then they go back.
    pub(super) fn offer(&self, line: &Arc<Line>, grant: Grant, asked_at: Instant) {
        if grant.is_empty() {
            return;
        }
        if line.standing.put(grant, asked_at) {
            // One for all that comes in a row: a task for each would be woken when what it keeps is taken.
            self.0.tasks.spawn(keep(Arc::clone(line), self.closing().clone()));
        }
        line.standing.came.notify_one();
        line.woken.notify_one();
    }

    /// Has a pull stand while the caller waits, if a job is likely to come and none stands yet.
    pub(super) fn stand(&self, asked: &Asked) {
        if asked.policy.paused {
            return;
        }
        if let Some(lane) = asked.line.standing.begin() {
            asked.line.stands(&lane);
            self.0.tasks.spawn(self.clone().stand_for(asked.clone(), lane));
        }
    }

    async fn stand_for(self, asked: Asked, lane: Lane) {
        let line = Arc::clone(&asked.line);
        let wanted = Wanted::one(lane);
        let asked_at = Instant::now();
        let brought = self.brought(&asked, &wanted, asked_at).await;
        let grant = brought.ok().flatten();
        line.standing.over(grant.is_none() && asked_at.elapsed() < STANDS_FOR.min(asked.policy.lease / 4));
        match grant {
            Some(grant) => self.offer(&line, grant, asked_at),
            None => line.woken.notify_one(),
        }
    }

    /// What came in the pull's time, if it is to be given out.
    async fn brought(&self, asked: &Asked, wanted: &Wanted, asked_at: Instant) -> Result<Option<Grant>, BrokerError> {
        let line = &asked.line;
        let expires = STANDS_FOR.min(asked.policy.lease / 4);
        let pull = self.pull(line, wanted, expires);
        tokio::pin!(pull);
        let pulled = tokio::select! {
            pulled = &mut pull => pulled,
            // Lost, maybe. Whatever comes is looked at all the same, but hints are followed again.
            () = sleep(2 * expires) => {
                line.stood(&wanted.lane, false);
                pull.await
            }
        };
        let message = pulled.map(|pulled| pulled.messages.into_iter().next());
        line.stood(&wanted.lane, matches!(message, Ok(Some(_))));
        let Some(message) = message? else { return Ok(None) };
        // If that fails, every job is looked up.
        drop(self.raise_mark_if_reconnected(line).await);
        let policy = self.policies().require(&line.queue, "lease").await.unwrap_or_else(|_| Arc::clone(&asked.policy));
        let delivery = self.deliver(line, &policy, message, asked_at).await;
        let grant = delivery.map(|delivery| Grant::of(self.clone(), delivery));
        // A queue that was paused meanwhile gives nothing: dropped, it goes back.
        Ok(grant.filter(|_| !policy.paused))
    }
}

/// Gives back what nobody took, until there is nothing left.
async fn keep(line: Arc<Line>, closing: CancellationToken) {
    let mut next = Some(Instant::now() + TAKEN_WITHIN);
    while let Some(at) = next {
        let is_over = closing.run_until_cancelled(sleep_until(at)).await.is_none();
        // Dropped, it goes back.
        let (overdue, more) = line.standing.overdue(if is_over { at + TAKEN_WITHIN } else { Instant::now() });
        drop(overdue);
        next = more;
    }
}
