//! A histogram that any thread adds to without a lock: two relaxed additions for each value.
//!
//! A reader sees each bucket whole but not all of them at one moment: a value may be in the sum and not yet in its
//! bucket. Code that uses a reading must not depend on the two agreeing.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts values by size, under upper bounds that are fixed when it is made.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    /// One more than there are bounds: the last one has what is above all of them.
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

/// The content of a [`Histogram`] when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// The upper bound of each bucket, itself included, and how many values were at most that: cumulative, ascending.
    pub up_to: Vec<(u64, u64)>,
    /// How many values there were in all.
    pub count: u64,
    /// The values' sum; it wraps at 2^64.
    pub sum: u64,
}

impl Histogram {
    /// An empty histogram. `bounds` must ascend.
    #[must_use]
    pub fn new(bounds: &'static [u64]) -> Self {
        Self { bounds, buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    /// Adds a value.
    pub fn add(&self, value: u64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// The content now.
    #[must_use]
    pub fn read(&self) -> Buckets {
        let mut count = 0;
        let mut counts = self.buckets.iter().map(|bucket| {
            count += bucket.load(Ordering::Relaxed);
            count
        });
        let up_to = self.bounds.iter().copied().zip(counts.by_ref()).collect();
        let all = counts.next().unwrap_or_default();
        Buckets { up_to, count: all, sum: self.sum.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_in_every_bucket_that_it_fits_in() {
        let histogram = Histogram::new(&[10, 20, 40]);
        for value in [0, 10, 11, 40, 41, 1_000] {
            histogram.add(value);
        }
        let read = histogram.read();
        assert_eq!(read.up_to, [(10, 2), (20, 3), (40, 4)]);
        assert_eq!((read.count, read.sum), (6, 1_102));
    }
}
