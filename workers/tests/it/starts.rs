//! A handler that can't be started on this host: no attempt is spent, one warning a minute, and one job at a time until
//! it can.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use relay_bridge::contract::{Failure, Outcome};
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::Log;
use relay_workers::{Attempt, Handler};
use tracing::Level;

use crate::support::{Call, Scripted, done, handler, job, start_one};

const MINUTE: Duration = Duration::from_secs(60);

fn not_started() -> Attempt {
    Attempt::NotStarted { failure: Failure::new("spawn-failed", "no room for another process") }
}

fn cannot_start() -> Arc<dyn Handler> {
    handler(|_, _| async { not_started() })
}

/// How many jobs each lease call asked for.
fn asked(broker: &Scripted) -> Vec<u32> {
    let asked = |call: Call| if let Call::Lease { max, .. } = call { Some(max) } else { None };
    broker.calls().into_iter().filter_map(asked).collect()
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_cannot_be_started_spends_no_attempt_and_stops_leasing() {
    let broker = Scripted::new();
    for n in 0..100_u8 {
        // The last attempt: spending it would end the run.
        broker.put(job([n]), 10);
    }
    let worker = start_one(&broker, cannot_start());
    tokio::time::sleep(10 * MINUTE).await;
    let stats = worker.stats.report();
    assert_eq!((stats.starts_failing, stats.running()), (1, 0));
    let report = worker.stop().await;
    // Four at first, for the four slots; then one after each wait of 1 s doubled to 1 min, half of it random.
    let leases = asked(&broker);
    assert_eq!(leases[0], 4);
    assert!(leases[1..].iter().all(|max| *max == 1), "{leases:?}");
    assert!((14..=28).contains(&leases.len()), "{} lease calls in ten minutes", leases.len());
    let back = Call::Settle(Settlement::HandBack(Duration::ZERO));
    assert!(broker.endings().iter().all(|call| *call == back), "{:?}", broker.endings());
    assert_eq!((report.not_started, report.handed_back), (report.leased, report.leased));
}

#[tokio::test(start_paused = true)]
async fn a_worker_takes_all_it_can_again_once_one_job_has_started() {
    let broker = Scripted::new();
    let works = Arc::new(AtomicBool::new(false));
    let flag = works.clone();
    let handler = handler(move |_, context| {
        let works = flag.clone();
        async move {
            if !works.load(Ordering::SeqCst) {
                return not_started();
            }
            context.started();
            context.cancelled().cancelled_owned().await;
            Attempt::retry("cancelled", "stopped")
        }
    });
    for n in 0..8_u8 {
        broker.put(job([n]), 1);
    }
    let worker = start_one(&broker, handler);
    broker.settled(4).await;
    works.store(true, Ordering::SeqCst);
    // The probe goes on for hours; that it has started is enough.
    broker.until(|calls| calls.iter().filter(|call| matches!(call, Call::Lease { .. })).count() == 3).await;
    assert_eq!(asked(&broker), [4, 1, 3]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((worker.stats.report().starts_failing, worker.stats.report().running()), (0, 4));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_returns_has_started_whatever_it_returns() {
    for attempt in [done(), Attempt::retry("flaky", "not today"), Attempt::reject("bad-data", "no such thing")] {
        let (broker, calls) = (Scripted::new(), Arc::new(AtomicU32::new(0)));
        let handler = handler(move |_, _| {
            let (first, attempt) = (calls.fetch_add(1, Ordering::SeqCst) == 0, attempt.clone());
            async move { if first { not_started() } else { attempt } }
        });
        broker.put(job("x"), 1);
        let worker = start_one(&broker, handler);
        broker.settled(1).await;
        broker.put(job("y"), 1);
        broker.settled(2).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(worker.stats.report().starts_failing, 0);
        worker.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_cannot_start_its_handler_drains_at_once() {
    let broker = Scripted::new();
    broker.put(job("x"), 1);
    let worker = start_one(&broker, cannot_start());
    broker.settled(1).await;
    let report = worker.stop().await;
    assert_eq!((report.handed_back, report.running()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_cannot_be_started_is_warned_of_once_a_minute_and_not_for_each_job() {
    let (log, _listening) = Log::listen();
    let warnings = || log.count(Level::WARN, "can't be started here: no room for another process");
    let broker = Scripted::new();
    for n in 0..100_u8 {
        broker.put(job([n]), 1);
    }
    let works = Arc::new(AtomicBool::new(false));
    let flag = works.clone();
    let handler = handler(move |_, _| {
        let works = flag.clone();
        async move { if works.load(Ordering::SeqCst) { done() } else { not_started() } }
    });
    let worker = start_one(&broker, handler);
    broker.settled(4).await;
    assert_eq!(warnings(), 1, "the first start that failed, of four");
    tokio::time::sleep(10 * MINUTE).await;
    let warned = warnings();
    assert!((5..=11).contains(&warned), "{warned} warnings in ten minutes");
    works.store(true, Ordering::SeqCst);
    broker.until(|calls| calls.contains(&Call::Record(Outcome::Succeeded))).await;
    assert_eq!(log.count(Level::INFO, "can be started again"), 1, "its end is told too");
    worker.stop().await;
}
