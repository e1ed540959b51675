//! Everything that a client and a handler write reaches the other side byte for byte, up to a limit that is told.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Fixture;
use super::stage::{Stage, refused};
use relay_bridge::contract::{Failure, JobResult, Outcome};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::job_queue::Depth;
use relay_bridge::settlement::Settlement;

/// A pattern without a short period, so that a swapped or repeated block shows.
fn pattern(bytes: u64) -> Bytes {
    (0..bytes).map(|at| (at ^ (at >> 8).wrapping_mul(31) ^ (at >> 16).wrapping_mul(17)).to_le_bytes()[0]).collect()
}

pub async fn payloads_of_every_byte_value_survive(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let payload: Bytes = (0..=255_u8).chain((0..=255).rev()).collect();
    let mut submission = stage.submission(&stage.client("a"));
    submission.payload = payload.clone();
    let job = stage.submit(submission).await;
    let delivery = stage.lease_one().await;
    assert_eq!(delivery.job.payload, payload);
    stage.record_first(&stage.success(&delivery, payload.clone())).await;
    assert_eq!(stage.finished(&job).await.result.payload, payload);
}

pub async fn empty_payloads_survive(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let mut submission = stage.submission(&stage.client("a"));
    submission.payload = Bytes::new();
    let job = stage.submit(submission).await;
    assert_eq!(stage.status(&job).await.size, 0);
    let delivery = stage.lease_one().await;
    assert!(delivery.job.payload.is_empty());
    stage.record_first(&stage.success(&delivery, "")).await;
    let finished = stage.finished(&job).await;
    assert!(finished.result.payload.is_empty() && !finished.erased, "empty is not erased");
}

pub async fn payloads_of_maximal_size_survive(fixture: &dyn Fixture) {
    let limit = fixture.broker().capabilities.payload_max;
    let stage = Stage::with(fixture, |policy| (policy.payload_max, policy.result_max) = (limit, limit)).await;
    let payload = pattern(limit);
    let mut submission = stage.submission(&stage.client("a"));
    submission.payload = payload.clone();
    let job = stage.submit(submission).await;
    assert_eq!(stage.status(&job).await.size, limit);
    let delivery = stage.lease_one().await;
    assert!(delivery.job.payload == payload, "a payload of {limit} bytes came out changed");
    stage.record_first(&stage.success(&delivery, payload.clone())).await;
    assert!(stage.finished(&job).await.result.payload == payload, "a result of {limit} bytes came out changed");
}

pub async fn a_payload_one_byte_too_large_is_refused_with_both_numbers(fixture: &dyn Fixture) {
    let stage = Stage::with(fixture, |policy| policy.payload_max = 1_000).await;
    let mut submission = stage.submission(&stage.client("a"));
    submission.payload = pattern(1_000);
    stage.submit(submission.clone()).await;
    submission.payload = pattern(1_001);
    let job = stage.accept(submission);
    let expected = BrokerErrorKind::TooLarge { actual: 1_001, limit: 1_000 };
    assert_eq!(refused(stage.broker.jobs.enqueue(job.clone()).await), expected);
    stage.assert_absent(&job).await;
    stage.assert_depth(Depth { waiting: 1, ..Depth::default() }).await;
}

pub async fn a_policy_above_the_brokers_limit_takes_no_larger_payload(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let limit = stage.broker.capabilities.payload_max;
    let policy = relay_bridge::policy::QueuePolicy { payload_max: limit + 1, ..stage.policy.clone() };
    if let Err(error) = stage.try_write_policy(&policy).await {
        assert_eq!(error.kind(), BrokerErrorKind::Invalid, "{error}");
        assert_eq!(stage.leasing.queue_policy(&stage.queue).await.unwrap(), stage.policy, "nothing was changed");
        return;
    }
    let mut submission = stage.submission(&stage.client("a"));
    submission.payload = Bytes::from(vec![0; usize::try_from(limit + 1).unwrap()]);
    let answer = stage.broker.jobs.enqueue(stage.accept(submission)).await;
    assert_eq!(refused(answer), BrokerErrorKind::TooLarge { actual: limit + 1, limit });
}

pub async fn a_result_larger_than_the_broker_takes_ends_its_run_as_failed(fixture: &dyn Fixture) {
    let limit = fixture.broker().capabilities.payload_max;
    let stage = Stage::with(fixture, |policy| policy.result_max = limit).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    let delivery = stage.lease_one().await;
    stage.record_first(&stage.success(&delivery, vec![7; usize::try_from(limit + 1).unwrap()])).await;
    stage.settle(&delivery, Settlement::Complete).await;
    let result = stage.finished(&job).await.result;
    let why = format!("the result has {} bytes, allowed are {limit}", limit + 1);
    assert_eq!((result.outcome, result.failure), (Outcome::Failed, Some(Failure::new("result-too-large", why))));
}

pub async fn headers_content_type_and_encoding_survive(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let mut submission = stage.keyed(&stage.client("a"), "order 4711".replace(' ', "!\"\\").as_str());
    submission.content_type = "Application/Vnd.Example+JSON; charset=\"utf-8\"; q=é".to_owned();
    submission.content_encoding = Some("x-Custom, gzip".to_owned());
    submission.headers = BTreeMap::from([
        ("traceparent".to_owned(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
        ("relay-meta-empty".to_owned(), String::new()),
        ("relay-meta-long".to_owned(), "v:,=\"\\ ".repeat(200)),
    ]);
    let job = stage.submit(submission).await;
    let status = stage.status(&job).await;
    assert_eq!((&status.headers, &status.content_type), (&job.headers, &job.content_type));
    assert_eq!((&status.key, status.fingerprint), (&job.key, job.fingerprint));
    let delivery = stage.lease_one().await;
    assert_eq!(delivery.job, job, "the worker has the job as it was accepted");

    let mut result = stage.success(&delivery, "done");
    result.content_type = "Text/Plain; charset=\"utf-8\";\tx=y".to_owned();
    stage.record_first(&result).await;
    assert_eq!(stage.finished(&job).await.result, result, "the client has the result as it was recorded");
}

pub async fn a_failure_reaches_the_client_as_it_was_recorded(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let job = stage.submit_plain(&stage.client("a")).await;
    let delivery = stage.lease_one().await;
    let failure = Failure::new("exit-code", "exit status: 2\n\"nö such file\"\0".repeat(100));
    let result = JobResult::unsuccessful(&delivery.job, Outcome::Failed, stage.end(&delivery), failure);
    stage.record_first(&result).await;
    assert_eq!(stage.finished(&job).await.result, result);
}
