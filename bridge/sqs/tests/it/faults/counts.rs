//! Counts of waiting jobs: the cost of a look and how far off it is, and bounds of clients that several processes keep.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::join_all;
use relay_bridge::contract::Job;
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::policy::{ClientPolicy, QueuePolicy};
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::AwsProxy;

use super::support::Stage;

impl Stage {
    /// Sets the client's bound; the policy as it is now.
    pub(crate) async fn bound_waiting(&self, max_queued: u64) -> QueuePolicy {
        let bounded = ClientPolicy { max_queued, ..ClientPolicy::default() };
        let policy = QueuePolicy { clients: [(self.client(), bounded)].into(), ..self.policy.clone() };
        self.broker.policies.put_policy(&self.queue, &policy, Some(&self.policy)).await.unwrap();
        policy
    }

    async fn backlog(&self, jobs: usize) {
        for _ in 0..jobs.div_ceil(100) {
            join_all((0..100).map(|_| self.submit())).await;
        }
    }

    /// How many of these are accepted; the rest is refused for the bound.
    async fn accepted(&self, enqueued: Vec<Result<impl Sized, relay_bridge::error::BrokerError>>) -> usize {
        let is_full = |kind| matches!(kind, BrokerErrorKind::QuotaExceeded { .. });
        let accepted = |result: Result<_, relay_bridge::error::BrokerError>| match result {
            Ok(_) => true,
            Err(error) if is_full(error.kind()) => false,
            Err(error) => panic!("{error}"),
        };
        enqueued.into_iter().map(accepted).filter(|accepted| *accepted).count()
    }

    /// Has the table count `waiting` jobs of the client, as it would if processes had died over their writes, and last written
    /// so long ago.
    async fn miscount(&self, waiting: u64, ago: Duration) {
        let at = self.clock.now().as_millis() - i64::try_from(ago.as_millis()).unwrap();
        let call = self.dynamodb().put_item().table_name("relay");
        let call = call.item("pk", AttributeValue::S(format!("queued#{}", self.queue)));
        let call = call.item("sk", AttributeValue::S(self.client().to_string()));
        let call = call.item("waiting", AttributeValue::N(waiting.to_string()));
        let call = call.item("at", AttributeValue::N(at.to_string())).item("by", AttributeValue::S("x".to_owned()));
        call.send().await.unwrap();
    }
}

/// The units that `call` takes at the proxy.
async fn units<T>(proxy: &AwsProxy, call: impl Future<Output = T>) -> (f64, T) {
    let [writes, reads] = proxy.units();
    let answer = call.await;
    let now = proxy.units();
    (now[0] + now[1] - writes - reads, answer)
}

#[tokio::test]
async fn a_look_at_a_queue_takes_two_units_however_much_waits_and_so_does_whoami() {
    let stage = Stage::open().await;
    stage.backlog(400).await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let process = stage.process(proxy.url()).await;
    // The policy is looked at now and then, whoever asks.
    process.policies.policies().await.unwrap();
    let (looked, depth) = units(&proxy, process.jobs.depth(&stage.queue)).await;
    assert!(looked <= 2.0, "a look takes {looked} units");
    assert!((360..=440).contains(&depth.unwrap().waiting), "400 jobs wait");
    let (looked, oldest) = units(&proxy, process.jobs.oldest(&stage.queue)).await;
    assert!(looked <= 2.0 && oldest.is_ok(), "the age takes {looked} units");
    let (looked, waiting) = units(&proxy, process.jobs.waiting(&stage.client(), &stage.queue)).await;
    assert!(looked <= 2.0 && waiting.is_ok(), "whoami takes {looked} units");
}

#[tokio::test]
async fn a_look_is_off_by_a_tenth_at_most_where_messages_were_sent_again() {
    const JOBS: usize = 600;
    let stage = Stage::at_a_clock_that_is_moved().await;
    stage.backlog(JOBS).await;
    stage.clock.advance(Duration::from_secs(31));
    while stage.broker.jobs.sweep(500).await.unwrap().more {}
    let other = stage.process(stage.emulator.url()).await;
    // Another process learns of it through the table, a moment later.
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    let near = |waiting: u64, jobs: usize| waiting.abs_diff(jobs as u64) <= jobs as u64 / 10;
    let looks = async |jobs: usize| loop {
        let waiting = other.jobs.depth(&stage.queue).await.unwrap().waiting;
        if near(waiting, jobs) {
            return;
        }
        assert!(tokio::time::Instant::now() < until, "{waiting} jobs wait by a look, and {jobs} do");
    };
    looks(JOBS).await;
    assert_eq!(stage.messages().await, 2 * JOBS as u64, "each was sent again");
    // And while they become fewer.
    for _ in 0..30 {
        let held = stage.broker.leasing.lease(&stage.request(10, Duration::ZERO)).await.unwrap();
        join_all(held.iter().map(async |delivery| {
            stage.broker.leasing.record(&stage.success(delivery)).await.unwrap();
            stage.broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
        }))
        .await;
    }
    looks(JOBS - 300).await;
}

#[tokio::test]
async fn a_bound_on_what_waits_is_kept_exactly_by_processes_that_submit_at_once() {
    const BOUND: usize = 30;
    let stage = Stage::open().await;
    stage.bound_waiting(BOUND as u64).await;
    let processes = join_all((0..4).map(|_| stage.process(stage.emulator.url()))).await;
    let jobs: Vec<Job> = (0..60).map(|_| stage.job(None)).collect();
    let at = |number: usize| &processes[number % processes.len()].jobs;
    let enqueued = join_all(jobs.iter().enumerate().map(|(number, job)| at(number).enqueue(job.clone()))).await;
    assert_eq!(stage.accepted(enqueued).await, BOUND);
    // Each that no longer waits makes room for one, wherever it goes.
    let held = stage.broker.leasing.lease(&stage.request(3, Duration::from_secs(5))).await.unwrap();
    let mut left = held.len();
    let waiting = async || processes[1].jobs.waiting(&stage.client(), &stage.queue).await.unwrap();
    assert_eq!(waiting().await, Some((BOUND - left) as u64));
    processes[0].leasing.settle(&held[0].receipt, &Settlement::RetryAfter(Duration::from_secs(600))).await.unwrap();
    left -= 1;
    let is_held = |job: &&Job| held.iter().any(|delivery| delivery.job.id == job.id);
    for job in jobs.iter().filter(|job| !is_held(job)) {
        if processes[2].jobs.cancel(&job.client, job.id).await.is_ok() {
            left += 1;
            break;
        }
    }
    let more = join_all((0..20).map(|number| at(number).enqueue(stage.job(None)))).await;
    assert_eq!(stage.accepted(more).await, left, "of a lease that goes on, and of a cancel");
    assert_eq!(waiting().await, Some(BOUND as u64));
}

#[tokio::test]
async fn a_bound_costs_a_write_for_a_place_and_one_for_a_lease() {
    let stage = Stage::open().await;
    stage.bound_waiting(100).await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let process = stage.process(proxy.url()).await;
    // The first job of a client makes the count.
    process.jobs.enqueue(stage.job(None)).await.unwrap();
    let (taken, enqueued) = units(&proxy, process.jobs.enqueue(stage.job(None))).await;
    assert!(enqueued.is_ok());
    assert_eq!(taken, 3.0 + 1.0, "the record with its indexes, and the place");
    let (taken, held) = units(&proxy, process.leasing.lease(&stage.request(1, Duration::from_secs(5)))).await;
    assert_eq!((taken, held.unwrap().len()), (1.0 + 1.0, 1), "the record, and the place");
}

#[tokio::test]
async fn a_refusal_for_the_bound_takes_two_units_and_one_of_jobs_that_a_dead_process_counted_ends() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    stage.bound_waiting(100).await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let process = stage.process(proxy.url()).await;
    stage.backlog(100).await;
    process.policies.policies().await.unwrap();
    for _ in 0..3 {
        let (taken, refused) = units(&proxy, process.jobs.enqueue(stage.job(None))).await;
        assert_eq!(refused.unwrap_err().kind(), BrokerErrorKind::QuotaExceeded { actual: 100, limit: 100 });
        assert!(taken <= 3.0, "a refusal takes {taken} units");
    }
    // Three of them are gone, and were never counted off.
    let held = stage.broker.leasing.lease(&stage.request(3, Duration::from_secs(5))).await.unwrap();
    let gone = held.len();
    stage.miscount(100, Duration::from_secs(20)).await;
    process.jobs.enqueue(stage.job(None)).await.unwrap_err();
    stage.clock.advance(Duration::from_secs(60));
    for _ in 0..gone {
        process.jobs.enqueue(stage.job(None)).await.unwrap();
    }
    process.jobs.enqueue(stage.job(None)).await.unwrap_err();
}

#[tokio::test]
async fn a_bound_that_is_new_counts_what_waits_already() {
    let stage = Stage::open().await;
    stage.backlog(100).await;
    stage.bound_waiting(102).await;
    let process = stage.process(stage.emulator.url()).await;
    let enqueued = join_all((0..10).map(|_| process.jobs.enqueue(stage.job(None)))).await;
    assert_eq!(stage.accepted(enqueued).await, 2);
}
