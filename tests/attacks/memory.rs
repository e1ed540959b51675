//! The memory that a server says it may come to need, and what it takes under everything at once.

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::cli_support::{Running, code, run_with, stderr};
use crate::support::{Attacked, connections, done, h2_peer, request, worker};

/// The bytes of a result.
const RESULT: usize = 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn under_every_attack_at_once_a_server_takes_no_more_memory_than_it_said() {
    connections(4_000);
    let more = ["--result-max", "1MiB", "--payload-max", "8MiB", "--connections", "3000", "--followers", "1000"];
    let budgets = ["--answer-bytes", "48MiB", "--body-bytes", "48MiB", "--requests", "4000", "--log-format", "json"];
    let (mut attacked, keys) = Attacked::start(&["a", "b", "c", "d"], &[&more[..], &budgets].concat());
    let line = attacked.server.wait_for_line("so many bytes of memory");
    let told: serde_json::Value = serde_json::from_str(&line).unwrap();
    let needed = usize::try_from(told["memory"].as_u64().unwrap()).unwrap();

    let _worker = worker(&attacked, &["head", "-c", &RESULT.to_string(), "/dev/zero"]);
    let (mut peers, mut answers, mut held) = (Vec::new(), Vec::new(), Vec::new());
    let head = format!("GET /v1/whoami HTTP/1.1\r\nhost: relay\r\nx-filler: {}", "x".repeat(15_000));
    for key in &keys[..3] {
        let job = done(&attacked, key);
        for _ in 0..4 {
            let mut peer = h2_peer(attacked.address(), 0, 65_535).await;
            for _ in 0..200 {
                answers.push(peer.get(&format!("/v1/jobs/{job}/result"), key, &[]).await);
            }
            peers.push(peer);
        }
        let announced = request("POST /v1/queues/default/jobs", key, "").replace(": 0\r\n", ": 8388608\r\n");
        let follow = request("GET /v1/results", key, "").replace("host:", "accept: text/event-stream\r\nhost:");
        for n in 0..500 {
            let mut peer = TcpStream::connect(attacked.address()).await.unwrap();
            let text = match n % 3 {
                0 => announced.clone() + &"y".repeat(100_000),
                1 => follow.clone(),
                _ => head.clone(),
            };
            // Some are refused or closed while they send.
            peer.write_all(text.as_bytes()).await.ok();
            held.push(peer);
        }
    }
    drop(join_all(answers).await);
    let output = run_with(["submit", "--server", &attacked.server.url(), "--api-key", &keys[3]], b"hello");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let peak = attacked.peak();
    eprintln!("{} MiB taken of {} MiB that were said", peak >> 20, needed >> 20);
    assert!(peak < needed + needed / 4, "{peak} bytes, and {needed} were said");
    drop((peers, held));
}

#[test]
fn a_server_in_a_small_group_makes_its_limits_fit() {
    // Whether this process is in a group with a limit is the machine's to say: the flag must do no harm without one.
    let mut server =
        Running::start(["serve", "--json", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--fit-memory"]);
    server.wait_for_line("so many bytes of memory");
    server.stop();
}
