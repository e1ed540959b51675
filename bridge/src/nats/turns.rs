//! Whose turn it is in one queue: weighted deficit round robin over the lanes that may have work, every job of cost
//! one, and how much each may have, as far as hints and earlier pulls tell. Pure: no clock, no I/O.

use std::collections::{HashMap, VecDeque};

use super::names::Lane;

/// The most pulls in flight at once for one lane of which only is known that there is more.
const PULLS_MAX: u32 = 8;
/// The most misses that are counted.
const MISSES_MAX: u32 = 4;

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
    /// Whether a pull for one job stands at the server: the first job that is hinted at needs no other.
    stands: bool,
    /// Whether one that was hinted at before did not come to it: it went to another worker, or is late.
    late: bool,
    /// Jobs that standing pulls brought before their hints came.
    ahead: u32,
    /// Pulls in a row that brought nothing although it had jobs.
    misses: u32,
    in_order: bool,
}

/// What is known of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Has {
    #[default]
    Nothing,
    /// So many hinted jobs that nobody followed yet.
    Hinted(u32),
    /// Leased ones, of which some may have come back. Whoever has more comes first.
    Maybe,
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
    /// How many pulls in a row brought nothing although the lane had jobs, 4 at most: this one should wait longer.
    pub(super) misses: u32,
}

/// What a hint means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Jobs are to be fetched.
    Work,
    /// A pull that stands brings it.
    Nothing,
    /// A pull that stood has brought it already, it seems.
    Doubt,
}

impl Wanted {
    /// The lane's next job, whenever it comes.
    pub(super) fn one(lane: Lane) -> Self {
        Self { lane, count: 1, hinted: true, hints: 0, misses: 0 }
    }
}

impl Turns {
    /// So many jobs came into the lane.
    pub(super) fn hint(&mut self, lane: &Lane, jobs: u32) -> Told {
        let turn = self.enter(lane);
        let here = jobs.min(turn.ahead);
        turn.ahead -= here;
        let jobs = jobs - here;
        if jobs == 0 {
            return if turn.stands { Told::Nothing } else { Told::Doubt };
        }
        turn.hints += u64::from(jobs);
        turn.has = match turn.has {
            Has::Hinted(_) if turn.stands => {
                turn.late = true;
                Has::Hinted(jobs)
            }
            Has::Nothing => Has::Hinted(jobs),
            Has::Hinted(count) => Has::Hinted(count.saturating_add(jobs)),
            Has::Maybe | Has::More => Has::More,
        };
        if turn.available() > 0 { Told::Work } else { Told::Nothing }
    }

    /// A pull for one of the lane's jobs stands at the server.
    pub(super) fn stands(&mut self, lane: &Lane) {
        let turn = self.enter(lane);
        (turn.stands, turn.late) = (true, false);
    }

    /// It stands no more; whether it brought a job. Whether a hint told of one that it did not bring.
    pub(super) fn stood(&mut self, lane: &Lane, brought: bool) -> bool {
        let Some(turn) = self.lanes.get_mut(lane).filter(|turn| turn.stands) else { return false };
        turn.stands = false;
        turn.ahead = match turn.has {
            Has::Nothing if brought => turn.ahead.saturating_add(1),
            _ if brought => turn.ahead,
            _ => 0,
        };
        let Has::Hinted(count) = turn.has else { return false };
        turn.has = match count {
            _ if !brought => Has::Nothing,
            _ if turn.late => Has::More,
            0 | 1 => Has::Nothing,
            more => Has::Hinted(more - 1),
        };
        !brought
    }

    /// There is more in the lane than was hinted, or may be.
    pub(super) fn more(&mut self, lane: &Lane) {
        self.enter(lane).has = Has::More;
    }

    /// The lane has leased jobs, and none that wait. Who was not asked since this was said last has its turn like others.
    pub(super) fn maybe(&mut self, lane: &Lane) {
        let turn = self.enter(lane);
        turn.has = match turn.has {
            Has::Nothing => Has::Maybe,
            Has::Maybe => Has::More,
            known => known,
        };
    }

    /// There are jobs in the lane, and the last pull did not bring any.
    pub(super) fn missed(&mut self, lane: &Lane) {
        let turn = self.enter(lane);
        (turn.has, turn.misses) = (Has::More, (turn.misses + 1).min(MISSES_MAX));
    }

    /// The lane has nothing to give.
    pub(super) fn nothing_missed(&mut self, lane: &Lane) {
        if let Some(turn) = self.lanes.get_mut(lane) {
            turn.misses = 0;
        }
    }

    /// Whether anybody may have work that nobody is fetching.
    pub(super) fn any(&self) -> bool {
        self.order.iter().any(|lane| self.lanes.get(lane).is_some_and(|turn| turn.available() > 0))
    }

    /// Who is to be asked for how many, `max` in all, in the order of turns, those last who only may have something; each
    /// lane at most once.
    pub(super) fn plan(&mut self, max: u32, weight: impl Fn(&Lane) -> u32) -> Vec<Wanted> {
        let (mut left, mut passed_over, mut plan) = (max, 0, Vec::<Wanted>::new());
        let mut is_last = false;
        while left > 0 {
            if passed_over >= self.order.len() {
                if is_last {
                    break;
                }
                (is_last, passed_over) = (true, 0);
                continue;
            }
            let Some(lane) = self.order.pop_front() else { break };
            let Some(turn) = self.lanes.get_mut(&lane) else { continue };
            if turn.has == Has::Nothing {
                (turn.in_order, turn.credit) = (false, 0);
                continue;
            }
            let available = turn.available();
            if available == 0 || (turn.has == Has::Maybe && !is_last) {
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
            let (hinted, hints, misses) = (matches!(turn.has, Has::Hinted(_)), turn.hints, turn.misses);
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
                None => plan.push(Wanted { lane, count, hinted, hints, misses }),
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
        if got > 0 {
            turn.misses = 0;
        }
        if wanted.hinted || !matches!(turn.has, Has::Maybe | Has::More) {
            return;
        }
        if got == wanted.count {
            turn.has = Has::More;
        } else {
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
            Has::Hinted(count) => count.saturating_sub(u32::from(self.stands)),
            Has::Maybe | Has::More if self.pulls >= PULLS_MAX => 0,
            Has::Maybe | Has::More => u32::MAX,
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
    fn a_pull_that_stands_needs_no_other_for_one_job() {
        let (mut turns, me) = (Turns::default(), client("a"));
        turns.stands(&me);
        assert_eq!(turns.hint(&me, 1), Told::Nothing, "it will bring it");
        assert!(turns.plan(8, |_| 1).is_empty());
        assert!(!turns.stood(&me, true));
        assert!(!turns.any());
        turns.stands(&me);
        assert_eq!(turns.hint(&me, 3), Told::Work, "it brings one of them");
        assert_eq!(turns.plan(8, |_| 8)[0].count, 2);
    }

    #[test]
    fn what_a_standing_pull_was_to_bring_and_did_not_is_asked_about() {
        let (mut turns, me) = (Turns::default(), client("a"));
        turns.stands(&me);
        turns.hint(&me, 1);
        assert!(turns.stood(&me, false), "somebody else may have it");
        assert!(!turns.any());
        turns.stands(&me);
        turns.hint(&me, 1);
        assert_eq!(turns.hint(&me, 1), Told::Nothing, "the first one went elsewhere, or is late");
        turns.stood(&me, true);
        assert!(turns.any(), "which of the two it brought is not known");
    }

    #[test]
    fn a_hint_that_comes_after_its_job_makes_no_pull() {
        let (mut turns, me) = (Turns::default(), client("a"));
        turns.stands(&me);
        turns.stood(&me, true);
        assert_eq!(turns.hint(&me, 1), Told::Doubt, "it told of what is here, or its job's hint was lost");
        assert!(!turns.any());
        assert_eq!(turns.hint(&me, 1), Told::Work);
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
    fn misses_are_counted_until_something_comes_or_there_is_nothing() {
        let (mut turns, me) = (Turns::default(), client("a"));
        turns.more(&me);
        let pull = |turns: &mut Turns, got| {
            let plan = turns.plan(2, |_| 2);
            turns.pulled(&plan[0], got);
            plan[0].misses
        };
        assert_eq!(pull(&mut turns, 0), 0);
        for misses in [1, 2, 3, 4, 4] {
            turns.missed(&me);
            assert_eq!(pull(&mut turns, 0), misses);
        }
        turns.missed(&me);
        assert_eq!(pull(&mut turns, 1), 4);
        turns.missed(&me);
        assert_eq!(pull(&mut turns, 0), 1);
        turns.nothing_missed(&me);
        turns.more(&me);
        assert_eq!(pull(&mut turns, 0), 0);
    }

    #[test]
    fn who_has_leased_jobs_only_comes_after_who_has_some_in_line() {
        let (mut turns, lone) = (Turns::default(), client("lone"));
        let lanes: Vec<_> = (0..300).map(|number| client(&format!("client-{number}"))).collect();
        lanes.iter().for_each(|lane| turns.maybe(lane));
        turns.hint(&lone, 1);
        let plan = turns.plan(1, |_| 1);
        assert_eq!(plan.iter().map(|wanted| &wanted.lane).collect::<Vec<_>>(), [&lone]);
        turns.pulled(&plan[0], 1);
        turns.more(&lanes[200]);
        let plan = turns.plan(3, |_| 1);
        assert_eq!(plan.iter().map(|wanted| (&wanted.lane, wanted.count)).collect::<Vec<_>>(), [(&lanes[200], 3)]);
        turns.pulled(&plan[0], 0);
        let plan = turns.plan(400, |_| 1);
        assert_eq!(plan.len(), 299, "each of the others is asked");
        plan.iter().for_each(|wanted| turns.pulled(wanted, 0));
        assert!(!turns.any());
    }

    #[test]
    fn a_job_that_came_back_is_not_hidden_by_a_backlog() {
        let (mut turns, big, back) = (Turns::default(), client("big"), client("back"));
        let mut asked = Vec::new();
        for _round in 0..2 {
            turns.more(&big);
            turns.maybe(&back);
            for wanted in turns.plan(8, |_| 1) {
                turns.pulled(&wanted, wanted.count);
                asked.push(wanted.lane);
            }
        }
        assert!(asked.contains(&back));
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
