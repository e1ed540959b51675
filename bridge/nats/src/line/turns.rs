//! Decides whose turn it is in one queue: weighted deficit round robin over the lanes that may have work, every job of
//! cost one. It also keeps how many jobs each lane may have, as far as hints and earlier pulls tell. Pure: no clock, no
//! I/O.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::stored::names::Lane;

/// The most pulls in flight at once for a lane that is only known to have more.
const PULLS_MAX: u32 = 8;
/// After so many misses in a row a lane is left alone, until the server says again that it has jobs.
const MISSES_IN_A_ROW: u32 = 2;
/// More jobs at once than this count as a backlog: their number does not matter.
const HINTED_MAX: u32 = 64;
/// The most misses that are counted.
const MISSES_MAX: u32 = 4;
/// How long a lane is left alone whose consumer did not answer a pull: each pull holds a place that another lane could
/// use. Twice as long each time, up to the second value.
const SILENT_FOR: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];
/// How much later than its job a hint may come.
const HINT_LATE_MAX: Duration = Duration::from_millis(50);

/// The lanes of a queue and their turns.
#[derive(Debug, Default)]
pub(crate) struct Turns {
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
    /// Standing pulls in flight, for jobs that nobody hinted at yet.
    standing: u32,
    /// Jobs that came by standing pulls, and until when their hints may come.
    early: Option<(u32, Instant)>,
    /// Pulls in a row that brought nothing although it had jobs.
    misses: u32,
    /// Whether the server said that there are jobs, and none of them came since.
    is_waiting: bool,
    /// Whether those are for nobody but this process: it asks until they come, or [`MISSES_MAX`] times.
    is_sure: bool,
    /// Until when it is left alone.
    silent_until: Option<Instant>,
    /// For how long it was last left alone.
    silent_for: Option<Duration>,
    in_order: bool,
}

/// The jobs that a lane has, as far as is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Has {
    #[default]
    Nothing,
    /// So many hinted jobs for which no pull was made yet.
    Hinted(u32),
    /// Leased jobs, of which some may have come back. Lanes that have more come first.
    Maybe,
    /// A pull brought as many as it asked for: there may be more.
    More,
}

/// A pull to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) lane: Lane,
    pub(crate) count: u32,
    pub(crate) why: Why,
    hints: u64,
    /// How many pulls in a row brought nothing although the lane had jobs, 4 at most: this one should wait longer.
    pub(crate) misses: u32,
}

/// Why a pull is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// A hint told of all its jobs: they must be there, or about to come.
    Hinted,
    /// The lane may have jobs.
    Maybe,
    /// A standing pull: the lane's next job is likely to come soon.
    Standing,
}

impl Wanted {
    /// A pull of what may be there.
    #[cfg(test)]
    pub(crate) fn of(lane: Lane, count: u32) -> Self {
        Self { lane, count, why: Why::Maybe, hints: 0, misses: 0 }
    }
}

impl Turns {
    /// Notes a hint: so many jobs came into the lane.
    pub(crate) fn hint(&mut self, lane: &Lane, jobs: u32, now: Instant) {
        if jobs > HINTED_MAX {
            return self.more(lane);
        }
        let turn = self.enter(lane);
        let early = turn.early.filter(|(_, until)| now < *until).map_or(0, |(early, _)| early);
        let here = jobs.min(early);
        turn.early = turn.early.filter(|_| early > here).map(|(_, until)| (early - here, until));
        let coming = (jobs - here).min(turn.standing);
        turn.standing -= coming;
        let jobs = jobs - here - coming;
        turn.hints += u64::from(jobs);
        turn.has = match turn.has {
            has if jobs == 0 => has,
            Has::Nothing => Has::Hinted(jobs),
            Has::Hinted(count) if count + jobs <= HINTED_MAX => Has::Hinted(count + jobs),
            _ => Has::More,
        };
    }

    /// A standing pull for the lane's next job, whenever it comes; none while its consumer is left alone.
    pub(crate) fn standing_pull(&mut self, lane: &Lane, now: Instant) -> Option<Wanted> {
        let turn = self.enter(lane);
        if turn.is_silent(now) {
            return None;
        }
        (turn.pulls, turn.standing) = (turn.pulls + 1, turn.standing + 1);
        Some(Wanted { lane: lane.clone(), count: 1, why: Why::Standing, hints: turn.hints, misses: 0 })
    }

    /// Notes that there is, or may be, more in the lane than was hinted.
    pub(crate) fn more(&mut self, lane: &Lane) {
        self.enter(lane).has = Has::More;
    }

    /// Notes that the lane has leased jobs, and none that wait. If it was not asked since this was last noted, it has
    /// its turn like other lanes.
    pub(crate) fn maybe(&mut self, lane: &Lane) {
        let turn = self.enter(lane);
        turn.has = match turn.has {
            Has::Nothing => Has::Maybe,
            Has::Maybe => Has::More,
            known => known,
        };
    }

    /// Notes that the server says that there are jobs in the lane.
    pub(crate) fn waiting(&mut self, lane: &Lane) {
        let turn = self.enter(lane);
        (turn.has, turn.is_waiting, turn.is_sure) = (Has::More, true, false);
    }

    /// Whether there is more than was hinted at.
    pub(crate) fn has_more(&self) -> bool {
        self.order.iter().any(|lane| self.lanes.get(lane).is_some_and(|turn| turn.has == Has::More))
    }

    /// Notes that the lane's consumer did not answer a pull in time. Returns when it is to be asked again.
    pub(crate) fn silent(&mut self, lane: &Lane, now: Instant) -> Instant {
        let Some(turn) = self.lanes.get_mut(lane) else { return now };
        let [least, most] = SILENT_FOR;
        let silent_for = turn.silent_for.map_or(least, |before| (2 * before).min(most));
        turn.silent_for = Some(silent_for);
        *turn.silent_until.insert(now + silent_for)
    }

    /// Notes that a consumer that did not answer in time answers now: it has its turn at once.
    pub(crate) fn answered(&mut self, lane: &Lane) {
        let turn = self.enter(lane);
        (turn.has, turn.silent_until, turn.silent_for) = (Has::More, None, None);
    }

    /// The lanes to be asked, each at most once, and for how many jobs, `max` in all. They are in the order of turns;
    /// lanes that only may have jobs come last. With `hinted` only jobs that hints told of are asked for, and none
    /// while other lanes have their turns.
    pub(crate) fn plan(&mut self, max: u32, hinted: bool, now: Instant, weight: impl Fn(&Lane) -> u32) -> Vec<Wanted> {
        let has_turn = |turn: &Turn| turn.in_order && matches!(turn.has, Has::Maybe | Has::More);
        if hinted && (max == 0 || self.lanes.values().any(has_turn)) {
            return Vec::new();
        }
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
            let available = turn.available(now);
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
            let why = if matches!(turn.has, Has::Hinted(_)) { Why::Hinted } else { Why::Maybe };
            let (hints, misses) = (turn.hints, turn.misses);
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
                None => plan.push(Wanted { lane, count, why, hints, misses }),
            }
        }
        for wanted in &plan {
            if let Some(turn) = self.lanes.get_mut(&wanted.lane) {
                turn.pulls += 1;
            }
        }
        plan
    }

    /// Notes that so many jobs came of a pull. Jobs that were hinted at and did not come have gone elsewhere, unless
    /// some came: then the rest is on its way.
    pub(crate) fn pulled(&mut self, wanted: &Wanted, got: u32, now: Instant) {
        let Some(turn) = self.lanes.get_mut(&wanted.lane) else { return };
        turn.pulls = turn.pulls.saturating_sub(1);
        if got > 0 {
            (turn.misses, turn.is_waiting, turn.silent_for) = (0, false, None);
        }
        match wanted.why {
            // A hint counted on this pull.
            Why::Standing if turn.standing == 0 && got == 0 => self.more(&wanted.lane),
            Why::Standing if turn.standing == 0 => {}
            Why::Standing => {
                turn.standing -= 1;
                if got > 0 {
                    let early = turn.early.filter(|(_, until)| now < *until).map_or(0, |(early, _)| early);
                    turn.early = Some((early + 1, now + HINT_LATE_MAX));
                }
            }
            Why::Hinted if got == wanted.count => {}
            Why::Hinted if got == 0 => {
                // Other jobs that were hinted at before have gone elsewhere, too.
                if let Has::Hinted(count) = turn.has {
                    let since = u32::try_from(turn.hints - wanted.hints).unwrap_or(u32::MAX).min(count);
                    turn.has = if since > 0 { Has::Hinted(since) } else { Has::Nothing };
                }
            }
            Why::Hinted => {
                let rest = wanted.count - got;
                turn.has = match turn.has {
                    Has::Nothing => Has::Hinted(rest),
                    Has::Hinted(count) => Has::Hinted(count.saturating_add(rest)),
                    known => known,
                };
                self.enter(&wanted.lane);
            }
            Why::Maybe if !matches!(turn.has, Has::Maybe | Has::More) => {}
            Why::Maybe if got == wanted.count => turn.has = Has::More,
            // It must be there, unless others were faster: the next pull waits longer.
            Why::Maybe if turn.is_waiting => {
                turn.misses = (turn.misses + 1).min(MISSES_MAX);
                let in_a_row = if turn.is_sure { MISSES_MAX } else { MISSES_IN_A_ROW };
                turn.is_waiting = turn.misses % in_a_row != 0;
                turn.has = if turn.is_waiting { Has::More } else { Has::Nothing };
            }
            Why::Maybe => {
                let since = u32::try_from(turn.hints - wanted.hints).unwrap_or(u32::MAX);
                turn.has = if since > 0 { Has::Hinted(since) } else { Has::Nothing };
            }
        }
    }

    /// Notes that behind the last job of a pull its lane had so many more in line. Where several processes take them,
    /// others are told of a few. A lane that is `limited` may not give them yet.
    pub(crate) fn behind(&mut self, wanted: &Wanted, jobs: u64, is_alone: bool, limited: bool) {
        let turn = self.enter(&wanted.lane);
        let known = if let Has::Hinted(count) = turn.has { u64::from(count) } else { 0 };
        if jobs > known && (is_alone || wanted.why == Why::Maybe || jobs > u64::from(HINTED_MAX)) {
            turn.has = Has::More;
            // A consumer that is busy may answer that it has nothing, and would lose its turns until the next round.
            let is_sure = is_alone && !limited;
            (turn.is_waiting, turn.is_sure) = (is_sure, is_sure);
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
    fn is_silent(&self, now: Instant) -> bool {
        self.silent_until.is_some_and(|until| now < until)
    }

    fn available(&self, now: Instant) -> u32 {
        match self.has {
            _ if self.is_silent(now) => 0,
            Has::Nothing => 0,
            Has::Hinted(count) => count,
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
        let now = Instant::now();
        for max in [1, 3, 8, 50] {
            let mut turns = Turns::default();
            turns.more(&client("heavy"));
            turns.more(&client("light"));
            let (mut heavy, mut all) = (0, 0);
            while all < 400 {
                for wanted in turns.plan(max, false, now, |lane| if *lane == client("heavy") { 3 } else { 1 }) {
                    heavy += if wanted.lane == client("heavy") { wanted.count } else { 0 };
                    all += wanted.count;
                    turns.pulled(&wanted, wanted.count, now);
                }
            }
            let share = f64::from(heavy) / f64::from(all);
            assert!((0.72..=0.78).contains(&share), "{share} in calls of {max}");
        }
    }

    #[test]
    fn one_hint_makes_one_pull_however_many_ask_and_is_forgotten_if_it_was_in_vain() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        turns.hint(&client("a"), 1, now);
        let plan = turns.plan(8, false, now, |_| 1);
        assert_eq!(plan.iter().map(|wanted| (wanted.count, wanted.why)).collect::<Vec<_>>(), [(1, Why::Hinted)]);
        assert!(turns.plan(8, false, now, |_| 1).is_empty());
        turns.pulled(&plan[0], 0, now);
        assert!(turns.plan(8, false, now, |_| 1).is_empty(), "somebody else has it");
        turns.hint(&client("a"), 5, now);
        let plan = turns.plan(2, false, now, |_| 8);
        turns.hint(&client("a"), 1, now);
        turns.pulled(&plan[0], 0, now);
        let plan = turns.plan(8, false, now, |_| 8);
        assert_eq!(plan[0].count, 1, "the others have gone, too, and one came since");
        turns.hint(&client("a"), HINTED_MAX + 1, now);
        assert!(turns.has_more());
    }

    #[test]
    fn what_was_hinted_at_and_came_in_part_is_asked_for_again() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        turns.hint(&client("a"), 5, now);
        let plan = turns.plan(8, false, now, |_| 8);
        turns.pulled(&plan[0], 2, now);
        assert_eq!(turns.plan(8, false, now, |_| 8)[0].count, 3, "the rest is on its way");
    }

    #[test]
    fn what_a_consumer_has_behind_a_job_is_asked_for_unless_others_are_told_of_it() {
        let now = Instant::now();
        for (hinted, behind, is_alone, more) in
            [(true, 1, true, true), (true, 1, false, false), (true, 65, false, true), (false, 1, false, true)]
        {
            let mut turns = Turns::default();
            if hinted {
                turns.hint(&client("a"), 5, now)
            } else {
                turns.more(&client("a"))
            }
            let plan = turns.plan(5, false, now, |_| 8);
            turns.pulled(&plan[0], if hinted { 5 } else { 4 }, now);
            turns.behind(&plan[0], behind, is_alone, false);
            assert_eq!(turns.has_more(), more, "{behind} behind, hinted: {hinted}, alone: {is_alone}");
        }
        let mut turns = Turns::default();
        turns.hint(&client("a"), 1, now);
        let plan = turns.plan(5, false, now, |_| 8);
        turns.hint(&client("a"), 2, now);
        turns.pulled(&plan[0], 1, now);
        turns.behind(&plan[0], 2, true, false);
        assert!(!turns.has_more(), "of these it was told");
    }

    #[test]
    fn a_lane_that_must_have_more_keeps_its_turns_though_its_consumer_says_that_it_has_nothing() {
        let now = Instant::now();
        for (is_alone, limited, asked) in [(true, false, 4), (true, true, 1), (false, false, 1)] {
            let mut turns = Turns::default();
            turns.more(&client("a"));
            let plan = turns.plan(1, false, now, |_| 1);
            turns.pulled(&plan[0], 1, now);
            turns.behind(&plan[0], 50, is_alone, limited);
            let mut misses = Vec::new();
            while turns.has_more() {
                let plan = turns.plan(1, false, now, |_| 1);
                misses.push(plan[0].misses);
                turns.pulled(&plan[0], 0, now);
            }
            assert_eq!(misses, (0..asked).collect::<Vec<_>>(), "alone: {is_alone}, limited: {limited}");
        }
    }

    #[test]
    fn of_a_backlog_nothing_is_taken_where_only_hints_count() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        turns.more(&client("big"));
        turns.hint(&client("small"), 1, now);
        assert!(turns.plan(8, true, now, |_| 1).is_empty(), "the other one has its turn");
        let plan = turns.plan(8, false, now, |_| 1);
        let counts: Vec<_> = plan.iter().map(|wanted| (&wanted.lane, wanted.count)).collect();
        assert_eq!(counts, [(&client("big"), 7), (&client("small"), 1)]);
        plan.iter().for_each(|wanted| turns.pulled(wanted, 0, now));
        turns.hint(&client("small"), 1, now);
        assert_eq!(turns.plan(8, true, now, |_| 1).len(), 1);
    }

    #[test]
    fn a_pull_that_stands_needs_no_other_for_one_job() {
        let (mut turns, me, now) = (Turns::default(), client("a"), Instant::now());
        let standing = turns.standing_pull(&me, now).unwrap();
        turns.hint(&me, 1, now);
        assert!(turns.plan(8, false, now, |_| 1).is_empty(), "it will bring it");
        turns.pulled(&standing, 1, now);
        assert!(turns.plan(8, false, now, |_| 1).is_empty());
        turns.standing_pull(&me, now).unwrap();
        turns.hint(&me, 3, now);
        assert_eq!(turns.plan(8, false, now, |_| 8)[0].count, 2, "it brings one of them");
    }

    #[test]
    fn what_a_standing_pull_was_to_bring_and_did_not_is_asked_for() {
        let (mut turns, me, now) = (Turns::default(), client("a"), Instant::now());
        let standing = turns.standing_pull(&me, now).unwrap();
        turns.hint(&me, 1, now);
        turns.pulled(&standing, 0, now);
        let plan = turns.plan(1, false, now, |_| 1);
        assert_eq!(plan.len(), 1, "it may still be there");
        turns.pulled(&plan[0], 0, now);
        let standing = turns.standing_pull(&client("b"), now).unwrap();
        turns.pulled(&standing, 0, now);
        assert!(turns.plan(1, false, now, |_| 1).is_empty(), "nobody told of anything");
    }

    #[test]
    fn a_hint_that_comes_shortly_after_its_job_makes_no_pull() {
        let (mut turns, me, now) = (Turns::default(), client("a"), Instant::now());
        let standing = turns.standing_pull(&me, now).unwrap();
        turns.pulled(&standing, 1, now);
        turns.hint(&me, 1, now);
        assert!(turns.plan(1, false, now, |_| 1).is_empty(), "it told of what is here");
        turns.hint(&me, 1, now);
        let plan = turns.plan(1, false, now, |_| 1);
        assert_eq!(plan.len(), 1);
        turns.pulled(&plan[0], 1, now);
        let standing = turns.standing_pull(&me, now).unwrap();
        turns.pulled(&standing, 1, now);
        turns.hint(&me, 1, now + HINT_LATE_MAX);
        assert_eq!(turns.plan(1, false, now, |_| 1).len(), 1, "it told of another one");
    }

    #[test]
    fn a_hint_during_a_pull_that_found_nothing_is_followed() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        turns.more(&client("a"));
        let plan = turns.plan(1, false, now, |_| 1);
        turns.hint(&client("a"), 1, now);
        turns.pulled(&plan[0], 0, now);
        let plan = turns.plan(5, false, now, |_| 1);
        assert_eq!(plan[0].count, 1);
        turns.pulled(&plan[0], 0, now);
        assert!(turns.plan(5, false, now, |_| 1).is_empty());
    }

    #[test]
    fn a_lane_whose_consumer_is_silent_is_left_alone_for_a_while_and_longer_each_time() {
        let (mut turns, me, you, mut now) = (Turns::default(), client("a"), client("b"), Instant::now());
        for millis in [250, 500, 1_000, 1_000] {
            turns.hint(&me, 1, now);
            let plan = turns.plan(1, false, now, |_| 1);
            let until = turns.silent(&me, now);
            assert_eq!(until - now, Duration::from_millis(millis));
            turns.pulled(&plan[0], 0, now);
            turns.hint(&me, 1, now);
            turns.hint(&you, 1, now);
            let asked = turns.plan(8, false, now, |_| 1);
            assert_eq!(asked.iter().map(|wanted| &wanted.lane).collect::<Vec<_>>(), [&you]);
            turns.pulled(&asked[0], 1, now);
            now = until;
            let asked = turns.plan(8, false, now, |_| 1);
            assert_eq!(asked.iter().map(|wanted| &wanted.lane).collect::<Vec<_>>(), [&me]);
            turns.pulled(&asked[0], 0, now);
        }
        turns.hint(&me, 1, now);
        let asked = turns.plan(1, false, now, |_| 1);
        turns.pulled(&asked[0], 1, now);
        assert_eq!(turns.silent(&me, now) - now, Duration::from_millis(250), "it answered meanwhile");
        assert!(turns.plan(8, false, now, |_| 1).is_empty());
        turns.answered(&me);
        assert_eq!(turns.plan(8, false, now, |_| 1).len(), 1, "late, and it has its turn at once");
        assert_eq!(turns.silent(&me, now) - now, Duration::from_millis(250));
    }

    #[test]
    fn misses_are_counted_while_the_server_says_that_there_is_something() {
        let (mut turns, me, now) = (Turns::default(), client("a"), Instant::now());
        let pull = |turns: &mut Turns, got| {
            let plan = turns.plan(2, false, now, |_| 2);
            turns.pulled(&plan[0], got, now);
            plan[0].misses
        };
        for misses in [0, 2, 4] {
            turns.waiting(&me);
            assert_eq!(pull(&mut turns, 0), misses);
            assert_eq!(turns.has_more(), misses < 4, "it is asked once more");
            if misses < 4 {
                assert_eq!(pull(&mut turns, 0), misses + 1);
            }
            assert!(!turns.has_more(), "others have it, or the server says it again");
        }
        turns.waiting(&me);
        assert_eq!(pull(&mut turns, 1), 4);
        turns.waiting(&me);
        assert_eq!(pull(&mut turns, 0), 0);
    }

    #[test]
    fn who_has_leased_jobs_only_comes_after_who_has_some_in_line() {
        let (mut turns, lone, now) = (Turns::default(), client("lone"), Instant::now());
        let lanes: Vec<_> = (0..300).map(|number| client(&format!("client-{number}"))).collect();
        lanes.iter().for_each(|lane| turns.maybe(lane));
        turns.hint(&lone, 1, now);
        let plan = turns.plan(1, false, now, |_| 1);
        assert_eq!(plan.iter().map(|wanted| &wanted.lane).collect::<Vec<_>>(), [&lone]);
        turns.pulled(&plan[0], 1, now);
        turns.more(&lanes[200]);
        let plan = turns.plan(3, false, now, |_| 1);
        assert_eq!(plan.iter().map(|wanted| (&wanted.lane, wanted.count)).collect::<Vec<_>>(), [(&lanes[200], 3)]);
        turns.pulled(&plan[0], 0, now);
        let plan = turns.plan(400, false, now, |_| 1);
        assert_eq!(plan.len(), 299, "each of the others is asked");
        plan.iter().for_each(|wanted| turns.pulled(wanted, 0, now));
        assert!(turns.plan(400, false, now, |_| 1).is_empty());
    }

    #[test]
    fn a_job_that_came_back_is_not_hidden_by_a_backlog() {
        let (mut turns, big, back, now) = (Turns::default(), client("big"), client("back"), Instant::now());
        let mut asked = Vec::new();
        for _round in 0..2 {
            turns.more(&big);
            turns.maybe(&back);
            for wanted in turns.plan(8, false, now, |_| 1) {
                turns.pulled(&wanted, wanted.count, now);
                asked.push(wanted.lane);
            }
        }
        assert!(asked.contains(&back));
    }

    #[test]
    fn a_share_that_its_owner_does_not_use_goes_to_the_others() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        turns.hint(&client("small"), 1, now);
        turns.more(&client("big"));
        let plan = turns.plan(10, false, now, |_| 1);
        assert_eq!(plan.iter().map(|wanted| wanted.count).sum::<u32>(), 10);
        assert_eq!(plan.len(), 2);
    }
}
