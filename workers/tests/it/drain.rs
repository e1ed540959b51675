//! Drain: nothing new is leased, running handlers get their time, the rest is handed back without spending an attempt.

use std::sync::Arc;
use std::time::Duration;

use relay_bridge::contract::Outcome;
use relay_bridge::settlement::Settlement;
use relay_workers::Attempt;
use tokio::sync::Semaphore;

use crate::support::{Call, Reply, Scripted, busy_for, config, done, handler, job, start};

#[tokio::test(start_paused = true)]
async fn a_handler_that_ends_in_time_is_recorded_and_nothing_new_is_leased() {
    let broker = Scripted::new();
    broker.put(job("x"), 1);
    let worker = start(&broker, busy_for(Duration::from_secs(20)), config(1, Duration::from_secs(60)));
    broker.until(|calls| calls.contains(&Call::Extend)).await;
    broker.put(job("y"), 1);
    let report = worker.stop().await;
    assert_eq!((report.leased, report.succeeded, report.handed_back), (1, 1, 0));
    assert_eq!(broker.endings(), [Call::Record(Outcome::Succeeded), Call::Settle(Settlement::Complete)]);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_outlasts_the_drain_is_handed_back_without_spending_an_attempt() {
    let broker = Scripted::new();
    // The last attempt: spending it would end the run.
    broker.put(job("x"), 10);
    let worker = start(&broker, busy_for(Duration::from_secs(3600)), config(2, Duration::from_secs(30)));
    broker.until(|calls| calls.contains(&Call::Extend)).await;
    let report = worker.stop().await;
    assert_eq!(broker.endings(), [Call::Settle(Settlement::HandBack(Duration::ZERO))]);
    assert_eq!((report.handed_back, report.exhausted, report.running()), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_finishes_when_it_is_told_to_stop_has_succeeded() {
    let broker = Scripted::new();
    broker.put(job("x"), 1);
    let handler = handler(|_, context| async move {
        context.cancelled().cancelled().await;
        done()
    });
    let worker = start(&broker, handler, config(1, Duration::ZERO));
    broker.until(|calls| calls.contains(&Call::Extend)).await;
    let report = worker.stop().await;
    assert_eq!((report.succeeded, report.handed_back), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_stops_at_once() {
    let broker = Scripted::new();
    let worker = start(&broker, busy_for(Duration::ZERO), config(1, Duration::from_secs(60)));
    broker.until(|calls| !calls.is_empty()).await;
    let begin = tokio::time::Instant::now();
    worker.stop().await;
    assert!(begin.elapsed() < Duration::from_millis(10));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_worker_drops_its_handlers_and_settles_nothing() {
    struct Guard(Arc<Semaphore>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.add_permits(1);
        }
    }
    let broker = Scripted::new();
    broker.put(job("x"), 1);
    let dropped = Arc::new(Semaphore::new(0));
    let handler = handler({
        let dropped = dropped.clone();
        move |_, _| {
            let guard = Guard(dropped.clone());
            async move {
                let _guard = guard;
                std::future::pending::<Attempt>().await
            }
        }
    });
    let mut worker = start(&broker, handler, config(1, Duration::from_secs(60)));
    broker.until(|calls| calls.contains(&Call::Extend)).await;
    worker.task.abort_all();
    dropped.acquire().await.unwrap().forget();
    assert!(broker.endings().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_also_when_the_broker_never_answers() {
    let broker = Scripted::new();
    broker.always("settle", Reply::Hang);
    broker.put(job("x"), 1);
    let worker = start(&broker, busy_for(Duration::from_secs(3600)), config(1, Duration::from_secs(30)));
    broker.until(|calls| calls.contains(&Call::Extend)).await;
    let begin = tokio::time::Instant::now();
    worker.stop().await;
    assert!(begin.elapsed() <= Duration::from_secs(62), "{:?}", begin.elapsed());
}
