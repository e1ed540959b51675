//! Lanes on a real server: queues without turns, switched to and from, and queues with more clients than consumers.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::{self, Context, consumer};
use futures_util::{StreamExt as _, TryStreamExt as _};
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{JobId, JobResult, JobState, Outcome, QueueName, Submission};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::{Delivery, LeaseRequest, Recorded};
use relay_bridge::policy::{ClientPolicy, QueuePolicy};
use relay_bridge::provision::provision_queues;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::NatsServer;
use relay_nats::config::NatsConfig;
use relay_nats::connection::Wait;
use relay_nats::names::{Lane, SHARED_LANES, jobs_stream};
use relay_nats::{Nats, Settings};
use serde_json::{Value, json};

const CONNECT: Duration = Duration::from_secs(30);
/// Far longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Calls in flight at once.
const AT_ONCE: usize = 64;

struct Stage {
    server: NatsServer,
    jetstream: Context,
    broker: Broker,
    nats: Nats,
    queue: QueueName,
    policy: QueuePolicy,
    clock: Clock,
}

async fn connect(server: &NatsServer) -> Nats {
    Nats::connect(NatsConfig::new([server.url()]), Wait::AtMost(CONNECT), Settings::default()).await.unwrap()
}

impl Stage {
    async fn open(fair: bool) -> Self {
        let server = NatsServer::start().await;
        let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
        let nats = connect(&server).await;
        let policy = QueuePolicy { fair, ..QueuePolicy::default() };
        let queue: QueueName = "work".parse().unwrap();
        let stage = Self { server, jetstream, broker: nats.broker(), nats, queue, policy, clock: Clock::system() };
        stage.provision(&stage.policy).await;
        stage
    }

    async fn provision(&self, policy: &QueuePolicy) -> Vec<String> {
        let changes = provision_queues(&self.broker, std::slice::from_ref(&self.queue), &|_, _| policy.clone(), false)
            .await
            .unwrap();
        changes.into_iter().map(|change| change.what).collect()
    }

    async fn switch(&self, fair: bool) {
        let changes = self.provision(&QueuePolicy { fair, ..self.policy.clone() }).await;
        assert!(changes.iter().any(|what| what.starts_with("fair: ")), "{changes:?}");
    }

    async fn submit(&self, client: &str, key: &str, delay: Duration) -> JobId {
        let submission = Submission {
            client: client.parse().unwrap(),
            queue: self.queue.clone(),
            key: Some(key.parse().unwrap()),
            content_type: "text/plain".to_owned(),
            content_encoding: None,
            headers: Default::default(),
            payload: "payload".into(),
            delay,
            expires_in: None,
        };
        let enqueued = self.broker.jobs.enqueue(submission.accept(&self.policy, self.clock.now())).await.unwrap();
        enqueued.status().job_id
    }

    async fn lease(&self, max: u32, wait: Duration) -> Vec<Delivery> {
        let request = LeaseRequest {
            worker: "worker-1".parse().unwrap(),
            queues: vec![self.queue.clone()],
            max: max.try_into().unwrap(),
            wait,
        };
        self.broker.leasing.lease(&request).await.unwrap()
    }

    /// So many jobs, however many come at once.
    async fn hold(&self, count: usize) -> Vec<Delivery> {
        let mut held = Vec::new();
        while held.len() < count {
            held.extend(self.lease((count - held.len()).try_into().unwrap(), PATIENCE).await);
        }
        held
    }

    async fn succeed(&self, delivery: &Delivery) {
        let end = End { attempt: delivery.attempt, started_at: None, finished_at: self.clock.now() };
        let result = JobResult::succeeded(&delivery.job, end, "text/plain", "done".into());
        assert_eq!(self.broker.leasing.record(&result).await.unwrap(), Recorded::First);
        self.broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
    }

    /// Runs what comes until `count` jobs ran; how often each did.
    async fn run(&self, count: usize) -> BTreeMap<JobId, usize> {
        let mut ran = BTreeMap::new();
        while ran.len() < count {
            let deliveries = self.lease(64, PATIENCE).await;
            if deliveries.is_empty() {
                panic!("{} of {count} ran, and then nothing came: {:?}", ran.len(), self.not_empty().await);
            }
            for delivery in &deliveries {
                *ran.entry(delivery.job.id).or_default() += 1;
            }
            futures_util::future::join_all(deliveries.iter().map(|delivery| self.succeed(delivery))).await;
        }
        ran
    }

    /// Consumers that have jobs: their names, how many wait and are leased, and how many pulls wait.
    async fn not_empty(&self) -> Vec<(String, u64, usize, usize)> {
        let stream = self.jetstream.get_stream(jobs_stream(&self.queue)).await.unwrap();
        let all: Vec<_> = stream.consumers().try_collect().await.unwrap();
        let of = |info: &consumer::Info| (info.name.clone(), info.num_pending, info.num_ack_pending, info.num_waiting);
        all.iter().map(of).filter(|(_, waiting, leased, _)| *waiting > 0 || *leased > 0).collect()
    }

    async fn consumers(&self) -> Vec<Lane> {
        let stream = self.jetstream.get_stream(jobs_stream(&self.queue)).await.unwrap();
        let names: Vec<_> = stream.consumer_names().try_collect().await.unwrap();
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    async fn state(&self, client: &str, job: JobId) -> JobState {
        self.broker.jobs.status(&client.parse().unwrap(), job).await.unwrap().unwrap().state
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_without_turns_has_one_consumer_that_a_scaler_can_read_before_the_first_job() {
    let stage = Stage::open(false).await;
    assert_eq!(stage.consumers().await, [Lane::ALL]);
    assert!(stage.provision(&QueuePolicy { fair: false, ..stage.policy.clone() }).await.is_empty(), "it is as wanted");
    for number in 0..20 {
        stage.submit(&format!("client-{number}"), "key", Duration::ZERO).await;
    }
    assert_eq!(stage.hold(5).await.len(), 5);
    assert_eq!(stage.consumers().await, [Lane::ALL]);
    // As KEDA's `nats-jetstream` trigger asks, and what it adds up.
    let seen = stage.server.monitor("/jsz?acc=$G&consumers=true&config=true").await.unwrap();
    let named =
        |list: &Value, name: &str| list.as_array().unwrap().iter().find(|one| one["name"] == name).cloned().unwrap();
    let stream = named(&named(&seen["account_details"], "$G")["stream_detail"], "relay-jobs-work");
    let consumer = named(&stream["consumer_detail"], "lane_0");
    assert_eq!((&consumer["num_pending"], &consumer["num_ack_pending"]), (&json!(15), &json!(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_to_or_from_turns_loses_and_doubles_nothing_that_waits_is_leased_or_parked() {
    for fair in [true, false] {
        let stage = Stage::open(fair).await;
        let mut jobs = Vec::new();
        for number in 0..6 {
            jobs.push(stage.submit("acme", &format!("before-{number}"), Duration::ZERO).await);
            jobs.push(stage.submit("other", &format!("before-{number}"), Duration::ZERO).await);
        }
        let parked = stage.submit("acme", "delayed", Duration::from_secs(4)).await;
        let held = stage.hold(4).await;
        let [retried, back, cancelled, done] = <[Delivery; 4]>::try_from(held).unwrap();
        stage.broker.leasing.settle(&retried.receipt, &Settlement::RetryAfter(Duration::from_secs(3))).await.unwrap();

        stage.switch(!fair).await;
        // A key of before is the same job, wherever its record is.
        assert_eq!(stage.submit("acme", "before-0", Duration::ZERO).await, jobs[0]);
        for number in 0..6 {
            jobs.push(stage.submit("acme", &format!("after-{number}"), Duration::ZERO).await);
        }
        // Jobs that were leased before are settled after.
        stage.succeed(&done).await;
        stage.broker.leasing.settle(&back.receipt, &Settlement::HandBack(Duration::ZERO)).await.unwrap();
        let ended = stage.broker.jobs.cancel(&cancelled.job.client, cancelled.job.id).await.unwrap();
        assert_eq!(ended.state, JobState::Finished(Outcome::Cancelled));

        let open = jobs.len() + 1 - 2;
        let ran = stage.run(open).await;
        assert!(ran.values().all(|times| *times == 1), "switched from {fair}: {ran:?}");
        assert!(ran.contains_key(&parked) && ran.contains_key(&retried.job.id) && ran.contains_key(&back.job.id));
        assert!(!ran.contains_key(&cancelled.job.id) && !ran.contains_key(&done.job.id));
        assert!(stage.lease(64, Duration::ZERO).await.is_empty(), "something came twice");
        // A run of before goes on in a next one.
        let again = stage.broker.jobs.rerun(&done.job.client, done.job.id, 1).await.unwrap();
        assert!(matches!(again, Enqueued::Created(_)));
        assert_eq!(stage.run(1).await.into_iter().collect::<Vec<_>>(), [(done.job.id, 1)]);
        // And back, with nothing that was finished in line again.
        stage.switch(fair).await;
        assert!(stage.lease(64, Duration::ZERO).await.is_empty());
        let last = stage.submit("acme", "last", Duration::ZERO).await;
        assert_eq!(stage.run(1).await.into_iter().collect::<Vec<_>>(), [(last, 1)]);
        for job in &jobs[1..] {
            let client = if stage.broker.jobs.status(&"acme".parse().unwrap(), *job).await.unwrap().is_some() {
                "acme"
            } else {
                "other"
            };
            assert!(matches!(stage.state(client, *job).await, JobState::Finished(_)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_that_need_turns_are_refused_where_there_are_none() {
    let stage = Stage::open(false).await;
    for share in [
        ClientPolicy { weight: 2, ..ClientPolicy::default() },
        ClientPolicy { max_running: 2, ..ClientPolicy::default() },
    ] {
        let of_client =
            QueuePolicy { clients: [("acme".parse().unwrap(), share.clone())].into(), ..stage.policy.clone() };
        let of_all = QueuePolicy { client_defaults: share, ..stage.policy.clone() };
        for policy in [of_client, of_all] {
            let refused = stage.broker.policies.put_policy(&stage.queue, &policy, None).await.unwrap_err();
            assert_eq!(refused.kind(), BrokerErrorKind::Invalid, "{refused}");
        }
    }
    // A policy that can be held there is taken.
    let client_defaults = ClientPolicy { max_queued: 2, ..ClientPolicy::default() };
    let policy = QueuePolicy { client_defaults, ..stage.policy.clone() };
    stage.broker.policies.put_policy(&stage.queue, &policy, Some(&stage.policy)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_five_hundred_clients_share_lanes_and_all_are_served_also_after_a_restart() {
    const OWN: usize = 500;
    const CLIENTS: usize = 600;
    let mut stage = Stage::open(true).await;
    let submit_all = async |stage: &Stage, key: &str| -> Vec<JobId> {
        let submit = |number| {
            let client = format!("client-{number}");
            async move { stage.submit(&client, key, Duration::ZERO).await }
        };
        futures_util::stream::iter(0..CLIENTS).map(submit).buffered(AT_ONCE).collect().await
    };
    let check = async |stage: &Stage| {
        let (own, shared): (Vec<_>, Vec<_>) =
            stage.consumers().await.into_iter().partition(|lane| matches!(lane, Lane::Own(_)));
        assert_eq!(own.len(), OWN);
        assert!(!shared.is_empty() && shared.len() <= usize::from(SHARED_LANES), "{shared:?}");
    };
    let first = submit_all(&stage, "first").await;
    check(&stage).await;
    let held = stage.lease(10, PATIENCE).await;
    assert!(!held.is_empty());

    stage.server.kill();
    stage.nats.close().await;
    stage.server.restart().await;
    stage.nats = connect(&stage.server).await;
    stage.broker = stage.nats.broker();
    // The same clients find the same lanes.
    assert_eq!(submit_all(&stage, "first").await, first);
    submit_all(&stage, "second").await;
    check(&stage).await;
    for delivery in &held {
        stage.broker.leasing.settle(&delivery.receipt, &Settlement::HandBack(Duration::ZERO)).await.unwrap();
    }
    let ran = stage.run(CLIENTS * 2).await;
    assert!(ran.values().all(|times| *times == 1));
    assert!(stage.lease(64, Duration::ZERO).await.is_empty());
    check(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_shares_a_lane_has_its_own_bound_on_waiting_jobs_and_waits_for_its_lane_only() {
    const OWN: usize = 500;
    let mut stage = Stage::open(true).await;
    let client_defaults = ClientPolicy { max_queued: 100, ..ClientPolicy::default() };
    stage.policy = QueuePolicy { client_defaults, ..stage.policy.clone() };
    stage.provision(&stage.policy).await;
    let first = |number| {
        let (stage, client) = (&stage, format!("client-{number}"));
        async move { stage.submit(&client, "first", Duration::ZERO).await }
    };
    futures_util::stream::iter(0..OWN).map(first).buffered(AT_ONCE).collect::<Vec<_>>().await;
    assert_eq!(stage.run(OWN).await.len(), OWN);
    // Two clients of one lane, and one of another.
    let lane = |name: &str| Lane::shared_by(&name.parse().unwrap());
    let busy = "busy";
    let beside = (0..).map(|n| format!("beside-{n}")).find(|name| lane(name) == lane(busy)).unwrap();
    let apart = (0..).map(|n| format!("apart-{n}")).find(|name| lane(name) != lane(busy)).unwrap();
    for number in 0..90 {
        stage.submit(busy, &format!("key-{number}"), Duration::ZERO).await;
    }
    let beside_job = stage.submit(&beside, "key", Duration::ZERO).await;
    let waiting = async |client: &str| stage.broker.jobs.waiting(&client.parse().unwrap(), &stage.queue).await.unwrap();
    assert_eq!((waiting(busy).await, waiting(&beside).await), (Some(90), Some(1)), "each counts its own");
    let before = stage.consumers().await;
    assert_eq!(waiting("stranger").await, Some(0));
    assert_eq!(stage.consumers().await, before, "a question made a consumer");
    let apart_job = stage.submit(&apart, "key", Duration::ZERO).await;
    // Turns are between lanes: with two of weight 1, the lone job is among the next four.
    let mut held = Vec::new();
    while held.len() < 4 {
        let deliveries = stage.lease(1, PATIENCE).await;
        held.extend(deliveries.iter().map(|delivery| delivery.job.id));
        futures_util::future::join_all(deliveries.iter().map(|delivery| stage.succeed(delivery))).await;
    }
    assert!(held.contains(&apart_job), "it waited for another lane");
    let rest = stage.run(92 - held.len()).await;
    assert!(rest.contains_key(&beside_job), "who shares the lane is served as well");
}
