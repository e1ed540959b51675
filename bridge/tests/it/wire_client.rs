//! The codec of the client role: the golden vectors of `docs/vectors/protocol-client.json` hold byte for byte in both
//! directions, and no bytes make it panic. `RELAY_BLESS=1` writes the vectors anew.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use relay_bridge::contract::wire::client::answer::Body;
use relay_bridge::contract::wire::client::{
    Entry, Follow, FromClient, Hello, Request, Submit, ToClient, Welcome, WireProblem, WireReceipt, WireResult,
};
use relay_bridge::contract::wire::error::Retry;
use relay_bridge::contract::wire::{self, FromWorker, Problem, WireError, frame};
use relay_bridge::contract::{Failure, JobId, JobState, Outcome, RunId, Timestamp};
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::result_log::Reset;

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const CURSOR: &str = "c1.acme.7";

fn at() -> Timestamp {
    Timestamp::from_millis(1_763_865_086_007)
}

fn job() -> JobId {
    JobId::from_bytes(*b"\x6e\xf5\x03\x20\x85\xe6\x84\x7c\xba\x63\xf8\xe7\x78\x8c\xef\x33")
}

fn run() -> RunId {
    RunId::from_bytes(*b"\x01\x9a\xae\x5b\xa5\x77\x70\x00\x80\x00\x00\x00\x00\x00\x00\x01")
}

fn submit() -> Submit {
    Submit {
        queue: "thumbs".to_owned(),
        key: Some("order-42".to_owned()),
        content_type: Some("text/plain".to_owned()),
        content_encoding: Some("gzip".to_owned()),
        delay: Some(Duration::from_secs(60)),
        expires_in: Some(Duration::from_secs(3_600)),
        meta: [("tier".to_owned(), "gold".to_owned())].into(),
        traceparent: Some(TRACE.to_owned()),
        tracestate: Some("vendor=1".to_owned()),
        payload: Bytes::from_static(b"\x00hello\xff"),
        wait: Some(Duration::from_secs(20)),
    }
}

fn bare() -> Submit {
    Submit { queue: "mail".to_owned(), ..Submit::default() }
}

fn from_client() -> Vec<(&'static str, FromClient)> {
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        client: None,
        key: Some("rlyk_k1_s3cret".to_owned()),
        build: "example/1.0".to_owned(),
        frame_max: 1 << 20,
    };
    let follow = Follow {
        after: Some(CURSOR.to_owned()),
        queue: Some("thumbs".parse().unwrap()),
        key_prefix: Some("order-".to_owned()),
        results: 100,
        bytes: 1 << 20,
    };
    let request = |id, request| FromClient::Request { id, request };
    let entry = |id, submit: Submit| Entry { id, submit: Ok(Box::new(submit)) };
    vec![
        ("hello", FromClient::Hello(hello.clone())),
        ("hello of nobody", FromClient::Hello(Hello { key: None, client: Some("acme".parse().unwrap()), ..hello })),
        ("submit", request(1, Request::Submit(Box::new(submit())))),
        ("submit, bare", request(2, Request::Submit(Box::new(bare())))),
        ("submit_many", FromClient::SubmitMany(vec![entry(3, submit()), entry(4, bare())])),
        ("wait", request(5, Request::Wait { job: job(), wait: Duration::from_secs(55) })),
        ("status", request(6, Request::Status(job()))),
        ("cancel", request(7, Request::Cancel(job()))),
        ("rerun", request(8, Request::Rerun { job: job(), from: 1 })),
        ("follow", request(9, Request::Follow(follow))),
        ("follow from the oldest", request(10, Request::Follow(Follow { results: 1, bytes: 1, ..Follow::default() }))),
        ("credit", FromClient::Credit { id: 9, results: 50, bytes: 65_536 }),
        ("stop", FromClient::Stop { id: 9 }),
        ("whoami", request(11, Request::Whoami)),
        ("ping of the client", FromClient::Ping(1)),
        ("pong of the client", FromClient::Pong(7)),
    ]
}

fn result() -> WireResult {
    WireResult {
        cursor: CURSOR.to_owned(),
        job: job(),
        run: run(),
        generation: 1,
        queue: "thumbs".parse().unwrap(),
        key: Some("order-42".parse().unwrap()),
        meta: [("tier".to_owned(), "gold".to_owned())].into(),
        outcome: Outcome::Succeeded,
        attempt: 2,
        content_type: "text/plain".to_owned(),
        payload: Body::Here(Bytes::from_static(b"done")),
        failure: None,
        accepted_at: at(),
        started_at: Some(at()),
        finished_at: at(),
        traceparent: Some(TRACE.to_owned()),
    }
}

fn receipt() -> WireReceipt {
    WireReceipt {
        job: job(),
        run: run(),
        generation: 1,
        client: "acme".parse().unwrap(),
        queue: "thumbs".parse().unwrap(),
        key: Some("order-42".parse().unwrap()),
        meta: [("tier".to_owned(), "gold".to_owned())].into(),
        state: JobState::Queued,
        replayed: false,
        accepted_at: at(),
        expires_at: at(),
    }
}

/// A problem of this kind with every field, or with none.
fn problem(slug: &str, retry: Retry, full: bool) -> WireProblem {
    WireProblem {
        slug: slug.to_owned(),
        retry,
        detail: "the cause and the remedy".to_owned(),
        instance: "urn:relay:request:0123456789abcdef0123456789abcdef".to_owned(),
        retry_after: full.then_some(Duration::from_secs(1)),
        limit: full.then_some(256),
        actual: full.then_some(300),
        job: full.then(job),
        first_at: full.then(at),
        outcome: full.then_some(Outcome::Expired),
        finished_at: full.then(at),
    }
}

/// The kinds of problem, with whether the same request may be sent again.
const SLUGS: [(&str, Retry); 18] = [
    ("malformed-request", Retry::No),
    ("unauthenticated", Retry::No),
    ("forbidden", Retry::No),
    ("not-found", Retry::No),
    ("state-conflict", Retry::No),
    ("result-expired", Retry::No),
    ("payload-too-large", Retry::No),
    ("unsupported-media-type", Retry::No),
    ("idempotency-conflict", Retry::No),
    ("rate-limited", Retry::Safe),
    ("quota-exceeded", Retry::Safe),
    ("internal", Retry::WithIdempotencyKey),
    ("draining", Retry::Safe),
    ("overloaded", Retry::Safe),
    ("broker-unavailable", Retry::Safe),
    ("issuer-unavailable", Retry::Safe),
    ("unconfirmed", Retry::WithIdempotencyKey),
    ("a-later-one", Retry::No),
];

fn to_client() -> Vec<(String, ToClient)> {
    let welcome = Welcome {
        version: 1,
        frame_max: 1 << 20,
        requests_max: 2_500,
        bytes_max: 16 << 20,
        wait_max: Duration::from_secs(55),
        ping: Duration::from_secs(20),
        client: "acme".parse().unwrap(),
        server_time: at(),
        build: "relay/0.1.0".to_owned(),
    };
    let failed = WireResult {
        outcome: Outcome::Failed,
        failure: Some(Failure::new("exit-code", "the command ended with 2")),
        content_type: "application/vnd.relay.failure+json".to_owned(),
        ..result()
    };
    let expired = WireResult {
        outcome: Outcome::Expired,
        failure: Some(Failure::new("expired", "")),
        payload: Body::Erased,
        key: None,
        meta: Default::default(),
        started_at: None,
        traceparent: None,
        attempt: 0,
        ..result()
    };
    let large = WireResult { payload: Body::TooLarge(2_000_000), ..result() };
    let replayed = WireReceipt { replayed: true, state: JobState::Finished(Outcome::Succeeded), ..receipt() };
    let bare = WireReceipt { key: None, meta: Default::default(), state: JobState::Leased, ..receipt() };
    let result = |id, replayed, result| ToClient::Result { id, replayed, result: Box::new(result) };
    let receipt = |id, receipt| ToClient::Receipt { id, receipt: Box::new(receipt) };
    let document = "{\"client\":\"acme\"}".to_owned();
    let cursor = || CURSOR.to_owned();
    let mut messages: Vec<(String, ToClient)> = [
        ("welcome", ToClient::Welcome(Box::new(welcome))),
        ("receipt", receipt(1, self::receipt())),
        ("receipt, replayed", receipt(1, replayed)),
        ("receipt without key and meta", receipt(2, bare)),
        ("result", result(5, false, self::result())),
        ("result, replayed", result(1, true, self::result())),
        ("result of a failure", result(9, false, failed)),
        ("result, erased", result(9, false, expired)),
        ("result that fits no frame", result(9, false, large)),
        ("job", ToClient::Job { id: 6, document: document.clone() }),
        ("whoami of the server", ToClient::Whoami { id: 11, document }),
        ("reset", ToClient::Reset { id: 9, reason: Reset::OlderThanRetention }),
        ("reset, other log", ToClient::Reset { id: 9, reason: Reset::LogReplaced }),
        ("position", ToClient::Position { id: 9, cursor: cursor() }),
        ("followed", ToClient::Followed { id: 9, cursor: Some(cursor()), reason: "stopped".to_owned() }),
        ("followed, nothing read", ToClient::Followed { id: 9, cursor: None, reason: "going-away".to_owned() }),
        ("go_away", ToClient::GoAway { reason: "draining".to_owned(), within: Duration::from_secs(25) }),
        (
            "error of the connection",
            ToClient::Error(Box::new(
                WireError::new(BrokerErrorKind::Unauthorized, "the key").with_slug("unauthenticated"),
            )),
        ),
        ("ping of the server", ToClient::Ping(7)),
        ("pong of the server", ToClient::Pong(1)),
        (
            "problem with all fields",
            ToClient::Problem { id: 3, problem: Box::new(problem("overloaded", Retry::Safe, true)) },
        ),
    ]
    .map(|(name, message)| (name.to_owned(), message))
    .into();
    for (slug, retry) in SLUGS {
        let message = ToClient::Problem { id: 3, problem: Box::new(problem(slug, retry, false)) };
        messages.push((format!("problem {slug}"), message));
    }
    messages
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_golden_vectors_of_the_client_role_hold_byte_for_byte_in_both_directions() {
    let mut vectors = Vec::new();
    for (name, message) in from_client() {
        let frame = frame_of(|to| message.encode(to));
        assert_eq!(FromClient::decode(&content(&frame)).unwrap(), message, "{name}");
        vectors.push(serde_json::json!({"name": name, "from": "client", "frame": hex(&frame)}));
    }
    for (name, message) in to_client() {
        let frame = frame_of(|to| message.encode(to));
        assert_eq!(ToClient::decode(&content(&frame)).unwrap(), message, "{name}");
        vectors.push(serde_json::json!({"name": name, "from": "server", "frame": hex(&frame)}));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/vectors/protocol-client.json");
    if std::env::var_os("RELAY_BLESS").is_some() {
        std::fs::write(path, serde_json::to_string_pretty(&vectors).unwrap() + "\n").unwrap();
    }
    let golden: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(golden == vectors, "the protocol has changed: RELAY_BLESS=1 writes what this build writes");
}

#[test]
fn fields_may_come_in_any_order_and_unknown_ones_do_no_harm() {
    let map = rmp_serde::to_vec_named(&serde_json::json!({
        "future": {"deep": [1, 2, {"x": null}]}, "key": null, "queue": "mail", "id": 3, "type": "submit",
    }));
    let message = FromClient::decode(&Bytes::from(map.unwrap())).unwrap();
    let request = Request::Submit(Box::new(bare()));
    assert_eq!(message, FromClient::Request { id: 3, request }, "nil and absent are the same");
}

#[test]
fn a_wrong_field_is_told_under_the_id_of_its_request_or_of_its_entry() {
    let decode = |json: serde_json::Value| FromClient::decode(&rmp_serde::to_vec_named(&json).unwrap().into());
    for (wrong, told) in [
        (serde_json::json!({"type": "juggle", "id": 9}), "`juggle` is not a message type"),
        (serde_json::json!({"type": "lease", "id": 9}), "`lease` is not a message type"),
        (serde_json::json!({"type": "submit", "id": 9}), "field `queue` is missing"),
        (serde_json::json!({"type": "submit", "id": 9, "queue": 1}), "field `queue`"),
        (serde_json::json!({"type": "submit", "id": 9, "queue": "q", "payload": "text"}), "field `payload`"),
        (serde_json::json!({"type": "submit", "id": 9, "queue": "q", "delay_ms": -1}), "field `delay_ms`"),
        (serde_json::json!({"type": "submit", "id": 9, "queue": "q", "meta": {"a": 1}}), "field `meta`"),
        (serde_json::json!({"type": "follow", "id": 9, "results": -1, "bytes": 1}), "field `results`"),
        (serde_json::json!({"type": "credit", "id": 9, "results": 1_u64 << 32}), "field `results` is out of range"),
        (serde_json::json!({"type": "rerun", "id": 9, "from": 0}), "field `from`"),
        (serde_json::json!({"type": "wait", "id": 9, "job": "text"}), "field `job`"),
    ] {
        let error = decode(wrong.clone()).unwrap_err();
        assert_eq!(error.id, Some(9), "{wrong}");
        assert!(error.to_string().starts_with(told), "{wrong}: {error}");
    }
    let entries = serde_json::json!({"type": "submit_many", "entries": [{"id": 1, "queue": "q"}, {"id": 2}]});
    let FromClient::SubmitMany(entries) = decode(entries).unwrap() else { panic!("not many") };
    assert!(entries[0].submit.is_ok() && matches!(entries[1].submit, Err(Problem::Field { field: "queue", .. })));
    assert!(decode(serde_json::json!({"type": "submit_many", "entries": [{"queue": "q"}]})).is_err());
    let many = vec![serde_json::json!({"id": 1, "queue": "q"}); 1_025];
    assert!(decode(serde_json::json!({"type": "submit_many", "entries": many})).is_err());
}

#[test]
fn a_message_of_a_newer_server_is_unknown_whether_it_has_an_id_or_not() {
    let decode = |json: serde_json::Value| ToClient::decode(&rmp_serde::to_vec_named(&json).unwrap().into());
    for (json, id) in
        [(serde_json::json!({"type": "novel"}), None), (serde_json::json!({"type": "novel", "id": 9}), Some(9))]
    {
        let error = decode(json).unwrap_err();
        assert_eq!((error.id, error.problem), (id, Problem::UnknownType("novel".to_owned())));
    }
    for known in ["ping", "pong", "job", "whoami", "position", "followed", "receipt", "result", "problem", "reset"] {
        let error = decode(serde_json::json!({"type": known})).unwrap_err();
        assert!(!matches!(error.problem, Problem::UnknownType(_)), "{known}: {error}");
    }
}

#[test]
fn a_name_in_meta_that_comes_twice_is_refused() {
    let message = FromClient::Request {
        id: 1,
        request: Request::Submit(Box::new(Submit {
            meta: [("yy", "1"), ("zz", "2")].map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            ..bare()
        })),
    };
    let frame = content(&frame_of(|to| message.encode(to))).to_vec();
    let twice: Vec<u8> = frame.iter().map(|byte| if *byte == b'z' { b'y' } else { *byte }).collect();
    assert!(FromClient::decode(&twice.into()).unwrap_err().to_string().contains("twice"));
}

#[test]
fn a_payload_is_a_slice_of_the_frame_it_came_in() {
    let request = Request::Submit(Box::new(Submit { payload: vec![7; 10_000].into(), ..bare() }));
    let frame = content(&frame_of(|to| FromClient::Request { id: 1, request }.encode(to)));
    let FromClient::Request { request: Request::Submit(read), .. } = FromClient::decode(&frame).unwrap() else {
        panic!("not a submission");
    };
    assert!(frame.as_ptr_range().contains(&read.payload.as_ptr()));
}

#[test]
fn a_hello_never_prints_its_key() {
    let (_, hello) = from_client().swap_remove(0);
    assert!(!format!("{hello:?}").contains("s3cret"));
}

#[test]
fn a_message_that_is_cut_anywhere_is_refused() {
    for (name, message) in from_client() {
        let frame = content(&frame_of(|to| message.encode(to)));
        for end in 0..frame.len() {
            assert!(FromClient::decode(&frame.slice(..end)).is_err(), "{name}, cut at {end}");
        }
    }
}

#[test]
fn a_hello_of_a_client_to_workers_is_told_where_clients_connect() {
    for (name, hello) in from_client().iter().filter(|(_, message)| matches!(message, FromClient::Hello(_))) {
        let refused = FromWorker::decode(&content(&frame_of(|to| hello.encode(to)))).unwrap_err();
        let told = refused.to_string();
        assert!(
            told.contains("clients connect to a listener for clients, that of --tcp or with TLS that of --listen"),
            "{name}: {told}"
        );
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let bytes = Bytes::from(bytes);
        drop(FromClient::decode(&bytes));
        drop(ToClient::decode(&bytes));
    }

    #[test]
    fn no_damage_to_a_message_makes_the_decoder_panic(
        which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>(),
    ) {
        let mut frames: Vec<Bytes> = from_client().iter().map(|(_, m)| frame_of(|to| m.encode(to))).collect();
        frames.extend(to_client().iter().map(|(_, m)| frame_of(|to| m.encode(to))));
        let mut damaged = content(which.get(&frames)).to_vec();
        let at = at.index(damaged.len());
        if cut { damaged.truncate(at) } else { damaged[at] = byte }
        let damaged = Bytes::from(damaged);
        drop(FromClient::decode(&damaged));
        drop(ToClient::decode(&damaged));
    }
}
