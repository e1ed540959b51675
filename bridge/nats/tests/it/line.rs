//! States that a crash between two writes of the NATS adapter leaves, and how they are repaired. Each state is made by
//! hand, as a process that was killed there would have left it.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, Context};
use futures_util::StreamExt as _;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{ClientId, Job, JobId, JobResult, JobState, Outcome, QueueName, Submission};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::{Delivery, Held, LeaseRequest, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::NatsServer;
use relay_nats::config::NatsConfig;
use relay_nats::connection::Wait;
use relay_nats::names::{self, Address, Place};
use relay_nats::{Nats, Settings};

/// The shortest that a busy machine keeps.
const LEASE: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(30);

async fn open(server: &NatsServer) -> Nats {
    Nats::connect(NatsConfig::new([server.url()]), Wait::AtMost(CONNECT), Settings::default()).await.unwrap()
}

struct Stage {
    _server: NatsServer,
    jetstream: Context,
    broker: Broker,
    nats: Nats,
    queue: QueueName,
    client: ClientId,
    policy: QueuePolicy,
    clock: Clock,
}

impl Stage {
    async fn open() -> Self {
        let server = NatsServer::start().await;
        let client = async_nats::connect(server.url()).await.unwrap();
        let jetstream = jetstream::new(client.clone());
        let nats = open(&server).await;
        let (broker, queue): (_, QueueName) = (nats.broker(), "work".parse().unwrap());
        let policy = QueuePolicy { lease: LEASE, ..QueuePolicy::default() };
        broker.policies.put_policy(&queue, &policy, None).await.unwrap();
        let (client, clock) = ("acme".parse().unwrap(), Clock::system());
        Self { _server: server, jetstream, broker, nats, queue, client, policy, clock }
    }

    async fn submit(&self, key: &str, delay: Duration) -> Job {
        let submission = Submission {
            client: self.client.clone(),
            queue: self.queue.clone(),
            key: Some(key.parse().unwrap()),
            content_type: "text/plain".to_owned(),
            content_encoding: None,
            headers: Default::default(),
            payload: "payload".into(),
            delay,
            expires_in: None,
        };
        let job = submission.accept(&self.policy, self.clock.now());
        assert!(matches!(self.broker.jobs.enqueue(job.clone()).await.unwrap(), Enqueued::Created(_)));
        job
    }

    /// Submits many, some at once.
    async fn submit_many(&self, name: &str, count: usize) -> Vec<JobId> {
        let submit = |number| async move { self.submit(&format!("{name}-{number}"), Duration::ZERO).await.id };
        futures_util::stream::iter(0..count).map(submit).buffer_unordered(256).collect().await
    }

    async fn lease(&self, max: u32, wait: Duration) -> Vec<Delivery> {
        let request = LeaseRequest {
            worker: "worker-1".parse().unwrap(),
            queues: vec![self.queue.clone()],
            max: NonZeroU32::new(max).unwrap(),
            wait,
        };
        self.broker.leasing.lease(&request).await.unwrap()
    }

    fn success(&self, delivery: &Delivery) -> JobResult {
        let end = End { attempt: delivery.attempt, started_at: None, finished_at: self.clock.now() };
        JobResult::succeeded(&delivery.job, end, "text/plain", "done".into())
    }

    async fn succeed(&self, delivery: &Delivery) {
        assert_eq!(self.broker.leasing.record(&self.success(delivery)).await.unwrap(), Recorded::First);
        self.broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
    }

    fn address(&self, job: &Job) -> Address {
        Address::new(&self.queue, &self.client, job.id)
    }

    /// Writes the job's record again as another process would, and ends there.
    async fn rewrite(&self, job: &Job, place: Place, more: &[(&str, String)]) {
        let (address, stream) = (self.address(job), self.jetstream.get_stream(names::jobs_stream(&self.queue)));
        let stream = stream.await.unwrap();
        let found = stream.get_last_raw_message_by_subject(&address.anywhere()).await.unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", found.sequence.to_string());
        headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", address.anywhere());
        more.iter().for_each(|(name, value)| headers.insert(*name, value.as_str()));
        let stored = self.jetstream.publish_with_headers(address.at(place), headers, found.payload).await.unwrap();
        stored.await.unwrap();
    }

    async fn state(&self, job: &Job) -> JobState {
        self.broker.jobs.status(&self.client, job.id).await.unwrap().unwrap().state
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_broke_off_after_its_mark_is_finished_by_whoever_leases() {
    let stage = Stage::open().await;
    let job = stage.submit("key", Duration::ZERO).await;
    stage.rewrite(&job, Place::Line, &[("Relay-Cancelled", "1".to_owned())]).await;
    assert_eq!(stage.state(&job).await, JobState::Queued);
    assert!(stage.lease(10, Duration::ZERO).await.is_empty(), "a cancelled job started");
    assert_eq!(stage.state(&job).await, JobState::Finished(Outcome::Cancelled));
    assert_eq!(stage.broker.jobs.depth(&stage.queue).await.unwrap().waiting, 0, "it left the line");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_broke_off_after_its_mark_is_finished_by_a_sweep() {
    let stage = Stage::open().await;
    let waiting = stage.submit("waiting", Duration::ZERO).await;
    let marked = stage.submit("marked", Duration::ZERO).await;
    // The two writes of a cancel before the process ended: the entry for the sweep, then the mark.
    stage.jetstream.publish(stage.address(&marked).overdue(), "".into()).await.unwrap().await.unwrap();
    stage.rewrite(&marked, Place::Line, &[("Relay-Cancelled", "1".to_owned())]).await;
    stage.broker.jobs.sweep(100).await.unwrap();
    assert_eq!(stage.state(&marked).await, JobState::Finished(Outcome::Cancelled));
    assert_eq!(stage.state(&waiting).await, JobState::Queued);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_broke_off_after_its_timer_runs_once_and_in_its_time() {
    let stage = Stage::open().await;
    let job = stage.submit("key", Duration::ZERO).await;
    let held = stage.lease(1, LEASE).await.pop().unwrap();
    // The timer was written, the delivery was not ended: it comes again when its lease is over.
    let at = stage.clock.now() + LEASE * 3;
    let timer = [
        ("Relay-Charged", "1".to_owned()),
        ("Nats-Schedule", format!("@at {at}")),
        ("Nats-Schedule-Target", stage.address(&job).at(Place::Line)),
    ];
    stage.rewrite(&job, Place::Timer, &timer).await;
    drop(held);
    let again = stage.lease(1, LEASE * 5).await.pop().unwrap();
    assert!(stage.clock.now() >= at, "it came before its time");
    assert_eq!((again.job.id, again.attempt), (job.id, 2));
    assert!(stage.lease(1, Duration::ZERO).await.is_empty(), "it came twice");
    stage.succeed(&again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_between_recording_and_settling_leaves_nothing_that_runs_again() {
    let stage = Stage::open().await;
    let job = stage.submit("key", Duration::ZERO).await;
    let held = stage.lease(1, LEASE).await.pop().unwrap();
    stage.broker.leasing.record(&stage.success(&held)).await.unwrap();
    stage.nats.close().await;
    let other = open(&stage._server).await;
    let stage = Stage { broker: other.broker(), nats: other, ..stage };
    assert!(stage.lease(1, LEASE * 2).await.is_empty(), "a finished run came again");
    assert_eq!(stage.state(&job).await, JobState::Finished(Outcome::Succeeded));
    // Its delivery was ended; the server counts it a moment later.
    while stage.broker.jobs.depth(&stage.queue).await.unwrap().leased > 0 {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_of_before_a_restart_is_lost_once_this_process_gave_the_job_out_again_whatever_was_said_of_it() {
    let stage = Stage::open().await;
    let job = stage.submit("key", Duration::ZERO).await;
    let held = stage.lease(1, LEASE).await.pop().unwrap();
    stage.nats.close().await;
    let other = open(&stage._server).await;
    let stage = Stage { broker: other.broker(), nats: other, ..stage };
    let again = stage.lease(1, LEASE * 5).await.pop().unwrap();
    assert_eq!((again.job.id, again.attempt), (job.id, 2));
    // The workers' word of their jobs may be lost.
    stage.jetstream.get_stream(names::STATE_STREAM).await.unwrap().purge().await.unwrap();
    let late = stage.broker.leasing.extend(&held.receipt).await.unwrap_err();
    assert_eq!(late.kind(), BrokerErrorKind::LeaseLost);
    stage.succeed(&again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_when_its_lease_ends_does_not_hide_what_came_into_line_since() {
    const JOBS: usize = 6;
    let stage = Stage::open().await;
    // Two rounds over all consumers are behind it then, and the next one is seconds away.
    assert!(stage.lease(1, LEASE).await.is_empty());
    stage.submit_many("ended", JOBS).await;
    let mut held = Vec::new();
    while held.len() < JOBS {
        held.extend(stage.lease(100, LEASE).await);
    }
    for delivery in &held {
        stage.broker.leasing.record(&stage.success(delivery)).await.unwrap();
    }
    tokio::time::sleep(LEASE).await;
    let new: BTreeSet<_> = stage.submit_many("new", JOBS).await.into_iter().collect();
    let mut given = BTreeSet::new();
    while given.len() < JOBS {
        let deliveries = stage.lease(100, LEASE).await;
        assert!(!deliveries.is_empty(), "{} of {JOBS} are in line, and nobody looks", JOBS - given.len());
        given.extend(deliveries.into_iter().map(|delivery| delivery.job.id));
    }
    assert_eq!(given, new);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_was_deleted_gives_waiting_jobs_only_and_each_once() {
    const FINISHED: usize = 10_000;
    const WAITING: usize = 100;
    let stage = Stage::open().await;
    stage.submit_many("finished", FINISHED).await;
    let mut finished = 0;
    while finished < FINISHED {
        let deliveries = stage.lease(64, LEASE).await;
        futures_util::future::join_all(deliveries.iter().map(|delivery| stage.succeed(delivery))).await;
        finished += deliveries.len();
    }
    // Nobody waits any more, and nothing is leased when the consumer goes.
    assert!(stage.lease(64, Duration::ZERO).await.is_empty());
    let waiting: BTreeSet<_> = stage.submit_many("waiting", WAITING).await.into_iter().collect();
    let stream = stage.jetstream.get_stream(names::jobs_stream(&stage.queue)).await.unwrap();
    stream.delete_consumer(stage.client.as_str()).await.unwrap();
    let mut ran = Vec::new();
    while ran.len() < WAITING {
        for delivery in stage.lease(64, LEASE * 5).await {
            ran.push(delivery.job.id);
            assert_eq!(stage.broker.leasing.record(&stage.success(&delivery)).await.unwrap(), Recorded::First);
            // A job that was pulled just before the deletion has nobody left to be settled at: it has ended all the same.
            match stage.broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await {
                Ok(()) => {}
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
    }
    assert!(stage.lease(64, Duration::ZERO).await.is_empty());
    assert_eq!(ran.len(), WAITING);
    assert_eq!(ran.into_iter().collect::<BTreeSet<_>>(), waiting);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_a_job_that_another_process_cancels_is_told_at_once() {
    let stage = Stage::open().await;
    let [job, other] = [stage.submit("key", Duration::ZERO).await, stage.submit("other", Duration::ZERO).await];
    let mut held = Vec::new();
    while held.len() < 2 {
        held.extend(stage.lease(2, LEASE).await);
    }
    let of = |job: &Job| held.iter().find(|delivery| delivery.job.id == job.id).unwrap().receipt.clone();
    let (receipt, others) = (of(&job), of(&other));
    let elsewhere = open(&stage._server).await;
    let cancelled = elsewhere.broker().jobs.cancel(&stage.client, job.id).await.unwrap();
    assert_eq!(cancelled.state, JobState::Finished(Outcome::Cancelled));
    let leasing = &stage.broker.leasing;
    tokio::time::timeout(CONNECT, leasing.ended_early(&receipt)).await.expect("nobody told it");
    assert_eq!(leasing.extend(&receipt).await.unwrap(), Held::Ended(Outcome::Cancelled));

    // A word of somebody who has no say hurries, and changes nothing.
    let anybody = stage.jetstream.client();
    anybody.publish(names::control(&stage.queue), format!("ended {}", other.id).into()).await.unwrap();
    tokio::time::timeout(CONNECT, leasing.ended_early(&others)).await.expect("nobody told it");
    assert_eq!(leasing.extend(&others).await.unwrap(), Held::Until(LEASE));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_when_who_waited_has_gone_spends_no_attempt() {
    let stage = Stage::open().await;
    for round in 0..5 {
        stage.submit(&format!("first-{round}"), Duration::ZERO).await;
        let first = stage.lease(1, 10 * LEASE).await;
        stage.succeed(&first[0]).await;
        // Long enough for a pull to stand at the server, which outlives the call.
        let waited = tokio::time::timeout(LEASE / 40, stage.lease(1, 10 * LEASE)).await;
        assert!(waited.is_err(), "there was nothing");
        let second = stage.submit(&format!("second-{round}"), Duration::ZERO).await;
        let held = stage.lease(1, 10 * LEASE).await;
        assert_eq!((held[0].job.id, held[0].attempt), (second.id, 1));
        assert!(held[0].lease <= LEASE, "it began when the pull was sent");
        stage.succeed(&held[0]).await;
    }
}
