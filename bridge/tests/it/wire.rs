//! The codec of the TCP protocol: any split of the stream gives the same frames, no bytes make it panic, and the golden
//! vectors of `docs/vectors/protocol.json` hold byte for byte in both directions.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use relay_bridge::contract::envelope::{self, WireVersion};
use relay_bridge::contract::result::End;
use relay_bridge::contract::wire::Problem;
use relay_bridge::contract::wire::frame::{self, FrameError};
use relay_bridge::contract::wire::{
    self, FromServer, FromWorker, Hello, Request, Response, Role, Welcome, WireDelivery, WireError,
};
use relay_bridge::contract::{Failure, Job, JobResult, Outcome, RunId, Submission, Timestamp};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::leasing::{Held, LeaseRequest, Progress, Receipt, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;

fn at() -> Timestamp {
    Timestamp::from_millis(1_763_865_086_007)
}

fn job() -> Job {
    let submission = Submission {
        client: "acme".parse().unwrap(),
        queue: "thumbs".parse().unwrap(),
        key: Some("order-42".parse().unwrap()),
        content_type: "text/plain".to_owned(),
        content_encoding: None,
        headers: [("relay-meta-tier".to_owned(), "gold".to_owned())].into(),
        payload: Bytes::from_static(b"\x00hello\xff"),
        delay: Duration::ZERO,
        expires_in: None,
    };
    let mut job = submission.accept(&QueuePolicy::default(), at());
    job.run_id = RunId::from_bytes(*b"\x01\x9a\xae\x5b\xa5\x77\x70\x00\x80\x00\x00\x00\x00\x00\x00\x01");
    job
}

fn receipt() -> Receipt {
    let job = job();
    Receipt { job_id: job.id, run_id: job.run_id, client: job.client, queue: job.queue, token: vec![1, 2, 3] }
}

fn from_worker() -> Vec<(&'static str, FromWorker)> {
    let job = job();
    let end = End { attempt: 2, started_at: Some(at()), finished_at: at() };
    let result = JobResult::succeeded(&job, end, "text/plain", Bytes::from_static(b"done"));
    let letter = DeadLetter {
        job: job.clone(),
        outcome: Outcome::Failed,
        attempt: 2,
        failure: Failure::new("exit-code", "the command ended with 2"),
        at: at(),
        extra: Default::default(),
    };
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        envelope_max: 2,
        role: Role::Worker,
        worker: "worker-1".parse().unwrap(),
        key: Some("k1.s3cret".to_owned()),
        build: "example/1.0".to_owned(),
        frame_max: 1 << 20,
    };
    let lease = LeaseRequest {
        worker: "worker-1".parse().unwrap(),
        queues: vec!["thumbs".parse().unwrap(), "mail".parse().unwrap()],
        max: 8.try_into().unwrap(),
        wait: Duration::from_secs(20),
    };
    let request = |id, request| FromWorker::Request { id, request };
    vec![
        ("hello", FromWorker::Hello(hello)),
        ("lease", request(1, Request::Lease(lease))),
        ("cancel_lease", FromWorker::CancelLease { id: 1 }),
        ("extend", request(2, Request::Extend(receipt()))),
        (
            "progress",
            request(3, Request::Progress(receipt(), Progress { percent: Some(37.5), message: "half-way".to_owned() })),
        ),
        (
            "progress without a number",
            request(4, Request::Progress(receipt(), Progress { percent: None, message: String::new() })),
        ),
        ("dead_letter", request(5, Request::DeadLetter(envelope::encode_dead_letter(&letter, WireVersion::V2).into()))),
        ("retract_dead_letter", request(6, Request::RetractDeadLetter(job.id, job.run_id))),
        ("record", request(7, Request::Record(envelope::encode_result(&result, WireVersion::V2).into()))),
        ("settle complete", request(8, Request::Settle(receipt(), Settlement::Complete))),
        (
            "settle retry_after",
            request(9, Request::Settle(receipt(), Settlement::RetryAfter(Duration::from_millis(1500)))),
        ),
        ("settle dead_letter", request(10, Request::Settle(receipt(), Settlement::DeadLetter))),
        ("settle hand_back", request(11, Request::Settle(receipt(), Settlement::HandBack(Duration::ZERO)))),
        ("queue_policy", request(12, Request::QueuePolicy("thumbs".parse().unwrap()))),
        ("ping of the worker", FromWorker::Ping(1)),
        ("pong of the worker", FromWorker::Pong(7)),
    ]
}

fn from_server() -> Vec<(&'static str, FromServer)> {
    let welcome = Welcome {
        version: 1,
        envelope_max: 2,
        frame_max: 1 << 20,
        requests_max: 256,
        ping: Duration::from_secs(20),
        server_time: at(),
        build: "relay/0.1.0".to_owned(),
    };
    let delivery = WireDelivery {
        job: envelope::encode_job(&job(), WireVersion::V2).into(),
        receipt: receipt(),
        attempt: 1,
        leased_at: at(),
        lease: Duration::from_secs(30),
    };
    let response = |id, response| FromServer::Response { id, response };
    let error = |id, kind, detail: &str| FromServer::Error { id, error: WireError::new(kind, detail) };
    vec![
        ("welcome", FromServer::Welcome(welcome)),
        ("deliveries", response(1, Response::Deliveries { deliveries: vec![delivery], more: true })),
        ("deliveries, none", response(1, Response::Deliveries { deliveries: vec![], more: false })),
        ("held", response(2, Response::Held(Held::Until(Duration::from_secs(30))))),
        ("held, but the run ended", response(2, Response::Held(Held::Ended(Outcome::Cancelled)))),
        ("done", response(8, Response::Done)),
        ("recorded", response(7, Response::Recorded(Recorded::First))),
        ("recorded, but superseded", response(7, Response::Recorded(Recorded::Superseded(Outcome::Expired)))),
        ("policy", response(12, Response::Policy(Box::default()))),
        ("error lease-lost", error(Some(8), BrokerErrorKind::LeaseLost, "the lease ended")),
        (
            "error too-large",
            error(Some(7), BrokerErrorKind::TooLarge { actual: 300_000, limit: 262_144 }, "the result is too large"),
        ),
        (
            "error overloaded",
            error(Some(9), BrokerErrorKind::Overloaded { retry_after: Duration::from_secs(1) }, "256 requests"),
        ),
        (
            "error newer-version, of the connection",
            error(None, BrokerErrorKind::NewerVersion { found: 7, newest: 1 }, "no common version"),
        ),
        ("go_away", FromServer::GoAway { reason: "draining".to_owned(), within: Duration::from_secs(25) }),
        ("ping of the server", FromServer::Ping(7)),
        ("pong of the server", FromServer::Pong(1)),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn frame_of(write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut bytes = BytesMut::new();
    write(&mut bytes);
    bytes.freeze()
}

fn content(frame: &Bytes) -> Bytes {
    let mut buffer = BytesMut::from(&frame[..]);
    let content = frame::take(&mut buffer, wire::FRAME_MAX).unwrap().unwrap();
    assert!(buffer.is_empty());
    content
}

#[test]
fn the_golden_vectors_hold_byte_for_byte_in_both_directions() {
    let mut vectors = Vec::new();
    for (name, message) in from_worker() {
        let frame = frame_of(|to| message.encode(to));
        assert_eq!(FromWorker::decode(&content(&frame)).unwrap(), message, "{name}");
        vectors.push(serde_json::json!({"name": name, "from": "worker", "frame": hex(&frame)}));
    }
    for (name, message) in from_server() {
        let frame = frame_of(|to| message.encode(to));
        assert_eq!(FromServer::decode(&content(&frame)).unwrap(), message, "{name}");
        vectors.push(serde_json::json!({"name": name, "from": "server", "frame": hex(&frame)}));
    }
    let encoded = serde_json::to_string_pretty(&vectors).unwrap();
    let golden = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/vectors/protocol.json"));
    let golden: serde_json::Value = serde_json::from_str(&golden.unwrap_or_default()).unwrap_or_default();
    assert_eq!(golden, serde_json::Value::Array(vectors), "the protocol has changed; this build writes:\n{encoded}");
}

#[test]
fn fields_may_come_in_any_order_and_unknown_ones_do_no_harm() {
    let map = rmp_serde::to_vec_named(&serde_json::json!({
        "future": {"deep": [1, 2, {"x": null}]},
        "wait_ms": 5, "queues": ["thumbs"], "id": 3, "max": 1, "type": "lease", "worker": "w",
    }));
    let message = FromWorker::decode(&Bytes::from(map.unwrap())).unwrap();
    assert!(matches!(message, FromWorker::Request { id: 3, request: Request::Lease(_) }));
}

#[test]
fn an_unknown_type_and_a_wrong_field_are_told_under_their_request_id() {
    let decode = |json: serde_json::Value| FromWorker::decode(&rmp_serde::to_vec_named(&json).unwrap().into());
    let error = decode(serde_json::json!({"type": "juggle", "id": 9})).unwrap_err();
    assert_eq!((error.id, error.problem), (Some(9), Problem::UnknownType("juggle".to_owned())));
    let error = decode(serde_json::json!({"type": "lease", "id": 9, "worker": "w", "queues": ["a"], "max": 0}));
    assert_eq!(error.unwrap_err().to_string(), "field `max` is not 1 to 1024");
    let error = decode(serde_json::json!({"type": "settle", "id": 9, "receipt": {"job": 1}})).unwrap_err();
    assert!(error.to_string().starts_with("field `receipt` `token` is missing"), "{error}");
}

#[test]
fn a_frame_that_is_too_long_is_refused_when_only_its_length_is_there() {
    let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0xff][..]);
    let refused = frame::take(&mut buffer, wire::HELLO_FRAME_MAX);
    assert_eq!(refused, Err(FrameError::TooLong { length: u32::MAX, limit: 4096 }));
    assert!(buffer.capacity() < 1024, "nothing was reserved");
    assert_eq!(frame::take(&mut BytesMut::from(&[0; 4][..]), 10), Err(FrameError::Empty));
}

#[test]
fn a_payload_is_a_slice_of_the_frame_it_came_in() {
    let message = FromWorker::Request { id: 1, request: Request::Record(Bytes::from(vec![7; 10_000])) };
    let frame = content(&frame_of(|to| message.encode(to)));
    let FromWorker::Request { request: Request::Record(result), .. } = FromWorker::decode(&frame).unwrap() else {
        panic!("not a record");
    };
    assert!(frame.as_ptr_range().contains(&result.as_ptr()));
}

#[test]
fn a_version_is_agreed_on_only_where_the_ranges_meet() {
    assert_eq!(wire::negotiate(1, 1), Some(1));
    assert_eq!(wire::negotiate(0, 9), Some(wire::VERSION_MAX));
    assert_eq!(wire::negotiate(2, 9), None);
    assert_eq!(wire::negotiate(0, 0), None);
    assert_eq!(wire::negotiate(1, 0), None, "a range that is none");
}

#[test]
fn a_hello_never_prints_its_key() {
    let (_, hello) = from_worker().swap_remove(0);
    assert!(!format!("{hello:?}").contains("s3cret"));
}

proptest! {
    #[test]
    fn any_split_of_the_stream_gives_the_same_frames(
        contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 1..12),
        cuts in prop::collection::vec(1_usize..97, 1..40),
    ) {
        let mut stream = BytesMut::new();
        for content in &contents {
            frame::put(&mut stream, |to| to.extend_from_slice(content));
        }
        let (mut buffer, mut frames, mut cuts) = (BytesMut::new(), Vec::new(), cuts.into_iter().cycle());
        while !stream.is_empty() {
            let cut = cuts.next().unwrap().min(stream.len());
            buffer.extend_from_slice(&stream.split_to(cut));
            while let Some(frame) = frame::take(&mut buffer, 300).unwrap() {
                frames.push(frame.to_vec());
            }
        }
        prop_assert_eq!(frames, contents);
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let bytes = Bytes::from(bytes);
        drop(FromWorker::decode(&bytes));
        drop(FromServer::decode(&bytes));
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = frame::take(&mut buffer, 64) {}
    }

    #[test]
    fn no_damage_to_a_message_makes_the_decoder_panic(
        which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>(),
    ) {
        let mut frames: Vec<Bytes> = from_worker().iter().map(|(_, m)| frame_of(|to| m.encode(to))).collect();
        frames.extend(from_server().iter().map(|(_, m)| frame_of(|to| m.encode(to))));
        let mut damaged = content(which.get(&frames)).to_vec();
        let at = at.index(damaged.len());
        if cut { damaged.truncate(at) } else { damaged[at] = byte }
        let damaged = Bytes::from(damaged);
        drop(FromWorker::decode(&damaged));
        drop(FromServer::decode(&damaged));
    }
}
