//! Peers that send what is no message, the wrong one, or nothing; and peers of other protocols.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use relay::ingress::tcp::client::ClientLimits;
use relay_bridge::contract::wire::client::{Entry, FromClient, Hello, Request, Submit, ToClient};
use relay_bridge::contract::wire::error::Retry;
use relay_bridge::contract::wire::{CLIENT_HELLO_FRAME_MAX, FRAME_MAX, FRAME_MAX_LEAST};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::{Door, Wire, hello, mail};
use crate::http::failing::{Failing, Fault};
use crate::http::support::{Peer, Relay, Setup};

fn frame(of: &Value) -> Vec<u8> {
    raw(&rmp_serde::to_vec_named(of).unwrap())
}

fn raw(content: &[u8]) -> Vec<u8> {
    let mut frame = BytesMut::new();
    frame.put_u32(u32::try_from(content.len()).unwrap());
    frame.put_slice(content);
    frame.to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_hello_is_told_so_and_the_connection_ends() {
    let (_relay, door) = Door::start().await;
    let good = json!({"type": "hello", "role": "client", "version_min": 1, "version_max": 1});
    let but = |name: &str, value: Value| {
        let mut hello = good.clone();
        hello[name] = value;
        frame(&hello)
    };
    let deep = [vec![0x81, 0xa1, b'x'], vec![0x91; 10_000], vec![0xc0]].concat();
    let twice = b"\x82\xa4type\xa5hello\xa4type\xa5hello";
    for (sent, slug, told) in [
        (raw(b""), "malformed-request", "a frame of 0 bytes"),
        ((CLIENT_HELLO_FRAME_MAX + 1).to_be_bytes().to_vec(), "malformed-request", "a frame of 16385 bytes"),
        (vec![0xff; 8], "malformed-request", "a frame of 4294967295 bytes"),
        (raw(b"\xc1"), "malformed-request", "not a hello"),
        (raw(&deep), "malformed-request", "not a hello"),
        (raw(twice), "malformed-request", "has a field twice"),
        (frame(&json!({"type": "whoami", "id": 1})), "malformed-request", "has to be a hello"),
        (frame(&json!({"type": "lease", "id": 1})), "malformed-request", "not a hello"),
        (but("role", json!("worker")), "malformed-request", "--worker-listen"),
        (but("role", json!("juggler")), "malformed-request", "`client`, the only role"),
        (but("version_min", json!(2)), "malformed-request", "upgrade the older one"),
        (but("version_max", json!(0)), "malformed-request", "upgrade the older one"),
        (but("version_max", json!(-1)), "malformed-request", "version_max"),
        (but("client", json!("No Client")), "malformed-request", "client"),
        (but("build", json!("b".repeat(129))), "malformed-request", "build"),
        (but("key", json!("k".repeat(8_193))), "malformed-request", "key"),
        (but("frame_max", json!(FRAME_MAX_LEAST - 1)), "malformed-request", "frame_max"),
    ] {
        let mut client = Wire::connect(door.address).await;
        client.write(&sent).await;
        let error = client.ended().await;
        assert_eq!(&*error.slug, slug, "{}", error.detail);
        assert!(error.detail.contains(told), "{}", error.detail);
    }
    let mut client = Wire::connect(door.address).await;
    client.write(&but("build", json!(null))).await;
    assert!(matches!(client.next().await, Some(ToClient::Welcome(_))), "what is nil is left out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_that_is_cut_anywhere_or_never_comes_costs_a_place_for_a_while_and_nothing_else() {
    let mut setup = Setup::default();
    setup.limits.unproven = 8;
    let relay = setup.start().await;
    let limits = ClientLimits { hello_timeout: Duration::from_millis(200), ..ClientLimits::default() };
    let door = Door::with(&relay, limits, Duration::from_secs(5)).await;
    let mut whole = BytesMut::new();
    FromClient::Hello(hello()).encode(&mut whole);
    for end in 0..whole.len() {
        let mut stream = TcpStream::connect(door.address).await.unwrap();
        // A peer that was told to make room is cut off.
        if stream.write_all(&whole[..end]).await.is_ok() {
            stream.shutdown().await.ok();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.ok();
            assert!(rest.is_empty(), "there is nobody to tell");
        }
    }
    let mut silent = Wire::connect(door.address).await;
    let late = silent.ended().await;
    assert_eq!((&*late.kind, &*late.slug, late.retry), ("unavailable", "request-timeout", Retry::Safe));
    let crowd: Vec<_> = futures_util::future::join_all((0..100).map(|_| TcpStream::connect(door.address))).await;
    let mut client = door.client().await;
    client.submit(1, mail("x")).await;
    drop(crowd);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_can_not_be_read_is_refused_under_its_id_and_the_connection_goes_on() {
    let (_relay, door) = Door::start().await;
    let mut client = door.client().await;
    let job = client.submit(1, mail("x")).await.job;
    for wrong in [
        json!({"type": "juggle", "id": 2}),
        json!({"type": "lease", "id": 2, "worker": "w", "queues": ["mail"], "max": 1, "wait_ms": 0}),
        json!({"type": "submit", "id": 2}),
        json!({"type": "submit", "id": 2, "queue": "mail", "payload": 1}),
        json!({"type": "credit", "id": 2, "results": -1}),
    ] {
        client.write(&frame(&wrong)).await;
        match client.next().await.unwrap() {
            ToClient::Problem { id: 2, problem } => assert_eq!(problem.slug, "malformed-request", "{wrong}"),
            other => panic!("{wrong}: {other:?}"),
        }
    }
    for harmless in
        [json!({"type": "stop", "id": 9}), json!({"type": "credit", "id": 9}), json!({"type": "pong", "id": 9})]
    {
        client.write(&frame(&harmless)).await;
    }
    client.send(&FromClient::Ping(5)).await;
    assert_eq!(client.next().await, Some(ToClient::Pong(5)));
    assert!(matches!(client.wait(2, job, 0).await, ToClient::Job { id: 2, .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_nobody_could_answer_ends_the_connection() {
    let (_relay, door) = Door::start().await;
    let wait = json!({"type": "wait", "id": 2, "job": null});
    for (wrong, told) in [
        (raw(b"\xc1"), "field `message`"),
        (raw(b""), "a frame of 0 bytes"),
        ((FRAME_MAX + 1).to_be_bytes().to_vec(), "a frame of 17825793 bytes"),
        (frame(&json!({"type": "submit", "queue": "mail"})), "`id`"),
        (frame(&json!({"type": "submit", "id": "1", "queue": "mail"})), "`id`"),
        (frame(&json!({"type": "hello", "role": "client", "version_min": 1, "version_max": 1})), "a second hello"),
        (frame(&json!({"type": "submit_many", "entries": [{"queue": "mail"}]})), "`id`"),
        // Under the id of a request that is not answered yet.
        (frame(&wait), "field `job`"),
        (frame(&json!({"type": "whoami", "id": 2})), "request 2 is unanswered"),
        (frame(&json!({"type": "submit_many", "entries": [{"id": 2, "queue": "mail"}]})), "request 2 is unanswered"),
        (frame(&json!({"type": "submit_many", "entries": [{"id": 2}]})), "request 2 is unanswered"),
        (frame(&json!({"type": "submit_many", "entries": vec![json!({}); 1_025]})), "has 1025 items, and at most 1024"),
    ] {
        let mut client = door.client().await;
        let job = client.submit(1, mail("x")).await.job;
        client.ask(2, Request::Wait { job, wait: Duration::from_secs(50) }).await;
        client.write(&wrong).await;
        // The wait is answered before.
        assert!(matches!(client.next().await, Some(ToClient::Job { id: 2, .. })), "{told}");
        let error = client.ended().await;
        assert!(error.detail.contains(told), "{told}: {}", error.detail);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_the_credit_are_refused_and_have_no_effect() {
    let relay = Relay::start().await;
    let limits = ClientLimits { requests_max: 2, ..ClientLimits::default() };
    let door = Door::with(&relay, limits, Duration::from_secs(5)).await;
    let mut client = Wire::connect(door.address).await;
    assert_eq!(client.welcomed(&hello()).await.requests_max, 2);
    let job = client.submit(0, mail("x")).await.job;
    for id in [1, 2] {
        client.ask(id, Request::Wait { job, wait: Duration::from_secs(50) }).await;
    }
    let problem = client.problem(3, Request::Submit(Box::new(mail("y")))).await;
    assert_eq!((&*problem.slug, problem.limit, problem.retry.as_str()), ("rate-limited", Some(2), "safe"));
    client.send(&FromClient::Stop { id: 1 }).await;
    assert!(matches!(client.next().await, Some(ToClient::Job { id: 1, .. })));
    client.submit(3, mail("z")).await;
    assert_eq!(relay.get("/v1/jobs").await.json()["jobs"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_more_bytes_than_its_share_is_told_so_or_waits_its_turn() {
    let relay = {
        let mut setup = crate::http::support::Setup::default();
        setup.limits.body_bytes = 300 * 1024;
        setup.policy.payload_max = 1 << 20;
        setup.break_broker = Box::new(|broker| {
            broker.jobs = std::sync::Arc::new(Failing(Fault::Hangs));
        });
        setup.start().await
    };
    let soon = Duration::from_millis(200);
    let limits = ClientLimits { room_timeout: soon, write_timeout: soon, ..ClientLimits::default() };
    let door = Door::with(&relay, limits, Duration::from_secs(5)).await;
    let mut client = Wire::connect(door.address).await;
    let welcome = client.welcomed(&hello()).await;
    assert_eq!(welcome.bytes_max, 300 * 1024);
    client.ask(1, Request::Submit(Box::new(mail(vec![0; 260 * 1024])))).await;
    let small = client.problem(2, Request::Submit(Box::new(mail(vec![0; 60 * 1024])))).await;
    assert_eq!(small.slug, "overloaded", "a small frame is read and refused");
    client.ask(3, Request::Submit(Box::new(mail(vec![0; 100 * 1024])))).await;
    match client.next().await.unwrap() {
        ToClient::Error(error) => {
            assert_eq!(&*error.slug, "overloaded", "a large one is not read before there is room")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_frame_that_waits_for_its_bytes_has_nobody_else_refused() {
    let relay = {
        let mut setup = crate::http::support::Setup::default();
        setup.limits.body_bytes = 300 * 1024;
        setup.policy.payload_max = 1 << 20;
        setup.break_broker = Box::new(|broker| {
            broker.jobs = std::sync::Arc::new(Failing(Fault::Hangs));
        });
        setup.start().await
    };
    let door = Door::of(&relay).await;
    let (mut large, mut small) = (door.client().await, door.client().await);
    large.ask(1, Request::Submit(Box::new(mail(vec![0; 200 * 1024])))).await;
    large.ask(2, Request::Submit(Box::new(mail(vec![0; 200 * 1024])))).await;
    for _ in 0..200 {
        let nowhere = Submit { queue: "nowhere".to_owned(), ..mail("x") };
        let problem = small.problem(1, Request::Submit(Box::new(nowhere))).await;
        assert_eq!(problem.slug, "not-found", "{}", problem.detail);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_frame_that_does_not_come_gives_its_bytes_back() {
    let relay = {
        let mut setup = crate::http::support::Setup::default();
        setup.limits.body_timeout = Duration::from_millis(200);
        setup.start().await
    };
    let door = Door::of(&relay).await;
    let mut client = door.client().await;
    client.write(&FRAME_MAX.to_be_bytes()).await;
    client.write(&vec![0; 70 * 1024]).await;
    let error = client.ended().await;
    assert_eq!(
        (&*error.slug, error.detail.split(';').next().unwrap()),
        ("request-timeout", "the frame did not arrive within 0 s")
    );
    assert_eq!((&*error.kind, error.retry), ("unavailable", Retry::Safe), "nothing was done");
    let budgets = relay.ingress.budgets();
    let (_, bodies) = budgets.iter().find(|(name, _)| *name == "body_bytes").unwrap();
    assert_eq!(bodies.taken(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn meta_of_many_names_or_bytes_is_refused_before_it_is_kept() {
    let (_relay, door) = Door::start().await;
    let mut client = door.client().await;
    let names = |count: usize| (0..count).map(|n| (format!("n{n}"), "x".to_owned())).collect();
    client.submit(1, Submit { meta: names(64), ..mail("x") }).await;
    for meta in [names(65), [("n".to_owned(), "x".repeat(8 * 1024))].into()] {
        let submit = Submit { meta, ..mail("x") };
        let problem = client.problem(2, Request::Submit(Box::new(submit.clone()))).await;
        assert_eq!(problem.slug, "malformed-request");
        assert!(problem.detail.contains("`meta`"), "{}", problem.detail);
        client.send(&FromClient::SubmitMany(vec![Entry { id: 3, submit: Ok(Box::new(submit)) }])).await;
        match client.next().await.unwrap() {
            ToClient::Problem { id: 3, problem: of_many } => assert_eq!(of_many.detail, problem.detail),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_on_this_port_gets_one_clear_line_of_http_and_frames_on_the_port_of_http_get_a_problem() {
    let (relay, door) = Door::start().await;
    for line in ["GET /v1/whoami", "POST /v1/queues/mail/jobs", "DELETE /v1/jobs/x", "OPTIONS *"] {
        let mut peer = Peer::new(TcpStream::connect(door.address).await.unwrap());
        peer.send(line, &[], "x").await;
        let reply = peer.reply().await;
        assert_eq!(reply.status, 400, "{line}");
        assert_eq!(reply.text().lines().count(), 1);
        assert!(reply.text().contains("TCP protocol"), "{}", reply.text());
        assert_eq!(peer.closed().await, "");
    }
    let mut peer = relay.connect().await;
    let mut hello_frame = BytesMut::new();
    FromClient::Hello(Hello { key: Some("rlyk_x".to_owned()), ..hello() }).encode(&mut hello_frame);
    peer.write(&hello_frame).await;
    let reply = peer.reply().await;
    assert_eq!(reply.status, 400);
    peer.closed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_fuzzer_sends_behind_a_hello_ends_its_own_connection_at_most() {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let (_relay, door) = Door::start().await;
    let mut messages = Vec::new();
    let job = door.client().await.submit(1, mail("x")).await.job;
    for request in [
        Request::Submit(Box::new(mail("x"))),
        Request::Status(job),
        Request::Cancel(job),
        Request::Rerun { job, from: 1 },
        Request::Wait { job, wait: Duration::from_secs(1) },
        Request::Whoami,
    ] {
        let mut frame = BytesMut::new();
        FromClient::Request { id: 7, request }.encode(&mut frame);
        messages.push(frame.to_vec());
    }
    let damage = (0..messages.len(), any::<prop::sample::Index>(), any::<u8>(), 1..8_usize);
    let mut runner = TestRunner::deterministic();
    for _ in 0..300 {
        let (which, at, byte, times) = damage.new_tree(&mut runner).unwrap().current();
        let mut stream = TcpStream::connect(door.address).await.unwrap();
        let mut sent = BytesMut::new();
        FromClient::Hello(hello()).encode(&mut sent);
        for n in 0..times {
            let mut message = messages[(which + n) % messages.len()].clone();
            let at = at.index(message.len());
            message[at] = byte.wrapping_add(u8::try_from(n).unwrap());
            sent.extend_from_slice(&message);
        }
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.ok();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.ok();
    }
    door.client().await.submit(1, mail("still there")).await;
}
