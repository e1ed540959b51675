//! Dead letters between the steps of a redrive: a letter that comes late, or a redrive that was broken off, starts
//! nothing that has run.

use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Failure, Job, JobResult, Outcome, Submission};
use relay_bridge::dead_letters::{DeadLetter, LetterHead};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::{Delivery, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::{NatsServer, NatsServerBuilder};
use relay_nats::config::{Credentials, NatsConfig, Secret};
use relay_nats::connection::Wait;
use relay_nats::{Nats, Settings, names};

use super::support::{PATIENCE, Stage};

/// A server with a user who may do everything, and one who may do everything but publish on `denied`.
fn server(denied: &[&str]) -> NatsServerBuilder {
    let half = format!("{{ user: half, password: x, permissions: {{ publish: {{ deny: {denied:?} }} }} }}");
    NatsServer::builder()
        .config(&format!("authorization {{ users: [{{ user: relay, password: x }}, {half}] }}\nno_auth_user: relay"))
}

async fn open(server: &NatsServer, user: &str, clock: &Clock) -> Stage {
    let credentials = Credentials::User { name: user.to_owned(), password: Secret::Value("x".to_owned()) };
    let config = NatsConfig { credentials, ..NatsConfig::new([server.url()]) };
    let settings = Settings { clock: clock.clone(), ..Settings::default() };
    let nats = Nats::connect(config, Wait::AtMost(PATIENCE), settings).await.unwrap();
    let policy = QueuePolicy { retention: Duration::from_secs(3_600), ..QueuePolicy::default() };
    let stage = Stage { broker: nats.broker(), queue: "work".parse().unwrap(), policy, clock: clock.clone() };
    stage.broker.policies.put_policy(&stage.queue, &stage.policy, None).await.unwrap();
    stage
}

/// A keyed job whose run ended as failed, with its letter.
async fn dead(stage: &Stage) -> Job {
    stage.submit("acme", "key").await;
    let delivery = stage.lease(1, PATIENCE).await.remove(0);
    fail(stage, &delivery).await;
    delivery.job
}

async fn fail(stage: &Stage, delivery: &Delivery) {
    let result = JobResult::unsuccessful(
        &delivery.job,
        Outcome::Failed,
        End { attempt: 1, started_at: None, finished_at: stage.clock.now() },
        Failure::new("exit-code", "1"),
    );
    stage.broker.leasing.dead_letter(&letter(stage, &delivery.job)).await.unwrap();
    stage.broker.leasing.record(&result).await.unwrap();
    stage.broker.leasing.settle(&delivery.receipt, &Settlement::DeadLetter).await.unwrap();
}

fn letter(stage: &Stage, job: &Job) -> DeadLetter {
    let (failure, at) = (Failure::new("exit-code", "1"), stage.clock.now());
    DeadLetter { job: job.clone(), outcome: Outcome::Failed, attempt: 1, failure, at, extra: Default::default() }
}

/// Until the record is past its keeping; the server still has what is past it by this clock alone.
async fn outlive_the_record(stage: &Stage) {
    stage.clock.advance(stage.policy.job_ttl + stage.policy.retention + Duration::from_secs(60));
    while stage.broker.jobs.sweep(500).await.unwrap().more {}
}

async fn starts_nothing(stage: &Stage, job: &Job) {
    let refused = stage.broker.dead_letters.redrive(job.id, job.run_id).await.unwrap_err();
    assert_eq!(refused.kind(), BrokerErrorKind::NotFound, "{refused}");
    assert_eq!(stage.broker.jobs.status(&job.client, job.id).await.unwrap(), None);
    assert!(stage.lease(1, Duration::ZERO).await.is_empty());
    assert_eq!(stage.broker.dead_letters.get(job.id).await.unwrap(), None);
    assert!(stage.broker.dead_letters.list(None, None, None, 10).await.unwrap().letters.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_was_under_way_while_it_was_redriven_is_not_kept_again() {
    let server = server(&["nothing"]).start().await;
    let stage = open(&server, "relay", &Clock::manual(Clock::system().now())).await;
    let job = dead(&stage).await;
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let stream = jetstream.get_stream(names::DEAD_STREAM).await.unwrap();
    let under_way = stream.get_last_raw_message_by_subject("relay.dead.>").await.unwrap();
    let redriven = stage.broker.dead_letters.redrive(job.id, job.run_id).await.unwrap();
    assert_eq!(redriven.status().generation, 2);

    // Its worker had asked about the job before, and writes the letter now, under the condition that it had then.
    let late = jetstream.publish_with_headers(under_way.subject, under_way.headers, under_way.payload).await.unwrap();
    drop(late.await);
    assert_eq!(stage.broker.dead_letters.get(job.id).await.unwrap(), None, "it was redriven");
    assert_eq!(stage.run(1).await, [job.id]);
    outlive_the_record(&stage).await;
    starts_nothing(&stage, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_that_broke_off_before_its_letter_went_starts_nothing_once_that_run_is_forgotten() {
    let denied = ["$JS.API.STREAM.MSG.DELETE.relay-dead", "$JS.API.STREAM.PURGE.relay-dead"];
    let server = server(&denied).start().await;
    let clock = Clock::manual(Clock::system().now());
    let (stage, half) = (open(&server, "relay", &clock).await, open(&server, "half", &clock).await);
    let job = dead(&stage).await;
    let broken = half.broker.dead_letters.redrive(job.id, job.run_id).await.unwrap_err();
    assert_eq!(broken.kind(), BrokerErrorKind::Ambiguous, "{broken}");
    assert_eq!(stage.run(1).await, [job.id]);
    assert!(stage.broker.dead_letters.get(job.id).await.unwrap().is_some(), "its letter is there");
    outlive_the_record(&stage).await;
    starts_nothing(&stage, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_that_broke_off_before_its_run_began_is_taken_up_again_as_long_as_the_run_would_be_known() {
    let server = server(&["relay.jobs.>"]).start().await;
    let clock = Clock::manual(Clock::system().now());
    let (stage, half) = (open(&server, "relay", &clock).await, open(&server, "half", &clock).await);
    let job = dead(&stage).await;
    outlive_the_record(&stage).await;
    for _ in 0..2 {
        let broken = half.broker.dead_letters.redrive(job.id, job.run_id).await.unwrap_err();
        assert_eq!(broken.kind(), BrokerErrorKind::Ambiguous, "{broken}");
    }
    let letters = &stage.broker.dead_letters;
    assert!(letters.get(job.id).await.unwrap().is_some(), "the only copy of the payload");
    let started = letters.redrive(job.id, job.run_id).await.unwrap();
    assert!(matches!(&started, Enqueued::Created(status) if status.generation == 2), "{started:?}");
    let again = letters.redrive(job.id, job.run_id).await.unwrap();
    assert!(matches!(&again, Enqueued::Known(status) if status.run_id == started.status().run_id), "{again:?}");
    let delivery = stage.lease(1, PATIENCE).await.remove(0);
    assert_eq!((delivery.job.run_id, &delivery.job.payload), (started.status().run_id, &job.payload));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_of_a_release_that_did_not_say_when_is_listed_redriven_and_purged() {
    let server = server(&["nothing"]).start().await;
    let stage = open(&server, "relay", &Clock::manual(Clock::system().now())).await;
    let job = dead(&stage).await;
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let stream = jetstream.get_stream(names::DEAD_STREAM).await.unwrap();
    let written = stream.get_last_raw_message_by_subject("relay.dead.>").await.unwrap();
    let before = format!("relay.dead.{}.{}.work.acme", job.id, job.run_id);
    let letters = &stage.broker.dead_letters;
    assert!(letters.purge(job.id, job.run_id).await.unwrap());
    let put = async || {
        let mut headers = async_nats::HeaderMap::new();
        let keep_until = written.headers.get("Relay-Keep-Until").unwrap().as_str();
        headers.insert("Relay-Keep-Until", keep_until);
        let sent = jetstream.publish_with_headers(before.clone(), headers, written.payload.clone()).await.unwrap();
        sent.await.unwrap();
    };
    put().await;
    assert_eq!(letters.list(Some(&stage.queue), None, None, 10).await.unwrap().letters.len(), 1);
    assert_eq!(letters.get(job.id).await.unwrap().unwrap().job.payload, job.payload);
    assert!(letters.purge(job.id, job.run_id).await.unwrap());
    put().await;
    assert_eq!(letters.redrive(job.id, job.run_id).await.unwrap().status().generation, 2);
    assert_eq!(letters.get(job.id).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_worker_sent_its_letter_is_recorded_as_failed_without_reading_its_record() {
    let server = server(&["$JS.API.STREAM.MSG.GET.relay-jobs-work"]).start().await;
    let clock = Clock::manual(Clock::system().now());
    let (stage, holder) = (open(&server, "relay", &clock).await, open(&server, "half", &clock).await);
    stage.submit("acme", "key").await;
    let delivery = holder.lease(1, PATIENCE).await.remove(0);
    stage.broker.leasing.dead_letter(&letter(&stage, &delivery.job)).await.unwrap();
    let end = End { attempt: 1, started_at: None, finished_at: clock.now() };
    let failure = Failure::new("exit-code", "1");
    let result = JobResult::unsuccessful(&delivery.job, Outcome::Failed, end, failure);
    assert_eq!(holder.broker.leasing.record(&result).await.unwrap(), Recorded::First);
    let kept = stage.broker.dead_letters.get(delivery.job.id).await.unwrap();
    assert_eq!(kept.map(|letter| letter.job), Some(delivery.job));
}

/// Letters of jobs with this many bytes of payload.
async fn large(stage: &Stage, letters: usize, bytes: usize) {
    for _ in 0..letters {
        let job = Submission::plain("acme".parse().unwrap(), stage.queue.clone(), "text/plain", vec![7; bytes]);
        stage.broker.jobs.enqueue(job.accept(&stage.policy, stage.clock.now())).await.unwrap();
        let delivery = stage.lease(1, PATIENCE).await.remove(0);
        fail(stage, &delivery).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_letters_reads_no_payload_and_leaves_no_consumer() {
    const BYTES: usize = 200_000;
    let server = server(&["nothing"]).start().await;
    let stage = open(&server, "relay", &Clock::system()).await;
    large(&stage, 5, BYTES).await;
    let sent = async || server.monitor("/varz").await.unwrap()["out_bytes"].as_u64().unwrap();
    let before = sent().await;
    let listed = stage.broker.dead_letters.list(Some(&stage.queue), None, None, 10).await.unwrap().letters;
    let sent = sent().await - before;
    assert!(sent < BYTES as u64, "five letters were {sent} bytes");
    assert_eq!(listed.iter().map(|head| head.size).collect::<Vec<_>>(), [BYTES as u64; 5]);
    let newest = stage.broker.dead_letters.get(listed[0].letter.job.id).await.unwrap().unwrap();
    assert_eq!((newest.job.payload.len(), &listed[0]), (BYTES, &LetterHead::of(newest.clone())));
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let info = jetstream.get_stream(names::DEAD_STREAM).await.unwrap().get_info().await.unwrap();
    assert_eq!(info.state.consumer_count, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_may_make_no_consumer_lists_letters_and_finds_the_queue_of_a_result_all_the_same() {
    let denied = ["$JS.API.CONSUMER.CREATE.relay-dead.>", "$JS.API.CONSUMER.CREATE.relay-results.>"];
    let server = server(&denied).start().await;
    let clock = Clock::system();
    let (stage, half) = (open(&server, "relay", &clock).await, open(&server, "half", &clock).await);
    large(&stage, 2, 100_000).await;
    let letters = |stage: &Stage| stage.broker.dead_letters.clone();
    let (by_headers, whole) =
        (letters(&stage).list(None, None, None, 10).await, letters(&half).list(None, None, None, 10).await);
    let (by_headers, whole) = (by_headers.unwrap().letters, whole.unwrap().letters);
    assert_eq!((by_headers.len(), by_headers), (2, whole.clone()));
    let (job, queue) = (&whole[0].letter.job, std::slice::from_ref(&half.queue));
    assert!(half.broker.jobs.is_in(&job.client, job.id, queue).await.unwrap());
    assert!(!half.broker.jobs.is_in(&job.client, job.id, &["other".parse().unwrap()]).await.unwrap());
}
