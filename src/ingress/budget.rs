//! A budget that all requests together may hold, places or bytes, whichever protocol they came by; each client has a share of
//! it. A caller takes at once or is refused, or waits its turn for a while: turns go round by client.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use foldhash::fast::RandomState;
use relay_bridge::support::lock;
use tokio::sync::oneshot;

use super::clients::{ClientShares, Owner};

#[cfg(test)]
mod tests;

/// A number of places, or of bytes.
pub struct Budget {
    max: usize,
    shares: Arc<ClientShares>,
    state: Mutex<State>,
    /// Refusals because the budget was in use, and because a share was.
    refused: [AtomicU64; 2],
}

#[derive(Default)]
struct State {
    taken: usize,
    /// Those that hold something or wait for it: no more than there are holders.
    owners: HashMap<Owner, Own, RandomState>,
    /// The owners that wait, the next one first.
    turns: VecDeque<Owner>,
    /// Whether one of them waits for more of the budget, and not only for its own share.
    is_short: bool,
}

#[derive(Default)]
struct Own {
    taken: usize,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    amount: usize,
    tell: oneshot::Sender<Share>,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// The budget is in use.
    Budget,
    /// The caller's own share, of this size, is in use.
    Share(usize),
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("max", &self.max).field("taken", &self.taken()).finish_non_exhaustive()
    }
}

impl Budget {
    /// A budget of `max`, of which each client may hold what `shares` says.
    #[must_use]
    pub fn new(max: usize, shares: Arc<ClientShares>) -> Arc<Self> {
        Arc::new(Self { max, shares, state: Mutex::default(), refused: Default::default() })
    }

    /// How much there is.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }

    /// How much is in use.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.state().taken
    }

    /// How often it had no room: because all of it was in use, and because a client's share was.
    #[must_use]
    pub fn refusals(&self) -> (u64, u64) {
        let [all, share] = &self.refused;
        (all.load(Ordering::Relaxed), share.load(Ordering::Relaxed))
    }

    /// Counts a refusal.
    fn refuse(&self, full: Full) -> Full {
        let [all, share] = &self.refused;
        let counted = if full == Full::Budget { all } else { share };
        counted.fetch_add(1, Ordering::Relaxed);
        full
    }

    /// The share of one caller.
    #[must_use]
    pub fn share_of(&self, owner: &Owner) -> usize {
        self.shares.of(owner, self.max)
    }

    /// Takes `amount` until the share is dropped, before nobody who waits. A caller that holds nothing gets its first amount
    /// whatever its size, within the budget.
    pub(super) fn take(self: &Arc<Self>, owner: &Owner, amount: u64) -> Result<Share, Full> {
        self.take_now(owner, amount).map_err(|full| self.refuse(full))
    }

    /// The same for a caller that has another way.
    pub(super) fn take_now(self: &Arc<Self>, owner: &Owner, amount: u64) -> Result<Share, Full> {
        let mut share = self.nothing(owner);
        if self.state().is_short {
            return Err(Full::Budget);
        }
        share.grow(amount)?;
        Ok(share)
    }

    /// The same, but waits for it up to `within`, or for as long as it takes. An amount beyond the budget is the whole of it.
    pub(super) async fn reserve(
        self: &Arc<Self>,
        owner: &Owner,
        amount: u64,
        within: Option<Duration>,
    ) -> Result<Share, Full> {
        let amount = usize::try_from(amount).unwrap_or(usize::MAX).min(self.max);
        let told = {
            let mut state = self.state();
            if state.turns.is_empty() && self.fits(&state, owner, amount).is_ok() {
                return Ok(self.grant(&mut state, owner, amount));
            }
            let (tell, told) = oneshot::channel();
            if !state.turns.contains(owner) {
                state.turns.push_back(owner.clone());
            }
            state.owners.entry(owner.clone()).or_default().waiting.push_back(Waiting { amount, tell });
            told
        };
        // Its place in the line goes with this call, however the call ends.
        let mut waiting = Leaving { budget: self, owner, told };
        // Others may wait for nothing but their own shares.
        self.go_round();
        let told = &mut waiting.told;
        let granted = match within {
            Some(within) => tokio::time::timeout(within, told).await.ok(),
            None => Some(told.await),
        };
        match granted {
            Some(Ok(share)) => Ok(share),
            _ => {
                let state = self.state();
                let full = self.fits(&state, owner, amount).err().unwrap_or(Full::Budget);
                drop(state);
                Err(self.refuse(full))
            }
        }
    }

    fn nothing(self: &Arc<Self>, owner: &Owner) -> Share {
        Share { budget: Arc::clone(self), owner: owner.clone(), amount: 0 }
    }

    /// Whether `owner` may take so much more now.
    fn fits(&self, state: &State, owner: &Owner, amount: usize) -> Result<(), Full> {
        self.fits_beside(state, owner, amount, 0)
    }

    /// The same for what adds to `part` of what it holds: one that holds nothing else gets it whatever its size.
    fn fits_beside(&self, state: &State, owner: &Owner, amount: usize, part: usize) -> Result<(), Full> {
        let own = state.owners.get(owner).map_or(0, |own| own.taken);
        let share = self.share_of(owner);
        // Where a share is everything there is, it is the budget that is in use.
        if own > part && share < self.max && own.saturating_add(amount) > share {
            return Err(Full::Share(share));
        }
        let fits = state.taken.checked_add(amount).is_some_and(|taken| taken <= self.max);
        fits.then_some(()).ok_or(Full::Budget)
    }

    fn grant(self: &Arc<Self>, state: &mut State, owner: &Owner, amount: usize) -> Share {
        state.add(owner, amount);
        let mut share = self.nothing(owner);
        share.amount = amount;
        share
    }

    /// Gives what is free to those that wait, one of each owner after the other.
    fn go_round(self: &Arc<Self>) {
        let mut granted = Vec::new();
        {
            let mut state = self.state();
            let mut passed = 0;
            state.is_short = false;
            while passed < state.turns.len() {
                let Some(owner) = state.turns.pop_front() else { break };
                let front = state.owners.get_mut(&owner).and_then(Own::front);
                let Some(amount) = front else {
                    // Nobody of it waits any more.
                    state.forget_if_idle(&owner);
                    continue;
                };
                match self.fits(&state, &owner, amount) {
                    // It keeps its turn: smaller ones behind it would starve it.
                    Err(Full::Budget) => {
                        state.turns.push_front(owner);
                        state.is_short = true;
                        break;
                    }
                    Err(Full::Share(_)) => {
                        state.turns.push_back(owner);
                        passed += 1;
                    }
                    Ok(()) => {
                        let waiting = state.owners.get_mut(&owner).and_then(|own| own.waiting.pop_front());
                        let share = self.grant(&mut state, &owner, amount);
                        granted.extend(waiting.map(|waiting| (waiting.tell, share)));
                        state.turns.push_back(owner);
                        passed = 0;
                    }
                }
            }
        }
        for (tell, share) in granted {
            // One that has left a moment ago gives it back.
            drop(tell.send(share));
        }
    }

    fn give_back(self: &Arc<Self>, owner: &Owner, amount: usize) {
        let is_awaited = {
            let mut state = self.state();
            state.taken -= amount;
            if let Entry::Occupied(mut own) = state.owners.entry(owner.clone()) {
                own.get_mut().taken -= amount;
                if own.get().is_idle() {
                    own.remove();
                }
            }
            !state.turns.is_empty()
        };
        if is_awaited {
            self.go_round();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn add(&mut self, owner: &Owner, amount: usize) {
        self.taken += amount;
        match self.owners.get_mut(owner) {
            Some(own) => own.taken += amount,
            None if amount > 0 => {
                self.owners.insert(owner.clone(), Own { taken: amount, ..Own::default() });
            }
            None => {}
        }
    }

    fn forget_if_idle(&mut self, owner: &Owner) {
        if self.owners.get(owner).is_some_and(Own::is_idle) {
            self.owners.remove(owner);
        }
    }
}

impl Own {
    fn is_idle(&self) -> bool {
        self.taken == 0 && self.waiting.is_empty()
    }

    /// The amount that the first who is still there waits for.
    fn front(&mut self) -> Option<usize> {
        while self.waiting.front().is_some_and(|waiting| waiting.tell.is_closed()) {
            self.waiting.pop_front();
        }
        self.waiting.front().map(|waiting| waiting.amount)
    }
}

/// A call in line, which leaves the line when it is dropped.
struct Leaving<'a> {
    budget: &'a Arc<Budget>,
    owner: &'a Owner,
    told: oneshot::Receiver<Share>,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.told.close();
        // A share that came at the last moment goes back, and somebody else may have waited behind this call.
        drop(self.told.try_recv());
        let is_awaited = {
            let mut state = self.budget.state();
            if let Some(own) = state.owners.get_mut(self.owner) {
                own.waiting.retain(|waiting| !waiting.tell.is_closed());
            }
            !state.turns.is_empty()
        };
        if is_awaited {
            self.budget.go_round();
        }
    }
}

/// A part of a budget that is in use.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    owner: Owner,
    amount: usize,
}

impl Share {
    /// Takes `more`, or nothing if so much is not left.
    pub(super) fn grow(&mut self, more: u64) -> Result<(), Full> {
        let more = usize::try_from(more).map_err(|_| Full::Budget)?;
        let mut state = self.budget.state();
        self.budget.fits_beside(&state, &self.owner, more, self.amount)?;
        state.add(&self.owner, more);
        self.amount += more;
        Ok(())
    }

    /// Gives back what is beyond `amount`, or takes what is missing of it if that is free.
    pub(super) fn fit(&mut self, amount: usize) {
        if let Some(more) = amount.checked_sub(self.amount).filter(|more| *more > 0) {
            // It is in memory already; the next one waits for it.
            self.grow(more as u64).ok();
        }
        self.shrink_to(amount);
    }

    /// Gives back what is beyond `amount`.
    pub(super) fn shrink_to(&mut self, amount: usize) {
        if let Some(rest) = self.amount.checked_sub(amount).filter(|rest| *rest > 0) {
            self.amount = amount;
            self.budget.give_back(&self.owner, rest);
        }
    }

    /// How much it is.
    pub(super) fn amount(&self) -> usize {
        self.amount
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.amount > 0 {
            self.budget.give_back(&self.owner, self.amount);
        }
    }
}
