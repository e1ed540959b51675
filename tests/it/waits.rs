//! A server, as a process, with many waits over NATS: what each of them costs. `RELAY_WAITS=10000` is as many as it takes by
//! default.

use std::fs::read_to_string;
use std::time::Duration;

use crate::cli_support::Running;
use async_nats::{Client, HeaderMap};
use futures_util::StreamExt as _;
use relay_conformance::testing::NatsServer;

/// How many there are unless the environment says otherwise: enough for what one costs to stand out.
const WAITS: usize = 2_000;
/// How many requests are sent before their answers, or that they wait, are seen to.
const SENT_AT_ONCE: usize = 100;
/// The most that one wait may cost in relay, in bytes: it costs some 3,000, and 4,000 where NATS keeps the jobs. On a busy
/// machine more requests are under way at a time, whose memory is kept: 9,476 were seen.
const BYTES_PER_WAIT_MAX: usize = 12 * 1024;

fn waits() -> usize {
    std::env::var("RELAY_WAITS").map_or(WAITS, |waits| waits.parse().unwrap())
}

/// The memory of a process, in bytes.
fn resident(process: u32) -> usize {
    let status = read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
}

struct Served {
    server: Running,
    client: Client,
    metrics: String,
}

impl Served {
    async fn start(nats: &NatsServer, broker: &[&str]) -> Self {
        let serve = ["serve", "--no-auth", "--json", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        let mut server = Running::start(serve.iter().chain(broker).chain(&[nats.url().as_str()]));
        server.wait_for_line("the NATS ingress is open");
        let metrics = format!("http://{}/metrics", server.ready["listening"]["admin"].as_str().unwrap());
        Self { server, client: async_nats::connect(nats.url()).await.unwrap(), metrics }
    }

    async fn in_flight(&self) -> usize {
        let text = reqwest::get(&self.metrics).await.unwrap().text().await.unwrap();
        let start = "relay_requests_in_flight{protocol=\"nats\"} ";
        text.lines().find_map(|line| line.strip_prefix(start)).unwrap().parse().unwrap()
    }

    /// Submits as many jobs as there may be waits, the same ones each time; with `wait` all of these are open when this ends.
    async fn submit(&self, round: &str, wait: Option<&str>) {
        let inbox = self.client.new_inbox();
        let mut receipts = self.client.subscribe(inbox.clone()).await.unwrap();
        for first in (0..waits()).step_by(SENT_AT_ONCE) {
            for n in first..first + SENT_AT_ONCE {
                let mut headers = HeaderMap::new();
                headers.insert("Idempotency-Key", format!("{round}-{n}"));
                wait.iter().for_each(|wait| headers.insert("Relay-Wait", *wait));
                let (subject, body) = ("relay.submit.me.default", "x".repeat(256).into());
                self.client.publish_with_reply_and_headers(subject, inbox.clone(), headers, body).await.unwrap();
            }
            match wait {
                None => {
                    for _ in 0..SENT_AT_ONCE {
                        let receipt = receipts.next().await.unwrap();
                        assert!(receipt.headers.unwrap().get("Nats-Service-Error").is_none());
                    }
                }
                Some(_) => while self.in_flight().await < first + SENT_AT_ONCE {},
            }
        }
    }

    /// The cost of one wait, in bytes. `last` names the jobs that are waited for: `jobs` are those that are there by then.
    async fn cost_of_a_wait(&self, last: &str) -> usize {
        // Twice: what the process keeps of requests, and of jobs that it finds again, is there by then.
        self.submit("jobs", None).await;
        self.submit("jobs", None).await;
        let before = resident(self.server.id());
        self.submit(last, Some("55s")).await;
        // None has ended, and none is anything but a wait.
        while self.in_flight().await != waits() {}
        resident(self.server.id()).saturating_sub(before) / waits()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_waits_cost_a_few_kibibytes_each() {
    let nats = NatsServer::start().await;
    // A job is in the memory of a relay that keeps it, and is no part of what a wait for it costs.
    for (broker, last) in [(["--memory", "--nats-listen"], "jobs"), (["--provision", "--nats"], "more")] {
        let served = Served::start(&nats, &broker).await;
        let cost = tokio::time::timeout(Duration::from_secs(300), served.cost_of_a_wait(last)).await.unwrap();
        eprintln!("{broker:?}: {cost} bytes for each of {} waits", waits());
        assert!(cost <= BYTES_PER_WAIT_MAX, "{cost} bytes");
    }
}
