//! Whether the time of a look-up tells that another client has a job, on the embedded store: another client's existing keys
//! beside keys that nobody used, looked up by a client that owns neither.
//!
//! `cargo bench --bench owners`. Of each of 40 keys, 200 look-ups beside 200 of a key that is not there, the first of a pair
//! takes turns. A key is told apart where a two-sided rank-sum test gives p < 0.01: by chance that is 0.4 keys of 40. With
//! `RELAY_BENCH_PAIRS` there are as many rounds as it says, of 40 keys each.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark fails by panicking and prints its figures")]

mod support;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use bytes::Bytes;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, Job, JobId, Submission};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::Lookup;
use support::{median, pairs};
use tempfile::TempDir;

const KEYS: usize = 40;
const LOOKS: usize = 200;
/// Payloads have from none to this many bytes, by the number of their key.
const PAYLOAD_MAX: usize = 250_000;

#[tokio::main]
async fn main() {
    let folder = TempDir::new().unwrap();
    let store = support::store::open(&folder.path().join("relay.db")).await;
    let broker = store.broker();
    for key in 0..KEYS {
        broker.jobs.enqueue(job("other", key)).await.unwrap();
    }
    // One half has a result, too.
    let done = Arc::new(AtomicU64::new(0));
    support::store::work(Arc::clone(&broker.leasing), done, KEYS as u64 / 2).await;
    for round in 0..pairs() {
        let (mut told, mut slower) = (0, Vec::new());
        for key in 0..KEYS {
            let (there, nowhere) = (job("other", key).id, job("me", round * KEYS + key).id);
            let [there, nowhere] = times(&broker, there, nowhere).await;
            slower.push(median(there.clone()) / median(nowhere.clone()));
            told += usize::from(rank_sum(&there, &nowhere).abs() > 2.576);
        }
        println!(
            "round {round}: {told} of {KEYS} keys told apart, time of one that is there {:.3} of one that is not",
            median(slower)
        );
    }
    store.close().await;
}

fn job(client: &str, key: usize) -> Job {
    let submission = Submission {
        client: client.parse().unwrap(),
        queue: "work".parse().unwrap(),
        key: Some(format!("key-{key}").parse().unwrap()),
        content_type: "text/plain".to_owned(),
        content_encoding: None,
        headers: Default::default(),
        payload: Bytes::from(vec![b'x'; PAYLOAD_MAX / KEYS * key]),
        delay: Duration::ZERO,
        expires_in: None,
    };
    submission.accept(&QueuePolicy::default(), Clock::system().now())
}

/// The times of look-ups of two ids in microseconds, in turns.
async fn times(broker: &Broker, there: JobId, nowhere: JobId) -> [Vec<f64>; 2] {
    let me: ClientId = "me".parse().unwrap();
    let mut times = [Vec::new(), Vec::new()];
    for at in 0..2 * LOOKS {
        let side = (at + at / 2) % 2;
        let start = Instant::now();
        let found = broker.results.lookup(&me, [there, nowhere][side]).await.unwrap();
        times[side].push(start.elapsed().as_secs_f64() * 1e6);
        assert!(matches!(found, Lookup::Absent));
    }
    times
}

/// How far the sum of one side's ranks is from that of two sides which are alike, in standard deviations (Mann and Whitney, 1947).
fn rank_sum(one: &[f64], other: &[f64]) -> f64 {
    let below = |of: &f64| {
        other
            .iter()
            .map(|time| {
                if time < of {
                    1.0
                } else if time == of {
                    0.5
                } else {
                    0.0
                }
            })
            .sum::<f64>()
    };
    let (n, m) = (one.len() as f64, other.len() as f64);
    let u = one.iter().map(below).sum::<f64>();
    (u - n * m / 2.0) / (n * m * (n + m + 1.0) / 12.0).sqrt()
}
