//! The jobs of a run: numbered, under keys of the run's own, with payloads that do not compress.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use clap::ValueEnum;
use relay_bridge::contract::QueueName;
use uuid::Uuid;

use crate::config::values;

/// The largest payload, in bytes: what the largest broker takes.
const SIZE_MAX: usize = 16 * 1024 * 1024;
/// The letters of payloads: any protocol carries them as they are.
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// One call, and how far it is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Operation {
    /// A job, until its receipt.
    Submit,
    /// A job, until its result is the answer.
    Wait,
    /// Many jobs in one request, until all of their receipts.
    Batch,
    /// A job, until its result is pushed to a follower of all results.
    Follow,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Submit => "submit",
            Self::Wait => "wait",
            Self::Batch => "batch",
            Self::Follow => "follow",
        })
    }
}

/// Bytes of a payload, from the first to the second; both are equal where all are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) least: usize,
    pub(super) most: usize,
}

impl FromStr for Sizes {
    type Err = String;

    /// Reads `256`, `4KiB`, `64..4KiB`.
    fn from_str(text: &str) -> Result<Self, String> {
        let read = |text: &str| {
            let bytes = text.parse().or_else(|_| values::size(text))?;
            let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= SIZE_MAX);
            bytes.ok_or_else(|| format!("`{text}` is more than {}, the most that a broker takes", "16MiB"))
        };
        let (least, most) = text.split_once("..").unwrap_or((text, text));
        let sizes = Self { least: read(least)?, most: read(most)? };
        if sizes.least > sizes.most {
            return Err(format!("`{text}` ends before it begins: write the smaller size first"));
        }
        Ok(sizes)
    }
}

/// The jobs of one run.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) operation: Operation,
    pub(super) queue: QueueName,
    sizes: Sizes,
    /// Jobs of one batch.
    pub(super) batch: u64,
    /// The beginning of every key, other than that of any other run.
    prefix: String,
    letters: Bytes,
}

impl Workload {
    pub(super) fn new(operation: Operation, queue: QueueName, sizes: Sizes, batch: u64) -> Self {
        let letters = (0..sizes.most as u64).map(|at| LETTERS[(mix(at) % 64) as usize]).collect::<Vec<_>>().into();
        Self { operation, queue, sizes, batch, prefix: format!("bench-{}/", Uuid::new_v4().simple()), letters }
    }

    /// The jobs of one call.
    pub(super) fn jobs_per_call(&self) -> u64 {
        if self.operation == Operation::Batch { self.batch } else { 1 }
    }

    /// The beginning of all keys.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The key of a job.
    pub(super) fn key(&self, number: u64) -> String {
        format!("{}{number}", self.prefix)
    }

    /// The number of the job under `key`, if it is one of this run.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        key.strip_prefix(&self.prefix)?.parse().ok()
    }

    /// The payload of a job; the same number has the same one.
    pub(super) fn payload(&self, number: u64) -> Bytes {
        let span = (self.sizes.most - self.sizes.least) as u64 + 1;
        // Less than `span`, which came from a `usize`.
        let more = usize::try_from(mix(number) % span).unwrap_or_default();
        self.letters.slice(..self.sizes.least + more)
    }
}

/// A number that looks random, of one that counts (SplitMix64).
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_one_or_a_range_with_or_without_units() {
        assert_eq!("256".parse(), Ok(Sizes { least: 256, most: 256 }));
        assert_eq!("0..4KiB".parse(), Ok(Sizes { least: 0, most: 4_096 }));
        for (text, fix) in [("", "not a size"), ("4KiB..1", "smaller size first"), ("17MiB", "16MiB"), ("x", "512B")] {
            assert!(text.parse::<Sizes>().unwrap_err().contains(fix), "{text}");
        }
    }

    #[test]
    fn payloads_have_every_size_of_the_range_and_no_other() {
        let queue: QueueName = "bench".parse().unwrap();
        let workload = Workload::new(Operation::Submit, queue, Sizes { least: 3, most: 6 }, 1);
        let mut seen = std::collections::BTreeSet::new();
        seen.extend((0..200).map(|number| workload.payload(number).len()));
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [3, 4, 5, 6]);
    }

    #[test]
    fn a_job_is_known_by_its_key_and_those_of_other_runs_are_not() {
        let make = || Workload::new(Operation::Follow, "bench".parse().unwrap(), Sizes { least: 1, most: 1 }, 1);
        let (ours, other) = (make(), make());
        assert_eq!(ours.number(&ours.key(17)), Some(17));
        assert_eq!(ours.number(&other.key(17)), None);
    }
}
