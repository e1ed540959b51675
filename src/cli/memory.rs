//! The memory that a server may come to need, by its limits: of the process, of connections, of requests, and of budgets. A
//! server that is given less says so at its start, or makes its limits smaller.

use std::fs::read_to_string;
use std::path::Path;

use crate::ingress::http::Limits;

/// The process without any client: code, the store's caches, the threads that read and write.
const BASE: u64 = 96 << 20;
/// A connection with nobody authenticated: its state, and a head that is not complete.
const UNPROVEN: u64 = 40 << 10;
/// A connection of somebody, with a head or the beginning of an answer in its buffers, or a stream that waits.
const PROVEN: u64 = 28 << 10;
/// A request in flight and its small answer.
const REQUEST: u64 = 4 << 10;
/// A worker's connection.
const WORKER: u64 = 80 << 10;
/// The part of its limit that a server plans with: the rest is what an allocator keeps.
const PLANNED: f64 = 0.9;
/// No limit becomes smaller than this part of what was asked for.
const SCALE_MIN: f64 = 0.02;

/// The other parts of a server that hold memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Others {
    /// Connections of workers.
    pub(super) workers: usize,
    /// Bytes of frames on those.
    pub(super) worker_bytes: u64,
    /// Requests and waits over NATS.
    pub(super) nats: usize,
}

/// The bytes that a server may come to need.
pub(super) fn needed(limits: &Limits, others: Others) -> u64 {
    let many = |count: usize, each: u64| (count as u64).saturating_mul(each);
    let connections = many(limits.unproven, UNPROVEN)
        .saturating_add(many(limits.connections.saturating_sub(limits.unproven), PROVEN))
        .saturating_add(many(others.workers, WORKER));
    let requests = many(limits.requests.saturating_add(others.nats), REQUEST);
    let budgets = (limits.body_bytes as u64).saturating_add(limits.answer_bytes as u64);
    [BASE, connections, requests, budgets, others.worker_bytes].into_iter().fold(0, u64::saturating_add)
}

/// `limits`, smaller where that is needed to stay within `bytes` of memory; `None` if they can't be so small.
pub(super) fn fitted(limits: &Limits, others: Others, bytes: u64) -> Option<Limits> {
    #[expect(clippy::cast_precision_loss, reason = "a share of a limit")]
    let (planned, fixed) = (bytes as f64 * PLANNED, needed(&none(limits), others) as f64);
    #[expect(clippy::cast_precision_loss, reason = "a share of a limit")]
    let asked = needed(limits, others) as f64 - fixed;
    let scale = ((planned - fixed) / asked).min(1.0);
    (scale >= SCALE_MIN).then(|| scaled(limits, scale))
}

fn none(limits: &Limits) -> Limits {
    Limits { unproven: 0, connections: 0, requests: 0, body_bytes: 0, answer_bytes: 0, ..limits.clone() }
}

fn scaled(limits: &Limits, scale: f64) -> Limits {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a limit"
    )]
    let of = |limit: usize| (limit as f64 * scale) as usize;
    Limits {
        unproven: of(limits.unproven).max(1),
        connections: of(limits.connections).max(1),
        // None only where none were asked for.
        followers: of(limits.followers).max(limits.followers.min(1)),
        requests: of(limits.requests).max(1),
        body_bytes: of(limits.body_bytes),
        answer_bytes: of(limits.answer_bytes),
        ..limits.clone()
    }
}

/// The memory that the control group of this process is limited to; `None` if there is no limit that it can see.
pub(super) fn allowed() -> Option<u64> {
    let groups = read_to_string("/proc/self/cgroup").ok()?;
    let paths = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        if controllers.is_empty() {
            return Some(["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|root| Path::new(root).join(path)));
        }
        let has_memory = controllers.split(',').any(|controller| controller == "memory");
        has_memory.then(|| [Path::new("/sys/fs/cgroup/memory").join(path), "/sys/fs/cgroup/memory".into()])
    });
    // In a container the group's own path is often not there, and what is mounted is the group itself.
    let places = paths.flatten().chain(["/sys/fs/cgroup".into()]);
    let limits = places.flat_map(|place| ["memory.max", "memory.limit_in_bytes"].map(|name| place.join(name)));
    let limits = limits.filter_map(|file| read_to_string(file).ok()?.trim().parse().ok());
    // Version 1 says a number near 2^63 where there is no limit.
    limits.filter(|bytes| *bytes < 1 << 60).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_sum_of_the_process_the_pools_and_the_budgets() {
        let limits = Limits::default();
        let sum = (96 << 20) + 1_000 * (40 << 10) + 19_000 * (28 << 10) + 10_000 * (4 << 10) + 2 * (64 << 20);
        assert_eq!(needed(&limits, Others::default()), sum);
        let others = Others { workers: 1_280, worker_bytes: 64 << 20, nats: 14_096 };
        assert_eq!(needed(&limits, others), sum + 1_280 * (80 << 10) + (64 << 20) + 14_096 * (4 << 10));
    }

    #[test]
    fn a_server_that_is_to_have_streams_has_one_however_little_memory_there_is() {
        let few = Limits { followers: 10, ..Limits::default() };
        assert_eq!(scaled(&few, 0.05).followers, 1);
        assert_eq!(scaled(&Limits { followers: 0, ..few }, 0.05).followers, 0);
    }

    #[test]
    fn limits_become_smaller_in_one_proportion_until_they_fit_and_never_larger() {
        let (limits, others) = (Limits::default(), Others::default());
        let small = fitted(&limits, others, 512 << 20).unwrap();
        assert!(needed(&small, others) <= 512 << 20);
        assert!(small.connections < limits.connections && small.answer_bytes < limits.answer_bytes);
        assert!(small.connections > 8_000, "{}", small.connections);
        let large = fitted(&limits, others, 8 << 30).unwrap();
        assert_eq!((large.connections, large.body_bytes), (limits.connections, limits.body_bytes));
        assert!(fitted(&limits, others, 64 << 20).is_none());
    }
}
