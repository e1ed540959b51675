//! The jobs, results and dead letters that the golden files hold. Changing one changes the contract.

use std::collections::BTreeMap;

use bytes::Bytes;
use relay_bridge::contract::extra::Extra;
use relay_bridge::contract::{Failure, Fingerprint, Job, JobId, JobResult, Outcome, RunId, Timestamp};
use relay_bridge::dead_letters::DeadLetter;

pub(crate) fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn run(last: u8) -> RunId {
    let mut bytes = [0x01, 0x9a, 0xae, 0x10, 0xb1, 0x00, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, 0];
    bytes[15] = last;
    RunId::from_bytes(bytes)
}

/// Every field set that can be left out, but a deadline other than the usual one, which nobody writes; every byte value in
/// the payload.
pub(crate) fn full_job() -> Job {
    let (client, queue, key) = ("acme".parse().unwrap(), "thumbnails".parse().unwrap(), "order-4711".parse().unwrap());
    let payload: Bytes = (0..=255u8).collect();
    Job {
        id: JobId::derive(&client, &queue, &key),
        run_id: run(1),
        generation: 2,
        fingerprint: Fingerprint::of("image/png", Some("gzip"), &payload),
        client,
        queue,
        key: Some(key),
        content_type: "image/png; q=\"é\"".to_owned(),
        content_encoding: Some("gzip".to_owned()),
        headers: BTreeMap::from([
            ("relay-meta-tenant".to_owned(), "blue".to_owned()),
            ("traceparent".to_owned(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
        ]),
        payload,
        accepted_at: at(1_763_865_086_007),
        due_at: at(1_763_865_146_007),
        expires_at: at(1_763_886_746_007),
        ttl_ms: 21_600_000,
        keep_ms: 108_000_000,
        keep_record: true,
        extra: Extra::default(),
    }
}

/// Nothing set that can be left out.
pub(crate) fn bare_job() -> Job {
    Job {
        id: "019aae10-b100-7000-8000-0000000000ff".parse().unwrap(),
        run_id: run(2),
        generation: 1,
        key: None,
        content_encoding: None,
        headers: BTreeMap::new(),
        payload: Bytes::new(),
        fingerprint: Fingerprint::of("application/octet-stream", None, b""),
        content_type: "application/octet-stream".to_owned(),
        due_at: at(1_763_865_086_007),
        expires_at: at(1_763_886_686_007),
        keep_record: false,
        ..full_job()
    }
}

/// Of a job without a key and without headers of its client's own, as recorded as it was sent.
pub(crate) fn succeeded() -> JobResult {
    let job = full_job();
    JobResult {
        job_id: job.id,
        run_id: job.run_id,
        generation: job.generation,
        client: job.client,
        queue: job.queue,
        key: None,
        meta: BTreeMap::new(),
        outcome: Outcome::Succeeded,
        attempt: 3,
        content_type: "text/plain; charset=utf-8".to_owned(),
        payload: Bytes::from_static("größe 17\n".as_bytes()),
        failure: None,
        accepted_at: job.accepted_at,
        started_at: Some(at(1_763_865_147_000)),
        finished_at: at(1_763_865_148_250),
        keep_ms: job.keep_ms,
        traceparent: job.headers.get("traceparent").cloned(),
        hops: 0,
        claimed: None,
        extra: Extra::default(),
    }
}

/// Of a job with a key and headers of its client's own, and recorded otherwise than it was sent.
pub(crate) fn named() -> JobResult {
    let job = full_job();
    let claimed = Some(succeeded().claim());
    let failure = Failure::new("result-invalid", "the content type has 300 bytes, allowed are 255");
    JobResult {
        outcome: Outcome::Failed,
        key: Some("order-17".parse().unwrap()),
        meta: job.meta(),
        payload: serde_json::to_vec(&failure).unwrap().into(),
        failure: Some(failure),
        hops: 2,
        claimed,
        ..succeeded()
    }
}

pub(crate) fn expired() -> JobResult {
    let failure = Failure::new("expired", "no worker took it before its deadline");
    JobResult {
        outcome: Outcome::Expired,
        attempt: 0,
        content_type: "application/vnd.relay.failure+json".to_owned(),
        payload: serde_json::to_vec(&failure).unwrap().into(),
        failure: Some(failure),
        started_at: None,
        traceparent: None,
        ..succeeded()
    }
}

pub(crate) fn dead_letter() -> DeadLetter {
    DeadLetter {
        job: full_job(),
        outcome: Outcome::Failed,
        attempt: 3,
        failure: Failure::new("exit-code", "exit status: 2\nno such file"),
        at: at(1_763_865_148_250),
        extra: Extra::default(),
    }
}
