//! When handlers start while servers fail, how often in a healthy system, and how fast. Each case prints one line.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use relay_conformance::testing::{NatsCluster, NatsServer};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::jobs::Jobs;
use crate::nodes::{self, Nodes};
use crate::relays::{self, Running};
use crate::support::load::Connection;
use crate::support::median;

/// One look at the broker: a job may begin so much later than its cancel was answered.
const LOOK: Duration = Duration::from_millis(250);
const JOBS_STREAM: &str = "relay-jobs-work";

/// A healthy system: how many handlers start for 10,000 jobs.
pub(crate) async fn healthy(relay: &str) {
    const JOBS: u64 = 10_000;
    let (nodes, jobs) = (Nodes::start().await, Arc::new(Jobs::new()));
    let (submitter, _running) = relays::on_nats(relay, &nodes, 4, &jobs).await;
    let submitter = Arc::new(submitter);
    let first = crate::warm_up(&submitter, &jobs, 4).await;
    jobs.come(&submitter, 200, first..first + JOBS).await;
    jobs.all_begun(first + JOBS).await;
    let starts = jobs.begins().iter().filter(|(number, _)| *number >= first).count();
    println!("healthy: {} nodes, {JOBS} jobs, 4 processes: {starts} starts", nodes.replicas());
}

/// A server that is killed and starts again under a busy worker: how long after it is ready the next handler starts.
pub(crate) async fn restart(relay: &str) {
    const BACKLOG: u64 = 600;
    let (mut server, jobs) = (NatsServer::start().await, Arc::new(Jobs::new()));
    let running = Running::start(relay, &server.url(), 1, (1, 4), &jobs).await;
    let submitter = Arc::new(relays::submitter(&running).await);
    let (mut next, mut waits) = (crate::warm_up(&submitter, &jobs, 1).await, Vec::new());
    for _ in 0..10 {
        jobs.come(&submitter, 2_000, next..next + BACKLOG).await;
        next += BACKLOG;
        server.kill();
        sleep(Duration::from_secs(1)).await;
        server.restart().await;
        let ready = jobs.now();
        let begun = async {
            loop {
                match jobs.begins().iter().map(|(_, at)| *at).find(|at| *at > ready) {
                    Some(at) => break at - ready,
                    None => sleep(Duration::from_millis(1)).await,
                }
            }
        };
        waits.push(timeout(Duration::from_secs(60), begun).await.unwrap().as_millis());
        jobs.all_begun(next).await;
    }
    waits.sort_unstable();
    println!("restart: the next handler starts so many ms after the server is ready: {waits:?}");
}

/// One node of three hangs: how long jobs wait whose lanes are led by the others.
pub(crate) async fn hang(relay: &str) {
    const CLIENTS: usize = 12;
    let (cluster, jobs) = (NatsCluster::start(3).await, Arc::new(Jobs::new()));
    // Neither the node that everybody is connected to, nor the one that leads the cluster.
    let meta = cluster.leader().await.unwrap();
    let hung = (meta + 1) % 3;
    let near = &cluster.nodes()[(meta + 2) % 3];
    let running = Running::start(relay, &near.url(), 3, (2, 16), &jobs).await;
    let client = nodes::connect(&near.url()).await;
    responds(&client).await;
    for number in 0..CLIENTS {
        submit(&client, number, &jobs, number as u64).await.unwrap();
    }
    jobs.all_begun(CLIENTS as u64).await;
    for stream in [JOBS_STREAM, "relay-results", "relay-state", "relay-dead"] {
        let preferred = format!(r#"{{"placement":{{"preferred":"{}"}}}}"#, near.name());
        client.request(format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}"), preferred.into()).await.unwrap();
    }
    sleep(Duration::from_secs(5)).await;
    let mut elsewhere = Vec::new();
    for number in 0..CLIENTS {
        let info = ask(&client, &format!("CONSUMER.INFO.{JOBS_STREAM}.client-{number}")).await;
        if info["cluster"]["leader"] != cluster.nodes()[hung].name() {
            elsewhere.push(number);
        }
    }
    let pid = Pid::from_raw(cluster.nodes()[hung].pid().unwrap().cast_signed());
    kill(pid, Signal::SIGSTOP).unwrap();
    let first = CLIENTS as u64;
    let (mut next, mut unanswered) = (first, 0);
    // As long as the others take to find out, and longer.
    let until = Instant::now() + Duration::from_secs(15);
    while Instant::now() < until {
        for client_number in &elsewhere {
            unanswered += u64::from(submit(&client, *client_number, &jobs, next).await.is_none());
            next += 1;
        }
        sleep(Duration::from_millis(100)).await;
    }
    kill(pid, Signal::SIGCONT).unwrap();
    sleep(Duration::from_secs(10)).await;
    let waits = jobs.waits_from(first);
    let late = waits.iter().filter(|wait| **wait > LOOK).count();
    println!(
        "hang: {} of {CLIENTS} lanes are led elsewhere; {} jobs, {unanswered} without a receipt, {} began, {late} later than \
         {LOOK:?}, longest {:?}",
        elsewhere.len(),
        next - first,
        waits.len(),
        waits.last(),
    );
    drop(running);
}

/// Cancels while nodes are killed and leaders step down: how many handlers start later than a look after the answer.
pub(crate) async fn cancel(relay: &str) {
    const CANCELLED: usize = 1_000;
    let (mut cluster, jobs) = (NatsCluster::start(3).await, Arc::new(Jobs::new()));
    let running = Running::start(relay, &cluster.url(), 3, (4, 4), &jobs).await;
    let client = nodes::connect(&cluster.url()).await;
    responds(&client).await;
    let (mut cancels, mut cancelled, mut next, mut faults) = (JoinSet::new(), BTreeMap::new(), 0, [0; 2]);
    let mut fault_at = Instant::now() + Duration::from_secs(2);
    while cancelled.len() < CANCELLED {
        let (from, ours, number) = (client.clone(), Arc::clone(&jobs), next);
        cancels.spawn(async move {
            let job = submit(&from, (number % 4) as usize, &ours, number).await?;
            sleep(Duration::from_millis(number * 37 % 300)).await;
            let answer = from.request(format!("relay.cancel.client-{}", number % 4), job.into()).await.ok()?;
            let answer: serde_json::Value = serde_json::from_slice(&answer.payload).ok()?;
            (answer["state"] == "cancelled").then(|| (number, ours.now()))
        });
        next += 1;
        while let Some(ended) = cancels.try_join_next() {
            cancelled.extend(ended.unwrap());
        }
        sleep(Duration::from_millis(4)).await;
        if Instant::now() >= fault_at {
            match faults.iter().sum::<usize>() % 3 {
                0 => {
                    let node = faults[0] % 3;
                    cluster.kill(node);
                    sleep(Duration::from_millis(500)).await;
                    cluster.restart(node).await;
                    faults[0] += 1;
                }
                _ => {
                    for what in [format!("STREAM.LEADER.STEPDOWN.{JOBS_STREAM}"), lane_steps_down(next)] {
                        drop(client.request(format!("$JS.API.{what}"), "".into()).await);
                    }
                    faults[1] += 1;
                }
            }
            fault_at = Instant::now() + Duration::from_secs(2);
        }
    }
    cancels.shutdown().await;
    sleep(Duration::from_secs(10)).await;
    let begins = jobs.begins();
    let after = |by: Duration| {
        begins.iter().filter(|(number, at)| cancelled.get(number).is_some_and(|answered| *at > *answered + by)).count()
    };
    println!(
        "cancel: {} of {next} jobs cancelled, {} kills, {} step-downs: {} handlers began after the answer, {} later than {LOOK:?}",
        cancelled.len(),
        faults[0],
        faults[1],
        after(Duration::ZERO),
        after(LOOK),
    );
    drop(running);
}

/// A backlog that is worked off: how many jobs a second four processes begin, beside one.
pub(crate) async fn cycle(relay: &str) {
    const JOBS: u64 = 8_000;
    const CONNECTIONS: u64 = 16;
    let mut rates = [Vec::new(), Vec::new()];
    for turn in 0..10 {
        let side = (turn + turn / 2) % 2;
        let (nodes, jobs) = (Nodes::start().await, Arc::new(Jobs::new()));
        let mut running = Running::start(relay, &nodes.url(), nodes.replicas(), (0, 0), &jobs).await;
        let (http, mut submissions) = (running.servers[0].http, JoinSet::new());
        for first in 0..CONNECTIONS {
            submissions.spawn(async move {
                let mut connection = Connection::open(http).await;
                for number in (first..JOBS).step_by(CONNECTIONS as usize) {
                    // A handler that ends at once.
                    connection.submit_payload("", format!("{number} 0 0").as_bytes()).await;
                }
            });
        }
        submissions.join_all().await;
        running.add_workers(relay, &nodes.url(), ([1, 4][side], 16), &jobs).await;
        jobs.all_begun(JOBS).await;
        let begins = jobs.begins();
        let took = begins[begins.len() - 1].1 - begins[0].1;
        rates[side].push(begins.len() as f64 / took.as_secs_f64());
    }
    let mut ratios: Vec<f64> = rates[1].iter().zip(&rates[0]).map(|(four, one)| four / one).collect();
    ratios.sort_by(f64::total_cmp);
    let [one, four] = rates.map(median);
    println!("cycle: {one:.0} jobs a second with one process, {four:.0} with four: {:.2} {ratios:.2?}", ratios[2]);
}

fn lane_steps_down(number: u64) -> String {
    format!("CONSUMER.LEADER.STEPDOWN.{JOBS_STREAM}.client-{}", number % 4)
}

/// Waits until relay answers.
pub(crate) async fn responds(client: &Client) {
    while client.request("$SRV.PING.relay", "".into()).await.is_err() {
        sleep(Duration::from_millis(10)).await;
    }
}

/// Submits a job; its id, if it was accepted.
async fn submit(client: &Client, of: usize, jobs: &Jobs, number: u64) -> Option<String> {
    let mut headers = HeaderMap::new();
    headers.insert("Idempotency-Key", format!("job-{number}"));
    let subject = format!("relay.submit.client-{of}.work");
    let answer = client.request_with_headers(subject, headers, jobs.payload(number).into()).await.ok()?;
    Some(answer.headers?.get("Relay-Job-Id")?.to_string())
}

async fn ask(client: &Client, call: &str) -> serde_json::Value {
    let answer = client.request(format!("$JS.API.{call}"), "".into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}
