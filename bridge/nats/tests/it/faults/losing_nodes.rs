//! A cluster of three under load whose leaders change or die.

use std::collections::BTreeSet;
use std::time::Duration;

use relay_bridge::contract::{JobId, Outcome};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::JobFilter;
use relay_bridge::leasing::Recorded;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::{Lookup, Start};
use relay_conformance::testing::NatsCluster;
use relay_nats::names;
use tokio::task::JoinSet;

use super::support::{CLUSTERS, PATIENCE, SLOTS, Stage, jobs};

const RESULTS: &str = "relay-results";
/// Submitted before, while and after it happens.
const PART: usize = 150;

struct Load {
    stage: Stage,
    jetstream: async_nats::jetstream::Context,
    submissions: JoinSet<Vec<JobId>>,
    workers: JoinSet<()>,
    jobs: Vec<JobId>,
}

impl Load {
    /// A worker, some jobs that were taken, and some that are being submitted.
    async fn start(cluster: &NatsCluster) -> Self {
        let stage = Stage::open(&cluster.url(), 3, QueuePolicy::default()).await;
        let servers: Vec<async_nats::ServerAddr> = cluster.urls().iter().map(|url| url.parse().unwrap()).collect();
        let jetstream = async_nats::jetstream::new(async_nats::connect(servers).await.unwrap());
        let workers = stage.work();
        let jobs = stage.submit_many("acme", "before", PART).await;
        let (mut submissions, submitting) = (JoinSet::new(), stage.clone());
        submissions.spawn(async move { submitting.submit_many("acme", "while", PART).await });
        Self { stage, jetstream, submissions, workers, jobs }
    }

    async fn leader(&self, stream: &str) -> String {
        let info = self.jetstream.get_stream(stream).await.unwrap().cached_info().clone();
        info.cluster.unwrap().leader.unwrap()
    }

    /// Everything that was acknowledged has one result, and so has what is submitted now.
    async fn end(mut self) {
        self.jobs.extend(self.submissions.join_next().await.unwrap().unwrap());
        self.jobs.extend(self.stage.submit_many("acme", "after", PART).await);
        for job in &self.jobs {
            while !self.is_finished(*job).await {}
        }
        drop(self.workers);
        let (read, _) = self.stage.read("acme", Start::Oldest).await;
        assert_eq!(read.len(), PART * 3);
        assert_eq!(jobs(&read).into_iter().collect::<BTreeSet<_>>(), self.jobs.into_iter().collect());
    }

    async fn is_finished(&self, job: JobId) -> bool {
        let found = self.stage.broker.results.wait(&"acme".parse().unwrap(), job, PATIENCE).await;
        match found {
            Ok(Lookup::Finished(_)) => true,
            Ok(found) => panic!("{job}: {found:?}"),
            Err(_) => false,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_the_node_that_leads_a_queue_loses_nothing_and_submissions_go_on() {
    let _alone = CLUSTERS.lock().await;
    let mut cluster = NatsCluster::start(3).await;
    let load = Load::start(&cluster).await;
    let leader = load.leader(&names::jobs_stream(&load.stage.queue)).await;
    cluster.kill(cluster.position(&leader).unwrap());
    // It stays away.
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_queue_that_lost_its_leader_is_found_or_cannot_be_asked_for_and_is_never_said_to_be_gone() {
    let _alone = CLUSTERS.lock().await;
    let mut cluster = NatsCluster::start(3).await;
    let stage = Stage::open(&cluster.url(), 3, QueuePolicy::default()).await;
    let servers: Vec<async_nats::ServerAddr> = cluster.urls().iter().map(|url| url.parse().unwrap()).collect();
    let jetstream = async_nats::jetstream::new(async_nats::connect(servers).await.unwrap());
    let (client, stream) = ("acme".parse().unwrap(), names::jobs_stream(&stage.queue));
    let job = stage.submit("acme", "job").await.status().job_id;
    // The leader of JetStream's own group answers lists: the one that is killed must be another.
    let old = loop {
        let info = jetstream.get_stream(&stream).await.ok().and_then(|stream| stream.cached_info().cluster.clone());
        let leader = info.and_then(|cluster| cluster.leader).and_then(|name| cluster.position(&name));
        match (leader, cluster.leader().await) {
            (Some(leader), Some(meta)) if leader != meta => break leader,
            _ => {
                let step_down = format!("STREAM.LEADER.STEPDOWN.{stream}");
                drop(jetstream.request::<_, _, serde_json::Value>(step_down, &()).await);
            }
        }
    };
    let other = Stage::open(&cluster.url(), 3, QueuePolicy::default()).await.broker;
    cluster.kill(old);

    let is_honest = |error: &BrokerError| {
        assert!(matches!(error.kind(), BrokerErrorKind::Unavailable | BrokerErrorKind::Ambiguous), "{error}");
    };
    let all = JobFilter { queues: None, state: None, key_prefix: None, after: None, limit: 10 };
    let mut found = 0;
    while found < 20 {
        // It learns anew which queues there are.
        drop(other.jobs.sweep(100).await.inspect_err(is_honest));
        match other.jobs.status(&client, job).await.inspect_err(is_honest) {
            Ok(status) => found += usize::from(status.expect("the job is there").job_id == job),
            Err(_) => found = 0,
        }
        let waited = other.results.wait(&client, job, Duration::from_millis(300)).await.inspect_err(is_honest);
        assert!(!matches!(waited, Ok(Lookup::Absent)), "a wait ended: {waited:?}");
        if let Ok(listed) = other.jobs.list(&client, &all).await.inspect_err(is_honest) {
            assert_eq!(listed.jobs.len(), 1, "a list was short");
        }
    }
    let cancelled = other.jobs.cancel(&client, job).await.unwrap();
    assert_eq!(cancelled.state.outcome(), Some(Outcome::Cancelled));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_leaders_loses_nothing_and_submissions_go_on() {
    let _alone = CLUSTERS.lock().await;
    let cluster = NatsCluster::start(3).await;
    let load = Load::start(&cluster).await;
    let stream = names::jobs_stream(&load.stage.queue);
    let groups = [
        format!("CONSUMER.LEADER.STEPDOWN.{stream}.acme"),
        format!("STREAM.LEADER.STEPDOWN.{stream}"),
        format!("STREAM.LEADER.STEPDOWN.{RESULTS}"),
    ];
    for group in groups {
        let answer: serde_json::Value = load.jetstream.request(group.clone(), &()).await.unwrap();
        assert_eq!(answer["success"], true, "{group}: {answer}");
    }
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_step_down_while_jobs_are_leased_and_settled_lose_and_double_no_result() {
    const JOBS: usize = 96;
    let _alone = CLUSTERS.lock().await;
    let cluster = NatsCluster::start(3).await;
    let stage = Stage::open(&cluster.url(), 3, QueuePolicy::default()).await;
    let jetstream = async_nats::jetstream::new(async_nats::connect(&cluster.urls()[0]).await.unwrap());
    let stream = names::jobs_stream(&stage.queue);
    let groups = [
        format!("CONSUMER.LEADER.STEPDOWN.{stream}.acme"),
        format!("STREAM.LEADER.STEPDOWN.{stream}"),
        format!("STREAM.LEADER.STEPDOWN.{RESULTS}"),
    ];
    let step_down = async |group: &String| {
        // One that has no leader just now has stepped down already.
        let answer: Result<serde_json::Value, _> = jetstream.request(group.clone(), &()).await;
        answer.is_ok_and(|answer| answer["success"] == true)
    };
    let submitted: BTreeSet<_> = stage.submit_many("acme", "job", JOBS).await.into_iter().collect();
    let (mut first, mut stepped) = (BTreeSet::new(), 0);
    for turn in 0.. {
        if first == submitted {
            break;
        }
        let group = &groups[turn % groups.len()];
        let held = stage.lease(SLOTS, PATIENCE).await;
        assert!(!held.is_empty(), "{} of {JOBS} ran, and then nothing came", first.len());
        for (number, delivery) in held.iter().enumerate() {
            // While they are held, and once more between the result of one and its settlement.
            if number == 0 {
                stepped += usize::from(step_down(group).await);
            }
            let recorded = stage.record(delivery, "done").await;
            if number == held.len() / 2 {
                stepped += usize::from(step_down(group).await);
            }
            stage.settle(delivery).await;
            if recorded == Recorded::First {
                assert!(first.insert(delivery.job.id), "a second result was the first again");
            }
        }
    }
    assert!(stepped >= groups.len(), "{stepped} leaders stepped down");
    let (read, _) = stage.read("acme", Start::Oldest).await;
    assert_eq!(read.len(), JOBS);
    assert_eq!(jobs(&read).into_iter().collect::<BTreeSet<_>>(), submitted);
    assert!(stage.lease(SLOTS, Duration::ZERO).await.is_empty(), "a finished run came again");
}
