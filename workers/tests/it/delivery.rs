//! One delivery's life: the calls that record and settle it, and their order, whatever happens.

use std::sync::Arc;
use std::time::Duration;

use relay_bridge::contract::{Failure, Outcome};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::leasing::{Held, Progress};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_workers::handler::function::{HandlerError, function};
use relay_workers::{Attempt, Handler, Output};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::support::{
    Call, LEASE, Reply, Running, Scripted, ago, busy_for, config, done, handler, job, job_at, start, start_one,
};

const HOUR: Duration = Duration::from_secs(3600);

fn rejecting() -> Arc<dyn Handler> {
    handler(|_, _| async { Attempt::reject("bad-data", "no such thing") })
}

fn failing() -> Arc<dyn Handler> {
    handler(|_, _| async { Attempt::retry("flaky", "not today") })
}

/// Runs one delivery to its settlement.
async fn run(broker: &Arc<Scripted>, handler: Arc<dyn Handler>, attempt: u32) -> relay_workers::WorkerReport {
    broker.put(job("payload"), attempt);
    let worker = start_one(broker, handler);
    broker.settled(1).await;
    worker.stop().await
}

#[tokio::test(start_paused = true)]
async fn a_success_is_recorded_and_then_settled() {
    let broker = Scripted::new();
    let report = run(&broker, busy_for(Duration::from_secs(1)), 1).await;
    assert_eq!(broker.endings(), [Call::Record(Outcome::Succeeded), Call::Settle(Settlement::Complete)]);
    assert_eq!((report.started, report.succeeded, report.finished), (1, 1, 1));
    let results = broker.results.lock().unwrap();
    assert_eq!((results[0].content_type.as_str(), &results[0].payload[..]), ("text/plain", &b"ok"[..]));
    assert_eq!(results[0].attempt, 1);
    assert!(results[0].started_at.is_some() && results[0].failure.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_rejection_is_dead_lettered_recorded_and_settled_in_this_order() {
    let broker = Scripted::new();
    let report = run(&broker, rejecting(), 1).await;
    let expected =
        [Call::DeadLetter(Outcome::Failed), Call::Record(Outcome::Failed), Call::Settle(Settlement::DeadLetter)];
    assert_eq!(broker.endings(), expected);
    assert_eq!(report.failed, 1);
    let letters = broker.letters.lock().unwrap();
    assert_eq!(letters[0].failure.reason, "bad-data");
    assert_eq!(letters[0].job.payload, "payload");
}

#[tokio::test(start_paused = true)]
async fn a_failed_attempt_with_attempts_left_goes_back_with_a_delay() {
    let broker = Scripted::new();
    let report = run(&broker, failing(), 9).await;
    let [Call::Settle(Settlement::RetryAfter(wait))] = broker.endings()[..] else {
        panic!("{:?}", broker.endings());
    };
    assert!(wait >= Duration::from_millis(1) && wait <= Duration::from_secs(256));
    assert_eq!(report.retried, 1);
}

#[tokio::test(start_paused = true)]
async fn the_last_failed_attempt_exhausts_the_run() {
    let broker = Scripted::new();
    let report = run(&broker, failing(), 10).await;
    let expected =
        [Call::DeadLetter(Outcome::Exhausted), Call::Record(Outcome::Exhausted), Call::Settle(Settlement::DeadLetter)];
    assert_eq!(broker.endings(), expected);
    assert_eq!(report.exhausted, 1);
    let failure = broker.results.lock().unwrap()[0].failure.clone().unwrap();
    assert_eq!((failure.reason.as_str(), failure.detail.contains("attempt 10 of 10")), ("flaky", true));
}

#[tokio::test(start_paused = true)]
async fn a_run_ends_as_it_ended_where_the_handler_passed_it_on_to() {
    type Elsewhere = fn(Failure) -> Attempt;
    let table: [(Elsewhere, Outcome, Settlement); 3] = [
        (|failure| Attempt::Exhausted { failure }, Outcome::Exhausted, Settlement::DeadLetter),
        (|failure| Attempt::Expired { failure }, Outcome::Expired, Settlement::Complete),
        (|failure| Attempt::Cancelled { failure }, Outcome::Cancelled, Settlement::Complete),
    ];
    for (elsewhere, outcome, settlement) in table {
        let broker = Scripted::new();
        let handler = handler(move |_, _| async move { elsewhere(Failure::new("there", "why")) });
        let report = run(&broker, handler, 1).await;
        let mut expected = vec![Call::Record(outcome), Call::Settle(settlement.clone())];
        if settlement == Settlement::DeadLetter {
            expected.insert(0, Call::DeadLetter(outcome));
        }
        assert_eq!(broker.endings(), expected);
        assert_eq!(broker.results.lock().unwrap()[0].failure, Some(Failure::new("there", "why")));
        assert_eq!(report.exhausted + report.expired + report.cancelled, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_may_hand_its_job_back_on_its_last_attempt() {
    let broker = Scripted::new();
    let after = Duration::from_secs(7);
    let report = run(&broker, handler(move |_, _| async move { Attempt::HandBack { after } }), 10).await;
    assert_eq!(broker.endings(), [Call::Settle(Settlement::HandBack(after))]);
    assert_eq!((report.handed_back, report.exhausted), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_hands_back_at_the_end_of_the_longest_lease_spends_no_attempt() {
    let broker = Scripted::new();
    let handler = handler(|_, context| async move {
        context.cancelled().cancelled().await;
        Attempt::HandBack { after: Duration::ZERO }
    });
    assert_eq!(run(&broker, handler, 1).await.handed_back, 1);
}

/// A handler that waits until it is stopped and tells what it knows of its run then.
fn watching(tell: mpsc::Sender<Option<Outcome>>) -> Arc<dyn Handler> {
    handler(move |_, context| {
        let tell = tell.clone();
        async move {
            context.cancelled().cancelled().await;
            tell.send(context.run_ended()).await.unwrap();
            Attempt::retry("stopped", "it was told to")
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_is_stopped_learns_whether_its_run_ended_and_how() {
    let (tell, mut told) = mpsc::channel(8);
    for (reply, life, expected) in [
        (Reply::Held(Held::Ended(Outcome::Cancelled)), HOUR, Some(Outcome::Cancelled)),
        (Reply::Held(Held::Until(LEASE)), Duration::from_secs(5), Some(Outcome::Expired)),
        (Reply::Error(BrokerErrorKind::LeaseLost), HOUR, None),
    ] {
        let broker = Scripted::new();
        broker.reply("extend", [reply]);
        broker.put(job_at("x", Duration::ZERO, life), 1);
        let worker = start_one(&broker, watching(tell.clone()));
        assert_eq!(told.recv().await, Some(expected));
        worker.stop().await;
    }
    let broker = Scripted::new();
    broker.put(job("x"), 1);
    let worker = start(&broker, watching(tell), config(1, Duration::from_secs(60)));
    broker.until(|calls| calls.contains(&Call::Extend)).await;
    worker.stop().await;
    assert_eq!(told.recv().await, Some(None), "a drain ends no run");
}

#[tokio::test(start_paused = true)]
async fn a_delivery_whose_attempts_were_spent_is_ended_without_a_start() {
    let broker = Scripted::new();
    let report = run(&broker, busy_for(HOUR), 11).await;
    assert_eq!((report.started, report.exhausted), (0, 1));
    let results = broker.results.lock().unwrap();
    assert_eq!((results[0].attempt, results[0].started_at), (10, None));
}

#[tokio::test(start_paused = true)]
async fn a_lower_max_attempts_applies_to_the_job_in_hand() {
    let broker = Scripted::new();
    broker.put(job("x"), 2);
    let worker = start_one(
        &broker,
        handler(|_, _| async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            Attempt::retry("flaky", "not today")
        }),
    );
    broker.until(|calls| calls.contains(&Call::Extend)).await;
    broker.policy.lock().unwrap().max_attempts = 2;
    broker.settled(1).await;
    assert_eq!(worker.stop().await.exhausted, 1);
}

#[tokio::test(start_paused = true)]
async fn an_expired_job_is_not_started() {
    let broker = Scripted::new();
    let mut late = job("x");
    late.expires_at = ago(Duration::from_secs(1));
    broker.put(late, 1);
    let worker = start_one(&broker, busy_for(HOUR));
    broker.settled(1).await;
    let report = worker.stop().await;
    assert_eq!((report.started, report.expired), (0, 1));
    assert_eq!(broker.endings(), [Call::Record(Outcome::Expired), Call::Settle(Settlement::Complete)]);
    assert_eq!(broker.results.lock().unwrap()[0].attempt, 0);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_runs_past_the_deadline_is_stopped_and_the_run_expires() {
    let broker = Scripted::new();
    broker.put(job_at("x", Duration::ZERO, Duration::from_secs(100)), 1);
    let worker = start_one(&broker, busy_for(HOUR));
    broker.settled(1).await;
    assert_eq!(worker.stop().await.expired, 1);
    assert_eq!(broker.endings(), [Call::Record(Outcome::Expired), Call::Settle(Settlement::Complete)]);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_came_too_early_is_handed_back_until_it_is_due() {
    let broker = Scripted::new();
    broker.put(job_at("x", Duration::from_secs(50), HOUR), 1);
    let worker = start_one(&broker, busy_for(HOUR));
    broker.settled(1).await;
    let report = worker.stop().await;
    assert_eq!((report.started, report.handed_back), (0, 1));
    let [Call::Settle(Settlement::HandBack(wait))] = broker.endings()[..] else {
        panic!("{:?}", broker.endings());
    };
    assert!(wait > Duration::from_secs(40) && wait <= Duration::from_secs(50), "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failed_attempt_that_says_what_happened() {
    let broker = Scripted::new();
    let report = run(&broker, handler(|_, _| async { panic!("boom {}", 7) }), 10).await;
    assert_eq!(report.exhausted, 1);
    let failure = broker.results.lock().unwrap()[0].failure.clone().unwrap();
    assert_eq!(failure.reason, "panic");
    assert!(failure.detail.contains("boom 7"), "{}", failure.detail);
}

#[tokio::test(start_paused = true)]
async fn a_result_larger_than_the_queue_allows_ends_the_run_without_a_retry() {
    let broker = Scripted::new();
    *broker.policy.lock().unwrap() = QueuePolicy { result_max: 1, ..QueuePolicy::default() };
    let report = run(&broker, busy_for(Duration::ZERO), 1).await;
    assert_eq!(report.failed, 1);
    assert_eq!(broker.results.lock().unwrap()[0].failure.as_ref().unwrap().reason, "result-too-large");
}

#[tokio::test(start_paused = true)]
async fn a_result_larger_than_the_broker_takes_ends_the_run_without_a_retry() {
    let broker = Scripted::new();
    broker.reply("record", [Reply::Error(BrokerErrorKind::TooLarge { actual: 2, limit: 1 })]);
    let report = run(&broker, busy_for(Duration::ZERO), 1).await;
    let expected = [
        Call::Record(Outcome::Succeeded),
        Call::DeadLetter(Outcome::Failed),
        Call::Record(Outcome::Failed),
        Call::Settle(Settlement::DeadLetter),
    ];
    assert_eq!(broker.endings(), expected);
    assert_eq!((report.failed, report.succeeded), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn every_step_is_repeated_while_the_broker_stumbles() {
    let broker = Scripted::new();
    for call in ["dead_letter", "record", "settle"] {
        let stumble = [BrokerErrorKind::Unavailable, BrokerErrorKind::Ambiguous];
        broker.reply(call, stumble.map(Reply::Error));
    }
    broker.put(job("x"), 1);
    let worker = start_one(&broker, rejecting());
    broker.settled(3).await;
    let report = worker.stop().await;
    let (letter, record) = (Call::DeadLetter(Outcome::Failed), Call::Record(Outcome::Failed));
    let expected = [vec![letter; 3], vec![record; 3], vec![Call::Settle(Settlement::DeadLetter); 3]].concat();
    assert_eq!(broker.endings(), expected);
    assert_eq!((report.failed, report.unconfirmed), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_settlement_whose_answer_was_lost_counts_when_the_lease_is_gone_after_it() {
    let broker = Scripted::new();
    broker.reply("settle", [BrokerErrorKind::Ambiguous, BrokerErrorKind::LeaseLost].map(Reply::Error));
    broker.put(job("x"), 1);
    let worker = start_one(&broker, failing());
    broker.settled(2).await;
    let report = worker.stop().await;
    assert_eq!((report.retried, report.leases_lost), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn without_a_recorded_result_nothing_is_settled() {
    let broker = Scripted::new();
    broker.always("record", Reply::Error(BrokerErrorKind::Unavailable));
    // Until the lease is over, as nothing extends it.
    broker.always("extend", Reply::Error(BrokerErrorKind::Unavailable));
    broker.put(job("x"), 1);
    let began = Instant::now();
    let worker = start_one(&broker, busy_for(Duration::ZERO));
    broker.until(|calls| recorded(calls) > 10).await;
    let report = worker.stop().await;
    assert_eq!((report.leases_lost, report.succeeded, report.finished), (1, 0, 1));
    assert!(began.elapsed() >= LEASE && began.elapsed() < LEASE * 2, "{:?}", began.elapsed());
    assert!(broker.endings().iter().all(|call| matches!(call, Call::Record(_))));
}

fn recorded(calls: &[Call]) -> usize {
    calls.iter().filter(|call| matches!(call, Call::Record(_))).count()
}

#[tokio::test(start_paused = true)]
async fn a_finished_result_survives_a_broker_that_refuses_it_for_as_long_as_its_lease_stands() {
    // As it does while a token of AWS has expired, and nobody has a new one.
    const TRIES: usize = 100;
    let broker = Scripted::new();
    broker.reply("record", [BrokerErrorKind::Unavailable; TRIES].map(Reply::Error));
    broker.put(job("x"), 1);
    let began = Instant::now();
    let worker = start_one(&broker, busy_for(Duration::ZERO));
    broker.settled(1).await;
    let waited = began.elapsed();
    let report = worker.stop().await;
    assert!(waited > LEASE * 5, "{waited:?}: far longer than the first lease");
    let beats = broker.calls().iter().filter(|call| **call == Call::Extend).count();
    assert!(beats >= 10, "{beats} beats");
    let mut expected = vec![Call::Record(Outcome::Succeeded); TRIES + 1];
    expected.push(Call::Settle(Settlement::Complete));
    assert_eq!(broker.endings(), expected);
    assert_eq!((report.succeeded, report.unconfirmed), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn without_a_dead_letter_no_failure_is_recorded() {
    let broker = Scripted::new();
    broker.always("dead_letter", Reply::Error(BrokerErrorKind::Unauthorized));
    broker.put(job("x"), 1);
    let worker = start_one(&broker, rejecting());
    broker.until(|calls| calls.contains(&Call::DeadLetter(Outcome::Failed))).await;
    assert_eq!(worker.stop().await.unconfirmed, 1);
    assert_eq!(broker.endings(), [Call::DeadLetter(Outcome::Failed)]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_of_a_run_that_succeeded_elsewhere_is_taken_back() {
    for (winner, retracted) in
        [(Outcome::Succeeded, true), (Outcome::Cancelled, true), (Outcome::Failed, false), (Outcome::Exhausted, false)]
    {
        let broker = Scripted::new();
        broker.reply("record", [Reply::Superseded(winner)]);
        let report = run(&broker, rejecting(), 1).await;
        assert_eq!(broker.endings().contains(&Call::Retract), retracted, "{winner}");
        assert_eq!(broker.endings().last(), Some(&Call::Settle(Settlement::DeadLetter)));
        assert_eq!((report.superseded, report.failed), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_success_takes_back_the_dead_letter_that_a_crashed_attempt_may_have_left() {
    for (attempt, retracted) in [(1, false), (2, true)] {
        let broker = Scripted::new();
        run(&broker, busy_for(Duration::ZERO), attempt).await;
        assert_eq!(broker.endings().contains(&Call::Retract), retracted);
    }
}

#[tokio::test(start_paused = true)]
async fn the_heartbeat_goes_on_at_a_third_of_the_lease_while_the_handler_is_busy() {
    let broker = Scripted::new();
    let report = run(&broker, busy_for(Duration::from_secs(95)), 1).await;
    let beats = broker.calls().iter().filter(|call| **call == Call::Extend).count();
    assert_eq!(beats, 9, "every 10 s of a lease of 30 s");
    assert_eq!((report.succeeded, report.leases_lost), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_heartbeat_goes_on_while_the_handler_blocks_its_thread() {
    let broker = Scripted::new();
    broker.policy.lock().unwrap().lease = Duration::from_secs(3);
    broker.put(job("x"), 1);
    let (go, gate) = std::sync::mpsc::channel();
    let gate = std::sync::Mutex::new(gate);
    let blocking = function(move |_, _| {
        gate.lock().unwrap().recv().unwrap();
        async { Ok::<_, HandlerError>(()) }
    });
    let worker = start_one(&broker, Arc::new(blocking));
    let beats = |calls: &Vec<Call>| calls.iter().filter(|call| **call == Call::Extend).count();
    broker.until(|calls| beats(calls) == 2).await;
    go.send(()).unwrap();
    broker.settled(1).await;
    assert_eq!(worker.stop().await.succeeded, 1);
}

#[tokio::test(start_paused = true)]
async fn a_beat_that_is_answered_late_does_not_hold_up_the_handler() {
    let broker = Scripted::new();
    broker.always("extend", Reply::Hang);
    // The handler ends at 15 s, while the beat of 10 s waits for its answer.
    let report = run(&broker, busy_for(Duration::from_secs(15)), 1).await;
    assert_eq!((report.succeeded, report.leases_lost), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn missed_beats_are_survived_while_the_lease_may_live() {
    let broker = Scripted::new();
    broker.reply("extend", [Reply::Error(BrokerErrorKind::Unavailable), Reply::Hang]);
    let report = run(&broker, busy_for(Duration::from_secs(60)), 1).await;
    assert_eq!((report.succeeded, report.leases_lost), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_dead_when_no_beat_was_confirmed_for_its_length() {
    let broker = Scripted::new();
    broker.always("extend", Reply::Error(BrokerErrorKind::Unavailable));
    broker.put(job("x"), 1);
    let stopped_at = Arc::new(Semaphore::new(0));
    let begin = tokio::time::Instant::now();
    let mut worker = start_one(
        &broker,
        handler({
            let stopped_at = stopped_at.clone();
            move |_, context| {
                let stopped_at = stopped_at.clone();
                async move {
                    context.cancelled().cancelled().await;
                    stopped_at.add_permits(1);
                    Attempt::retry("cancelled", "stopped")
                }
            }
        }),
    );
    stopped_at.acquire().await.unwrap().forget();
    assert_eq!(begin.elapsed().as_secs(), LEASE.as_secs());
    worker.shutdown.cancel();
    let report = worker.task.join_next().await.unwrap().unwrap();
    assert_eq!((report.leases_lost, report.retried), (1, 0));
    assert!(broker.endings().is_empty(), "{:?}", broker.endings());
}

/// Starts a worker whose handler runs until it is cancelled, and awaits that.
async fn start_until_cancelled(broker: &Arc<Scripted>) -> Running {
    let stopped = Arc::new(Semaphore::new(0));
    let worker = start_one(
        broker,
        handler({
            let stopped = stopped.clone();
            move |_, context| {
                let stopped = stopped.clone();
                async move {
                    context.cancelled().cancelled().await;
                    stopped.add_permits(1);
                    Attempt::reject("bad-data", "too late")
                }
            }
        }),
    );
    stopped.acquire().await.unwrap().forget();
    worker
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_cancels_the_handler_and_records_nothing() {
    let broker = Scripted::new();
    broker.reply("extend", [Reply::Error(BrokerErrorKind::LeaseLost)]);
    broker.put(job("x"), 10);
    let worker = start_until_cancelled(&broker).await;
    assert_eq!(worker.stop().await.leases_lost, 1);
    assert!(broker.endings().is_empty(), "{:?}", broker.endings());
}

#[tokio::test(start_paused = true)]
async fn an_extension_whose_answer_comes_after_the_lease_is_not_taken() {
    let broker = Scripted::new();
    // Asked for at a third of the lease, and confirmed when it is over: somebody else may have the job by then.
    broker.reply("extend", [Reply::Late(LEASE * 5 / 6)]);
    broker.put(job("x"), 10);
    let worker = start_until_cancelled(&broker).await;
    assert_eq!(broker.calls().iter().filter(|call| **call == Call::Extend).count(), 1, "the lease went on");
    assert_eq!(worker.stop().await.leases_lost, 1);
    assert!(broker.endings().is_empty(), "{:?}", broker.endings());
}

#[tokio::test(start_paused = true)]
async fn a_success_after_a_lost_lease_is_recorded_and_not_settled() {
    let broker = Scripted::new();
    broker.reply("extend", [Reply::Error(BrokerErrorKind::LeaseLost)]);
    broker.put(job("x"), 1);
    let worker = start_one(
        &broker,
        handler(|_, context| async move {
            context.cancelled().cancelled().await;
            done()
        }),
    );
    broker.until(|calls| calls.contains(&Call::Record(Outcome::Succeeded))).await;
    let report = worker.stop().await;
    assert_eq!(broker.endings(), [Call::Record(Outcome::Succeeded)]);
    assert_eq!((report.succeeded, report.leases_lost), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_ignores_the_cancellation_is_dropped_after_its_grace() {
    let broker = Scripted::new();
    broker.reply("extend", [Reply::Error(BrokerErrorKind::LeaseLost)]);
    broker.put(job("x"), 1);
    let dropped = Arc::new(Semaphore::new(0));
    struct Guard(Arc<Semaphore>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.add_permits(1);
        }
    }
    let worker = start_one(
        &broker,
        handler({
            let dropped = dropped.clone();
            move |_, _| {
                let guard = Guard(dropped.clone());
                async move {
                    let _guard = guard;
                    std::future::pending().await
                }
            }
        }),
    );
    dropped.acquire().await.unwrap().forget();
    assert_eq!(worker.stop().await.leases_lost, 1);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_ended_elsewhere_stops_the_handler_and_is_only_settled() {
    let broker = Scripted::new();
    broker.reply("extend", [Reply::Held(Held::Ended(Outcome::Cancelled))]);
    broker.put(job("x"), 1);
    // Even a success is not recorded: the run has its outcome.
    let worker = start_one(
        &broker,
        handler(|_, context| async move {
            context.cancelled().cancelled().await;
            done()
        }),
    );
    broker.settled(1).await;
    let report = worker.stop().await;
    assert_eq!(broker.endings(), [Call::Settle(Settlement::Complete)]);
    assert_eq!((report.ended_elsewhere, report.succeeded, report.leases_lost), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_hurries_is_asked_before_the_next_beat_is_due() {
    let broker = Scripted::new();
    broker.put(job("x"), 1);
    let begin = tokio::time::Instant::now();
    let worker = start_one(
        &broker,
        handler(|_, context| async move {
            context.cancelled().cancelled().await;
            done()
        }),
    );
    broker.until(|calls| !calls.is_empty()).await;
    broker.reply("extend", [Reply::Held(Held::Ended(Outcome::Cancelled))]);
    broker.hurry.cancel();
    broker.settled(1).await;
    assert!(begin.elapsed() < LEASE / 3, "it waited for its beat");
    assert_eq!(broker.endings(), [Call::Settle(Settlement::Complete)]);
    assert_eq!(worker.stop().await.ended_elsewhere, 1);
}

/// Gives a worker one delivery, which must not start; returns the worker's report.
async fn not_started(broker: &Arc<Scripted>) -> relay_workers::WorkerReport {
    broker.put(job("x"), 1);
    let worker = start_one(broker, handler(|_, _| async { panic!("it was started") }));
    broker.until(|calls| calls.iter().filter(|call| matches!(call, Call::Lease { .. })).count() > 1).await;
    let report = worker.stop().await;
    assert_eq!(report.started, 0, "{:?}", broker.calls());
    report
}

#[tokio::test(start_paused = true)]
async fn a_handler_does_not_start_once_the_lease_is_over_by_the_workers_own_clock() {
    let broker = Scripted::new();
    broker.reply("lease", [Reply::Late(LEASE)]);
    assert_eq!(not_started(&broker).await.leases_lost, 1);
    assert!(broker.endings().is_empty(), "{:?}", broker.endings());
    assert!(!broker.calls().contains(&Call::Extend), "the clock alone says so");
}

#[tokio::test(start_paused = true)]
async fn a_handler_does_not_start_if_its_run_is_known_to_have_ended() {
    let broker = Scripted::new();
    broker.hurry.cancel();
    broker.reply("extend", [Reply::Held(Held::Ended(Outcome::Cancelled))]);
    assert_eq!(not_started(&broker).await.ended_elsewhere, 1);
    assert_eq!(broker.endings(), [Call::Settle(Settlement::Complete)]);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_in_hand_for_long_is_looked_up_before_its_handler_starts() {
    let broker = Scripted::new();
    broker.reply("policy", [Reply::Late(Duration::ZERO), Reply::Late(Duration::from_millis(251))]);
    // Read before each lease and kept for 3 s: the second reading is the delivery's.
    broker.reply("lease", [Reply::Late(Duration::from_secs(4))]);
    broker.reply("extend", [Reply::Held(Held::Ended(Outcome::Cancelled))]);
    assert_eq!(not_started(&broker).await.ended_elsewhere, 1);
    assert_eq!(broker.endings(), [Call::Settle(Settlement::Complete)]);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_starts_at_once_asks_the_broker_nothing() {
    let broker = Scripted::new();
    let report = run(&broker, busy_for(Duration::ZERO), 1).await;
    assert_eq!(report.succeeded, 1);
    assert!(!broker.calls().contains(&Call::Extend), "{:?}", broker.calls());
}

#[tokio::test(start_paused = true)]
async fn a_job_in_hand_for_long_starts_while_the_broker_is_away_and_the_lease_stands() {
    let broker = Scripted::new();
    broker.reply("policy", [Reply::Late(Duration::ZERO), Reply::Late(Duration::from_millis(251))]);
    broker.reply("lease", [Reply::Late(Duration::from_secs(4))]);
    broker.reply("extend", [Reply::Error(BrokerErrorKind::Unavailable)]);
    let report = run(&broker, busy_for(Duration::ZERO), 1).await;
    assert_eq!(report.succeeded, 1);
    assert_eq!(broker.calls().iter().filter(|call| **call == Call::Extend).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_hurries_for_nothing_is_asked_once_more_and_the_job_goes_on() {
    let broker = Scripted::new();
    broker.hurry.cancel();
    let report = run(&broker, busy_for(LEASE), 1).await;
    assert_eq!(report.succeeded, 1);
    // At once, and then as always: after each third that is not over.
    assert_eq!(broker.calls().iter().filter(|call| **call == Call::Extend).count(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_handler_is_stopped_before_the_longest_lease_ends() {
    let broker = Scripted::new();
    broker.policy.lock().unwrap().lease_max = Duration::from_secs(200);
    let begin = tokio::time::Instant::now();
    let report = run(&broker, busy_for(HOUR), 10).await;
    assert!(begin.elapsed() < Duration::from_secs(200));
    assert_eq!(report.exhausted, 1);
    assert_eq!(broker.results.lock().unwrap()[0].failure.as_ref().unwrap().reason, "timeout");
}

#[tokio::test(start_paused = true)]
async fn progress_is_coalesced_and_the_latest_wins() {
    let broker = Scripted::new();
    let report = run(
        &broker,
        handler(|_, context| async move {
            for n in 0..1_000 {
                context.progress(Progress { percent: None, message: n.to_string() });
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            Attempt::Done(Output::from(()))
        }),
        1,
    )
    .await;
    assert_eq!(report.succeeded, 1);
    let sent: Vec<Call> = broker.calls().into_iter().filter(|call| matches!(call, Call::Progress(_))).collect();
    assert!(sent.len() <= 22, "10 s at two a second, not {}", sent.len());
    assert_eq!(sent.last(), Some(&Call::Progress("999".to_owned())));
}
