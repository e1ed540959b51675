//! Decides when this process makes a round over all consumers of a queue, and keeps what it knows of other processes'
//! rounds.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::stored::control;
use crate::stored::names::Lane;
use relay_bridge::backoff::random;
use relay_bridge::support::lock;

/// How often one of the processes makes a round while somebody waits.
const EVERY: Duration = Duration::from_millis(700);
/// How often each process makes a round of its own, whatever others say.
const OWN_EVERY: Duration = Duration::from_secs(5);
/// How soon after a round the next is made at the earliest, except for a call that does not wait.
const APART: Duration = Duration::from_millis(50);
/// How long after a round that was made because hints were missed another one is made: a consumer may not know yet of a
/// job that was stored just before.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// For how long another process is taken to be there after its last word.
const THERE_FOR: Duration = Duration::from_secs(15);
/// How often a process that makes no rounds says that it is there.
const HERE_EVERY: Duration = Duration::from_secs(4);

/// When this process makes rounds, and its knowledge of other processes.
#[derive(Debug)]
pub(crate) struct Rounds {
    /// Names this process to others.
    me: u64,
    due: Mutex<Due>,
    /// Whether a round is due and waits until somebody waits for jobs.
    pub(crate) is_late: AtomicBool,
    /// Whether somebody has waited for jobs since then.
    pub(crate) is_wanted: AtomicBool,
    pub(crate) woken: Notify,
    /// Held while a round is made: several tasks that look at once make one.
    pub(crate) making: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Due {
    next: Instant,
    /// The last round of this process, and how often it had connected by then: hints of jobs that came while it was
    /// away are lost.
    made: Option<(Instant, u64)>,
    /// When a round is tried again, if the last one could not be made.
    again_at: Option<Instant>,
    /// Up to when hints may have been missed.
    missed: Instant,
    /// Whether the next round is to be made twice.
    twice: bool,
    /// When another process last said something.
    heard: Option<Instant>,
    /// When this process last did.
    said: Option<Instant>,
}

impl Default for Rounds {
    fn default() -> Self {
        let now = Instant::now();
        let due = Due { next: now, made: None, again_at: None, missed: now, twice: true, heard: None, said: None };
        let me = RandomState::new().hash_one(std::process::id());
        Self {
            me,
            due: Mutex::new(due),
            is_late: AtomicBool::default(),
            is_wanted: AtomicBool::default(),
            woken: Notify::new(),
            making: tokio::sync::Mutex::default(),
        }
    }
}

impl Rounds {
    /// Hints may have been missed: a round is due now, and another soon after.
    pub(crate) fn soon(&self) {
        let (mut due, now) = (lock(&self.due), Instant::now());
        let earliest = due.made.map_or(now, |(made, _)| made + APART);
        (due.next, due.twice, due.missed) = (due.next.min(earliest.max(now)), true, now);
        drop(due);
        self.woken.notify_one();
    }

    /// Notes that somebody waits for jobs.
    pub(crate) fn wanted(&self) {
        if self.is_late.load(Ordering::Acquire) && self.is_late.swap(false, Ordering::AcqRel) {
            self.is_wanted.store(true, Ordering::Release);
            self.woken.notify_one();
        }
    }

    /// Notes that another process is there, and made a round if `made`. `true` if this one should say that it is there
    /// too.
    pub(crate) fn heard(&self, made: bool) -> bool {
        let (mut due, now) = (lock(&self.due), Instant::now());
        due.heard = Some(now);
        if made && !due.twice {
            // A little later than its maker's next: if that one is gone, the first of the others makes it.
            let next = now + EVERY + Duration::from_millis(50) + Duration::from_millis(150).mul_f64(random());
            due.next = due.made.map_or(next, |(made, _)| next.min(made + OWN_EVERY));
        }
        let is_due = due.said.is_none_or(|said| now >= said + HERE_EVERY);
        if is_due {
            due.said = Some(now);
        }
        is_due
    }

    /// Whether no other process was heard lately.
    pub(crate) fn is_alone(&self) -> bool {
        lock(&self.due).heard.is_none_or(|heard| heard.elapsed() >= THERE_FOR)
    }

    /// Whether this process made no round yet.
    pub(crate) fn is_first(&self) -> bool {
        lock(&self.due).made.is_none()
    }

    /// Up to when hints may have been missed: a round that began later tells of everything.
    pub(crate) fn missed(&self) -> Instant {
        lock(&self.due).missed
    }

    /// Whether the last round of this process began after `since` on the connection that there is now.
    pub(crate) fn is_fresh(&self, since: Instant, connections: u64) -> bool {
        lock(&self.due).made.is_some_and(|(made, on)| made >= since && on == connections)
    }

    pub(crate) fn next(&self, connections: u64) -> Instant {
        let due = lock(&self.due);
        match due.made {
            Some((_, on)) if on == connections => due.next,
            _ => due.again_at.unwrap_or_else(Instant::now),
        }
    }

    pub(crate) fn made(&self, began: Instant, connections: u64) {
        let mut due = lock(&self.due);
        let after = if std::mem::take(&mut due.twice) { AGAIN_AFTER } else { EVERY };
        (due.made, due.said, due.next) = (Some((began, connections)), Some(began), Instant::now() + after);
        due.again_at = None;
    }

    /// Puts the round off, because it can't be made now.
    pub(crate) fn put_off(&self) {
        let (mut due, at) = (lock(&self.due), Instant::now() + EVERY);
        (due.next, due.again_at) = (at, Some(at));
    }

    /// The message for the control subject.
    pub(crate) fn word(&self, made: bool) -> String {
        format!("{} {}", if made { control::ROUND } else { control::HERE }, self.me)
    }

    /// Whether a message is this process's own.
    pub(crate) fn is_me(&self, who: u64) -> bool {
        who == self.me
    }
}

/// When each lane had nothing leased, as the last rounds saw it. What is leased since then comes again one lease later at the
/// earliest, so that until then nobody needs to ask whether it did.
#[derive(Debug, Default)]
pub(crate) struct Unleased {
    seen: HashMap<Lane, Instant>,
    /// How often this process had connected by then: another server may not go on with all leases.
    connections: u64,
}

impl Unleased {
    /// Takes over what a round saw that was asked for at `began`: the lanes, and whether each has something leased. Forgets the
    /// lanes that it did not see.
    pub(crate) fn saw(&mut self, lanes: impl Iterator<Item = (Lane, bool)>, began: Instant, connections: u64) {
        let before = std::mem::take(&mut self.seen);
        let known = |lane: &Lane| before.get(lane).copied().filter(|_| connections == self.connections);
        let seen = lanes.filter_map(|(lane, leased)| {
            let at = if leased { known(&lane) } else { Some(began) };
            at.map(|at| (lane, at))
        });
        let seen = seen.collect();
        (self.seen, self.connections) = (seen, connections);
    }

    /// Whether a lease in the lane, of this length, may have ended by `at`.
    pub(crate) fn may_have_ended(&self, lane: &Lane, lease: Duration, at: Instant) -> bool {
        self.seen.get(lane).is_none_or(|unleased| at >= *unleased + lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_may_have_ended_one_lease_after_nothing_was_leased_and_while_that_is_not_known() {
        let (mut unleased, start, lease) = (Unleased::default(), Instant::now(), Duration::from_secs(30));
        let [a, b]: [Lane; 2] = ["a", "b"].map(|lane| lane.parse().unwrap());
        let after = |secs| start + Duration::from_secs(secs);
        let saw = |unleased: &mut Unleased, leased: [bool; 2], at, connections| {
            unleased.saw([a.clone(), b.clone()].into_iter().zip(leased), at, connections);
        };
        saw(&mut unleased, [false, true], start, 1);
        assert!(unleased.may_have_ended(&b, lease, start), "it may be leased since long ago");
        saw(&mut unleased, [true, true], after(20), 1);
        assert!(!unleased.may_have_ended(&a, lease, after(29)));
        assert!(unleased.may_have_ended(&a, lease, after(30)));
        saw(&mut unleased, [false, true], after(40), 1);
        assert!(!unleased.may_have_ended(&a, lease, after(69)));
        saw(&mut unleased, [true, true], after(41), 2);
        assert!(unleased.may_have_ended(&a, lease, after(41)), "the server may be another one");
        saw(&mut unleased, [false, false], after(50), 2);
        unleased.saw(std::iter::empty(), after(51), 2);
        saw(&mut unleased, [true, true], after(52), 2);
        assert!(unleased.may_have_ended(&a, lease, after(52)), "the lane was gone");
    }
}
