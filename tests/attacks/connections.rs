//! Peers that connect and say nothing, or half of something, or something wrong.

use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::resource::{Resource, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cli_support::{code, run_with, stderr};
use crate::support::{Attacked, POD_BYTES, ask, connections, h2_peer, request};

/// More than a server keeps that nobody was authenticated on.
const STRANGERS: usize = 6_285;

/// A client that comes while others attack: it connects, submits and asks.
fn an_honest_client_is_served(attacked: &Attacked, key: &str) {
    let output = run_with(["submit", "--server", &attacked.server.url(), "--api-key", key], b"hello");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
}

/// Whether the server has closed it: everything that it sent was read.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    timeout(Duration::from_secs(40), stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_with_half_a_head_hold_little_and_keep_nobody_out() {
    let count = connections(STRANGERS);
    let (attacked, keys) = Attacked::start(&["a", "b"], &[]);
    let head = format!("GET /v1/whoami HTTP/1.1\r\nhost: relay\r\nx-filler: {}", "x".repeat(15_000));
    let mut peers = Vec::new();
    while peers.len() < count {
        let some = (0..100.min(count - peers.len())).map(|_| async {
            let mut peer = TcpStream::connect(attacked.address()).await.unwrap();
            let unknown = "GET /v1/whoami HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer a.b\r\n\r\n";
            // Some are closed before they have said everything.
            peer.write_all(unknown.as_bytes()).await.ok();
            peer.write_all(head.as_bytes()).await.ok();
            peer
        });
        peers.extend(timeout(Duration::from_secs(60), join_all(some)).await.expect("peers are let in"));
    }
    an_honest_client_is_served(&attacked, &keys[1]);
    let peak = attacked.peak();
    eprintln!("{count} strangers: {} MiB", peak >> 20);
    assert!(peak < POD_BYTES / 2, "{} MiB for {count} strangers", peak >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_beyond_the_open_files_make_room_for_others() {
    // The server inherits the limit; this process needs more.
    let files = 1_024;
    connections(files * 2);
    let (_, most) = nix::sys::resource::getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(most > 2_000, "this test needs 2,000 open files");
    let dir = tempfile::tempdir().unwrap();
    let keys = ["a", "b"].map(|client| crate::support::new_key(dir.path(), &[client]));
    let attacked = Attacked::start_with_files(dir, files, &[]);
    let mut peers = Vec::new();
    for _ in 0..files + 200 {
        let mut peer = TcpStream::connect(attacked.address()).await.unwrap();
        peer.write_all(request("GET /v1/whoami", &keys[0], "").as_bytes()).await.ok();
        peers.push(peer);
    }
    timeout(Duration::from_secs(30), async {
        let answer = ask(attacked.address(), &request("GET /v1/whoami", &keys[1], "")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    })
    .await
    .expect("idle connections keep others out");
    drop((peers, setrlimit(Resource::RLIMIT_NOFILE, most, most)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fifth_401_closes_the_connection() {
    let (attacked, _) = Attacked::start(&["a"], &[]);
    let mut peer = TcpStream::connect(attacked.address()).await.unwrap();
    let stranger = request("GET /v1/whoami", "a.b", "");
    peer.write_all(stranger.repeat(8).as_bytes()).await.unwrap();
    let mut answers = String::new();
    timeout(Duration::from_secs(8), peer.read_to_string(&mut answers)).await.expect("it stays open").ok();
    assert_eq!(answers.matches("HTTP/1.1 401 ").count(), 5);
    assert_eq!(answers.to_ascii_lowercase().matches("connection: close").count(), 1);

    let mut peer = h2_peer(attacked.address(), 65_535, 65_535).await;
    for _ in 0..5 {
        assert_eq!(peer.get("/v1/whoami", "a.b", &[]).await.await.unwrap().status(), 401);
    }
    timeout(Duration::from_secs(8), peer.ended()).await.expect("it stays open");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_head_has_ten_seconds_whoever_sends_it() {
    let (attacked, keys) = Attacked::start(&["a"], &[]);
    let connect = || async { TcpStream::connect(attacked.address()).await.unwrap() };
    let mut silent = connect().await;
    let mut half = connect().await;
    half.write_all(b"GET /v1/who").await.unwrap();
    let mut preface = connect().await;
    preface.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    // The key of an earlier request gives no more time for the next head.
    let mut known = connect().await;
    known.write_all(request("GET /v1/whoami", &keys[0], "").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        assert!(known.read_buf(&mut answer).await.unwrap() > 0);
    }
    known.write_all(b"GET /v1/who").await.unwrap();
    let mut dripping = connect().await;
    dripping.write_all(request("GET /v1/whoami", &keys[0], "").as_bytes()).await.unwrap();
    let (mut from, mut to) = dripping.split();
    let drip = async {
        let mut every = tokio::time::interval(Duration::from_millis(500));
        for byte in b"GET /v1/whoami HTTP/1.1\r\nhost: relay\r\nx-filler: ".iter().chain(std::iter::repeat(&b'x')) {
            every.tick().await;
            if to.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let ended = async {
        let mut rest = Vec::new();
        timeout(Duration::from_secs(40), from.read_to_end(&mut rest)).await.is_ok()
    };
    let dripped = async {
        tokio::select! { ended = ended => ended, () = drip => false }
    };
    let (dripped, closed) =
        tokio::join!(dripped, join_all([&mut silent, &mut half, &mut preface, &mut known].map(is_closed)));
    assert_eq!((closed, dripped), (vec![true; 4], true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_silent_peers_of_a_port_with_tls_keep_no_handshake_out() {
    let count = connections(1_000);
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let [certificate, key] = ["tls.pem", "tls.key"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let of_client = crate::support::new_key(dir.path(), &["a"]);
    let attacked = Attacked::start_in(dir, &["--tls-cert", &certificate, "--tls-key", &key]);
    let http = attacked.server.ready["listening"]["http"].as_str().unwrap();
    let silent = join_all((0..count).map(|_| async { TcpStream::connect(http).await.unwrap() })).await;
    let server = format!("https://localhost:{}", http.rsplit(':').next().unwrap());
    for _ in 0..5 {
        let output = run_with(["submit", "--server", &server, "--ca", &certificate, "--api-key", &of_client], b"hello");
        assert_eq!(code(&output), 0, "{}", stderr(&output));
    }
    drop(silent);
}
