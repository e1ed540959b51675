//! Which jobs a worker gets of the queues that it asked for, and how often a worker that waits asks. On a real server.

use std::num::NonZeroU32;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{JobResult, JobState, Outcome, Submission};
use relay_bridge::leasing::{Delivery, LeaseRequest};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::NatsServer;
use relay_nats::config::NatsConfig;
use relay_nats::connection::Wait;
use relay_nats::names;
use relay_nats::{Nats, Settings};
use tokio::task::JoinSet;

/// Far longer than a test runs.
const WAIT: Duration = Duration::from_secs(20);

async fn open(server: &NatsServer, queues: &[&str]) -> Broker {
    let config = NatsConfig::new([server.url()]);
    let broker = Nats::connect(config, Wait::AtMost(WAIT), Settings::default()).await.unwrap().broker();
    for queue in queues {
        broker.policies.put_policy(&queue.parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    }
    broker
}

async fn submit(broker: &Broker, queue: &str) {
    submit_as(broker, "acme", queue).await;
}

async fn submit_as(broker: &Broker, client: &str, queue: &str) {
    let submission = Submission {
        client: client.parse().unwrap(),
        queue: queue.parse().unwrap(),
        key: None,
        content_type: "text/plain".to_owned(),
        content_encoding: None,
        headers: Default::default(),
        payload: "x".into(),
        delay: Duration::ZERO,
        expires_in: None,
    };
    broker.jobs.enqueue(submission.accept(&QueuePolicy::default(), Clock::system().now())).await.unwrap();
}

fn request(queues: &[&str], max: u32, wait: Duration) -> LeaseRequest {
    let queues = queues.iter().map(|queue| queue.parse().unwrap()).collect();
    LeaseRequest { worker: "worker-1".parse().unwrap(), queues, max: NonZeroU32::new(max).unwrap(), wait }
}

async fn lease(broker: &Broker, queues: &[&str], max: u32) -> Vec<Delivery> {
    broker.leasing.lease(&request(queues, max, WAIT)).await.unwrap()
}

#[tokio::test]
async fn what_a_worker_that_went_away_was_given_goes_to_nobody_who_did_not_ask_for_its_queue() {
    let server = NatsServer::start().await;
    let broker = open(&server, &["a", "b"]).await;
    for round in 0..60 {
        submit(&broker, "b").await;
        let mut going = JoinSet::new();
        let leasing = broker.leasing.clone();
        going.spawn(async move { leasing.lease(&request(&["a", "b"], 1, WAIT)).await });
        for _ in 0..round % 30 {
            tokio::task::yield_now().await;
        }
        // A worker that is answered before it is gone gives the job back.
        going.abort_all();
        while let Some(ended) = going.join_next().await {
            for delivery in ended.map(Result::unwrap).unwrap_or_default() {
                let back = Settlement::HandBack(Duration::ZERO);
                broker.leasing.settle(&delivery.receipt, &back).await.unwrap();
            }
        }
        let other = broker.leasing.lease(&request(&["a"], 8, Duration::from_millis(20))).await.unwrap();
        assert!(other.is_empty(), "round {round}: {:?}", other[0].job.queue);
        let delivery = lease(&broker, &["b"], 1).await.remove(0);
        assert_eq!((delivery.job.queue.as_str(), delivery.attempt), ("b", 1), "round {round}");
        let end = End { attempt: 1, started_at: Some(delivery.leased_at), finished_at: Clock::system().now() };
        let result = JobResult::succeeded(&delivery.job, end, "text/plain", "done".into());
        broker.leasing.record(&result).await.unwrap();
        broker.leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
    }
}

#[tokio::test]
async fn who_waits_for_a_paused_queue_asks_for_nothing_and_hears_at_once_that_it_goes_on() {
    let server = NatsServer::start().await;
    let broker = open(&server, &["a", "b"]).await;
    let queue = "a".parse().unwrap();
    submit(&broker, "a").await;
    broker.policies.set_paused(&queue, true).await.unwrap();
    let polls = std::cell::Cell::new(0_u32);
    let request = request(&["a"], 1, WAIT);
    let mut waiting = std::pin::pin!(broker.leasing.lease(&request));
    let counted = std::future::poll_fn(|context| {
        polls.set(polls.get() + 1);
        waiting.as_mut().poll(context)
    });
    let counted = tokio::time::timeout(Duration::from_secs(2), counted).await;
    assert!(counted.is_err(), "a paused queue gave a job");
    assert!(polls.get() < 50, "it asked {} times in two seconds", polls.get());
    let (taken, resumed) = tokio::join!(waiting, broker.policies.set_paused(&queue, false));
    resumed.unwrap();
    assert_eq!(taken.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_begins_takes_its_queues_in_the_order_given_however_long_the_first_one_takes_to_look_over() {
    const CLIENTS: usize = 200;
    let server = NatsServer::start().await;
    let broker = open(&server, &["a", "b"]).await;
    for client in 0..CLIENTS {
        submit_as(&broker, &format!("client-{client}"), "a").await;
    }
    submit(&broker, "b").await;
    for _ in 0..10 {
        let begins = open(&server, &[]).await;
        let taken = lease(&begins, &["a", "b"], 1).await;
        assert_eq!(taken.iter().map(|delivery| delivery.job.queue.as_str()).collect::<Vec<_>>(), ["a"]);
    }
}

/// Processes that take jobs of queue `a`, as many as they have places for, and end none.
fn take_all(brokers: &[Broker], places: u32) -> JoinSet<Vec<Delivery>> {
    let mut taking = JoinSet::new();
    for broker in brokers {
        let leasing = broker.leasing.clone();
        taking.spawn(async move {
            let mut taken = Vec::new();
            while let Some(left) = places.checked_sub(taken.len().try_into().unwrap()).filter(|left| *left > 0) {
                taken.extend(leasing.lease(&request(&["a"], left, WAIT)).await.unwrap());
            }
            taken
        });
    }
    taking
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_processes_that_wait_one_is_told_of_each_job() {
    const JOBS: usize = 40;
    let server = NatsServer::start().await;
    let mut brokers = Vec::new();
    for _ in 0..4 {
        brokers.push(open(&server, &["a"]).await);
    }
    let client = async_nats::connect(server.url()).await.unwrap();
    let mut pulls = client.subscribe("$JS.API.CONSUMER.MSG.NEXT.>").await.unwrap();
    let taking = take_all(&brokers, 10);
    for _ in 0..JOBS {
        submit(&brokers[0], "a").await;
    }
    let taken = taking.join_all().await;
    assert_eq!(taken.iter().map(Vec::len).sum::<usize>(), JOBS);
    client.flush().await.unwrap();
    // A pull that follows a hint waits for 300 ms; other pulls fetch jobs that are known to be there.
    let mut hinted = 0;
    while let Ok(Some(pull)) = tokio::time::timeout(Duration::from_millis(50), pulls.next()).await {
        let pull: serde_json::Value = serde_json::from_slice(&pull.payload).unwrap();
        hinted += usize::from(pull["expires"] == 300_000_000);
    }
    assert!(hinted <= 2 * JOBS, "{JOBS} jobs made {hinted} pulls of 4 processes that were told of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_one_client_goes_to_all_processes_that_have_places() {
    let server = NatsServer::start().await;
    let mut brokers = Vec::new();
    for _ in 0..4 {
        brokers.push(open(&server, &["a"]).await);
    }
    let taking = take_all(&brokers, 4);
    futures_util::future::join_all((0..16).map(|_| submit(&brokers[0], "a"))).await;
    let taken = taking.join_all().await;
    assert!(taken.iter().all(|taken| taken.len() == 4 && taken.iter().all(|delivery| delivery.attempt == 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_hint_went_to_a_process_that_is_gone_starts_all_the_same() {
    let server = NatsServer::start().await;
    let broker = open(&server, &["a"]).await;
    // As a process does that hangs: it is told of jobs, and takes none.
    let client = async_nats::connect(server.url()).await.unwrap();
    let mut hangs = Vec::new();
    for _ in 0..20 {
        let group = "relay-workers".to_owned();
        hangs.push(client.queue_subscribe(names::hints(&"a".parse().unwrap()), group).await.unwrap());
    }
    client.flush().await.unwrap();
    let taking = take_all(std::slice::from_ref(&broker), 3);
    for _ in 0..3 {
        submit(&broker, "a").await;
    }
    assert_eq!(taking.join_all().await.concat().len(), 3);
}

/// Errors of the account's API so far, as they are counted for operators.
async fn api_errors(client: &async_nats::Client) -> u64 {
    let account = client.request("$JS.API.INFO", "".into()).await.unwrap();
    let account: serde_json::Value = serde_json::from_slice(&account.payload).unwrap();
    account["api"]["errors"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_runs_is_tried_again_and_ends_makes_no_error_of_the_servers_api() {
    let server = NatsServer::start().await;
    let (broker, acme) = (open(&server, &["a", "b"]).await, "acme".parse().unwrap());
    let client = async_nats::connect(server.url()).await.unwrap();
    // The consumer of a new client is looked for before it is made.
    submit(&broker, "a").await;
    let first = lease(&broker, &["a"], 1).await.remove(0);
    let before = api_errors(&client).await;
    let job = first.job.id;
    let state = async || broker.jobs.status(&acme, job).await.unwrap().unwrap().state;
    assert_eq!(state().await, JobState::Leased);
    broker.leasing.extend(&first.receipt).await.unwrap();
    broker.leasing.settle(&first.receipt, &Settlement::RetryAfter(Duration::from_millis(1))).await.unwrap();
    assert_eq!(state().await, JobState::Queued);
    let again = lease(&broker, &["a"], 1).await.remove(0);
    assert_eq!((again.job.id, again.attempt), (job, 2));
    let end = End { attempt: 2, started_at: Some(again.leased_at), finished_at: Clock::system().now() };
    let result = JobResult::succeeded(&again.job, end, "text/plain", "done".into());
    broker.leasing.retract_dead_letter(job, again.job.run_id, None).await.unwrap();
    broker.leasing.record(&result).await.unwrap();
    broker.leasing.settle(&again.receipt, &Settlement::Complete).await.unwrap();
    assert_eq!(state().await, JobState::Finished(Outcome::Succeeded));
    assert_eq!(api_errors(&client).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_waits_does_not_pull_for_a_job_whose_lease_can_not_have_ended() {
    let server = NatsServer::start().await;
    let (holder, other) = (open(&server, &["a"]).await, open(&server, &[]).await);
    submit(&holder, "a").await;
    let first = lease(&holder, &["a"], 1).await.remove(0);
    let end = End { attempt: 1, started_at: Some(first.leased_at), finished_at: Clock::system().now() };
    let result = JobResult::succeeded(&first.job, end, "text/plain", "done".into());
    holder.leasing.record(&result).await.unwrap();
    holder.leasing.settle(&first.receipt, &Settlement::Complete).await.unwrap();
    // It looks over the queue, in which nothing is leased.
    let nothing = other.leasing.lease(&request(&["a"], 1, Duration::from_millis(100))).await.unwrap();
    assert!(nothing.is_empty());
    submit(&holder, "a").await;
    let held = lease(&holder, &["a"], 1).await;
    // A round that came to see the job in line is followed by pulls.
    assert!(other.leasing.lease(&request(&["a"], 1, Duration::from_secs(1))).await.unwrap().is_empty());
    let client = async_nats::connect(server.url()).await.unwrap();
    let mut asked = client.subscribe("$JS.API.CONSUMER.>").await.unwrap();
    client.flush().await.unwrap();
    let nothing = other.leasing.lease(&request(&["a"], 1, Duration::from_secs(3))).await.unwrap();
    assert!(nothing.is_empty() && held[0].attempt == 1);
    client.flush().await.unwrap();
    let (mut rounds, mut pulls) = (0, Vec::new());
    while let Some(Some(call)) = asked.next().now_or_never() {
        rounds += usize::from(call.subject.contains(".CONSUMER.LIST."));
        let body: serde_json::Value = serde_json::from_slice(&call.payload).unwrap_or_default();
        // One that a hint made waits for 300 ms.
        if call.subject.contains(".MSG.NEXT.") && body["expires"] != 300_000_000 {
            pulls.push((rounds, body));
        }
    }
    assert!(rounds > 0 && pulls.is_empty(), "{rounds} rounds made these pulls, each after so many: {pulls:?}");
}
