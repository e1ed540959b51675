//! Jobs that a process put in line itself a moment ago: it asks the server less about them, and answers the same. On a real
//! server.

use std::time::Duration;

use futures_util::StreamExt as _;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Failure, Job, JobResult, Outcome, RunId, Submission};
use relay_bridge::leasing::{Delivery, LeaseRequest};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::Lookup;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::NatsServer;
use relay_nats::config::NatsConfig;
use relay_nats::connection::Wait;
use relay_nats::{Nats, Settings, names};

/// Far longer than a test runs.
const WAIT: Duration = Duration::from_secs(60);

async fn open(server: &NatsServer, queues: &[&str]) -> Broker {
    let nats = Nats::connect(NatsConfig::new([server.url()]), Wait::AtMost(WAIT), Settings::default()).await.unwrap();
    for queue in queues {
        nats.broker().policies.put_policy(&queue.parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
    }
    nats.broker()
}

/// A job in queue `work`, in line.
async fn submit(broker: &Broker, key: Option<&str>) -> Job {
    let submission = Submission::plain("acme".parse().unwrap(), "work".parse().unwrap(), "text/plain", vec![7]);
    let submission = Submission { key: key.map(|key| key.parse().unwrap()), ..submission };
    let job = submission.accept(&QueuePolicy::default(), Clock::system().now());
    broker.jobs.enqueue(job.clone()).await.unwrap();
    job
}

async fn lease(broker: &Broker) -> Delivery {
    let (worker, queues) = ("worker-1".parse().unwrap(), vec!["work".parse().unwrap()]);
    let request = LeaseRequest { worker, queues, max: 1.try_into().unwrap(), wait: WAIT };
    broker.leasing.lease(&request).await.unwrap().remove(0)
}

/// Ends the run of a delivery, and settles it.
async fn end(broker: &Broker, delivery: &Delivery, outcome: Outcome) {
    let end = End { attempt: 1, started_at: Some(delivery.leased_at), finished_at: Clock::system().now() };
    let (result, settlement) = match outcome {
        Outcome::Succeeded => {
            (JobResult::succeeded(&delivery.job, end, "text/plain", "done".into()), Settlement::Complete)
        }
        outcome => {
            let failure = Failure::new("exit-code", "1");
            (JobResult::unsuccessful(&delivery.job, outcome, end, failure), Settlement::DeadLetter)
        }
    };
    broker.leasing.record(&result).await.unwrap();
    broker.leasing.settle(&delivery.receipt, &settlement).await.unwrap();
}

/// The run that the job is in, and its outcome if it ended.
async fn stands(broker: &Broker, job: &Job) -> (RunId, Option<Outcome>) {
    match broker.results.lookup(&job.client, job.id).await.unwrap() {
        Lookup::Open(status) => (status.run_id, None),
        Lookup::Finished(kept) => (kept.result.run_id, Some(kept.result.outcome)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_its_process_put_in_line_is_looked_up_with_two_requests_before_and_after_its_end() {
    let server = NatsServer::start().await;
    // In however many queues it might be.
    let (broker, worker) = (open(&server, &["a", "b", "work"]).await, open(&server, &[]).await);
    let client = async_nats::connect(server.url()).await.unwrap();
    let before = submit(&broker, None).await;
    end(&worker, &lease(&worker).await, Outcome::Succeeded).await;
    // What is read once, such as the log's id.
    stands(&broker, &before).await;

    let job = submit(&broker, None).await;
    let mut asked = client.subscribe("$JS.API.STREAM.>").await.unwrap();
    client.flush().await.unwrap();
    let mut calls = async || {
        client.flush().await.unwrap();
        let mut calls = Vec::new();
        while let Some(Some(call)) = futures_util::FutureExt::now_or_never(asked.next()) {
            calls.push(call.subject.trim_start_matches("$JS.API.STREAM.").to_owned());
        }
        calls
    };
    assert_eq!(stands(&broker, &job).await, (job.run_id, None));
    assert_eq!(calls().await, ["INFO.relay-results", "MSG.GET.relay-jobs-work"]);
    end(&worker, &lease(&worker).await, Outcome::Succeeded).await;
    calls().await;
    assert_eq!(stands(&broker, &job).await, (job.run_id, Some(Outcome::Succeeded)));
    assert_eq!(calls().await, ["INFO.relay-results", "MSG.GET.relay-results"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_run_that_another_process_began_is_seen_by_the_one_that_put_the_first_in_line() {
    let server = NatsServer::start().await;
    let (broker, other) = (open(&server, &["work"]).await, open(&server, &[]).await);
    for key in [None, Some("key")] {
        let job = submit(&broker, key).await;
        end(&other, &lease(&other).await, Outcome::Failed).await;
        assert_eq!(stands(&broker, &job).await, (job.run_id, Some(Outcome::Failed)), "{key:?}");
        other.dead_letters.redrive(job.id, job.run_id).await.unwrap();
        let (run, outcome) = stands(&broker, &job).await;
        assert!(run > job.run_id && outcome.is_none(), "{key:?}: {outcome:?}");
        end(&other, &lease(&other).await, Outcome::Succeeded).await;
        assert_eq!(stands(&broker, &job).await, (run, Some(Outcome::Succeeded)), "{key:?}");
    }
    let job = submit(&broker, Some("rerun")).await;
    end(&other, &lease(&other).await, Outcome::Succeeded).await;
    other.jobs.rerun(&job.client, job.id, 1).await.unwrap();
    let (run, outcome) = stands(&broker, &job).await;
    assert!(run > job.run_id && outcome.is_none(), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_a_job_is_told_also_where_its_record_or_its_queue_went() {
    let server = NatsServer::start().await;
    let (broker, other) = (open(&server, &["work"]).await, open(&server, &[]).await);
    let [ended, cancelled, lost] = [Some("ended"), Some("cancelled"), Some("lost")];
    let ended = submit(&broker, ended).await;
    end(&other, &lease(&other).await, Outcome::Succeeded).await;
    let cancelled = submit(&broker, cancelled).await;
    other.jobs.cancel(&cancelled.client, cancelled.id).await.unwrap();
    assert_eq!(stands(&broker, &cancelled).await, (cancelled.run_id, Some(Outcome::Cancelled)));
    let lost = submit(&broker, lost).await;
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    jetstream.delete_stream(names::jobs_stream(&lost.queue)).await.unwrap();
    for (job, outcome) in [(&ended, Outcome::Succeeded), (&cancelled, Outcome::Cancelled)] {
        assert_eq!(stands(&broker, job).await, (job.run_id, Some(outcome)));
    }
    assert!(matches!(broker.results.lookup(&lost.client, lost.id).await.unwrap(), Lookup::Absent));
}
