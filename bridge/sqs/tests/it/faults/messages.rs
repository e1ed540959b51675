//! Messages that were never sent, or are gone: the record knows, and the sweep and replays send others.

use std::time::Duration;

use relay_bridge::broker::Broker;
use relay_bridge::contract::{JobId, Outcome};
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::{Delivery, Recorded};
use relay_bridge::policy::{ClientPolicy, QueuePolicy};
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::{AwsFault, AwsProxy};

use super::support::{Stage, distinct};

const MINUTE: Duration = Duration::from_secs(60);

impl Stage {
    /// Goes through these ages of the jobs that wait, with a whole sweep by `broker` at each.
    async fn sweep_at(&self, broker: &Broker, ages: &[Duration]) {
        let mut before = Duration::ZERO;
        for age in ages {
            self.clock.advance(*age - before);
            before = *age;
            while broker.jobs.sweep(500).await.unwrap().more {}
        }
    }

    /// Leases `jobs` jobs, which must come.
    async fn lease_all(&self, jobs: usize) -> Vec<Delivery> {
        let mut held = Vec::new();
        while held.len() < jobs {
            let came = self.broker.leasing.lease(&self.request(10, Duration::from_secs(5))).await.unwrap();
            assert!(!came.is_empty(), "{} of {jobs} jobs came, and no more are in line", held.len());
            held.extend(came);
        }
        held
    }
}

#[tokio::test]
async fn a_job_whose_message_was_never_sent_is_sent_by_the_sweep_of_any_process() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let job = stage.submit().await;
    stage.lose_all_messages().await;
    let other = stage.process(stage.emulator.url()).await;
    other.jobs.sweep(100).await.unwrap();
    stage.assert_nothing_in_line().await;
    stage.clock.advance(Duration::from_secs(30));
    other.jobs.sweep(100).await.unwrap();
    let delivery = stage.lease(&stage.broker).await;
    assert_eq!((delivery.job.id, delivery.attempt), (job.id, 1));
    // And not again and again.
    other.jobs.sweep(100).await.unwrap();
    stage.assert_nothing_in_line().await;
}

#[tokio::test]
async fn a_job_that_was_never_sent_is_sent_after_half_a_minute_also_behind_a_backlog_on_a_clock_that_runs() {
    const BACKLOG: usize = 9;
    let stage = Stage::at_a_clock_that_is_moved().await;
    let enqueue = async |broker: &Broker| {
        let job = stage.job(Some(&JobId::mint().to_string()));
        // Between when a server accepts a job and when its record is written time passes.
        stage.clock.advance(Duration::from_millis(7));
        broker.jobs.enqueue(job.clone()).await.unwrap();
        job
    };
    for _ in 0..BACKLOG {
        enqueue(&stage.broker).await;
    }
    // As a server that is killed between record and message.
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let killed = stage.process(proxy.url()).await;
    proxy.fault_all("SendMessageBatch", AwsFault::Refuse("AccessDenied"));
    let unsent = enqueue(&killed).await;
    assert_eq!(stage.messages().await, BACKLOG as u64);
    stage.clock.advance(MINUTE / 2);
    while stage.broker.jobs.sweep(500).await.unwrap().more {}
    assert_eq!(stage.messages().await, 2 * BACKLOG as u64 + 1, "one message more for each job");
    // The later looks count messages, and there are enough.
    stage.sweep_at(&stage.broker, &[MINUTE / 2, MINUTE]).await;
    assert_eq!(stage.messages().await, 2 * BACKLOG as u64 + 1);
    let held = stage.lease_all(BACKLOG + 1).await;
    assert!(held.iter().any(|delivery| delivery.job.id == unsent.id));
}

#[tokio::test]
async fn a_replay_at_another_process_sends_a_job_that_nobody_took() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let job = stage.submit().await;
    stage.lose_all_messages().await;
    stage.clock.advance(Duration::from_secs(10));
    let other = stage.process(stage.emulator.url()).await;
    assert!(matches!(other.jobs.enqueue(job.clone()).await.unwrap(), Enqueued::Known(_)));
    assert_eq!(stage.lease(&stage.broker).await.job.id, job.id);
}

#[tokio::test]
async fn a_job_parked_for_hours_comes_by_the_sweep_when_its_message_is_gone() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    stage.submit().await;
    for delay in [Duration::from_secs(60), Duration::from_secs(3 * 3_600)] {
        let delivery = stage.lease(&stage.broker).await;
        stage.broker.leasing.settle(&delivery.receipt, &Settlement::RetryAfter(delay)).await.unwrap();
        stage.lose_all_messages().await;
        stage.clock.advance(delay - Duration::from_secs(1));
        stage.broker.jobs.sweep(100).await.unwrap();
        stage.assert_nothing_in_line().await;
        // A message that SQS should have delivered is missed half a minute later.
        stage.clock.advance(Duration::from_secs(31));
        stage.broker.jobs.sweep(100).await.unwrap();
    }
    assert_eq!(stage.lease(&stage.broker).await.attempt, 3);
}

#[tokio::test]
async fn a_message_of_a_run_that_ended_is_deleted_by_who_receives_it() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let job = stage.submit().await;
    let cancelled = stage.broker.jobs.cancel(&job.client, job.id).await.unwrap();
    assert_eq!(cancelled.state.outcome(), Some(Outcome::Cancelled));
    assert_eq!(stage.broker.jobs.count(&stage.queue).await.unwrap(), Default::default());
    let about = stage.broker.jobs.depth(&stage.queue).await.unwrap();
    assert_eq!(about, Default::default(), "nor is its message counted that is in line still");
    stage.assert_nothing_in_line().await;
    assert_eq!(stage.broker.jobs.depth(&stage.queue).await.unwrap(), Default::default());
    // Nor does it come when its time would be over.
    stage.clock.advance(stage.policy.lease * 2);
    stage.assert_nothing_in_line().await;
}

#[tokio::test]
async fn the_message_of_a_run_that_is_cancelled_or_expires_goes_where_a_process_has_it_at_hand() {
    let mut stage = Stage::at_a_clock_that_is_moved().await;
    let one_at_a_time = ClientPolicy { max_running: 1, ..ClientPolicy::default() };
    let clients = [(stage.client(), one_at_a_time)].into();
    let policy = QueuePolicy { lease: MINUTE * 60, job_ttl: MINUTE * 30, clients, ..stage.policy.clone() };
    stage.broker.policies.put_policy(&stage.queue, &policy, Some(&stage.policy)).await.unwrap();
    stage.policy = policy;
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(stage.submit().await);
    }
    let held = stage.lease(&stage.broker).await;
    stage.assert_nothing_in_line().await;
    jobs.retain(|job| job.id != held.job.id);
    assert_eq!(stage.messages().await, 4, "what is at hand is in flight, and scalers count it");
    stage.broker.jobs.cancel(&jobs[0].client, jobs[0].id).await.unwrap();
    assert_eq!(stage.messages().await, 3);
    stage.clock.advance(MINUTE * 30);
    assert_eq!(stage.broker.jobs.sweep(100).await.unwrap().expired.len(), 3);
    assert_eq!(stage.messages().await, 1, "that of the job that is held");
    assert_eq!(stage.broker.jobs.depth(&stage.queue).await.unwrap().waiting, 0);
}

#[tokio::test]
async fn a_worker_that_died_before_it_deleted_its_message_leaves_nothing_that_runs_again() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    stage.submit().await;
    let delivery = stage.lease(&stage.broker).await;
    assert_eq!(stage.broker.leasing.record(&stage.success(&delivery)).await.unwrap(), Recorded::First);
    // Somebody sent it once more, long ago; it is received only now.
    stage.broker.jobs.enqueue(delivery.job.clone()).await.unwrap();
    stage.clock.advance(stage.policy.lease * 2);
    stage.assert_nothing_in_line().await;
    stage.broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
}

#[tokio::test]
async fn jobs_whose_messages_are_lost_while_they_wait_run_by_a_later_look_of_the_sweep() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    for _ in 0..10 {
        stage.submit().await;
    }
    stage.sweep_at(&stage.broker, &[MINUTE / 2, MINUTE, MINUTE * 2]).await;
    stage.lose_all_messages().await;
    stage.sweep_at(&stage.broker, &[MINUTE * 2]).await;
    stage.lease_all(10).await;
    stage.assert_nothing_in_line().await;
}

#[tokio::test]
async fn a_job_whose_worker_and_message_are_lost_runs_again_when_its_lease_has_ended() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let policy = QueuePolicy { lease: MINUTE * 5, ..stage.policy.clone() };
    stage.broker.policies.put_policy(&stage.queue, &policy, Some(&stage.policy)).await.unwrap();
    let job = stage.submit().await;
    stage.lease(&stage.broker).await;
    stage.lose_all_messages().await;
    stage.sweep_at(&stage.broker, &[MINUTE / 2, MINUTE * 2, MINUTE * 4]).await;
    stage.assert_nothing_in_line().await;
    stage.sweep_at(&stage.broker, &[MINUTE]).await;
    let again = stage.lease_all(1).await;
    assert_eq!((again[0].job.id, again[0].attempt), (job.id, 2));
}

#[tokio::test]
async fn a_job_whose_message_is_lost_runs_beside_idle_workers_whatever_else_hides_in_its_queue() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let job = stage.submit().await;
    stage.sweep_at(&stage.broker, &[MINUTE / 2]).await;
    stage.lose_all_messages().await;
    for _ in 0..5 {
        stage.send_strange("none of relay's").await;
    }
    // Their receivers hide them, and SQS counts them.
    stage.assert_nothing_in_line().await;
    assert_eq!(stage.messages().await, 5);
    stage.sweep_at(&stage.broker, &[MINUTE / 2]).await;
    assert_eq!(stage.lease_all(1).await[0].job.id, job.id);
}

#[tokio::test]
async fn jobs_of_a_client_at_its_bound_are_not_sent_again_and_again_beside_idle_workers() {
    let stage = Stage::at_a_clock_that_is_moved().await;
    let one_at_a_time = ClientPolicy { max_running: 1, ..ClientPolicy::default() };
    let policy =
        QueuePolicy { lease: MINUTE * 60, clients: [(stage.client(), one_at_a_time)].into(), ..stage.policy.clone() };
    stage.broker.policies.put_policy(&stage.queue, &policy, Some(&stage.policy)).await.unwrap();
    for _ in 0..4 {
        stage.submit().await;
    }
    stage.lease(&stage.broker).await;
    // The others are at hand, until the first has ended.
    stage.assert_nothing_in_line().await;
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let sweeping = stage.process(proxy.url()).await;
    stage.sweep_at(&sweeping, &[1, 2, 4, 8, 16, 32].map(|halves| MINUTE / 2 * halves)).await;
    assert_eq!(proxy.entries("SendMessageBatch"), 3, "each is sent once more, as its first message may be lost");
}

#[tokio::test]
async fn a_job_that_waits_for_hours_without_a_worker_costs_looks_as_the_guide_says_and_no_messages() {
    const JOBS: usize = 40;
    let mut stage = Stage::at_a_clock_that_is_moved().await;
    let policy = QueuePolicy { job_ttl: MINUTE * 60 * 12, ..stage.policy.clone() };
    stage.broker.policies.put_policy(&stage.queue, &policy, Some(&stage.policy)).await.unwrap();
    stage.policy = policy;
    for _ in 0..JOBS {
        stage.submit().await;
    }
    let proxy = AwsProxy::start(&stage.emulator.url()).await;
    let sweeping = stage.process(proxy.url()).await;
    let halves = |age: u32| MINUTE / 2 * age;
    // Each time that a look is due, and some at which none is.
    let ages: Vec<_> =
        [1, 2, 3, 4, 7, 8, 16, 30, 32, 64].into_iter().chain((94..=720).step_by(30)).map(halves).collect();
    stage.sweep_at(&sweeping, &ages).await;
    assert_eq!(proxy.entries("SendMessageBatch"), JOBS, "the one message more that every job has after half a minute");
    let of_a_job = |body: &serde_json::Value| body["Key"]["pk"]["S"].as_str().is_some_and(|pk| pk.starts_with("job#"));
    let looks: Vec<_> = proxy.bodies("UpdateItem").into_iter().filter(of_a_job).collect();
    assert_eq!(distinct(looks), 17 * JOBS, "looks in 6 h");
    let guide = include_str!("../../../../../docs/sqs.md");
    assert!(guide.contains("in 6 h 17 times"), "the guide says how often a job is looked at");
    // All of them are in line still.
    stage.lease_all(JOBS).await;
}
