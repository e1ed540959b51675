//! Estimates how much of the server's memory and disk a queue's jobs will take at an expected rate: rounded up, for a
//! person to decide by. Pure.

use std::fmt;
use std::time::Duration;

use relay_bridge::policy::QueuePolicy;

/// The server's memory for one retained subject, in bytes: settled, and just after it was stored. Measured on
/// nats-server 2.15.1 with 200,000 jobs and their results: after a restart, and as it ran.
const RAM_PER_SUBJECT: [u64; 2] = [410, 680];
/// The bytes that a record takes on disk beside its payload: subject, headers, envelope, index.
pub(crate) const RECORD_OVERHEAD: u64 = 600;
/// The same for a result.
const RESULT_OVERHEAD: u64 = 800;

/// The load that is expected of one queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpectedLoad {
    /// Jobs a second, on average over a day.
    pub rate: f64,
    /// The part of them that has an idempotency key, 0 to 1: their records stay after the result.
    pub keyed: f64,
    /// The mean payload in bytes.
    pub payload_bytes: u64,
    /// The mean result in bytes.
    pub result_bytes: u64,
    /// How long a job waits and runs on average: a job without a key is kept for this time.
    pub in_flight: Duration,
}

/// The server's need for that load, on each node that has a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Records kept at once.
    pub records: u64,
    /// Results kept at once.
    pub results: u64,
    /// Memory in bytes, the least and the most.
    pub ram_bytes: [u64; 2],
    /// Disk in bytes, without compression.
    pub disk_bytes: u64,
}

impl Estimate {
    /// The sum over several queues.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            records: self.records.saturating_add(other.records),
            results: self.results.saturating_add(other.results),
            ram_bytes: [0, 1].map(|end| self.ram_bytes[end].saturating_add(other.ram_bytes[end])),
            disk_bytes: self.disk_bytes.saturating_add(other.disk_bytes),
        }
    }
}

/// The server's need for `load` on a queue with `policy`.
#[must_use]
pub fn estimate(policy: &QueuePolicy, load: &ExpectedLoad) -> Estimate {
    let keep = policy.job_ttl.saturating_add(policy.retention);
    let keyed = if policy.keep_keyless { 1.0 } else { load.keyed.clamp(0.0, 1.0) };
    let kept = |share: f64, span: Duration| whole(load.rate.max(0.0) * share * span.as_secs_f64());
    let records = kept(keyed, keep).saturating_add(kept(1.0 - keyed, load.in_flight));
    let results = kept(1.0, keep);
    let subjects = records.saturating_add(results);
    let disk = |count: u64, bytes: u64, overhead| count.saturating_mul(bytes.saturating_add(overhead));
    Estimate {
        records,
        results,
        ram_bytes: RAM_PER_SUBJECT.map(|bytes| subjects.saturating_mul(bytes)),
        disk_bytes: disk(records, load.payload_bytes, RECORD_OVERHEAD).saturating_add(disk(
            results,
            load.result_bytes,
            RESULT_OVERHEAD,
        )),
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, most] = self.ram_bytes.map(Size);
        write!(
            f,
            "{} records and {} results kept at once: {least} to {most} of memory and {} of disk on each replica",
            self.records,
            self.results,
            Size(self.disk_bytes),
        )
    }
}

/// Bytes for people: two digits are enough for an estimate.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        for unit in ["B", "KiB", "MiB", "GiB"] {
            if rest < 10 * 1024 {
                return write!(f, "{rest} {unit}");
            }
            rest = rest.div_ceil(1024);
        }
        write!(f, "{rest} TiB")
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative, and a cast saturates")]
fn whole(number: f64) -> u64 {
    number.ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(rate: f64, keyed: f64) -> ExpectedLoad {
        ExpectedLoad { rate, keyed, payload_bytes: 1_000, result_bytes: 200, in_flight: Duration::from_secs(2) }
    }

    #[test]
    fn ten_jobs_a_second_with_keys_keep_a_day_and_six_hours_of_both() {
        let found = estimate(&QueuePolicy::default(), &load(10.0, 1.0));
        assert_eq!((found.records, found.results), (1_080_000, 1_080_000));
        assert_eq!(found.ram_bytes, [885_600_000, 1_468_800_000]);
        assert_eq!(found.disk_bytes, 1_080_000 * (1_600 + 1_000));
        let text = found.to_string();
        assert_eq!(
            text,
            "1080000 records and 1080000 results kept at once: 845 MiB to 1401 MiB of memory and 2678 MiB of disk on \
             each replica"
        );
    }

    #[test]
    fn jobs_without_keys_keep_their_results_only() {
        let found = estimate(&QueuePolicy::default(), &load(10.0, 0.0));
        assert_eq!((found.records, found.results), (20, 1_080_000));
        let kept = QueuePolicy { keep_keyless: true, ..QueuePolicy::default() };
        assert_eq!(estimate(&kept, &load(10.0, 0.0)).records, 1_080_000);
    }

    #[test]
    fn no_expectation_breaks_the_sum() {
        for rate in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            let found = estimate(&QueuePolicy::default(), &load(rate, 0.5));
            assert!(found.plus(found).disk_bytes >= found.disk_bytes);
        }
    }
}
