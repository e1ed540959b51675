//! Hints: unconfirmed messages that tell the workers of a queue which lanes have jobs, so that they need not ask about
//! all.
//!
//! A process that puts a job in line sends a hint beside the write: at most one message per lane in [`EVERY`], with the
//! number of jobs since the last one. For a job on a timer it sends the hint when the time comes. A hint may be lost,
//! and hints that are not due yet are lost with their process: rounds find the jobs that these would have told of.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::stored::names::Lane;
use relay_bridge::contract::{QueueName, Timestamp};
use relay_bridge::support::lock;

/// How often the jobs of one lane are hinted at. The first one after a pause is told at once.
pub(crate) const EVERY: Duration = Duration::from_millis(2);
/// The most lanes that are hinted at in [`EVERY`]; a round finds the others.
const RECENT_MAX: usize = 4_096;
/// The most jobs on timers that are hinted at in their time; a round finds the others.
const LATER_MAX: usize = 16_384;

/// A job that is in line in a lane, now or from a time on: the part of a write that workers are told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hint {
    pub(crate) queue: QueueName,
    pub(crate) lane: Lane,
    pub(crate) at: Option<Timestamp>,
}

/// The hints that this process sends to workers.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    /// Lanes that were hinted at recently; jobs that come within [`EVERY`] are told together.
    recent: Mutex<HashMap<Whose, RecentHints>>,
    /// Jobs on timers, by when they come into line.
    later: Mutex<BTreeMap<(Instant, u64), Whose>>,
    /// Woken when a hint is to be sent later, or sooner than before.
    pub(crate) woken: Notify,
}

/// A lane of a queue.
pub(crate) type Whose = (QueueName, Lane);

#[derive(Debug)]
struct RecentHints {
    sent_at: Instant,
    unsent: u32,
}

impl RecentHints {
    fn is_quiet(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.sent_at) >= EVERY
    }

    fn is_needed(&self, now: Instant) -> bool {
        self.unsent > 0 || !self.is_quiet(now)
    }
}

impl Hints {
    /// Notes a job in line. `true` if its hint is to be sent at once; otherwise [`Self::due`] gives it later.
    pub(crate) fn note(&self, queue: &QueueName, lane: &Lane, now: Instant) -> bool {
        let mut recent = self.recent();
        let key = (queue.clone(), lane.clone());
        if let Some(recent) = recent.get_mut(&key) {
            if recent.unsent == 0 {
                if recent.is_quiet(now) {
                    recent.sent_at = now;
                    return true;
                }
                self.woken.notify_one();
            }
            recent.unsent = recent.unsent.saturating_add(1);
            return false;
        }
        if recent.len() == RECENT_MAX {
            recent.retain(|_, recent| recent.is_needed(now));
        }
        if recent.len() < RECENT_MAX {
            recent.insert(key, RecentHints { sent_at: now, unsent: 0 });
        }
        true
    }

    /// Takes note of a job that comes into line at `at`.
    pub(crate) fn note_later(&self, queue: &QueueName, lane: &Lane, at: Instant) {
        let mut later = self.later();
        if later.len() >= LATER_MAX {
            // The furthest one goes: there is the most time to find it.
            if later.last_key_value().is_some_and(|((last, _), _)| *last <= at) {
                return;
            }
            later.pop_last();
        }
        let is_first = later.first_key_value().is_none_or(|((first, _), _)| at < *first);
        // Those of one instant are numbered.
        let number = later.range((at, 0)..=(at, u64::MAX)).next_back().map_or(0, |((_, last), _)| last + 1);
        later.insert((at, number), (queue.clone(), lane.clone()));
        if is_first {
            self.woken.notify_one();
        }
    }

    /// The jobs that came together meanwhile, and those whose time has come; and when the next ones are due, unless
    /// others come before.
    pub(crate) fn due(&self, now: Instant) -> (Vec<(Whose, u32)>, Option<Instant>) {
        let mut recent = self.recent();
        recent.retain(|_, recent| recent.is_needed(now));
        let unsent = recent.iter_mut().filter(|(_, recent)| recent.unsent > 0);
        let mut due: Vec<_> = unsent
            .map(|(whose, recent)| {
                recent.sent_at = now;
                (whose.clone(), std::mem::take(&mut recent.unsent))
            })
            .collect();
        let next = (!due.is_empty()).then_some(now + EVERY);
        drop(recent);
        let mut later = self.later();
        while let Some(entry) = later.first_entry().filter(|entry| entry.key().0 <= now) {
            let whose = entry.remove();
            match due.iter_mut().find(|(other, _)| *other == whose) {
                Some((_, jobs)) => *jobs = jobs.saturating_add(1),
                None => due.push((whose, 1)),
            }
        }
        let later = later.first_key_value().map(|((at, _), _)| *at);
        (due, next.into_iter().chain(later).min())
    }

    fn recent(&self) -> MutexGuard<'_, HashMap<Whose, RecentHints>> {
        lock(&self.recent)
    }

    fn later(&self) -> MutexGuard<'_, BTreeMap<(Instant, u64), Whose>> {
        lock(&self.later)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn whose(lane: &str) -> Whose {
        ("mail".parse().unwrap(), lane.parse().unwrap())
    }

    #[test]
    fn the_first_job_is_told_at_once_and_what_follows_it_together() {
        let (hints, (queue, me), (_, you)) = (Hints::default(), whose("me"), whose("you"));
        let start = Instant::now();
        assert!(hints.note(&queue, &me, start));
        assert!(!hints.note(&queue, &me, start));
        assert!(!hints.note(&queue, &me, start));
        assert!(hints.note(&queue, &you, start));
        assert!(!hints.note(&queue, &me, start + EVERY), "some are unsent");
        let later = start + EVERY;
        assert_eq!(hints.due(later), (vec![(whose("me"), 3)], Some(later + EVERY)));
        assert_eq!(hints.due(later), (vec![], None), "it was told");
        assert!(!hints.note(&queue, &me, later), "it was told just now");
        let later = later + EVERY;
        assert_eq!(hints.due(later).0, [(whose("me"), 1)]);
        assert!(hints.note(&queue, &me, later + EVERY), "at once, after a pause");
    }

    #[test]
    fn one_job_after_another_is_told_at_once_and_wakes_nobody_to_tell_more() {
        let (hints, (queue, me)) = (Hints::default(), whose("me"));
        let start = Instant::now();
        for number in 0..3 {
            assert!(hints.note(&queue, &me, start + number * EVERY));
        }
        assert!(hints.woken.notified().now_or_never().is_none());
        assert!(!hints.note(&queue, &me, start + 2 * EVERY));
        assert!(hints.woken.notified().now_or_never().is_some(), "this one is still to be told");
    }

    #[test]
    fn more_lanes_than_are_remembered_are_told_of_at_once() {
        let (hints, start) = (Hints::default(), Instant::now());
        let note = |number: usize, now| {
            let (queue, lane) = whose(&format!("client-{number}"));
            hints.note(&queue, &lane, now)
        };
        for number in 0..=RECENT_MAX {
            assert!(note(number, start));
        }
        assert!(!note(0, start), "it is remembered");
        assert!(note(RECENT_MAX, start), "it is not");
        assert!(note(RECENT_MAX, start + EVERY));
        assert!(!note(RECENT_MAX, start + EVERY), "now it is");
    }

    #[test]
    fn a_job_on_a_timer_is_told_of_in_its_time_and_of_too_many_the_nearest() {
        let (hints, start) = (Hints::default(), Instant::now());
        let (queue, me) = whose("me");
        let second = Duration::from_secs(1);
        for number in 0..LATER_MAX {
            hints.note_later(&queue, &me, start + 2 * second * u32::try_from(number / 2 + 1).unwrap());
        }
        assert!(hints.woken.notified().now_or_never().is_some());
        hints.note_later(&queue, &me, start + second);
        assert!(hints.woken.notified().now_or_never().is_some(), "it comes before the others");
        assert_eq!(hints.later().len(), LATER_MAX, "the last one made room");
        assert_eq!(hints.due(start), (vec![], Some(start + second)));
        assert_eq!(hints.due(start + second), (vec![(whose("me"), 1)], Some(start + 2 * second)));
        assert_eq!(hints.due(start + 2 * second), (vec![(whose("me"), 2)], Some(start + 4 * second)));
    }
}
