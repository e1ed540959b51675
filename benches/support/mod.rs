//! The shared parts of every benchmark: CPU time of this process, medians of interleaved pairs, and a table.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each benchmark uses a part, includes this file as its own, and fails by panicking"
)]

pub mod frames;
pub mod load;
pub mod served;
pub mod store;

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

/// One measured stretch of work.
#[derive(Clone, Copy)]
pub struct Sample {
    /// Operations done.
    pub operations: u64,
    /// Wall time they took.
    pub wall: Duration,
    /// CPU time of this process, all threads, user and system.
    pub cpu: Duration,
}

impl Sample {
    /// Operations per second of wall time.
    pub fn rate(&self) -> f64 {
        self.operations as f64 / self.wall.as_secs_f64()
    }

    /// Microseconds of CPU per operation.
    pub fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.operations as f64
    }
}

/// CPU time of this process until now.
pub fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("getrusage takes RUSAGE_SELF");
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_secs(value.tv_sec() as u64) + Duration::from_micros(value.tv_usec() as u64)
    };
    time(usage.user_time()) + time(usage.system_time())
}

/// CPU time of another process until now, user and system, all threads.
pub fn cpu_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Fields 14 and 15 (proc_pid_stat(5)), counted after the command in parentheses; in ticks of 1/100 s.
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .map(|rest| rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
        .unwrap_or_default();
    let ticks = fields.get(11).unwrap_or(&0) + fields.get(12).unwrap_or(&0);
    Duration::from_millis(ticks * 10)
}

/// Measures `work`, which says how many operations it did.
pub async fn measure<F: Future<Output = u64>>(work: F) -> Sample {
    let (start, before) = (Instant::now(), cpu());
    let operations = work.await;
    Sample { operations, wall: start.elapsed(), cpu: cpu().saturating_sub(before) }
}

/// The median of some figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Prints ours beside its baseline: medians, the ratio's median, and the ratio's range over the pairs.
pub fn report(what: &str, goal: f64, pairs: &[(Sample, Sample)]) {
    let ours = median(pairs.iter().map(|(ours, _)| ours.rate()).collect());
    let base = median(pairs.iter().map(|(_, base)| base.rate()).collect());
    let ours_cpu = median(pairs.iter().map(|(ours, _)| ours.cpu_us()).collect());
    let base_cpu = median(pairs.iter().map(|(_, base)| base.cpu_us()).collect());
    let ratios: Vec<f64> = pairs.iter().map(|(ours, base)| ours.rate() / base.rate()).collect();
    let cpu_ratio = median(pairs.iter().map(|(ours, base)| base.cpu_us() / ours.cpu_us()).collect());
    let (low, high) = ratios.iter().fold((f64::MAX, f64::MIN), |(low, high), r| (low.min(*r), high.max(*r)));
    println!(
        "{what:44} {ours:>9.0}/s {ours_cpu:>6.1} us | base {base:>9.0}/s {base_cpu:>6.1} us | ratio {:.2} [{low:.2}-{high:.2}], by CPU {cpu_ratio:.2} (goal >= {goal:.2}, {} pairs)",
        median(ratios),
        pairs.len(),
    );
}

/// How many pairs to run: `RELAY_BENCH_PAIRS`, 7 if it is not set.
pub fn pairs() -> usize {
    std::env::var("RELAY_BENCH_PAIRS").ok().and_then(|pairs| pairs.parse().ok()).unwrap_or(7)
}

/// Resident memory of a process in bytes, as the kernel counts it.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}
