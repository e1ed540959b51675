//! One key is one job, whatever dies and whoever else submits it.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use relay_bridge::contract::{JobState, Outcome};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::job_queue::{Enqueued, JobFilter};
use relay_bridge::policy::{ClientPolicy, QueuePolicy};
use relay_bridge::result_log::{Lookup, Start};
use relay_conformance::testing::NatsServer;
use tokio::task::JoinSet;

use super::support::{PATIENCE, Stage, jobs};

async fn listed(stage: &Stage, client: &str) -> usize {
    let filter = JobFilter { queues: None, state: None, key_prefix: None, after: None, limit: 1_000 };
    stage.broker.jobs.list(&client.parse().unwrap(), &filter).await.unwrap().jobs.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_submitted_again_after_a_kill_of_the_server_is_the_same_job_finished_or_not() {
    let mut server = NatsServer::start().await;
    let stage = Stage::open(&server.url(), 1, QueuePolicy::default()).await;
    let finished = stage.submit("acme", "finished").await.status().clone();
    // With one place: with more a pull for the others could still be there, and bring the next job.
    let deliveries = stage.lease(1, PATIENCE).await;
    stage.succeed_all(&deliveries).await;
    let open = stage.submit("acme", "open").await.status().clone();

    server.kill();
    server.restart().await;
    for (key, first, state) in
        [("finished", &finished, JobState::Finished(Outcome::Succeeded)), ("open", &open, JobState::Queued)]
    {
        let again = stage.submit("acme", key).await;
        assert!(matches!(again, Enqueued::Known(_)), "{key}: {again:?}");
        let again = again.status();
        assert_eq!((again.job_id, again.run_id, again.state), (first.job_id, first.run_id, state), "{key}");
    }
    assert_eq!(listed(&stage, "acme").await, 2, "one record per key");
    assert_eq!(stage.run(1).await, [open.job_id]);
    assert!(stage.lease(10, Duration::ZERO).await.is_empty(), "a finished run came again");
    let found = stage.broker.results.lookup(&"acme".parse().unwrap(), finished.job_id).await.unwrap();
    assert!(matches!(found, Lookup::Finished(_)), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn submissions_repeated_while_the_server_is_killed_make_one_job_per_key() {
    const JOBS: usize = 400;
    let mut server = NatsServer::start().await;
    let stage = Stage::open(&server.url(), 1, QueuePolicy::default()).await;
    // Some are confirmed, some are in flight, some come while it is away.
    stage.submit_many("acme", "job", JOBS / 4).await;
    let submitting = stage.clone();
    let mut submissions = JoinSet::new();
    submissions.spawn(async move { submitting.submit_many("acme", "job", JOBS).await });
    stage.submit("acme", "another").await;
    server.restart().await;
    let submitted = submissions.join_next().await.unwrap().unwrap();

    assert_eq!(stage.submit_many("acme", "job", JOBS).await, submitted, "the same jobs");
    assert_eq!(listed(&stage, "acme").await, JOBS + 1, "one record per key");
    let ran: BTreeSet<_> = stage.run(JOBS + 1).await.into_iter().collect();
    assert_eq!(ran.len(), JOBS + 1, "one run per key");
    assert!(stage.lease(10, Duration::ZERO).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_submitted_at_once_through_two_replicas_is_one_job_with_one_result() {
    const KEYS: usize = 20;
    const TIMES: usize = 10;
    let server = NatsServer::start().await;
    let one = Stage::open(&server.url(), 1, QueuePolicy::default()).await;
    let other = Stage::open(&server.url(), 1, QueuePolicy::default()).await;
    let mut submissions = JoinSet::new();
    for number in 0..KEYS * TIMES * 2 {
        let stage = if number % 2 == 0 { one.clone() } else { other.clone() };
        submissions.spawn(async move { stage.submit("acme", &format!("key-{}", number / 2 % KEYS)).await });
    }
    let (mut created, mut runs) = (Vec::new(), BTreeSet::new());
    while let Some(submitted) = submissions.join_next().await {
        let submitted = submitted.unwrap();
        runs.insert((submitted.status().job_id, submitted.status().run_id));
        if let Enqueued::Created(status) = submitted {
            created.push(status.job_id);
        }
    }
    assert_eq!((created.len(), runs.len()), (KEYS, KEYS));
    // Workers at both, too.
    let workers = [one.work(), other.work()];
    for job in &created {
        let found = one.broker.results.wait(&"acme".parse().unwrap(), *job, super::support::PATIENCE).await.unwrap();
        assert!(matches!(found, Lookup::Finished(_)), "{found:?}");
    }
    drop(workers);
    let (read, _) = other.read("acme", Start::Oldest).await;
    assert_eq!(read.len(), KEYS);
    assert_eq!(jobs(&read).into_iter().collect::<BTreeSet<_>>(), created.into_iter().collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_submissions_at_once_near_a_bound_share_the_question_how_many_wait_and_keep_it() {
    const BOUND: u64 = 5;
    let server = NatsServer::start().await;
    let client_defaults = ClientPolicy { max_queued: BOUND, ..ClientPolicy::default() };
    let stage = Stage::open(&server.url(), 1, QueuePolicy { client_defaults, ..QueuePolicy::default() }).await;
    // Facts that are asked for once only, such as about the queue and the client's consumer, are known then.
    stage.submit("acme", "first").await;
    let watch = async_nats::connect(server.url()).await.unwrap();
    let mut questions = watch.subscribe("$JS.API.CONSUMER.INFO.>").await.unwrap();
    watch.request("relay.nobody", "".into()).await.unwrap_err();

    let submissions = (0..50).map(|number| stage.broker.jobs.enqueue(stage.job("acme", &format!("key-{number}"))));
    let mut created = 1;
    // None is put off because the task had its share of time.
    for submitted in tokio::task::unconstrained(futures_util::future::join_all(submissions)).await {
        match submitted {
            Ok(_) => created += 1,
            Err(refused) => {
                let full = BrokerErrorKind::QuotaExceeded { actual: BOUND, limit: BOUND };
                assert_eq!(refused.kind(), full, "{refused}");
            }
        }
    }
    assert_eq!(created, BOUND);
    // Questions that were asked before this answer have come to the watcher before it.
    watch.request("relay.nobody", "".into()).await.unwrap_err();
    let mut asked = 0;
    while questions.next().now_or_never().is_some() {
        asked += 1;
    }
    // Mostly one; a submission that begins after the answer on a busy machine asks again.
    assert!((1..=5).contains(&asked), "{asked} questions of 50 submissions");
}
