//! How long attempts of a queue take and how often they come due, out of looks at the broker's counts: two processes that look
//! at the same broker find about the same, and neither has to see a job.
//!
//! An attempt's time is the time that slots were busy, divided by the attempts that ended meanwhile. Attempts that still run
//! are in it with their age, so that jobs that take long are known for that before the first of them ends.

use std::time::Duration;

use relay_bridge::load::{KeptPace, Load};

use super::wanted::Pace;

/// Attempts count less the more ended after them: these many are about what the figure is made of.
const ATTEMPTS: f64 = 200.0;
/// Nor is it made of less than this time, in seconds: short attempts would otherwise be measured by two looks.
const SECONDS_MIN: f64 = 60.0;
/// The time over which arrivals are averaged, in seconds.
const ARRIVALS_OVER: f64 = 60.0;
/// The least weight by which they are divided: the first looks of a process would otherwise stand for a minute.
const WEIGHT_MIN: f64 = 0.25;
/// How long more ends than leases explain are taken for a broker whose counts lag.
const LAG_MAX: Duration = Duration::from_secs(30);

/// One queue's measurement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    last: Option<(Duration, Load)>,
    /// Attempts that ended and the seconds that slots were busy, the older the less of it.
    attempts: f64,
    busy: f64,
    /// Seconds since they were made less.
    since: f64,
    /// Arrivals a second, and how much of them is there since the first look.
    arrivals: f64,
    weight: f64,
    /// Attempts that ended and are not among those that came, and since when.
    owed: Option<(Duration, f64)>,
}

impl Measured {
    /// Begins with what was measured before, unless something is known already.
    pub(super) fn remember(&mut self, kept: KeptPace) {
        let fits = [kept.attempts, kept.busy].iter().all(|value| value.is_finite() && *value > 0.0);
        if self.attempts <= 0.0 && fits {
            (self.attempts, self.busy) = (kept.attempts, kept.busy + self.busy);
        }
    }

    /// The part that is worth keeping for the next process.
    pub(super) fn kept(&self) -> Option<KeptPace> {
        (self.attempts > 0.0).then_some(KeptPace { attempts: self.attempts, busy: self.busy })
    }

    /// Takes in a look that was taken `at`, on the monotonic clock.
    pub(crate) fn note(&mut self, at: Duration, load: Load) {
        let Some((before, last)) = self.last.replace((at, load)) else { return };
        let seconds = at.saturating_sub(before).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        // A broker that counts anew has fewer than before.
        let ended = number(load.ended.saturating_sub(last.ended));
        let busy = match (load.busy, last.busy) {
            (Some(now), Some(then)) => now.saturating_sub(then).as_secs_f64(),
            _ => number(load.leased + last.leased) / 2.0 * seconds,
        };
        self.ended(ended, busy, seconds);
        let came = number(load.in_line) + number(load.leased) + ended - number(last.in_line) - number(last.leased);
        self.came(came, at, seconds);
    }

    fn ended(&mut self, ended: f64, busy: f64, seconds: f64) {
        self.since += seconds;
        self.busy += busy;
        if ended > 0.0 {
            // As many as count at this speed; those beyond them, of a time with more, go the sooner.
            let counting = ATTEMPTS.max(ended / self.since * SECONDS_MIN);
            let less = (-ended / counting * (self.attempts / counting).max(1.0)).exp();
            self.attempts = (self.attempts + ended) * less;
            self.busy *= less;
            self.since = 0.0;
        }
    }

    fn came(&mut self, came: f64, at: Duration, seconds: f64) {
        let owed = self.owed.filter(|(since, _)| at.saturating_sub(*since) < LAG_MAX);
        let left = came - owed.map_or(0.0, |(_, owed)| owed);
        self.owed = (left < 0.0).then_some((owed.map_or(at, |(since, _)| since), -left));
        let stays = (-seconds / ARRIVALS_OVER).exp();
        self.arrivals = self.arrivals * stays + left.max(0.0) / seconds * (1.0 - stays);
        self.weight = self.weight * stays + 1.0 - stays;
    }

    /// The measurement so far.
    pub(crate) fn pace(&self) -> Pace {
        Pace {
            service: (self.attempts > 0.0).then(|| self.busy / self.attempts),
            arrivals: self.arrivals / self.weight.max(WEIGHT_MIN),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "more than 2^52 jobs are no queue")]
fn number(of: u64) -> f64 {
    of as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A look at second `at`.
    fn look(measured: &mut Measured, at: u64, in_line: u64, leased: u64, ended: u64) {
        measured.note(Duration::from_secs(at), Load { in_line, leased, ended, ..Load::default() });
    }

    #[test]
    fn an_attempt_takes_the_time_of_slots_by_the_attempts_that_ended() {
        let mut measured = Measured::default();
        // 10 slots are busy, and 5 attempts end a second: 2 s each.
        for at in 0..300 {
            look(&mut measured, at, 0, 10, 5 * at);
        }
        let pace = measured.pace();
        assert!((pace.service.unwrap() - 2.0).abs() < 0.01, "{pace:?}");
        assert!((pace.arrivals - 5.0).abs() < 0.01, "{pace:?}");
    }

    #[test]
    fn attempts_that_still_run_count_with_their_age() {
        let mut measured = Measured::default();
        look(&mut measured, 0, 0, 10, 0);
        look(&mut measured, 1, 0, 10, 1);
        let before = measured.pace().service.unwrap();
        look(&mut measured, 101, 0, 10, 1);
        assert!(measured.pace().service.unwrap() > before + 900.0);
    }

    #[test]
    fn a_broker_that_tells_how_long_slots_were_busy_is_believed() {
        let mut measured = Measured::default();
        for at in 0..100 {
            let busy = Some(Duration::from_millis(250 * at));
            let load = Load { leased: 99, ended: at, busy, ..Load::default() };
            measured.note(Duration::from_secs(at), load);
        }
        assert!((measured.pace().service.unwrap() - 0.25).abs() < 0.001);
    }

    #[test]
    fn a_change_of_speed_is_known_after_as_many_attempts_as_count() {
        let mut measured = Measured::default();
        for at in 0..200 {
            look(&mut measured, at, 0, 10, 10 * at);
        }
        for at in 200..320 {
            look(&mut measured, at, 0, 10, 2_000 + 2 * (at - 200));
        }
        assert!(measured.pace().service.unwrap() > 3.0, "{:?}", measured.pace());
    }

    #[test]
    fn a_broker_that_counts_anew_or_lags_makes_no_arrivals() {
        let mut measured = Measured::default();
        look(&mut measured, 0, 100, 10, 1_000);
        // Ten have left the line, and the broker tells so a look later.
        look(&mut measured, 5, 90, 10, 1_000);
        look(&mut measured, 10, 90, 10, 1_010);
        assert_eq!(measured.pace().arrivals, 0.0);
        look(&mut measured, 15, 90, 10, 0);
        assert_eq!(measured.pace().arrivals, 0.0);
    }

    #[test]
    fn a_queue_that_was_emptied_does_not_hide_what_comes_later() {
        let mut measured = Measured::default();
        look(&mut measured, 0, 1_000_000, 0, 0);
        for at in 1..100 {
            look(&mut measured, at, 10 * at, 0, 0);
        }
        assert!(measured.pace().arrivals > 5.0, "{:?}", measured.pace());
    }

    #[test]
    fn the_next_process_begins_with_what_was_kept() {
        let mut measured = Measured::default();
        measured.remember(KeptPace { attempts: 100.0, busy: 300.0 });
        assert_eq!(measured.pace().service, Some(3.0));
        measured.remember(KeptPace { attempts: 100.0, busy: 1.0 });
        assert_eq!(measured.pace().service, Some(3.0));
        let mut nonsense = Measured::default();
        nonsense.remember(KeptPace { attempts: f64::NAN, busy: 1.0 });
        assert_eq!((nonsense.pace().service, nonsense.kept()), (None, None));
    }
}
