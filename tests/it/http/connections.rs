//! Connections: silent, slow, half closed, too many; HTTP/2; the byte budget; the drain.

use std::time::Duration;

use relay::ingress::clients::ClientShares;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::support::{Peer, Relay, Setup};

const SUBMIT: &str = "POST /v1/queues/mail/jobs";

/// Sends the head of a submission of `length` bytes and waits until relay begins to read its body.
async fn begin(relay: &Relay, length: usize) -> Peer {
    let mut peer = relay.connect().await;
    let length = length.to_string();
    peer.send(SUBMIT, &[("content-length", &length), ("expect", "100-continue")], "").await;
    assert_eq!(peer.reply().await.status, 100);
    peer
}

/// Waits until something is so.
async fn until(is_so: impl Fn() -> bool) {
    let waited = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited).await.expect("it did not come to that");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_sends_nothing_or_half_a_head_is_dropped() {
    let mut setup = Setup::default();
    setup.limits.first_request = Duration::from_millis(50);
    let relay = setup.start().await;
    for sent in ["", "P", "PRI * HTTP/2.0", "POST /v1/queues/mail/jobs HTTP/1.1\r\nhost: re"] {
        let mut peer = relay.connect().await;
        // On a busy machine it may be dropped before it has sent that.
        peer.try_write(sent.as_bytes()).await;
        assert_eq!(peer.closed().await, "", "{sent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_trickles_in_is_given_no_more_time_for_each_byte() {
    let mut setup = Setup::default();
    setup.limits.first_request = Duration::from_millis(100);
    let relay = setup.start().await;
    let mut peer = relay.connect().await;
    peer.write(b"GET /v1/whoami HTTP/1.1\r\nx-slow: ").await;
    // It would take some minutes to be done.
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    for _ in 0..100_000 {
        tick.tick().await;
        if !peer.try_write(b"x").await {
            return;
        }
    }
    panic!("the head was waited for to its end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_head_that_does_not_end_is_dropped_too() {
    let mut setup = Setup::default();
    setup.limits.idle = Duration::from_millis(50);
    let relay = setup.start().await;
    let mut peer = relay.connect().await;
    peer.send("GET /v1/whoami", &[], "").await;
    assert_eq!(peer.reply().await.status, 200);
    peer.try_write(b"GET /v1/whoami HT").await;
    assert!(!peer.closed().await.contains(" 200 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_read_its_answer_is_dropped() {
    let mut setup = Setup::default();
    setup.limits.idle = Duration::from_millis(50);
    // Long enough for a busy machine: each request here is the first of its connection.
    setup.limits.first_request = Duration::from_secs(1);
    setup.limits.connections = 1;
    let relay = setup.start().await;
    relay.submit(&[("Idempotency-Key", "k")], "x").await;
    // More than the sockets hold between them.
    let id = relay.work("text/plain", vec![b'x'; 12_000_000]).await.job.id;
    let mut peer = relay.connect().await;
    peer.send(&format!("GET /v1/jobs/{id}/result"), &[], "").await;
    let mut next = relay.connect().await;
    next.send("GET /v1/whoami", &[], "").await;
    assert_eq!(next.reply().await.status, 200, "its place is free");
    assert!(peer.closed().await.len() < 12_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_arrive_ends_in_a_timeout() {
    let mut setup = Setup::default();
    setup.limits.body_timeout = Duration::from_millis(50);
    let relay = setup.start().await;
    let mut peer = begin(&relay, 5).await;
    peer.write(b"he").await;
    let reply = peer.reply().await;
    reply.is_problem(408, "request-timeout");
    assert_eq!((reply.header("connection"), peer.closed().await), ("close", String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_it_waits_holds_nothing() {
    let mut setup = Setup::default();
    setup.limits.requests = 1;
    let relay = setup.start().await;
    let mut peer = relay.connect().await;
    peer.send(SUBMIT, &[("Prefer", "wait=50")], "x").await;
    let taken = relay.lease().await;
    relay.get("/v1/whoami").await.is_problem(503, "overloaded");
    peer.half_close().await;
    assert_eq!(peer.closed().await, "");
    // The place is free a moment after the client sees the end.
    while relay.get("/v1/whoami").await.status != 200 {}
    assert_eq!(taken.attempt, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_cap_connections_wait_for_a_place() {
    let mut setup = Setup::default();
    setup.limits.connections = 1;
    let relay = setup.start().await;
    let mut first = relay.connect().await;
    first.send("GET /v1/whoami", &[], "").await;
    assert_eq!(first.reply().await.status, 200);
    let mut second = relay.connect().await;
    second.send("GET /v1/whoami", &[], "").await;
    drop(first);
    assert_eq!(second.reply().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_in_flight_share_one_budget() {
    let mut setup = Setup::default();
    setup.limits.body_bytes = 1_000;
    let relay = setup.start().await;
    let mut first = begin(&relay, 800).await;
    relay.submit(&[], [0; 300]).await.is_problem(503, "overloaded");
    let chunked = format!("12c\r\n{}\r\n0\r\n\r\n", "x".repeat(300));
    relay.submit(&[("transfer-encoding", "chunked")], &chunked).await.is_problem(503, "overloaded");
    assert_eq!(relay.submit(&[], [0; 200]).await.status, 202);
    first.write(&[0; 800]).await;
    assert_eq!(first.reply().await.status, 202);
    assert_eq!(relay.submit(&[], [0; 1_000]).await.status, 202, "the budget is whole again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_holds_no_share_of_the_budget() {
    let mut setup = Setup::default();
    setup.limits.body_bytes = 1_000;
    let relay = setup.start().await;
    let mut waiting = relay.connect().await;
    waiting.send(SUBMIT, &[("Prefer", "wait=50")], [0; 1_000]).await;
    relay.lease().await;
    while relay.submit(&[], [1; 1_000]).await.status != 202 {}
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_follow_each_other_on_one_connection_and_may_be_sent_ahead() {
    let relay = Relay::start().await;
    let mut peer = relay.connect().await;
    for body in ["a", "b", "c"] {
        peer.send(SUBMIT, &[], body).await;
    }
    peer.send("GET /v1/nowhere", &[], "").await;
    for status in [202, 202, 202, 404] {
        assert_eq!(peer.reply().await.status, status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_is_served_on_the_same_port_without_tls() {
    let relay = Relay::start().await;
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let base = format!("http://{}", relay.address);
    let submit = client.post(format!("{base}/v1/queues/mail/jobs")).header("prefer", "wait=50").body("x").send();
    let (reply, _) = tokio::join!(submit, relay.work("text/plain", "y"));
    let reply = reply.unwrap();
    assert_eq!((reply.version(), reply.status().as_u16()), (reqwest::Version::HTTP_2, 200));
    assert_eq!(reply.text().await.unwrap(), "y");
    let refused = client.put(format!("{base}/v1/whoami")).send().await.unwrap();
    assert_eq!(refused.status().as_u16(), 405);
    assert_eq!(refused.headers()["content-type"], "application/problem+json");
    let large = client.post(format!("{base}/v1/queues/mail/jobs")).body(vec![0; 2_000]).send().await.unwrap();
    assert_eq!(large.status().as_u16(), 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_are_known_by_bytes_that_come_one_by_one() {
    let relay = Relay::start().await;
    let mut peer = relay.connect().await;
    // It begins as the preface of HTTP/2 does.
    for byte in format!("{SUBMIT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\nx").bytes() {
        peer.write(&[byte]).await;
    }
    assert_eq!(peer.reply().await.status, 202);
    peer.send("GET /v1/nowhere", &[], "").await;
    assert_eq!(peer.reply().await.status, 404);

    let mut stream = TcpStream::connect(relay.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    // The preface, and a frame of settings that sets none.
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
        stream.write_all(&[*byte]).await.unwrap();
    }
    let mut settings = [0; 9];
    stream.read_exact(&mut settings).await.unwrap();
    assert_eq!((settings[0], settings[3], &settings[4..]), (0, 4, &[0; 5][..]), "its first frame is of settings");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_answers_waits_early_and_closes_idle_connections() {
    let mut relay = Relay::start().await;
    let mut idle = relay.connect().await;
    idle.send("GET /v1/whoami", &[], "").await;
    assert_eq!(idle.reply().await.status, 200);
    let mut silent = relay.connect().await;
    let mut submitter = relay.connect().await;
    submitter.send(SUBMIT, &[("Prefer", "wait=50"), ("Idempotency-Key", "k")], "x").await;
    let id = relay.lease().await.job.id;

    relay.shutdown.cancel();
    let receipt = submitter.reply().await;
    assert_eq!((receipt.status, receipt.field("job_id")), (202, id.to_string()));
    assert_eq!(receipt.header("preference-applied"), "wait=50");
    for peer in [&mut submitter, &mut idle, &mut silent] {
        assert_eq!(peer.closed().await, "");
    }
    relay.drained().await;
    assert!(tokio::net::TcpStream::connect(relay.address).await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_http_2_connections_too() {
    let mut relay = Relay::start().await;
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let url = format!("http://{}/v1/queues/mail/jobs", relay.address);
    let shutdown = relay.shutdown.clone();
    let submit = client.post(url).header("prefer", "wait=50").body("x").send();
    let drain = async {
        relay.lease().await;
        shutdown.cancel();
    };
    let (reply, ()) = tokio::join!(submit, drain);
    assert_eq!(reply.unwrap().status().as_u16(), 202);
    relay.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_a_request_in_flight_finish() {
    let mut relay = Relay::start().await;
    let mut peer = begin(&relay, 5).await;
    relay.shutdown.cancel();
    peer.write(b"hello").await;
    let receipt = peer.reply().await;
    assert_eq!(receipt.status, 202);
    relay.drained().await;
    assert_eq!(&relay.lease().await.job.payload[..], b"hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_at_its_deadline() {
    let mut relay = Setup { drain: Duration::from_millis(50), ..Setup::default() }.start().await;
    let mut peer = begin(&relay, 5).await;
    relay.shutdown.cancel();
    relay.drained().await;
    assert_eq!(peer.closed().await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_authentication_a_connection_is_proven_by_its_first_whole_request() {
    let relay = Relay::start().await;
    let mut peer = relay.connect().await;
    peer.write(b"GET /v1/whoami HTTP/1.1\r\nhost: localhost\r\n").await;
    // It has said nothing that is whole.
    until(|| relay.ingress.connections() == (0, 1)).await;
    peer.write(b"\r\n").await;
    assert_eq!(peer.reply().await.status, 200);
    assert_eq!(relay.ingress.connections(), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_anybody_may_take_are_no_way_to_more_than_one_connections_share() {
    let mut setup = Setup::default();
    // A quarter of it for each.
    setup.limits.requests = 8;
    setup.limits.shares = ClientShares::quarters();
    let relay = setup.start().await;
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let waits = |name: &str| {
        let request = client.get(format!("http://{}/v1/results?wait=50s", relay.address));
        request.header("relay-client", name.to_owned()).send()
    };
    let mut waiting = JoinSet::new();
    for name in ["one", "two"] {
        waiting.spawn(waits(name));
    }
    until(|| relay.ingress.in_flight() == 2).await;
    let refused = waits("three").await.unwrap();
    assert_eq!((refused.version(), refused.status().as_u16()), (reqwest::Version::HTTP_2, 429));
    assert_eq!(relay.ask("GET /v1/whoami", &[("Relay-Client", "one")], "").await.status, 200, "another connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_connection_is_told_with_an_answer_and_its_stream_ends_and_nothing_is_cut_off() {
    let mut setup = Setup::default();
    setup.limits.max_age = Duration::from_millis(100);
    let relay = setup.start().await;
    let mut kept = relay.connect().await;
    loop {
        kept.send("GET /v1/whoami", &[], "").await;
        let answer = kept.reply().await;
        assert_eq!(answer.status, 200);
        if answer.header("connection") == "close" {
            break;
        }
    }
    assert_eq!(kept.closed().await, "");
    let mut stream = relay.stream("/v1/results", &[]).await;
    stream.rest().await;

    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let url = format!("http://{}/v1/queues/mail/jobs", relay.address);
    let waiting = client.post(url).header("prefer", "wait=50").body("x").send();
    let work = async {
        // It ends because its connection is old, and the other one is older.
        relay.stream("/v1/results", &[]).await.rest().await;
        relay.work("text/plain", "done").await;
    };
    let (reply, ()) = tokio::join!(waiting, work);
    assert_eq!(reply.unwrap().status().as_u16(), 200, "a wait goes on behind GOAWAY");
}
