//! Messages in relay's streams that no relay wrote: they count as absent, and stand in nobody's way.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use relay_bridge::clock::Clock;
use relay_bridge::contract::result::End;
use relay_bridge::contract::{Failure, JobResult, JobState, Outcome};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::leasing::{Delivery, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::Lookup;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::NatsServer;
use relay_nats::config::NatsConfig;
use relay_nats::connection::Wait;
use relay_nats::names::{self, Address, Letter, LetterKind};
use relay_nats::{Nats, Settings};

use super::support::{PATIENCE, Stage};

async fn open(server: &NatsServer) -> (Stage, Context) {
    open_at(server, &Clock::system()).await
}

async fn open_at(server: &NatsServer, clock: &Clock) -> (Stage, Context) {
    let settings = Settings { clock: clock.clone(), ..Settings::default() };
    let nats = Nats::connect(NatsConfig::new([server.url()]), Wait::AtMost(PATIENCE), settings).await.unwrap();
    let policy = QueuePolicy::default();
    let stage = Stage { broker: nats.broker(), queue: "work".parse().unwrap(), policy, clock: clock.clone() };
    stage.broker.policies.put_policy(&stage.queue, &stage.policy, None).await.unwrap();
    (stage, async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap()))
}

async fn put(jetstream: &Context, subject: String, headers: &[(&str, &str)], payload: impl Into<bytes::Bytes>) {
    let mut map = HeaderMap::new();
    headers.iter().for_each(|(name, value)| map.insert(*name, *value));
    jetstream.publish_with_headers(subject, map, payload.into()).await.unwrap().await.unwrap();
}

fn letter(stage: &Stage, delivery: &Delivery) -> DeadLetter {
    let (job, failure, at) = (delivery.job.clone(), Failure::new("exit-code", "1"), stage.clock.now());
    DeadLetter { job, outcome: Outcome::Failed, attempt: 1, failure, at, extra: Default::default() }
}

fn failure(stage: &Stage, delivery: &Delivery) -> JobResult {
    let end = End { attempt: delivery.attempt, started_at: None, finished_at: stage.clock.now() };
    JobResult::unsuccessful(&delivery.job, Outcome::Failed, end, Failure::new("exit-code", "1"))
}

async fn held(stage: &Stage, client: &str, key: &str) -> Delivery {
    stage.submit(client, key).await;
    stage.lease(1, PATIENCE).await.remove(0)
}

async fn failed(stage: &Stage, client: &str, key: &str) -> Delivery {
    let delivery = held(stage, client, key).await;
    stage.broker.leasing.dead_letter(&letter(stage, &delivery)).await.unwrap();
    stage.broker.leasing.record(&failure(stage, &delivery)).await.unwrap();
    stage.broker.leasing.settle(&delivery.receipt, &Settlement::DeadLetter).await.unwrap();
    delivery
}

fn name(delivery: &Delivery, kind: LetterKind) -> String {
    let job = &delivery.job;
    Letter { address: Address::new(&job.queue, &job.client, job.id), run: job.run_id, kind }.subject()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_of_another_job_than_its_name_says_is_not_redriven() {
    let server = NatsServer::start().await;
    let (stage, jetstream) = open(&server).await;
    let victim = failed(&stage, "victim", "key").await;
    let stream = jetstream.get_stream(names::DEAD_STREAM).await.unwrap();
    let of_victim = stream.get_last_raw_message_by_subject("relay.dead.>").await.unwrap();
    let own = failed(&stage, "acme", "key").await;
    let letters = &stage.broker.dead_letters;
    assert!(letters.purge(own.job.id, own.job.run_id).await.unwrap());
    put(&jetstream, name(&own, LetterKind::Kept(1)), &[], of_victim.payload).await;
    assert_eq!(letters.get(own.job.id).await.unwrap(), None);
    let refused = letters.redrive(own.job.id, own.job.run_id).await.unwrap_err();
    assert_eq!(refused.kind(), BrokerErrorKind::NotFound, "{refused}");
    assert_eq!(letters.get(victim.job.id).await.unwrap().map(|letter| letter.job.client), Some(victim.job.client));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_letter_keeps_no_letter_away_and_no_redrive() {
    let server = NatsServer::start().await;
    let (stage, jetstream) = open(&server).await;
    let letters = &stage.broker.dead_letters;
    for (number, own) in [false, true].into_iter().enumerate() {
        for (stray, headers) in [
            (LetterKind::Kept(1), &[][..]),
            (LetterKind::Kept(1), &[("Relay-Keep-Until", "0")]),
            (LetterKind::Redriven, &[]),
            (LetterKind::Redriven, &[("Relay-Redriven-At", "1")]),
        ] {
            let key = format!("{number}-{stray:?}-{}", headers.len());
            let delivery = held(&stage, "acme", &key).await;
            put(&jetstream, name(&delivery, stray), headers, "{}").await;
            if !own {
                stage.broker.leasing.dead_letter(&letter(&stage, &delivery)).await.unwrap();
            }
            stage.broker.leasing.record(&failure(&stage, &delivery)).await.unwrap();
            stage.broker.leasing.settle(&delivery.receipt, &Settlement::DeadLetter).await.unwrap();
            let kept = letters.get(delivery.job.id).await.unwrap().map(|letter| letter.job.payload);
            assert_eq!(kept, Some(delivery.job.payload.clone()), "{key}");
            // And once more, behind the letter.
            let own_run = delivery.job.run_id.to_string();
            let mark = [("Relay-Redriven-Run", own_run.as_str()), ("Relay-Redriven-At", "1")];
            put(&jetstream, name(&delivery, LetterKind::Redriven), &mark, "").await;
            let stray = format!("relay.dead.{}.{own_run}.no-letter.NOBODY", delivery.job.id);
            put(&jetstream, stray, &[], "").await;
            let next = letters.redrive(delivery.job.id, delivery.job.run_id).await.unwrap();
            assert_eq!(next.status().generation, 2, "{key}");
            assert!(next.status().run_id > delivery.job.run_id, "{key}");
            assert_eq!(stage.run(1).await, [delivery.job.id]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_of_another_job_than_its_name_says_ends_no_run() {
    let server = NatsServer::start().await;
    let (stage, jetstream) = open(&server).await;
    let delivery = held(&stage, "acme", "key").await;
    // Of a later run.
    let other = held(&stage, "other", "key").await;
    stage.succeed(&other, "of another").await;
    let stream = jetstream.get_stream(names::RESULTS_STREAM).await.unwrap();
    let forged = stream.get_last_raw_message_by_subject("relay.results-log.>").await.unwrap();
    let (client, job) = (&delivery.job.client, delivery.job.id);
    let headers: Vec<_> = ["Relay-Envelope", "Relay-Keep-Until"]
        .map(|name| (name, forged.headers.get(name).unwrap().as_str()))
        .into_iter()
        .collect();
    put(&jetstream, names::result(client, job), &headers, forged.payload.clone()).await;
    let status = stage.broker.jobs.status(client, job).await.unwrap().unwrap();
    assert_eq!(status.state, JobState::Leased);
    assert_eq!(stage.succeed(&delivery, "done").await, Recorded::First);
    match stage.broker.results.lookup(client, job).await.unwrap() {
        Lookup::Finished(kept) => assert_eq!((kept.result.job_id, &kept.result.payload[..]), (job, &b"done"[..])),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_says_that_it_is_past_its_keeping_leaves_no_run_without_an_outcome() {
    let server = NatsServer::start().await;
    let (stage, jetstream) = open(&server).await;
    let stream = jetstream.get_stream(names::RESULTS_STREAM).await.unwrap();
    let forge = async |delivery: &Delivery| {
        stage.record(delivery, "forged").await;
        let subject = names::result(&delivery.job.client, delivery.job.id);
        let found = stream.get_last_raw_message_by_subject(&subject).await.unwrap();
        stream.delete_message(found.sequence).await.unwrap();
        let envelope = found.headers.get("Relay-Envelope").unwrap().as_str();
        put(&jetstream, subject, &[("Relay-Envelope", envelope), ("Relay-Keep-Until", "0")], found.payload).await;
    };
    let recorded = held(&stage, "acme", "recorded").await;
    forge(&recorded).await;
    assert_eq!(stage.succeed(&recorded, "forged").await, Recorded::First);
    let cancelled = held(&stage, "acme", "cancelled").await;
    forge(&cancelled).await;
    stage.broker.jobs.cancel(&cancelled.job.client, cancelled.job.id).await.unwrap();
    for (delivery, outcome) in [(recorded, Outcome::Succeeded), (cancelled, Outcome::Cancelled)] {
        match stage.broker.results.lookup(&delivery.job.client, delivery.job.id).await.unwrap() {
            Lookup::Finished(kept) => assert_eq!(kept.result.outcome, outcome),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_relay_kept_itself_does_not_stay_behind_a_success() {
    let server = NatsServer::start().await;
    let ((stage, _), (other, _)) = (open(&server).await, open(&server).await);
    let delivery = held(&stage, "acme", "key").await;
    assert_eq!(other.record(&delivery, "done").await, Recorded::First);
    let answer = stage.broker.leasing.record(&failure(&stage, &delivery)).await.unwrap();
    assert_eq!(answer, Recorded::Superseded(Outcome::Succeeded));
    assert_eq!(stage.broker.dead_letters.get(delivery.job.id).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_was_under_way_while_its_job_was_erased_goes_when_its_worker_sends_it_again() {
    let server = NatsServer::start().await;
    let (stage, jetstream) = open(&server).await;
    let delivery = failed(&stage, "acme", "key").await;
    let stream = jetstream.get_stream(names::DEAD_STREAM).await.unwrap();
    let under_way = stream.get_last_raw_message_by_subject("relay.dead.>").await.unwrap();
    stage.broker.jobs.erase(&delivery.job.client, delivery.job.id).await.unwrap();
    jetstream
        .publish_with_headers(under_way.subject, under_way.headers, under_way.payload)
        .await
        .unwrap()
        .await
        .unwrap();
    stage.broker.leasing.dead_letter(&letter(&stage, &delivery)).await.unwrap();
    assert_eq!(stage.broker.dead_letters.get(delivery.job.id).await.unwrap(), None);
    assert!(stream.get_last_raw_message_by_subject("relay.dead.>").await.is_err(), "its payload is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn erasing_removes_the_payload_of_a_record_past_its_keeping() {
    let server = NatsServer::start().await;
    let clock = Clock::manual(Clock::system().now());
    let (stage, jetstream) = open_at(&server, &clock).await;
    let delivery = held(&stage, "acme", "key").await;
    clock.advance(Duration::from_secs(600));
    stage.succeed(&delivery, "done").await;
    // The result is kept from when it was recorded, the record from when the run began.
    clock.advance(stage.policy.job_ttl + stage.policy.retention - Duration::from_secs(300));
    stage.broker.jobs.erase(&delivery.job.client, delivery.job.id).await.unwrap();
    let stream = jetstream.get_stream(names::jobs_stream(&stage.queue)).await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 0, "the payload is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_ends_the_run_that_was_open_when_it_came_and_none_that_follows() {
    let server = NatsServer::start().await;
    let ((stage, _), (other, _)) = (open(&server).await, open(&server).await);
    for round in 0..20 {
        let job = stage.submit("acme", &format!("key-{round}")).await.status().clone();
        let rerun = async { while other.broker.jobs.rerun(&job.client, job.job_id, 1).await.is_err() {} };
        let rerun = tokio::time::timeout(PATIENCE, rerun);
        let (cancelled, rerun) = tokio::join!(stage.broker.jobs.cancel(&job.client, job.job_id), rerun);
        cancelled.unwrap();
        rerun.unwrap();
        let status = stage.broker.jobs.status(&job.client, job.job_id).await.unwrap().unwrap();
        assert_eq!((status.generation, status.state), (2, JobState::Queued), "round {round}");
    }
}
