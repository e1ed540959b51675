//! A result on the same request: `Relay-Wait` over NATS beside `Prefer: wait` over HTTP, and what ten thousand waits take.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap};
use futures_util::StreamExt as _;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::faults::responds;
use crate::jobs::Jobs;
use crate::nodes::Nodes;
use crate::relays::Running;
use crate::support::load::Connection;
use crate::support::{median, resident};

/// Requests one after the other, and of each of several clients at a time.
const ONE_BY_ONE: u64 = 300;
const AT_ONCE: u64 = 16;
const EACH: u64 = 100;
/// Pairs of runs.
const PAIRS: usize = 5;
const WAITS: u64 = 10_000;
/// A job that ends as soon as its handler begins: see [`Jobs::handle`].
const PAYLOAD: &str = "0 0 0";

/// A client that waits for the result of what it submits.
enum Asker {
    Http(Connection),
    Nats(Client),
}

impl Asker {
    async fn ask(&mut self) {
        match self {
            Self::Http(connection) => {
                let status = connection.submit_payload("prefer: wait=20\r\n", PAYLOAD.as_bytes()).await;
                assert_eq!(status, 200);
            }
            Self::Nats(client) => {
                let mut headers = HeaderMap::new();
                headers.insert("Relay-Wait", "20s");
                headers.insert("Content-Type", "application/json");
                let sent = client.request_with_headers("relay.submit.dev.work", headers, PAYLOAD.into());
                assert!(sent.await.unwrap().headers.unwrap().get("Relay-Outcome").is_some());
            }
        }
    }
}

/// Both ingresses by turns: prints the wait of half of the requests at most, and how many are answered in a second.
pub(crate) async fn beside(relay: &str) {
    let (nodes, jobs) = (Nodes::start().await, Arc::new(Jobs::new()));
    let running = Running::start(relay, &nodes.url(), nodes.replicas(), (1, AT_ONCE as usize), &jobs).await;
    let http = running.servers[0].http;
    let asker = async |is_nats: bool| match is_nats {
        true => Asker::Nats(nodes.client().await),
        false => Asker::Http(Connection::open(http).await),
    };
    responds(&nodes.client().await).await;
    let mut first = asker(false).await;
    for _ in 0..100 {
        first.ask().await;
    }
    let (mut p50s, mut rates) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for turn in 0..2 * PAIRS {
        let is_nats = (turn / 2 + turn) % 2 == 1;
        let (mut one, mut waits) = (asker(is_nats).await, Vec::new());
        for _ in 0..ONE_BY_ONE {
            let asked = Instant::now();
            one.ask().await;
            waits.push(asked.elapsed().as_secs_f64() * 1e3);
        }
        p50s[usize::from(is_nats)].push(median(waits));
        let (mut clients, mut several) = (JoinSet::new(), Vec::new());
        for _ in 0..AT_ONCE {
            several.push(asker(is_nats).await);
        }
        let began = Instant::now();
        for mut client in several {
            clients.spawn(async move {
                for _ in 0..EACH {
                    client.ask().await;
                }
            });
        }
        clients.join_all().await;
        rates[usize::from(is_nats)].push((AT_ONCE * EACH) as f64 / began.elapsed().as_secs_f64());
    }
    let ratio = |of: &[Vec<f64>; 2]| of[1].iter().zip(&of[0]).map(|(nats, http)| nats / http).collect::<Vec<_>>();
    for (what, of) in [("p50 in ms", &p50s), ("answers a second", &rates)] {
        let [http, nats] = [0, 1].map(|side| median(of[side].clone()));
        let mut ratios = ratio(of);
        ratios.sort_by(f64::total_cmp);
        let (least, most) = (ratios[0], ratios[PAIRS - 1]);
        println!(
            "waits: {what}: Prefer: wait {http:.2}, Relay-Wait {nats:.2}, {:.3} [{least:.2}-{most:.2}]",
            median(ratios)
        );
    }
}

/// Ten thousand waits on jobs that are in line: prints the memory that each takes, and how many are answered with their
/// result once workers come.
pub(crate) async fn memory(relay: &str) {
    let (nodes, jobs) = (Nodes::start().await, Arc::new(Jobs::new()));
    let mut running = Running::start(relay, &nodes.url(), nodes.replicas(), (0, 0), &jobs).await;
    let (client, pid) = (nodes.client().await, running.servers[0].pid());
    responds(&client).await;
    let mut connection = Connection::open(running.servers[0].http).await;
    connection.submit_payload("", PAYLOAD.as_bytes()).await;
    let submit = async |number: u64| {
        let mut headers = HeaderMap::new();
        headers.insert("Idempotency-Key", number.to_string());
        headers.insert("Content-Type", "application/json");
        let sent = client.request_with_headers("relay.submit.dev.work", headers, PAYLOAD.into()).await;
        sent.unwrap().headers.unwrap().get("Relay-Job-Id").unwrap().to_string()
    };
    let ids: Vec<String> = futures_util::stream::iter(0..WAITS).map(submit).buffer_unordered(64).collect().await;
    sleep(Duration::from_secs(3)).await;
    let before = resident(pid);
    let (inbox, mut headers) = (client.new_inbox(), HeaderMap::new());
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    headers.insert("Relay-Wait", "55s");
    let asked = Instant::now();
    for (number, id) in ids.into_iter().enumerate() {
        // Until it is known that a job goes on its wait is a request, and of these there may be 4,096.
        if number % 20 == 0 {
            sleep(Duration::from_millis(10)).await;
        }
        let (reply, headers) = (inbox.clone(), headers.clone());
        client.publish_with_reply_and_headers("relay.result.dev", reply, headers, id.into()).await.unwrap();
    }
    let early = async {
        let mut early = 0;
        while let Ok(Some(_)) = timeout(Duration::from_secs(10), answers.next()).await {
            early += 1;
        }
        early
    };
    let early = early.await;
    let after = resident(pid);
    println!(
        "waits: {WAITS} asked for, {early} answered within {:?}; {:.2} KB each",
        asked.elapsed(),
        (after as f64 - before as f64) / 1024.0 / (WAITS - early) as f64
    );
    running.add_workers(relay, &nodes.url(), (2, 16), &jobs).await;
    let mut results = 0;
    while let Ok(Some(answer)) = timeout(Duration::from_secs(20), answers.next()).await {
        results += u64::from(answer.headers.is_some_and(|headers| headers.get("Relay-Outcome").is_some()));
        if early + results == WAITS {
            break;
        }
    }
    println!("waits: {results} answered with their result after {:?}", asked.elapsed());
}
