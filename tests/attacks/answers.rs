//! Peers that ask for large answers and do not read them.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use crate::cli_support::{Running, code, run_with, stderr};
use crate::support::{Attacked, H2, POD_BYTES, ask, done, h2_peer, request, worker};

/// The bytes of a result.
const RESULT: usize = 1024 * 1024;
/// Requests of one connection of HTTP/2 at a time, as many as the server takes.
const STREAMS: usize = 256;

/// A server with one result of [`RESULT`] bytes of client `a`, beside client `b`.
struct Prepared {
    attacked: Attacked,
    _worker: Running,
    keys: Vec<String>,
    job: String,
}

fn prepare(more: &[&str]) -> Prepared {
    let (attacked, keys) = Attacked::start(&["a", "b"], &[&["--result-max", "1MiB"], more].concat());
    let worker = worker(&attacked, &["head", "-c", &RESULT.to_string(), "/dev/zero"]);
    let job = done(&attacked, &keys[0]);
    Prepared { attacked, _worker: worker, keys, job }
}

impl Prepared {
    fn path(&self) -> String {
        format!("/v1/jobs/{}/result", self.job)
    }

    /// Client `b` is served as if nobody else were there.
    fn others_are_served(&self) {
        let args = ["submit", "--wait=60s", "--server", &self.attacked.server.url(), "--api-key", &self.keys[1]];
        let output = run_with(args, b"hello");
        assert_eq!((code(&output), output.stdout.len()), (0, RESULT), "{}", stderr(&output));
    }
}

async fn nobody_reads(window: u32) {
    let server = prepare(&[]);
    let mut peers = join_all((0..9).map(|_| h2_peer(server.attacked.address(), window, 65_535))).await;
    let mut answers = Vec::new();
    for peer in &mut peers {
        for _ in 0..STREAMS {
            answers.push(peer.get(&server.path(), &server.keys[0], &[]).await);
        }
    }
    server.others_are_served();
    // Every request is answered: with the result, of which nothing is taken, or with a refusal.
    let statuses = join_all(answers).await;
    let refused = statuses.iter().flatten().filter(|answer| answer.status() == 429).count();
    server.others_are_served();
    let peak = server.attacked.peak();
    eprintln!("a window of {window}: {} MiB, {refused} refused", peak >> 20);
    assert!(peak < POD_BYTES, "{} MiB with a window of {window}", peak >> 20);
    assert!(refused > 0, "what the client does not read is charged to it");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_over_http_2_that_nobody_reads_hold_a_share_and_no_more() {
    for window in [0, 1, 65_535] {
        nobody_reads(window).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_over_http_1_that_nobody_reads_hold_a_share_and_no_more() {
    let server = prepare(&[]);
    let mut peers = Vec::new();
    for _ in 0..600 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let mut peer = socket.connect(server.attacked.address()).await.unwrap();
        peer.write_all(request(&format!("GET {}", server.path()), &server.keys[0], "").as_bytes()).await.unwrap();
        peers.push(peer);
    }
    // Each has the beginning of its answer.
    let mut refused = 0;
    for peer in &mut peers {
        let mut head = [0; 12];
        peer.read_exact(&mut head).await.unwrap();
        refused += usize::from(&head == b"HTTP/1.1 429");
    }
    server.others_are_served();
    let peak = server.attacked.peak();
    eprintln!("600 connections: {} MiB, {refused} refused", peak >> 20);
    assert!(peak < POD_BYTES, "{} MiB", peak >> 20);
    assert!(refused > 0, "what the client does not read is charged to it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_answer_nobody_reads_is_refused_before_anything_is_done() {
    let server = prepare(&[]);
    let mut peer = h2_peer(server.attacked.address(), 0, 65_535).await;
    let held: Vec<_> = {
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(peer.get(&server.path(), &server.keys[0], &[]).await.await.unwrap());
        }
        held
    };
    let refused = peer.post("/v1/queues/default/batch", &server.keys[0], r#"[{"text":"x","key":"never"}]"#).await;
    assert_eq!(refused.await.unwrap().status(), 429);
    let path = "GET /v1/queues/default/jobs?key=never";
    let unknown = ask(server.attacked.address(), &request(path, &server.keys[0], "")).await;
    assert!(unknown.starts_with("HTTP/1.1 404 "), "{unknown}");
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_job_whose_result_finds_no_room_is_answered_with_its_receipt() {
    let server = prepare(&[]);
    let (mut peers, mut held) = (Vec::new(), Vec::new());
    // All that the client may leave unread, and more than one connection may.
    for _ in 0..2 {
        let mut peer = h2_peer(server.attacked.address(), 0, 65_535).await;
        for _ in 0..4 {
            held.push(peer.get(&server.path(), &server.keys[0], &[]).await.await.unwrap());
        }
        peers.push(peer);
    }
    assert!(held.iter().all(|answer| answer.status() == 200));
    let submission = request("POST /v1/queues/default/jobs", &server.keys[0], "hello");
    let submission = submission.replacen("\r\n", "\r\nidempotency-key: once\r\nprefer: wait=30\r\n", 1);
    let receipt = ask(server.attacked.address(), &submission).await;
    assert!(receipt.starts_with("HTTP/1.1 202 ") && receipt.contains("\"job_id\""), "{}", receipt.len());
    drop((held, peers));
    // The room is free again once the server knows that its peer is gone.
    for _ in 0..30 {
        if ask(server.attacked.address(), &submission).await.starts_with("HTTP/1.1 200 ") {
            return;
        }
    }
    panic!("the same key does not find the result");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_jobs_take_turns_with_the_answers_that_their_client_does_not_read() {
    let server = prepare(&[]);
    let mut peer = h2_peer(server.attacked.address(), 0, 65_535).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(peer.get(&server.path(), &server.keys[0], &[]).await.await.unwrap());
    }
    let path = server.path();
    let job = path.strip_suffix("/result").unwrap();
    for change in ["cancel", "rerun?from=1"] {
        let refused = peer.post(&format!("{job}/{change}"), &server.keys[0], "").await;
        assert_eq!(refused.await.unwrap().status(), 429, "{change}");
    }
    // Nothing was done: there is one run.
    let view = ask(server.attacked.address(), &request(&format!("GET {job}"), &server.keys[0], "")).await;
    assert!(view.contains("\"generation\":1,"), "{view}");
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_answer_is_ended_alone_and_its_connection_goes_on() {
    let server = prepare(&["--idle", "3s", "--ping-every", "1s"]);
    // As many bytes as whole frames have: nothing of the answer is with the connection when its window is used up.
    let mut peer = h2_peer(server.attacked.address(), 65_536, 1 << 20).await;
    let follow = [("accept", "text/event-stream")];
    let mut followed = peer.get("/v1/results", &server.keys[0], &follow).await.await.unwrap();
    let stalled = peer.get(&server.path(), &server.keys[0], &[]).await.await.unwrap();
    assert!(followed.status() == 200 && stalled.status() == 200);
    // Pings come for as long as the stream lasts.
    let reading = async {
        loop {
            let chunk = followed.body_mut().data().await.expect("the stream goes on").unwrap();
            followed.body_mut().flow_control().release_capacity(chunk.len()).unwrap();
        }
    };
    let mut stalled = stalled.into_body();
    let ended = async {
        // Nothing is given back of what comes: the window stays used up.
        while let Some(chunk) = stalled.data().await {
            if chunk.is_err() {
                return;
            }
        }
        panic!("it came whole");
    };
    tokio::select! {
        () = reading => {}
        ended = timeout(Duration::from_secs(60), ended) => ended.expect("nothing ends it"),
    }
    let alive = peer.get("/v1/whoami", &server.keys[0], &[]).await;
    assert_eq!(alive.await.unwrap().status(), 200);
    let chunk = followed.body_mut().data().await;
    assert!(chunk.is_some_and(|chunk| chunk.is_ok()), "the other stream goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_closed_where_what_is_left_of_an_answer_can_not_be_taken_back() {
    let server = prepare(&["--idle", "3s", "--ping-every", "1s"]);
    let mut peer: H2 = h2_peer(server.attacked.address(), 0, 65_535).await;
    let small = peer.get("/v1/whoami", &server.keys[0], &[]).await;
    assert_eq!(small.await.unwrap().status(), 200);
    timeout(Duration::from_secs(60), peer.ended()).await.expect("it holds its connection for ever");
}
