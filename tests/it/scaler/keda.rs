//! KEDA's calls, and the figures that it is given.

use std::time::Duration;

use futures_util::StreamExt as _;
use relay::scaler::proto::{GetMetricSpecResponse, MetricSpec};
use relay_bridge::clock::Clock;
use relay_bridge::policy::{ClientPolicy, QueuePolicy};
use relay_bridge::settlement::Settlement;

use super::support::{Scaler, add_queue, delayed, embedded, finish, lease, next, standing, submit};

const MAIL: &[(&str, &str)] = &[("queue", "mail"), ("scalerAddress", "relay:7414")];

/// A second of the clock, after which no figure is as it was.
async fn pass(clock: &Clock, seconds: u64) {
    clock.advance(Duration::from_secs(seconds));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_without_work_is_inactive_and_wants_nothing() {
    let clock = Clock::system();
    let broker = embedded(&clock).await;
    let keda = Scaler::start(&broker, clock).await;
    let keda = keda.keda().await;
    assert!(!keda.is_active(MAIL).await.unwrap());
    let value = keda.metrics(MAIL).await.unwrap();
    assert_eq!((value.metric_name.as_str(), value.metric_value, value.metric_value_float), ("relay-mail", 0, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_is_told_its_metric_and_the_slots_of_a_worker_by_call_and_by_stream() {
    let clock = Clock::system();
    let broker = embedded(&clock).await;
    let scaler = Scaler::start(&broker, clock).await;
    let keda = scaler.keda().await;
    let trigger = [("queue", "mail"), ("slotsPerWorker", "5")];
    let specs = |size| {
        let metric_name = "relay-mail".to_owned();
        vec![MetricSpec { metric_name, target_size: size, target_size_float: size as f64 }]
    };
    assert_eq!(keda.spec(MAIL).await.unwrap().metric_specs, specs(8));
    assert_eq!(keda.spec(&trigger).await.unwrap().metric_specs, specs(5));
    let mut stream = keda.stream::<GetMetricSpecResponse>("StreamMetricSpec", &trigger).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().metric_specs, specs(5));
    scaler.stop.cancel();
    assert!(stream.next().await.is_none(), "the stream ends with the scaler");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_and_running_jobs_are_wanted_slots_for_until_they_are_done() {
    let clock = standing();
    let broker = embedded(&clock).await;
    let scaler = Scaler::start(&broker, clock.clone()).await;
    let keda = scaler.keda().await;
    submit(&broker, "shop", 100, &clock).await;
    assert!(keda.is_active(MAIL).await.unwrap());
    assert_eq!(keda.wanted(MAIL).await, 16.0, "nothing was measured: two workers at most");
    assert_eq!(keda.wanted(&[("queue", "mail"), ("slotsPerWorker", "2")]).await, 4.0);
    // 100 jobs of 30 s within 60 s are 50 slots.
    let told = keda.wanted(&[("queue", "mail"), ("serviceSeconds", "30"), ("leadSeconds", "1")]).await;
    assert!(told >= 50.0, "{told}");

    let held = lease(&broker, 40).await;
    pass(&clock, 2).await;
    assert!(keda.wanted(MAIL).await >= 40.0, "busy slots are never taken away");
    for delivery in &held {
        finish(&broker, delivery, &clock).await;
    }
    for delivery in lease(&broker, 60).await {
        finish(&broker, &delivery, &clock).await;
    }
    pass(&clock, 2).await;
    assert!(!keda.is_active(MAIL).await.unwrap());
    assert_eq!(keda.wanted(MAIL).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_short_job_wants_a_whole_slot() {
    let clock = Clock::system();
    let broker = embedded(&clock).await;
    let scaler = Scaler::start(&broker, clock.clone()).await;
    let keda = scaler.keda().await;
    submit(&broker, "shop", 1, &clock).await;
    let value = keda.metrics(&[("queue", "mail"), ("serviceSeconds", "0.01")]).await.unwrap();
    assert_eq!((value.metric_value, value.metric_value_float), (1, 1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_could_not_start_soon_are_not_counted() {
    let clock = standing();
    let broker = embedded(&clock).await;
    let bounded = ClientPolicy { max_running: 2, ..ClientPolicy::default() };
    let policy = QueuePolicy { clients: [("bounded".parse().unwrap(), bounded)].into(), ..QueuePolicy::default() };
    add_queue(&broker, "other", &QueuePolicy::default()).await;
    let mail = "mail".parse().unwrap();
    let before = broker.policies.policy(&mail).await.unwrap();
    broker.policies.put_policy(&mail, &policy, before.as_ref()).await.unwrap();
    let scaler = Scaler::start(&broker, clock.clone()).await;
    let keda = scaler.keda().await;
    let wanted = async || {
        pass(&clock, 2).await;
        keda.wanted(MAIL).await
    };

    let parked = delayed("shop", Duration::from_secs(40), &clock);
    broker.jobs.enqueue(parked).await.unwrap();
    assert_eq!(wanted().await, 0.0, "it is due after the lead");
    assert!(!keda.is_active(MAIL).await.unwrap());
    let ahead = [("queue", "mail"), ("leadSeconds", "60")];
    assert_eq!(keda.wanted(&ahead).await, 1.0);
    pass(&clock, 15).await;
    assert_eq!(wanted().await, 1.0, "it is due within the lead");

    submit(&broker, "bounded", 10, &clock).await;
    assert_eq!(wanted().await, 3.0, "eight are beyond their client's running limit");
    let held = lease(&broker, 2).await;
    assert_eq!(held.len(), 2);
    assert_eq!(wanted().await, 3.0);

    broker.policies.set_paused(&mail, true).await.unwrap();
    assert_eq!(wanted().await, 2.0, "only what runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_attempts_is_measured_handed_back_ones_apart_and_outlives_the_scaler() {
    let clock = standing();
    let broker = embedded(&clock).await;
    let scaler = Scaler::start(&broker, clock.clone()).await;
    let queue = "mail".parse().unwrap();
    let look = async |scaler: &Scaler| scaler.looks.look(&queue, Duration::ZERO, Duration::ZERO).await.unwrap().pace;
    look(&scaler).await;
    submit(&broker, "shop", 10, &clock).await;
    let held = lease(&broker, 4).await;
    pass(&clock, 20).await;
    look(&scaler).await;
    for delivery in &held[..2] {
        finish(&broker, delivery, &clock).await;
    }
    broker.leasing.settle(&held[2].receipt, &Settlement::HandBack(Duration::ZERO)).await.unwrap();
    broker.leasing.settle(&held[3].receipt, &Settlement::RetryAfter(Duration::from_secs(60))).await.unwrap();
    pass(&clock, 1).await;
    let service = look(&scaler).await.service.unwrap();
    // 80 s of slots, three attempts.
    assert!((service - 80.0 / 3.0).abs() < 1.0, "{service}");

    let kept = tokio_util::sync::CancellationToken::new();
    let (looks, stop) = (std::sync::Arc::clone(&scaler.looks), kept.clone());
    let mut measuring = tokio::task::JoinSet::new();
    measuring.spawn(async move { looks.measure(stop).await });
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while broker.jobs.kept_pace(&queue).await.unwrap().is_none() {
        assert!(std::time::Instant::now() < until, "a pace is kept");
        tokio::task::yield_now().await;
    }
    pass(&clock, 1).await;
    let next = Scaler::start(&broker, clock.clone()).await;
    let again = look(&next).await.service.unwrap();
    assert!((again - service).abs() < 1.0, "{again} {service}");
    kept.cancel();
    measuring.join_next().await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_the_state_at_once_and_each_change_of_it_and_activity_again_and_again() {
    let clock = Clock::system();
    let broker = embedded(&clock).await;
    let scaler = Scaler::start(&broker, clock.clone()).await;
    let keda = scaler.keda().await;
    let mut activity = keda.activity(MAIL).await.unwrap();
    assert!(!next(&mut activity).await);
    submit(&broker, "shop", 1, &clock).await;
    assert!(next(&mut activity).await);
    assert!(next(&mut activity).await, "activity is told again");
    finish(&broker, &lease(&broker, 1).await[0], &clock).await;
    assert!(!next(&mut activity).await);
    let mut late = keda.activity(MAIL).await.unwrap();
    submit(&broker, "shop", 1, &clock).await;
    while !next(&mut late).await {}
    scaler.stop.cancel();
    while activity.next().await.is_some() {}
}
