//! The time between the stop signal and the end of accepting, in which load balancers notice that the process goes: its peers
//! are told to go elsewhere one by one, so that they do not come to the others all at once, and none is cut off while it writes.

use std::cmp::Reverse;
use std::time::Duration;

use relay_bridge::backoff::random;
use tokio::time::{Instant, sleep_until};

/// The time over which those are told that were there when the signal came.
const SPREAD_MAX: Duration = Duration::from_secs(60);
/// How long after it came a later one is told: a balancer that has not noticed yet sends many.
const LATE_AFTER: Duration = Duration::from_secs(10);
/// The part of the delay, and the time, at its end in which all are told that are still there or come.
const LAST_PART: u32 = 4;
const LAST_MAX: Duration = Duration::from_secs(5);
/// How often it is looked who came late.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long a connection lasts that may be `most` old: between 0.8 and 1.2 times as long, so that those that began together do not
/// end together.
pub(super) fn age(most: Duration) -> Duration {
    most.mul_f64(0.8 + 0.4 * random())
}

/// Tells each of `present` once, at a random moment of the first minute of `delay`, or of all of it but its end if that is less;
/// and has `tell_late` tell those who came between its two moments. Before the end everybody is told, so that only those are
/// still there then who have nothing to say. Ends with the delay.
pub(super) async fn tell<P>(delay: Duration, present: Vec<P>, tell: impl Fn(P), tell_late: impl Fn(Instant, Instant)) {
    let begun = Instant::now();
    let end = begun + delay;
    let last = end - (delay / LAST_PART).min(LAST_MAX);
    let spread = (last - begun).min(SPREAD_MAX);
    let mut due: Vec<_> = present.into_iter().map(|peer| (begun + spread.mul_f64(random()), peer)).collect();
    due.sort_unstable_by_key(|(at, _)| Reverse(*at));
    loop {
        let now = Instant::now();
        while let Some((_, peer)) = due.pop_if(|(at, _)| *at <= now) {
            tell(peer);
        }
        let until = if now >= last { Some(now) } else { now.checked_sub(LATE_AFTER) };
        if let Some(until) = until.filter(|until| *until > begun) {
            tell_late(begun, until);
        }
        if now >= end {
            break;
        }
        let next = due.last().map_or(end, |(at, _)| *at);
        sleep_until(next.min(now + LOOK_EVERY).min(end)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_are_there_are_told_within_a_minute_and_not_all_at_once_and_later_ones_after_ten_seconds() {
        let begun = Instant::now();
        let (told, late) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        tell(
            Duration::from_secs(180),
            (0..200).collect(),
            |_| told.lock().unwrap().push(begun.elapsed()),
            |from, until| late.lock().unwrap().push((from, until)),
        )
        .await;
        assert_eq!(begun.elapsed(), Duration::from_secs(180));
        let told = told.into_inner().unwrap();
        let quarter = |n: u32| {
            let within = |at: &&Duration| {
                at.as_secs_f64() >= f64::from(n) * 15.0 && at.as_secs_f64() < f64::from(n + 1) * 15.0 + 0.3
            };
            told.iter().filter(within).count()
        };
        assert_eq!(told.len(), 200);
        assert!((0..4).all(|n| quarter(n) > 10), "{:?}", [0, 1, 2, 3].map(quarter));
        assert!(told.iter().all(|at| *at <= SPREAD_MAX + LOOK_EVERY));
        let late = late.into_inner().unwrap();
        assert!(late.iter().all(|(from, _)| *from == begun));
        let last = late.iter().filter(|(_, until)| begun + Duration::from_secs(170) < *until);
        assert!(last.count() >= 20, "those who came in the last ten seconds are told in the last five");
        assert_eq!(late.last().unwrap().1, begun + Duration::from_secs(180));
        assert!(late.len() > 600, "it is looked often: {}", late.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_delay_tells_everybody_before_its_end() {
        let told = Mutex::new(0);
        tell(Duration::from_millis(100), vec![(); 50], |()| *told.lock().unwrap() += 1, |_, _| {}).await;
        assert_eq!(*told.lock().unwrap(), 50);
    }
}
