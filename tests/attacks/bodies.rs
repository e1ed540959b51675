//! Peers that announce large bodies, or send them slowly.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{Attacked, ask, request};

const SUBMIT: &str = "POST /v1/queues/default/jobs";

/// The head of a submission that announces `bytes`.
fn head(key: &str, bytes: usize) -> String {
    request(SUBMIT, key, "").replace("content-length: 0", &format!("content-length: {bytes}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_announced_and_do_not_come_take_nothing_from_others() {
    let (attacked, keys) = Attacked::start(&["a", "b"], &["--payload-max", "8MiB"]);
    let mut peers = Vec::new();
    for _ in 0..64 {
        let mut peer = TcpStream::connect(attacked.address()).await.unwrap();
        peer.write_all((head(&keys[0], 8 << 20) + "x").as_bytes()).await.unwrap();
        peers.push(peer);
    }
    for _ in 0..8 {
        let taken = ask(attacked.address(), &request(SUBMIT, &keys[1], &"y".repeat(4 << 20))).await;
        assert!(taken.starts_with("HTTP/1.1 202 "), "{taken}");
    }
    drop(peers);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_came_in_part_take_their_clients_share_and_no_more() {
    let (attacked, keys) = Attacked::start(&["a", "b"], &["--payload-max", "8MiB"]);
    let mut peers = Vec::new();
    for _ in 0..16 {
        let mut peer = TcpStream::connect(attacked.address()).await.unwrap();
        peer.write_all((head(&keys[0], 8 << 20) + &"x".repeat(200 * 1024)).as_bytes()).await.unwrap();
        peers.push(peer);
    }
    // Two of them fit into a quarter of 64 MiB, and the others are told so.
    let mut refused = 0;
    for peer in &mut peers {
        let mut status = [0; 12];
        let answered = timeout(Duration::from_secs(1), peer.read_exact(&mut status)).await;
        refused += usize::from(answered.is_ok_and(|read| read.is_ok()) && &status == b"HTTP/1.1 429");
    }
    assert_eq!(refused, 14);
    let taken = ask(attacked.address(), &request(SUBMIT, &keys[1], &"y".repeat(8 << 20))).await;
    assert!(taken.starts_with("HTTP/1.1 202 "), "{taken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_drips_is_answered_408() {
    let (attacked, keys) = Attacked::start(&["a"], &[]);
    let mut peer = TcpStream::connect(attacked.address()).await.unwrap();
    peer.write_all(head(&keys[0], 100_000).as_bytes()).await.unwrap();
    let (mut from, mut to) = peer.into_split();
    let dripping = async {
        let mut every = tokio::time::interval(Duration::from_millis(200));
        while to.write_all(b"x").await.is_ok() {
            every.tick().await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = [0; 12];
    tokio::select! {
        read = timeout(Duration::from_secs(20), from.read_exact(&mut answer)) => drop(read.expect("it may drip on").unwrap()),
        () = dripping => {}
    }
    assert_eq!(&answer, b"HTTP/1.1 408");
}
