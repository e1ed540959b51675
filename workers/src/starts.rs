//! Whether the handler can be started on this host. One state for the whole worker: one start that fails says nothing
//! about its job and all about the next one, so the worker leases no more until a start works.
//!
//! [`Starts`] decides and knows no clock; [`StartGate`] is the one that the worker and its deliveries share.
//!
//! | the worker | leases | a start fails | a start works |
//! | --- | --- | --- | --- |
//! | works | as many jobs as it has slots | waits, 1 s | |
//! | waits | nothing more until the wait is over; jobs that were asked for already still come | | |
//! | probes | one job, and nothing while that one is at its start | waits, twice as long up to 1 min | works |
//!
//! A delivery belongs to the round in which it came in, and each wait begins a new round. So a handful of jobs that fail
//! together are one failure, and a start that worked before the last failure does not end the wait.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use relay_bridge::backoff::backoff;
use relay_bridge::contract::Failure;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::decide::Ending;
use crate::handler::Attempt;
use crate::stats::{WorkerStats, count};
use relay_bridge::support::lock;

/// The first wait and the longest one; half of each is random.
const WAIT_BASE: Duration = Duration::from_secs(1);
const WAIT_CAP: Duration = Duration::from_secs(60);
/// At most one warning in this long.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The jobs that may be leased now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum May {
    /// As many jobs as there are free slots.
    LeaseAll,
    /// One job, whose start shows whether starts work again.
    Probe,
    /// Nothing before this moment.
    WaitUntil(Instant),
    /// Nothing until the probe's start has failed or worked.
    WaitForProbe,
}

/// When a delivery came in, among the waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Round(u64);

/// The state.
#[derive(Debug, Default)]
struct Starts {
    round: u64,
    failing: Option<Failing>,
    warned_at: Option<Instant>,
    /// Starts that failed since the last warning.
    unsaid: u64,
    /// A warning was given, and nothing was said of its end.
    warned: bool,
}

#[derive(Debug)]
struct Failing {
    failures: u32,
    probe_at: Instant,
    probing: bool,
}

impl Starts {
    fn may(&self, now: Instant) -> May {
        match &self.failing {
            None => May::LeaseAll,
            Some(Failing { probing: true, .. }) => May::WaitForProbe,
            Some(Failing { probe_at, .. }) if now < *probe_at => May::WaitUntil(*probe_at),
            Some(_) => May::Probe,
        }
    }

    /// Deliveries came in.
    fn leased(&mut self) -> Round {
        if let Some(failing) = &mut self.failing {
            failing.probing = true;
        }
        Round(self.round)
    }

    /// A start failed; `wait` says how long to wait after so many rounds that failed. `Some`: it is time to warn, of so
    /// many starts.
    fn failed(&mut self, round: Round, now: Instant, wait: impl FnOnce(u32) -> Duration) -> Option<u64> {
        if round.0 == self.round {
            let failures = self.failing.as_ref().map_or(0, |failing| failing.failures).saturating_add(1);
            self.failing = Some(Failing { failures, probe_at: now + wait(failures), probing: false });
            self.round += 1;
        }
        self.unsaid += 1;
        if self.warned_at.is_some_and(|at| now < at + WARN_EVERY) {
            return None;
        }
        (self.warned_at, self.warned) = (Some(now), true);
        Some(std::mem::take(&mut self.unsaid))
    }

    /// A start worked. Returns whether to say so, because a warning was given before.
    fn worked(&mut self, round: Round) -> bool {
        if round.0 != self.round || self.failing.take().is_none() {
            return false;
        }
        std::mem::take(&mut self.warned)
    }

    /// A delivery ended without a start, for a reason of its own: if it was the probe, the next one is.
    fn unknown(&mut self, round: Round) {
        if let Some(failing) = self.failing.as_mut().filter(|_| round.0 == self.round) {
            failing.probing = false;
        }
    }
}

/// The state as the worker and its deliveries share it.
#[derive(Debug)]
pub(crate) struct StartGate {
    starts: Mutex<Starts>,
    /// For the lease loop, which alone waits.
    changed: Notify,
    stats: Arc<WorkerStats>,
}

impl StartGate {
    /// Open. `stats` gets to know how it stands.
    pub(crate) fn new(stats: Arc<WorkerStats>) -> Self {
        Self { starts: Mutex::default(), changed: Notify::new(), stats }
    }

    /// Waits until something may be leased; gives whether that is a single job. Dropping it loses nothing.
    pub(crate) async fn open(&self) -> bool {
        loop {
            let may = self.lock().may(Instant::now());
            match may {
                May::LeaseAll => return false,
                May::Probe => return true,
                May::WaitForProbe => self.changed.notified().await,
                May::WaitUntil(moment) => tokio::select! {
                    () = sleep_until(moment) => {}
                    () = self.changed.notified() => {}
                },
            }
        }
    }

    /// A start failed for a reason of this host. Warns of it, at most once a minute.
    fn failed(&self, round: Round, failure: &Failure) {
        let wait = |failures| backoff(failures, WAIT_BASE, WAIT_CAP);
        let warn = self.change(|starts| starts.failed(round, Instant::now(), wait));
        count(&self.stats.not_started);
        if let Some(starts) = warn {
            tracing::warn!(
                reason = failure.reason,
                starts,
                "the handler can't be started here: {}; its jobs are handed back, and leasing waits until a start works",
                failure.detail
            );
        }
    }

    fn worked(&self, round: Round) {
        if self.change(|starts| starts.worked(round)) {
            tracing::info!("the handler can be started again");
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Starts) -> T) -> T {
        let mut starts = self.lock();
        let changed = change(&mut starts);
        self.stats.starts_failing.store(u64::from(starts.failing.is_some()), Ordering::Relaxed);
        drop(starts);
        self.changed.notify_one();
        changed
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Starts> {
        lock(&self.starts)
    }
}

/// How one delivery tells how its start went. A start untold by the last clone is unknown, however the delivery ended.
#[derive(Clone, Debug)]
pub(crate) struct StartReport(Arc<Reporter>);

#[derive(Debug)]
struct Reporter {
    gate: Arc<StartGate>,
    round: Round,
}

impl StartReport {
    /// Of a delivery that came in just now.
    pub(crate) fn new(gate: Arc<StartGate>) -> Self {
        let round = gate.lock().leased();
        Self(Arc::new(Reporter { gate, round }))
    }

    /// The handler could be started.
    pub(crate) fn worked(&self) {
        self.0.gate.worked(self.0.round);
    }

    /// The end of a handler, and what it says of its start.
    pub(crate) fn ended(&self, ending: &Ending) {
        match ending {
            Ending::Returned(Attempt::NotStarted { failure }) => self.0.gate.failed(self.0.round, failure),
            // One that handed back may not have begun.
            Ending::Returned(Attempt::HandBack { .. }) => {}
            Ending::Returned(_) => self.worked(),
            // Also if a handler that was left behind keeps its context.
            _ => self.0.gate.change(|starts| starts.unknown(self.0.round)),
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.gate.change(|starts| starts.unknown(self.round));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn doubling(failures: u32) -> Duration {
        SECOND * (1 << (failures - 1).min(20))
    }

    #[test]
    fn a_start_that_fails_stops_leasing_until_a_single_job_has_started() {
        let (mut starts, begin) = (Starts::default(), Instant::now());
        assert_eq!(starts.may(begin), May::LeaseAll);
        let round = starts.leased();
        assert_eq!(starts.failed(round, begin, doubling), Some(1));
        assert_eq!(starts.may(begin), May::WaitUntil(begin + SECOND));
        assert_eq!(starts.may(begin + SECOND), May::Probe);
        let probe = starts.leased();
        assert_eq!(starts.may(begin + SECOND), May::WaitForProbe);
        assert!(starts.worked(probe));
        assert_eq!(starts.may(begin + SECOND), May::LeaseAll);
    }

    #[test]
    fn the_wait_doubles_with_each_probe_that_fails_and_begins_anew_after_one_that_works() {
        let (mut starts, mut now) = (Starts::default(), Instant::now());
        for expected in [1, 2, 4, 8] {
            let round = starts.leased();
            starts.failed(round, now, doubling);
            assert_eq!(starts.may(now), May::WaitUntil(now + SECOND * expected));
            now += SECOND * expected;
        }
        let probe = starts.leased();
        starts.worked(probe);
        let round = starts.leased();
        starts.failed(round, now, doubling);
        assert_eq!(starts.may(now), May::WaitUntil(now + SECOND));
    }

    #[test]
    fn jobs_that_fail_together_are_one_failure() {
        let (mut starts, now) = (Starts::default(), Instant::now());
        let round = starts.leased();
        for _ in 0..20 {
            starts.failed(round, now, doubling);
        }
        assert_eq!(starts.may(now), May::WaitUntil(now + SECOND));
    }

    #[test]
    fn a_start_that_worked_before_the_failure_does_not_end_the_wait() {
        let (mut starts, now) = (Starts::default(), Instant::now());
        let round = starts.leased();
        starts.failed(round, now, doubling);
        assert!(!starts.worked(round));
        assert_eq!(starts.may(now), May::WaitUntil(now + SECOND));
    }

    #[test]
    fn a_probe_that_ended_without_a_start_is_followed_by_another_at_once() {
        let (mut starts, now) = (Starts::default(), Instant::now());
        let round = starts.leased();
        starts.failed(round, now, doubling);
        let probe = starts.leased();
        starts.unknown(probe);
        assert_eq!(starts.may(now + SECOND), May::Probe);
    }

    #[test]
    fn a_warning_comes_once_a_minute_and_tells_how_many_starts_it_is_about() {
        let (mut starts, begin) = (Starts::default(), Instant::now());
        let warned: Vec<Option<u64>> = (0..130)
            .map(|second| {
                let round = starts.leased();
                starts.failed(round, begin + SECOND * second, |_| Duration::ZERO)
            })
            .collect();
        let said: Vec<_> = warned.iter().enumerate().filter_map(|(at, starts)| Some((at, (*starts)?))).collect();
        assert_eq!(said, [(0, 1), (60, 60), (120, 60)]);
    }

    #[test]
    fn a_host_that_flaps_is_not_told_of_more_often() {
        let (mut starts, begin) = (Starts::default(), Instant::now());
        let mut said = 0;
        for second in 0..60 {
            let round = starts.leased();
            starts.failed(round, begin + SECOND * second, |_| Duration::ZERO);
            let probe = starts.leased();
            said += u32::from(starts.worked(probe));
        }
        assert_eq!(said, 1, "one warning, one end");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Lease,
        Fail(usize),
        Work(usize),
        Unknown(usize),
        Pass(u64),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Lease),
            (0_usize..8).prop_map(Step::Fail),
            (0_usize..8).prop_map(Step::Work),
            (0_usize..8).prop_map(Step::Unknown),
            (0_u64..100_000).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Leasing may go on, whatever happened in whichever order, once every delivery has ended and time has passed.
        #[test]
        fn the_worker_never_waits_for_ever(steps in prop::collection::vec(any_step(), 0..60)) {
            let (mut starts, mut now, mut open) = (Starts::default(), Instant::now(), Vec::new());
            for step in steps {
                match step {
                    Step::Lease => if matches!(starts.may(now), May::LeaseAll | May::Probe) { open.push(starts.leased()) },
                    Step::Fail(at) if at < open.len() => { starts.failed(open.remove(at), now, doubling); }
                    Step::Work(at) if at < open.len() => { starts.worked(open.remove(at)); }
                    Step::Unknown(at) if at < open.len() => starts.unknown(open.remove(at)),
                    Step::Pass(millis) => now += Duration::from_millis(millis),
                    Step::Fail(_) | Step::Work(_) | Step::Unknown(_) => {}
                }
            }
            for round in open {
                starts.unknown(round);
            }
            now += doubling(21);
            prop_assert!(matches!(starts.may(now), May::LeaseAll | May::Probe));
        }
    }
}
