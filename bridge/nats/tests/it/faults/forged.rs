//! Receipts that no relay gave out: a worker over TCP can write anything into its own.

use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::contract::{JobState, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Enqueued;
use relay_bridge::leasing::{Held, Progress, Receipt};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_conformance::testing::NatsServer;
use relay_nats::config::NatsConfig;
use relay_nats::connection::Wait;
use relay_nats::names::{self, Address};
use relay_nats::{Nats, Settings};

use super::support::{PATIENCE, Stage};

/// Where a token has the sequence, the attempt, when the lease began, and whether the record stays.
const SEQ: std::ops::Range<usize> = 1..9;
const ATTEMPT: std::ops::Range<usize> = 17..21;
const LEASED_AT: std::ops::Range<usize> = 21..29;
const KEEP_RECORD: std::ops::Range<usize> = 37..38;
const REPLY: std::ops::RangeFrom<usize> = 38..;

fn with(receipt: &Receipt, part: std::ops::Range<usize>, bytes: &[u8]) -> Receipt {
    let mut forged = receipt.clone();
    forged.token[part].copy_from_slice(bytes);
    forged
}

/// The receipt as if it were of the message `seq`.
fn of_message(receipt: &Receipt, seq: u64) -> Receipt {
    let own = u64::from_be_bytes(receipt.token[SEQ].try_into().unwrap());
    let mut forged = with(&with(receipt, SEQ, &seq.to_be_bytes()), KEEP_RECORD, &[0]);
    let reply = String::from_utf8(forged.token.split_off(REPLY.start)).unwrap();
    forged.token.extend(reply.replacen(&format!(".1.{own}."), &format!(".1.{seq}."), 1).into_bytes());
    forged
}

async fn open(server: &NatsServer, policy: &QueuePolicy, clock: &Clock) -> Stage {
    let settings = Settings { clock: clock.clone(), ..Settings::default() };
    let nats = Nats::connect(NatsConfig::new([server.url()]), Wait::AtMost(PATIENCE), settings).await.unwrap();
    let stage =
        Stage { broker: nats.broker(), queue: "work".parse().unwrap(), policy: policy.clone(), clock: clock.clone() };
    stage.broker.policies.put_policy(&stage.queue, policy, None).await.unwrap();
    stage
}

async fn settle(stage: &Stage, receipt: &Receipt, settlement: Settlement) -> Result<(), BrokerError> {
    stage.broker.leasing.settle(receipt, &settlement).await
}

#[track_caller]
fn is_lost<T: std::fmt::Debug>(answer: Result<T, BrokerError>) {
    let refused = answer.expect_err("no relay gave that receipt");
    assert_eq!(refused.kind(), BrokerErrorKind::LeaseLost, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_that_says_that_nothing_is_kept_does_not_remove_the_record_of_a_key() {
    let server = NatsServer::start().await;
    let stage = open(&server, &QueuePolicy::default(), &Clock::system()).await;
    let other = open(&server, &QueuePolicy::default(), &Clock::system()).await;
    for (key, settler) in [("here", &stage), ("elsewhere", &other)] {
        stage.submit("acme", key).await;
        let delivery = stage.lease(1, PATIENCE).await.remove(0);
        stage.record(&delivery, "done").await;
        settle(settler, &with(&delivery.receipt, KEEP_RECORD, &[0]), Settlement::Complete).await.unwrap();
        let again = stage.submit("acme", key).await;
        assert!(matches!(again, Enqueued::Known(_)), "{key}: {again:?}");
        let record = stage.broker.jobs.status(&delivery.job.client, delivery.job.id).await.unwrap().unwrap();
        assert_eq!(record.fingerprint, delivery.job.fingerprint, "{key}: its record is gone");
    }
    assert!(stage.lease(1, Duration::ZERO).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_of_a_run_that_ended_takes_no_other_message_out_of_line() {
    let server = NatsServer::start().await;
    let stage = open(&server, &QueuePolicy::default(), &Clock::system()).await;
    stage.submit("acme", "ended").await;
    let ended = stage.lease(1, PATIENCE).await.remove(0);
    stage.succeed(&ended, "done").await;
    let waits = stage.submit("acme", "waits").await.status().job_id;
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let stream = jetstream.get_stream(names::jobs_stream(&stage.queue)).await.unwrap();
    let address = Address::new(&stage.queue, &ended.job.client, waits);
    let seq = stream.get_last_raw_message_by_subject(&address.anywhere()).await.unwrap().sequence;
    for settlement in [Settlement::Complete, Settlement::DeadLetter, Settlement::HandBack(Duration::ZERO)] {
        is_lost(settle(&stage, &of_message(&ended.receipt, seq), settlement).await);
    }
    assert_eq!(stage.run(1).await, [waits]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_that_says_another_attempt_spends_the_one_that_it_was() {
    let server = NatsServer::start().await;
    let stage = open(&server, &QueuePolicy::default(), &Clock::system()).await;
    let other = open(&server, &QueuePolicy::default(), &Clock::system()).await;
    stage.submit("acme", "key").await;
    for attempt in 1..=3_u32 {
        let delivery = stage.lease(1, PATIENCE).await.remove(0);
        assert_eq!(delivery.attempt, attempt);
        for lie in [0, attempt + 1, u32::MAX] {
            let lie = with(&delivery.receipt, ATTEMPT, &lie.to_be_bytes());
            is_lost(other.broker.leasing.extend(&lie).await);
            is_lost(settle(&other, &lie, Settlement::RetryAfter(Duration::ZERO)).await);
        }
        let lie = with(&delivery.receipt, ATTEMPT, &[0; 4]);
        settle(&stage, &lie, Settlement::RetryAfter(Duration::ZERO)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_of_leases_that_stand_and_to_nobody_else() {
    let server = NatsServer::start().await;
    let stage = open(&server, &QueuePolicy::default(), &Clock::system()).await;
    let other = open(&server, &QueuePolicy::default(), &Clock::system()).await;
    stage.submit("acme", "key").await;
    let held = stage.lease(1, PATIENCE).await.remove(0);
    let progress = Progress { percent: Some(50.0), message: "half".to_owned() };
    for wrong in [
        Receipt { run_id: held.job.next_run(Clock::system().now()).run_id, ..held.receipt.clone() },
        Receipt { job_id: relay_bridge::contract::JobId::mint(), ..held.receipt.clone() },
        of_message(&held.receipt, 4_711),
    ] {
        is_lost(stage.broker.leasing.progress(&wrong, &progress).await);
        is_lost(other.broker.leasing.progress(&wrong, &progress).await);
    }
    other.broker.leasing.progress(&held.receipt, &progress).await.unwrap();
    stage.succeed(&held, "done").await;
    let third = open(&server, &QueuePolicy::default(), &Clock::system()).await;
    is_lost(third.broker.leasing.progress(&held.receipt, &progress).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_that_says_a_later_start_is_not_held_beyond_lease_max() {
    let server = NatsServer::start().await;
    let policy = QueuePolicy { lease_max: Duration::from_secs(300), ..QueuePolicy::default() };
    let clock = Clock::manual(Clock::system().now());
    let (first, second) = (open(&server, &policy, &clock).await, open(&server, &policy, &clock).await);
    let job = first.submit("acme", "key").await.status().clone();
    let held = first.lease(1, PATIENCE).await.remove(0);
    let at = |at: Timestamp| with(&held.receipt, LEASED_AT, &at.as_millis().to_be_bytes());
    is_lost(second.broker.leasing.extend(&at(clock.now() + Duration::from_secs(60))).await);
    assert!(matches!(second.broker.leasing.extend(&held.receipt).await.unwrap(), Held::Until(_)));
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let states = jetstream.get_stream(names::STATE_STREAM).await.unwrap();
    // It says so without waiting.
    let state = names::state(&job.client, job.job_id);
    let told = async { while states.get_last_raw_message_by_subject(&state).await.is_err() {} };
    tokio::time::timeout(PATIENCE, told).await.unwrap();
    clock.advance(policy.lease_max + Duration::from_secs(1));
    let third = open(&server, &policy, &clock).await;
    is_lost(third.broker.leasing.extend(&at(clock.now())).await);
    is_lost(settle(&third, &at(clock.now()), Settlement::HandBack(Duration::ZERO)).await);
    let status = first.broker.jobs.status(&job.client, job.job_id).await.unwrap().unwrap();
    assert_eq!(status.state, JobState::Leased);
}
