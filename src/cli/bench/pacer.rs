//! The pace of an open loop: a thread that gives one permit when a call is due. The runtime's timers have a resolution of a
//! millisecond, which is longer than many a call takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// The longest pause, after which it looks whether it is still wanted.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// The shortest: what becomes due meanwhile goes together.
const PAUSE_LEAST: Duration = Duration::from_micros(50);

/// When call `number` is due, after the begin, at `rate` a second.
pub(super) fn due_at(rate: f64, number: u64) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "a run has far fewer calls than 2^52")]
    Duration::from_secs_f64(number as f64 / rate)
}

/// The thread; it ends when this is dropped.
pub(super) struct Pacer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pacer {
    /// Adds a permit to `due` for each of `total` calls when it is due, and one for each slot at the end, so that all see it.
    pub(super) fn start(rate: f64, total: u64, slots: usize, due: Arc<Semaphore>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let begun = Instant::now();
        let thread = thread::Builder::new().name("bench-pacer".to_owned()).spawn(move || {
            let mut given = 0;
            while given < total && !stopped.load(Ordering::Acquire) {
                let now = begun.elapsed();
                let until = due_by(rate, now).min(total);
                due.add_permits(usize::try_from(until - given).unwrap_or_default());
                given = until;
                thread::park_timeout(due_at(rate, given).saturating_sub(now).clamp(PAUSE_LEAST, PAUSE_MAX));
            }
            due.add_permits(slots);
        });
        if thread.is_err() {
            tracing::error!("no thread can be started: the run has no calls");
        }
        Self { stop, thread: thread.ok() }
    }
}

/// How many calls are due after `since`; the first one is at once.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bounded by rate and duration, and never below zero"
)]
fn due_by(rate: f64, since: Duration) -> u64 {
    (since.as_secs_f64() * rate) as u64 + 1
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            thread.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_due_evenly_from_the_begin_on() {
        assert_eq!(due_by(100.0, Duration::ZERO), 1);
        assert_eq!(due_by(100.0, Duration::from_millis(995)), 100);
        assert_eq!(due_at(100.0, 0), Duration::ZERO);
        assert_eq!(due_at(100.0, 50), Duration::from_millis(500));
    }

    #[tokio::test]
    async fn every_call_has_its_permit_and_every_slot_sees_the_end() {
        let due = Arc::new(Semaphore::new(0));
        let pacer = Pacer::start(100_000.0, 500, 3, Arc::clone(&due));
        due.acquire_many(503).await.unwrap().forget();
        drop(pacer);
        assert_eq!(due.available_permits(), 0);
    }

    #[test]
    fn a_pacer_that_is_dropped_ends_long_before_its_last_call() {
        let due = Arc::new(Semaphore::new(0));
        drop(Pacer::start(0.001, 1_000, 1, Arc::clone(&due)));
        assert!(due.available_permits() <= 2);
    }
}
