//! All of a client's results as a stream: nothing lost, nothing doubled, and nothing held for who does not read.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use relay::ingress::http::Limits;
use relay_bridge::broker::Broker;
use relay_bridge::contract::{Cursor, LogId};
use relay_bridge::policy::QueuePolicy;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use super::support::{Block, Peer, Relay, Setup};
use crate::turns::{Gate, Held};

/// Submits a job under `key` and does it, with the key as its result.
async fn finish(relay: &Relay, key: &str) {
    assert_eq!(relay.submit(&[("Idempotency-Key", key)], key).await.status, 202);
    relay.work("text/plain", key.to_owned()).await;
}

/// The payload of a result, as it was sent.
fn payload(block: &Block) -> String {
    use base64::Engine as _;
    let text = block.data["payload_base64"].as_str().unwrap();
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_with_what_there_is_and_goes_on_with_what_comes() {
    let relay = Relay::start().await;
    finish(&relay, "one").await;
    finish(&relay, "two").await;
    let mut stream = relay.stream("/v1/results", &[]).await;
    assert_eq!((stream.head.status, stream.head.header("content-type")), (200, "text/event-stream"));
    assert_eq!((stream.head.header("cache-control"), stream.head.header("x-accel-buffering")), ("no-store", "no"));
    let page = relay.get("/v1/results").await.json();
    for (at, text) in ["one", "two"].into_iter().enumerate() {
        let result = stream.event().await;
        assert_eq!((&*result.event, payload(&result)), ("result", text.to_owned()));
        assert_eq!(result.data, page["entries"][at], "the same as in a page");
        assert_eq!(result.data["cursor"], result.id);
    }
    for key in ["three", "four"] {
        finish(&relay, key).await;
        assert_eq!(payload(&stream.event().await), key);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_comes_back_goes_on_behind_the_last_event_it_saw() {
    let relay = Relay::start().await;
    for key in ["one", "two", "three"] {
        finish(&relay, key).await;
    }
    let mut stream = relay.stream("/v1/results", &[]).await;
    let first = stream.event().await;
    drop(stream);
    // It repeats its address, which counts for less; `after` alone does the same for programs without the header.
    for (path, seen) in [("/v1/results?after=now", first.id.as_str()), (&format!("/v1/results?after={}", first.id), "")]
    {
        let mut stream = relay.stream(path, &[("Last-Event-ID", seen)]).await;
        assert_eq!((payload(&stream.event().await), payload(&stream.event().await)), ("two".into(), "three".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_from_now_on_says_at_once_where_it_stands() {
    let relay = Relay::start().await;
    finish(&relay, "before").await;
    let mut stream = relay.stream("/v1/results?after=now", &[]).await;
    let opening = stream.block().await.unwrap();
    assert!(!opening.id.is_empty() && opening.retry.parse::<u64>().unwrap() >= 500, "{opening:?}");
    drop(stream);
    finish(&relay, "while-away").await;
    let mut stream = relay.stream("/v1/results?after=now", &[("Last-Event-ID", &opening.id)]).await;
    assert_eq!(payload(&stream.event().await), "while-away");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_one_queue_leaves_the_others_out_and_large_results_are_linked() {
    let mut setup = Setup::default();
    setup.limits.ping_every = Duration::from_millis(20);
    let relay = setup.start().await;
    let mut stream = relay.stream("/v1/results?queue=other", &[]).await;
    let opening = stream.block().await.unwrap();
    finish(&relay, "passed-over").await;
    // A ping says that the stream has moved on: a reader that comes back need not pass the same results again.
    let moved = loop {
        let ping = stream.block().await.unwrap();
        assert_eq!((&*ping.comment, &*ping.event), ("ping", ""));
        if !ping.id.is_empty() {
            break ping.id;
        }
    };
    assert_ne!(moved, opening.id);
    let receipt = relay.ask("POST /v1/queues/other/jobs", &[], "x").await;
    let cancelled = relay.ask(&format!("POST /v1/jobs/{}/cancel", receipt.field("job_id")), &[], "").await;
    assert_eq!(cancelled.status, 200);
    let event = stream.event().await;
    assert_eq!((&event.data["queue"], &event.data["outcome"]), (&"other".into(), &"cancelled".into()));

    relay.submit(&[("Idempotency-Key", "large")], "x").await;
    relay.work("text/plain", "l".repeat(16 * 1024 + 1)).await;
    let event = relay.stream(&format!("/v1/results?after={moved}&queue=mail"), &[]).await.event().await;
    assert_eq!(event.data["payload_base64"], serde_json::Value::Null);
    assert_eq!(relay.get(event.data["link"].as_str().unwrap()).await.body.len(), 16 * 1024 + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_another_log_is_told_once_and_reading_begins_anew() {
    let relay = Relay::start().await;
    finish(&relay, "one").await;
    let cursor: Cursor = relay.get("/v1/results").await.field("next").parse().unwrap();
    let foreign = Cursor { log: LogId([7; 16]), ..cursor.clone() };
    let mut stream = relay.stream("/v1/results", &[("Last-Event-ID", &foreign.to_string())]).await;
    let reset = stream.event().await;
    assert_eq!((&*reset.event, &reset.data, &*reset.id), ("reset", &serde_json::json!({"reason": "log-replaced"}), ""));
    assert_eq!(payload(&stream.event().await), "one");
    finish(&relay, "two").await;
    let next = stream.event().await;
    assert_eq!((&*next.event, payload(&next)), ("result", "two".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_can_not_be_had_with_somebody_elses_cursor_or_with_garbage() {
    let relay = Relay::start().await;
    let cursor = relay.ask("GET /v1/results", &[("Relay-Client", "other")], "").await.field("next");
    for (path, seen) in [
        ("/v1/results", cursor.as_str()),
        ("/v1/results", "garbage"),
        (&format!("/v1/results?after={cursor}"), ""),
        ("/v1/results?after=garbage", ""),
        ("/v1/results?wait=1s", ""),
        ("/v1/results?limit=1", ""),
        ("/v1/results?queue=UPPER", ""),
    ] {
        let stream = relay.stream(path, &[("Last-Event-ID", seen)]).await;
        stream.head.is_problem(400, "malformed-request");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_on_purpose_and_its_connection_goes_on() {
    let mut setup = Setup::default();
    setup.limits.follow_for = Duration::from_millis(50);
    let relay = setup.start().await;
    let mut stream = relay.stream("/v1/results", &[]).await;
    let blocks = stream.rest().await;
    assert!(blocks.last().unwrap().retry.parse::<u64>().unwrap() >= 500, "{blocks:?}");
    let mut peer = stream.into_peer();
    peer.send("GET /v1/whoami", &[], "").await;
    assert_eq!(peer.reply().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_sends_the_readers_of_streams_away() {
    let mut relay = Relay::start().await;
    let id = relay.submit(&[("Idempotency-Key", "k")], "x").await.field("job_id");
    let mut streams =
        [relay.stream("/v1/results", &[]).await, relay.stream(&format!("/v1/jobs/{id}/events"), &[]).await];
    relay.shutdown.cancel();
    for stream in &mut streams {
        assert!(!stream.rest().await.last().unwrap().retry.is_empty());
    }
    relay.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_lasts_as_long_as_it_is_read() {
    let mut setup = Setup::default();
    setup.limits.ping_every = Duration::from_millis(20);
    setup.limits.idle = Duration::from_millis(200);
    let relay = setup.start().await;
    let mut stream = relay.stream("/v1/results", &[]).await;
    // Longer than a connection may be idle.
    for _ in 0..30 {
        stream.block().await.unwrap();
    }
    finish(&relay, "one").await;
    assert_eq!(payload(&stream.event().await), "one");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_bounded_and_a_reader_that_leaves_makes_room() {
    let mut setup = Setup::default();
    setup.limits.followers = 1;
    let relay = setup.start().await;
    let id = relay.submit(&[("Idempotency-Key", "k")], "x").await.field("job_id");
    let first = relay.stream("/v1/results", &[]).await;
    for path in ["/v1/results", &format!("/v1/jobs/{id}/events")] {
        let refused = relay.stream(path, &[]).await;
        assert_eq!(refused.head.is_problem(503, "overloaded").field("retry"), "safe");
    }
    assert_eq!(relay.get("/v1/results").await.status, 200, "pages are no streams");
    drop(first);
    // The place is free a moment after the reader has gone.
    while relay.stream("/v1/results", &[]).await.head.status != 200 {}
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_do_not_read_hold_little_and_are_dropped() {
    const READERS: usize = 60;
    let mut setup = Setup::default();
    // Long enough for a busy machine: a stream is looked at after that.
    setup.limits.first_request = Duration::from_secs(3);
    setup.limits.idle = Duration::from_millis(300);
    setup.limits.ping_every = Duration::from_millis(20);
    setup.limits.followers = READERS;
    let relay = setup.start().await;
    // More than the sockets hold between them: 13 MB of events.
    let batch = "{\"text\":\"x\"}\n".repeat(600);
    assert_eq!(relay.ask("POST /v1/queues/mail/batch", &[], batch).await.status, 200);
    for _ in 0..600 {
        relay.work("text/plain", vec![b'x'; 16 * 1024]).await;
    }
    let before = resident_bytes();
    let mut peers = Vec::new();
    for _ in 0..READERS {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let mut peer = Peer::new(socket.connect(relay.address).await.unwrap());
        peer.send("GET /v1/results", &[("accept", "text/event-stream")], "").await;
        assert_eq!(peer.reply().await.status, 200);
        peers.push(peer);
    }
    let mut most = 0;
    // All of them have lost their places before any of them is read: reading would keep it.
    let mut next = Vec::new();
    while next.len() < READERS {
        let stream = relay.stream("/v1/results?after=now", &[]).await;
        if stream.head.status == 200 {
            next.push(stream);
        }
        most = most.max(resident_bytes().saturating_sub(before));
    }
    // Other tests run beside this one; all that could be held would be 780 MB.
    assert!(most < 400_000_000, "{most} bytes for {READERS} readers");
    for peer in &mut peers {
        assert!(peer.closed().await.len() < 600 * 16 * 1024, "its connection was cut");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_read_ends_alone_and_another_of_its_connection_goes_on() {
    let mut setup = Setup::default();
    // Long enough for a busy machine: a stream is looked at after that.
    setup.limits.first_request = Duration::from_secs(3);
    setup.limits.idle = Duration::from_millis(300);
    setup.limits.ping_every = Duration::from_millis(20);
    let relay = setup.start().await;
    // More than the window of a stream.
    let batch = "{\"text\":\"x\"}\n".repeat(200);
    assert_eq!(relay.ask("POST /v1/queues/mail/batch", &[], batch).await.status, 200);
    for _ in 0..200 {
        relay.work("text/plain", vec![b'x'; 16 * 1024]).await;
    }
    let client = reqwest::Client::builder().http2_prior_knowledge().http2_initial_stream_window_size(65_535);
    let client = client.build().unwrap();
    let stream = |path: &str| {
        let request = client.get(format!("http://{}{path}", relay.address)).header("accept", "text/event-stream");
        async { request.send().await.unwrap() }
    };
    let (mut unread, mut read) = (stream("/v1/results").await, stream("/v1/results?after=now").await);
    // Pings of some seconds: the other stream was looked at long before.
    for _ in 0..250 {
        assert!(read.chunk().await.unwrap().is_some(), "it goes on");
    }
    let mut told = 0;
    let ended = loop {
        match unread.chunk().await {
            Ok(Some(chunk)) => told += chunk.len(),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(ended && told < 200 * 16 * 1024, "{told} bytes");
}

/// The memory of this process, in bytes.
fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stream_of_a_client_hears_every_result_once_over_http_2_too() {
    let relay = Relay::start().await;
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let mut readers = JoinSet::new();
    for _ in 0..20 {
        let request = client.get(format!("http://{}/v1/results?after=now", relay.address));
        let mut reply = request.header("accept", "text/event-stream").send().await.unwrap();
        assert_eq!((reply.version(), reply.status().as_u16()), (reqwest::Version::HTTP_2, 200));
        readers.spawn(async move {
            let mut text = String::new();
            while text.matches("event: result\n").count() < 10 {
                text += std::str::from_utf8(&reply.chunk().await.unwrap().unwrap()).unwrap();
            }
            text
        });
    }
    for at in 0..10 {
        finish(&relay, &format!("key-{at}")).await;
    }
    for text in readers.join_all().await {
        let ids: std::collections::BTreeSet<_> = text.lines().filter(|line| line.starts_with("id: ")).collect();
        // And where it stood at first.
        assert_eq!((ids.len(), text.matches("event: result\n").count()), (11, 10), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_whose_end_reads_like_a_bare_refusal_arrives_byte_by_byte_and_its_connection_goes_on() {
    let relay = Relay::start().await;
    let end = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    // The parts in which answers are written are of 16 KiB; with some of these the end is written alone.
    for before in [0, 1, 2, 3, 4, 8].map(|parts| parts * 16 * 1024) {
        let payload = format!("{}{end}", "x".repeat(before));
        let mut peer = relay.connect().await;
        let submitted = async {
            peer.send("POST /v1/queues/mail/jobs", &[("prefer", "wait=20")], "a job").await;
            (peer.reply().await, peer)
        };
        let ((reply, mut peer), _) = tokio::join!(submitted, relay.work("text/plain", payload.clone()));
        assert_eq!((reply.status, reply.body.len()), (200, payload.len()), "{before}");
        assert_eq!(reply.text(), payload, "{before}");
        peer.send("GET /v1/whoami", &[], "").await;
        assert_eq!(peer.reply().await.field("client"), "dev", "{before}");
        // A head that nobody can read is still refused with a problem.
        peer.write(b"no request\r\n\r\n").await;
        peer.reply().await.is_problem(400, "malformed-request");
    }
}

/// A relay that has room for two reads of a result of `result_max` bytes, or of a page with such, and holds them; and the id
/// of a job that is done.
async fn with_room_for_two(result_max: u64) -> (Relay, Arc<Gate>, String) {
    let gate = Gate::closed();
    let held = Arc::clone(&gate);
    let break_broker = Box::new(move |broker: &mut Broker| {
        broker.results = Arc::new(Held { inner: Arc::clone(&broker.results), gate: held });
    });
    // Streams have one half of it.
    let limits = Limits { answer_bytes: 8 << 20, ..Limits::default() };
    let policy = QueuePolicy { result_max, ..QueuePolicy::default() };
    let relay = Setup { limits, policy, break_broker, ..Setup::default() }.start().await;
    let id = relay.submit(&[], "x").await.field("job_id");
    relay.work("text/plain", "done").await;
    (relay, gate, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_what_is_there_is_read_in_its_callers_turn() {
    // A page takes the room of a result and as much as it is as JSON.
    for (path, result_max) in [("/v1/jobs/ID/result?wait=1ms", 2 << 20), ("/v1/results?wait=1ms", 1 << 20)] {
        let (relay, gate, id) = with_room_for_two(result_max).await;
        let path = path.replace("ID", &id);
        let mut replies: FuturesUnordered<_> = (0..5).map(|_| relay.get(&path)).collect();
        for _ in 0..3 {
            let refused = tokio::time::timeout(Duration::from_secs(60), replies.next());
            refused.await.expect("all are at the broker").unwrap().is_problem(503, "overloaded");
        }
        assert_eq!(gate.begun(), 2, "{path}: no more than there is room for");
        gate.open();
        while let Some(reply) = replies.next().await {
            assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_stands_in_line_for_its_turn_as_long_as_it_would_wait() {
    let (relay, gate, id) = with_room_for_two(2 << 20).await;
    let path = format!("/v1/jobs/{id}/result");
    let waits = [format!("{path}?wait=50s"), "/v1/results?wait=50s".to_owned()];
    let waits = waits.iter().cycle().take(6).map(|path| relay.get(path));
    let late = async {
        while relay.ingress.in_flight() < 6 {
            tokio::task::yield_now().await;
        }
        // It came last, and does not wait.
        relay.get(&path).await.is_problem(503, "overloaded");
        gate.open();
    };
    let late = tokio::time::timeout(Duration::from_secs(60), late);
    let (replies, late) = tokio::join!(join_all(waits), late);
    late.expect("nobody is refused");
    for reply in replies {
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
}
