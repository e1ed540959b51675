//! The lease loop: bounded by slots, patient with a broker that is away, and never busy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use relay_bridge::contract::Outcome;
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::settlement::Settlement;
use relay_workers::QueueOrder;
use tokio::sync::Semaphore;

use crate::support::{Call, Reply, Scripted, busy_for, config, done, handler, job, start, start_one};

fn leases(calls: &[Call]) -> Vec<u32> {
    calls.iter().filter_map(|call| if let Call::Lease { max, .. } = call { Some(*max) } else { None }).collect()
}

#[tokio::test(start_paused = true)]
async fn a_worker_never_runs_more_jobs_than_it_has_slots() {
    let broker = Scripted::new();
    for n in 0..50_u8 {
        broker.put(job([n]), 1);
    }
    let (running, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (gate, entered) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let worker = start(
        &broker,
        handler({
            let (running, most) = (running.clone(), most.clone());
            let (gate, entered) = (gate.clone(), entered.clone());
            move |_, _| {
                let (running, most) = (running.clone(), most.clone());
                let (gate, entered) = (gate.clone(), entered.clone());
                async move {
                    let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    entered.add_permits(1);
                    gate.acquire().await.unwrap().forget();
                    running.fetch_sub(1, Ordering::SeqCst);
                    done()
                }
            }
        }),
        config(3, Duration::from_secs(60)),
    );
    entered.acquire_many(3).await.unwrap().forget();
    assert_eq!(leases(&broker.calls()), [3], "all slots are taken: it must not ask again");
    gate.add_permits(1);
    entered.acquire().await.unwrap().forget();
    assert_eq!(leases(&broker.calls()), [3, 1]);
    gate.add_permits(49);
    broker.settled(50).await;
    let report = worker.stop().await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
    assert_eq!((report.leased, report.succeeded, report.running()), (50, 50, 0));
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_free_once_the_outcome_is_recorded_and_as_many_settlements_as_slots_may_be_open() {
    let broker = Scripted::new();
    for n in 0..3_u8 {
        broker.put(job([n]), 1);
    }
    // Each is tried again after a while, and then answered.
    broker.reply("settle", [Reply::Hang, Reply::Hang]);
    let worker = start(&broker, handler(|_, _| async { done() }), config(1, Duration::from_secs(60)));
    broker.settled(5).await;
    let (recorded, settled) = (Call::Record(Outcome::Succeeded), Call::Settle(Settlement::Complete));
    let [r, s] = [&recorded, &settled];
    assert_eq!(broker.endings().iter().collect::<Vec<_>>()[..5], [r, s, r, s, s], "the third waits for a settlement");
    let report = worker.stop().await;
    assert_eq!((report.succeeded, report.unconfirmed, report.running()), (3, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_failing_lease_is_tried_again_soon_for_some_seconds_and_then_with_growing_pauses() {
    // Pauses double up to 0.4 s, stay there up to the 24th, and double up to 5 s, each at least half of that.
    for (failures, least, most) in [(20, 3, 8), (40, 35, 80)] {
        let broker = Scripted::new();
        broker.reply("lease", vec![Reply::Error(BrokerErrorKind::Unavailable); failures]);
        broker.put(job("x"), 1);
        let begin = tokio::time::Instant::now();
        let worker = start_one(&broker, busy_for(Duration::ZERO));
        broker.settled(1).await;
        let took = begin.elapsed();
        assert!(took >= Duration::from_secs(least) && took <= Duration::from_secs(most), "{failures}: {took:?}");
        assert_eq!(worker.stop().await.succeeded, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_call_that_hangs_is_given_up_and_made_again() {
    let broker = Scripted::new();
    broker.reply("lease", [Reply::Hang]);
    broker.put(job("x"), 1);
    let worker = start_one(&broker, busy_for(Duration::ZERO));
    broker.settled(1).await;
    assert_eq!(worker.stop().await.succeeded, 1);
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_asks_once_per_wait() {
    let broker = Scripted::new();
    let worker = start_one(&broker, busy_for(Duration::ZERO));
    tokio::time::sleep(Duration::from_secs(100)).await;
    // A third of the 30 s lease each.
    let asked = leases(&broker.calls()).len();
    assert!((10..=11).contains(&asked), "{asked}");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_cannot_be_read_delays_leasing_and_nothing_else() {
    let broker = Scripted::new();
    broker.reply("policy", vec![Reply::Error(BrokerErrorKind::NotFound); 3]);
    broker.put(job("x"), 1);
    let worker = start_one(&broker, busy_for(Duration::ZERO));
    broker.settled(1).await;
    assert_eq!(worker.stop().await.succeeded, 1);
}

#[tokio::test(start_paused = true)]
async fn queues_are_asked_in_strict_or_in_drawn_order() {
    for (order, expected) in [
        (QueueOrder::Strict, ["gold tin", "gold tin", "gold tin", "gold tin"]),
        (QueueOrder::Weighted, ["gold tin", "gold tin", "tin gold", "gold tin"]),
    ] {
        let broker = Scripted::new();
        let mut config = config(1, Duration::ZERO);
        config.queues = vec![("gold".parse().unwrap(), 3), ("tin".parse().unwrap(), 1)];
        config.order = order;
        let worker = start(&broker, busy_for(Duration::ZERO), config);
        let count = |calls: &Vec<Call>| calls.iter().filter(|call| matches!(call, Call::Lease { .. })).count();
        broker.until(|calls| count(calls) == 4).await;
        worker.stop().await;
        let asked: Vec<String> = broker.calls().iter().filter_map(queues).collect();
        assert_eq!(asked, expected);
    }
}

fn queues(call: &Call) -> Option<String> {
    if let Call::Lease { queues, .. } = call { Some(queues.join(" ")) } else { None }
}

#[tokio::test(start_paused = true)]
async fn a_worker_without_queues_waits_for_its_end() {
    let broker = Scripted::new();
    let mut config = config(1, Duration::ZERO);
    config.queues.clear();
    let worker = start(&broker, busy_for(Duration::ZERO), config);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(broker.calls().is_empty());
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn stats_can_be_read_while_it_runs() {
    let broker = Scripted::new();
    broker.put(job("x"), 1);
    let worker = start_one(&broker, busy_for(Duration::from_secs(3600)));
    broker.until(|calls| calls.contains(&Call::Extend)).await;
    assert_eq!((worker.stats.report().started, worker.stats.report().running()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_no_length_makes_no_busy_loop() {
    let broker = Scripted::new();
    broker.policy.lock().unwrap().lease = Duration::ZERO;
    let worker = start_one(&broker, busy_for(Duration::ZERO));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(leases(&broker.calls()).len() <= 101);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_any_length_is_survived() {
    let broker = Scripted::new();
    broker.policy.lock().unwrap().lease = Duration::MAX;
    broker.policy.lock().unwrap().lease_max = Duration::MAX;
    broker.put(job("x"), 1);
    let worker = start_one(&broker, busy_for(Duration::from_secs(60)));
    broker.settled(1).await;
    assert_eq!(worker.stop().await.succeeded, 1);
}
