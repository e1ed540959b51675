//! How many slots a queue needs: a pure function of what waits, what runs, how long an attempt takes and how often one comes.
//!
//! The figure is absolute. One that is divided by the replicas there are would move with the replicas that it causes.

use std::num::NonZeroU32;

/// The part of the workers' slots that is busy when they are as many as new work needs: the rest takes what is uneven.
const BUSY: f64 = 0.8;
/// Workers to begin with while nobody knows how long an attempt takes.
const FIRST_WORKERS: f64 = 2.0;

/// The work of a queue that could be done now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Jobs that could start soon, if there were slots.
    pub waiting: u64,
    /// Jobs that workers hold.
    pub leased: u64,
}

impl Work {
    /// Whether there is any.
    #[must_use]
    pub fn is_any(self) -> bool {
        self.waiting > 0 || self.leased > 0
    }
}

/// How fast a queue's work comes and goes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// How long one attempt holds a slot, in seconds; `None` while none has ended.
    pub service: Option<f64>,
    /// Attempts that come due, a second.
    pub arrivals: f64,
}

/// The aims that workers are scaled for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Targets {
    /// The slots of one worker.
    pub slots_per_worker: NonZeroU32,
    /// The time in which a backlog is to be gone, in seconds, greater than 0.
    pub drain: f64,
}

impl Default for Targets {
    fn default() -> Self {
        Self { slots_per_worker: NonZeroU32::MIN.saturating_add(7), drain: 60.0 }
    }
}

/// The slots that a queue needs: as many as do what comes, and what waits within [`Targets::drain`], but never more than there
/// are jobs for and never fewer than are busy. At least 1 while there is work, because readers cut to whole thousandths.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "more than 2^52 jobs are no queue")]
pub fn wanted(work: Work, pace: Pace, targets: &Targets) -> f64 {
    if !work.is_any() {
        return 0.0;
    }
    let (waiting, leased) = (work.waiting as f64, work.leased as f64);
    let jobs = waiting + leased;
    let slots = match pace.service {
        Some(service) => {
            // Short jobs leave a slot for others before the time is over.
            let most = if service >= targets.drain { jobs } else { jobs / BUSY };
            most.min(pace.arrivals * service / BUSY + waiting * service / targets.drain)
        }
        None => jobs.min(FIRST_WORKERS * f64::from(targets.slots_per_worker.get())),
    };
    slots.max(leased).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(waiting: u64, leased: u64, service: Option<f64>, arrivals: f64) -> f64 {
        wanted(Work { waiting, leased }, Pace { service, arrivals }, &Targets::default())
    }

    #[test]
    fn no_work_wants_no_slot_and_any_work_wants_one() {
        assert_eq!(of(0, 0, Some(1.0), 100.0), 0.0);
        for (waiting, leased) in [(1, 0), (0, 1)] {
            assert!((of(waiting, leased, Some(0.01), 0.0) - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn slots_that_are_busy_are_never_taken_away() {
        assert!(of(0, 40, Some(0.5), 0.0) >= 40.0);
        assert!(of(0, 400, None, 0.0) >= 400.0);
    }

    #[test]
    fn before_the_first_attempt_has_ended_two_workers_are_the_most() {
        assert_eq!(of(10_000, 0, None, 500.0), 16.0);
        assert_eq!(of(5, 0, None, 500.0), 5.0);
    }

    #[test]
    fn a_backlog_wants_the_slots_that_drain_it_in_time() {
        // 6,000 jobs of 0.5 s in 60 s keep 50 slots busy.
        assert!((of(6_000, 0, Some(0.5), 0.0) - 50.0).abs() < 1e-9);
        assert!((of(0, 50, Some(0.5), 100.0) - 62.5).abs() < 1e-9);
    }

    #[test]
    fn jobs_as_long_as_the_time_to_drain_want_a_slot_each_and_no_more() {
        assert_eq!(of(10, 20, Some(600.0), 5.0), 30.0);
        assert!((of(10, 20, Some(59.0), 5.0) - 37.5).abs() < 1e-9);
    }
}
