//! How long requests take: at half of what a server can do, where requests come by a clock and not when the last answer
//! did, and a submission that waits for its result.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::support::load::{CONNECTIONS, Connection, Server, submit};
use crate::support::{median, pairs};

/// Requests that measure the capacity, and those whose latency is measured then.
const REQUESTS: u64 = 40_000;
/// Submissions that wait, one after the other.
const WAITS: usize = 2_000;

/// Percentiles in microseconds.
#[derive(Clone, Copy)]
struct Percentiles([f64; 3]);

impl Percentiles {
    fn of(mut taken: Vec<Duration>) -> Self {
        taken.sort_unstable();
        let at = |share: f64| taken[((taken.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
        Self([at(0.5), at(0.99), at(0.999)])
    }
}

fn print(what: &str, runs: &[(f64, Percentiles)]) {
    let capacity = median(runs.iter().map(|(capacity, _)| *capacity).collect());
    let [p50, p99, p999] = [0, 1, 2].map(|at| median(runs.iter().map(|(_, taken)| taken.0[at]).collect()));
    println!("    {what:10} p50 {p50:>7.0} us, p99 {p99:>7.0} us, p99.9 {p999:>7.0} us; {capacity:>8.0}/s at most");
}

/// relay and a handler that does nothing, each at half of its own capacity.
pub(crate) async fn at_half_of_capacity() {
    let (mut ours, mut base) = (Vec::new(), Vec::new());
    for _ in 0..pairs() {
        for (server, runs) in [("serve-relay", &mut ours), ("serve-nothing", &mut base)] {
            let server = Server::start(&[server]);
            submit(server.address, false, REQUESTS / 10, 0).await;
            let start = Instant::now();
            submit(server.address, false, REQUESTS, 0).await;
            let capacity = REQUESTS as f64 / start.elapsed().as_secs_f64();
            runs.push((capacity, open_loop(&server, capacity / 2.0).await));
        }
    }
    println!("HTTP submit at half of capacity, open loop ({} pairs)", pairs());
    print("relay", &ours);
    print("axum no-op", &base);
}

/// Requests at `rate` a second over all connections, each due at its time whether or not the one before was answered: a
/// wait for the connection counts as latency.
async fn open_loop(server: &Server, rate: f64) -> Percentiles {
    let (period, each) = (Duration::from_secs_f64(CONNECTIONS as f64 / rate), REQUESTS / CONNECTIONS);
    let mut tasks = JoinSet::new();
    for at in 0..CONNECTIONS {
        let mut connection = Connection::open(server.address).await;
        let begin = Instant::now() + Duration::from_millis(50) + period.mul_f64(at as f64 / CONNECTIONS as f64);
        tasks.spawn(async move {
            let mut taken = Vec::new();
            for number in 0..each {
                let due = begin + period.mul_f64(number as f64);
                tokio::time::sleep_until(due).await;
                connection.submit("").await;
                taken.push(due.elapsed());
            }
            taken
        });
    }
    Percentiles::of(tasks.join_all().await.into_iter().flatten().collect())
}

/// `Prefer: wait` with an idle worker in the server's process, beside a request to a handler that does nothing.
pub(crate) async fn of_a_wait() {
    let (mut ours, mut base) = (Vec::new(), Vec::new());
    for _ in 0..pairs() {
        for (server, headers, runs) in
            [("serve-worker", "prefer: wait=10\r\n", &mut ours), ("serve-nothing", "", &mut base)]
        {
            let server = Server::start(&[server]);
            let mut connection = Connection::open(server.address).await;
            let mut pause = interval(Duration::from_millis(1));
            pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut taken = Vec::new();
            for number in 0..WAITS + WAITS / 10 {
                // The worker is idle again by then.
                pause.tick().await;
                let start = Instant::now();
                let status = connection.submit(headers).await;
                assert_eq!(status, if headers.is_empty() { 202 } else { 200 });
                if number >= WAITS / 10 {
                    taken.push(start.elapsed());
                }
            }
            let rate = 1.0 / taken.iter().sum::<Duration>().as_secs_f64() * taken.len() as f64;
            runs.push((rate, Percentiles::of(taken)));
        }
    }
    println!("HTTP submit with `Prefer: wait`, idle worker ({} pairs)", pairs());
    print("relay", &ours);
    print("axum no-op", &base);
}
