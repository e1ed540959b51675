//! Whose turn it is in one queue: weighted deficit round robin over the lanes that may have work, every job of cost
//! one, and how much each may have, as far as hints and earlier pulls tell. Pure: no clock, no I/O.

use std::collections::{HashMap, VecDeque};

use super::names::Lane;

/// The most pulls in flight at once for one lane of which only is known that there is more.
const PULLS_MAX: u32 = 8;

/// The lanes of a queue and their turns.
#[derive(Debug, Default)]
pub(super) struct Turns {
    lanes: HashMap<Lane, Turn>,
    order: VecDeque<Lane>,
}

#[derive(Debug, Default)]
struct Turn {
    /// Jobs it may still take in this turn.
    credit: u32,
    has: Has,
    /// Jobs that were hinted at so far.
    hints: u64,
    /// Pulls in flight.
    pulls: u32,
    in_order: bool,
}

/// What is known of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Has {
    #[default]
    Nothing,
    /// So many hinted jobs that nobody followed yet.
    Hinted(u32),
    /// As many as a pull asked for: there may be more.
    More,
}

/// A pull to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) lane: Lane,
    pub(super) count: u32,
    /// Whether a hint told of all of it: it must be there, or about to be.
    pub(super) hinted: bool,
    hints: u64,
}

impl Turns {
    /// So many jobs came into the lane.
    pub(super) fn hint(&mut self, lane: &Lane, jobs: u32) {
        let turn = self.enter(lane);
        turn.hints += u64::from(jobs);
        turn.has = match turn.has {
            Has::Nothing => Has::Hinted(jobs),
            Has::Hinted(count) => Has::Hinted(count.saturating_add(jobs)),
            Has::More => Has::More,
        };
    }

    /// There is more in the lane than was hinted, or may be.
    pub(super) fn more(&mut self, lane: &Lane) {
        self.enter(lane).has = Has::More;
    }

    /// Whether anybody may have work that nobody is fetching.
    pub(super) fn any(&self) -> bool {
        self.order.iter().any(|lane| self.lanes.get(lane).is_some_and(|turn| turn.available() > 0))
    }

    /// Who is to be asked for how many, `max` in all, in the order of turns; each lane at most once.
    pub(super) fn plan(&mut self, max: u32, weight: impl Fn(&Lane) -> u32) -> Vec<Wanted> {
        let (mut left, mut passed_over, mut plan) = (max, 0, Vec::<Wanted>::new());
        while left > 0 && passed_over < self.order.len() {
            let Some(lane) = self.order.pop_front() else { break };
            let Some(turn) = self.lanes.get_mut(&lane) else { continue };
            if turn.has == Has::Nothing {
                (turn.in_order, turn.credit) = (false, 0);
                continue;
            }
            let available = turn.available();
            if available == 0 {
                self.order.push_back(lane);
                passed_over += 1;
                continue;
            }
            passed_over = 0;
            if turn.credit == 0 {
                turn.credit = weight(&lane).max(1);
            }
            let count = turn.credit.min(available).min(left);
            turn.credit -= count;
            left -= count;
            let (hinted, hints) = (turn.has != Has::More, turn.hints);
            if let Has::Hinted(left) = turn.has {
                turn.has = if left > count { Has::Hinted(left - count) } else { Has::Nothing };
            }
            if turn.credit == 0 {
                self.order.push_back(lane.clone());
            } else {
                self.order.push_front(lane.clone());
            }
            match plan.iter_mut().find(|wanted| wanted.lane == lane) {
                Some(wanted) => wanted.count += count,
                None => plan.push(Wanted { lane, count, hinted, hints }),
            }
        }
        for wanted in &plan {
            if let Some(turn) = self.lanes.get_mut(&wanted.lane) {
                turn.pulls += 1;
            }
        }
        plan
    }

    /// What came of a pull.
    pub(super) fn pulled(&mut self, wanted: &Wanted, got: u32) {
        let Some(turn) = self.lanes.get_mut(&wanted.lane) else { return };
        turn.pulls = turn.pulls.saturating_sub(1);
        if got < wanted.count && turn.has == Has::More && !wanted.hinted {
            let since = u32::try_from(turn.hints - wanted.hints).unwrap_or(u32::MAX);
            turn.has = if since > 0 { Has::Hinted(since) } else { Has::Nothing };
        }
    }

    fn enter(&mut self, lane: &Lane) -> &mut Turn {
        let turn = self.lanes.entry(lane.clone()).or_default();
        if !turn.in_order {
            turn.in_order = true;
            self.order.push_back(lane.clone());
        }
        turn
    }
}

impl Turn {
    fn available(&self) -> u32 {
        match self.has {
            Has::Nothing => 0,
            Has::Hinted(count) => count,
            Has::More if self.pulls >= PULLS_MAX => 0,
            Has::More => u32::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str) -> Lane {
        name.parse().unwrap()
    }

    #[test]
    fn clients_share_by_weight_in_calls_of_any_size() {
        for max in [1, 3, 8, 50] {
            let mut turns = Turns::default();
            turns.more(&client("heavy"));
            turns.more(&client("light"));
            let (mut heavy, mut all) = (0, 0);
            while all < 400 {
                for wanted in turns.plan(max, |lane| if *lane == client("heavy") { 3 } else { 1 }) {
                    heavy += if wanted.lane == client("heavy") { wanted.count } else { 0 };
                    all += wanted.count;
                    turns.pulled(&wanted, wanted.count);
                }
            }
            let share = f64::from(heavy) / f64::from(all);
            assert!((0.72..=0.78).contains(&share), "{share} in calls of {max}");
        }
    }

    #[test]
    fn one_hint_makes_one_pull_however_many_ask() {
        let mut turns = Turns::default();
        turns.hint(&client("a"), 1);
        assert_eq!(turns.plan(8, |_| 1).iter().map(|wanted| wanted.count).collect::<Vec<_>>(), [1]);
        assert!(turns.plan(8, |_| 1).is_empty());
    }

    #[test]
    fn a_hint_during_a_pull_that_found_nothing_is_followed() {
        let mut turns = Turns::default();
        turns.more(&client("a"));
        let plan = turns.plan(1, |_| 1);
        turns.hint(&client("a"), 1);
        turns.pulled(&plan[0], 0);
        assert!(turns.any());
        let plan = turns.plan(5, |_| 1);
        assert_eq!(plan[0].count, 1);
        turns.pulled(&plan[0], 0);
        assert!(!turns.any());
    }

    #[test]
    fn a_share_that_its_owner_does_not_use_goes_to_the_others() {
        let mut turns = Turns::default();
        turns.hint(&client("small"), 1);
        turns.more(&client("big"));
        let plan = turns.plan(10, |_| 1);
        assert_eq!(plan.iter().map(|wanted| wanted.count).sum::<u32>(), 10);
        assert_eq!(plan.len(), 2);
    }
}
