//! Runs with the CPU time of two processes, the one that does the work and nats-server, and how pairs of them are printed.

use std::time::{Duration, Instant};

use relay_conformance::testing::NatsServer;

use crate::support::{cpu_of, median};

/// One measured stretch of work.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    operations: u64,
    wall: Duration,
    /// CPU time of the processes that do the work: all that is not the server.
    worker: Duration,
    /// CPU time of nats-server, of all nodes.
    server: Duration,
    /// The traffic over connections of clients, in and out.
    traffic: [Traffic; 2],
}

/// Messages over connections of clients, all nodes together.
#[derive(Clone, Copy, Default)]
struct Traffic {
    messages: u64,
    bytes: u64,
}

impl Traffic {
    /// The traffic that came in and went out since the servers started.
    async fn until_now(nats: &[NatsServer]) -> [Self; 2] {
        let mut sum = [Self::default(); 2];
        for node in nats {
            let now = node.monitor("/varz").await.unwrap();
            for (sum, way) in sum.iter_mut().zip(["in", "out"]) {
                sum.messages += now[format!("{way}_msgs")].as_u64().unwrap();
                sum.bytes += now[format!("{way}_bytes")].as_u64().unwrap();
            }
        }
        sum
    }

    fn since(self, before: Self) -> Self {
        Self { messages: self.messages - before.messages, bytes: self.bytes - before.bytes }
    }
}

impl Run {
    /// Measures `work`, which is done in the processes `pids` and on the servers `nats`.
    pub(crate) async fn measure<F: Future<Output = ()>>(
        nats: &[NatsServer],
        pids: &[u32],
        operations: u64,
        work: F,
    ) -> Self {
        let servers: Vec<_> = nats.iter().map(|node| node.pid().unwrap()).collect();
        let spent = || [pids, &servers].map(|pids| pids.iter().map(|pid| cpu_of(*pid)).sum::<Duration>());
        let before_it = Traffic::until_now(nats).await;
        let (start, before) = (Instant::now(), spent());
        work.await;
        let (wall, after) = (start.elapsed(), spent());
        let after_it = Traffic::until_now(nats).await;
        Self {
            operations,
            wall,
            worker: after[0].saturating_sub(before[0]),
            server: after[1].saturating_sub(before[1]),
            traffic: [0, 1].map(|way| after_it[way].since(before_it[way])),
        }
    }

    fn rate(&self) -> f64 {
        self.operations as f64 / self.wall.as_secs_f64()
    }

    fn us(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.operations as f64
    }

    fn cpu(&self) -> f64 {
        self.us(self.worker + self.server)
    }
}

/// Prints relay beside its baseline: medians, and the median and range of the pairs' ratios.
pub(crate) fn compare(what: &str, goal: &str, pairs: &[(Run, Run)]) {
    let ours: Vec<_> = pairs.iter().map(|pair| pair.0).collect();
    let bare: Vec<_> = pairs.iter().map(|pair| pair.1).collect();
    let ratios = pairs.iter().map(|(ours, bare)| ours.rate() / bare.rate()).collect();
    let by_cpu = median(pairs.iter().map(|(ours, bare)| bare.cpu() / ours.cpu()).collect());
    println!("{what}");
    println!("    relay     {}", figures(&ours));
    println!("    baseline  {}", figures(&bare));
    println!("    ratio     {}, by CPU {by_cpu:.2} ({goal}; {} pairs)", spread(ratios), pairs.len());
}

/// Prints runs that are compared with the lines beside them.
pub(crate) fn line(what: &str, runs: &[Run]) {
    println!("    {what:38} {}", figures(runs));
}

fn figures(runs: &[Run]) -> String {
    let of = |figure: fn(&Run) -> f64| median(runs.iter().map(figure).collect());
    let (rate, cpu) = (of(Run::rate), of(Run::cpu));
    let (worker, server) = (of(|run| run.us(run.worker)), of(|run| run.us(run.server)));
    let per_operation = |way: usize, of: fn(Traffic) -> u64| {
        median(runs.iter().map(|run| of(run.traffic[way]) as f64 / run.operations as f64).collect())
    };
    let [into, out] = [0, 1].map(|way| {
        let (messages, bytes) = (per_operation(way, |it| it.messages), per_operation(way, |it| it.bytes));
        format!("{messages:.2} messages of {bytes:.0} bytes")
    });
    format!("{rate:>8.0}/s, CPU {worker:>5.1} us + nats-server {server:>5.1} us = {cpu:>5.1} us; {into} in, {out} out")
}

/// Latencies of one stretch: its p50 and p99, in microseconds.
#[derive(Clone, Copy)]
pub(crate) struct Latencies {
    p50: f64,
    p99: f64,
}

impl Latencies {
    pub(crate) fn of(mut taken: Vec<Duration>) -> Self {
        taken.sort_unstable();
        let at = |share: f64| taken[(taken.len() as f64 * share) as usize].as_secs_f64() * 1e6;
        Self { p50: at(0.50), p99: at(0.99) }
    }
}

/// Prints relay's latencies beside the baseline's.
pub(crate) fn compare_latencies(what: &str, goal: &str, pairs: &[(Latencies, Latencies)]) {
    let of = |figure: fn(&(Latencies, Latencies)) -> f64| median(pairs.iter().map(figure).collect());
    println!("{what}");
    println!("    relay     p50 {:>6.0} us, p99 {:>6.0} us", of(|pair| pair.0.p50), of(|pair| pair.0.p99));
    println!("    baseline  p50 {:>6.0} us, p99 {:>6.0} us", of(|pair| pair.1.p50), of(|pair| pair.1.p99));
    let p50 = spread(pairs.iter().map(|(ours, bare)| ours.p50 / bare.p50).collect());
    let p99 = spread(pairs.iter().map(|(ours, bare)| ours.p99 / bare.p99).collect());
    println!("    ratio     p50 {p50}, p99 {p99} ({goal}; {} pairs)", pairs.len());
}

fn spread(ratios: Vec<f64>) -> String {
    let (low, high) = ratios.iter().fold((f64::MAX, f64::MIN), |(low, high), r| (low.min(*r), high.max(*r)));
    format!("{:.2} [{low:.2}-{high:.2}]", median(ratios))
}
