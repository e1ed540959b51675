//! The count of a run: latencies, jobs, and errors by their slug. Its memory is bounded: the histogram has a fixed size, and so has
//! the list of errors.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::calls::{Answered, Failure};

/// The longest latency that is told apart, in microseconds: an hour.
const LATENCY_MAX_US: u64 = 3_600_000_000;
/// Decimal digits of a latency that are kept.
const DIGITS: u8 = 3;
/// Kinds of errors that are counted by name; later ones are counted together.
const KINDS_MAX: usize = 64;
/// The name of those.
const OTHERS: &str = "others";

/// An error that came so often.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counted {
    pub(super) count: u64,
    /// The words of the first one.
    pub(super) example: String,
}

/// The count.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// Of answered calls, in microseconds.
    pub(super) latencies: Histogram<u64>,
    /// Calls that were answered well.
    pub(super) calls: u64,
    /// Jobs of these calls.
    pub(super) jobs: u64,
    /// Errors by slug; those of a batch's entries are counted one by one.
    pub(super) errors: BTreeMap<String, Counted>,
}

impl Tally {
    pub(super) fn new() -> Self {
        let latencies = Histogram::new_with_max(LATENCY_MAX_US, DIGITS);
        let latencies = latencies.expect("the library takes these constants");
        Self { latencies, calls: 0, jobs: 0, errors: BTreeMap::new() }
    }

    /// Takes a call that had its answer after `latency`.
    pub(super) fn answered(&mut self, latency: Duration, answered: &Answered) {
        self.calls += 1;
        self.jobs += answered.jobs;
        self.latencies.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1));
        for failure in &answered.refused {
            self.failed(failure);
        }
    }

    /// Takes an error.
    pub(super) fn failed(&mut self, failure: &Failure) {
        self.error(&failure.slug, 1, &failure.detail);
    }

    /// Takes `count` errors of a kind, if it is any.
    pub(super) fn error(&mut self, slug: &str, count: u64, example: &str) {
        if count == 0 {
            return;
        }
        let is_known = self.errors.contains_key(slug) || self.errors.len() < KINDS_MAX;
        let counted = self.errors.entry(if is_known { slug } else { OTHERS }.to_owned()).or_default();
        counted.count += count;
        if counted.example.is_empty() {
            example.chars().take(200).collect::<String>().clone_into(&mut counted.example);
        }
    }

    /// Takes all that another one has.
    pub(super) fn merge(&mut self, other: &Self) {
        // Both have the same bounds.
        self.latencies.add(&other.latencies).ok();
        self.calls += other.calls;
        self.jobs += other.jobs;
        for (slug, counted) in &other.errors {
            self.error(slug, counted.count, &counted.example);
        }
    }

    /// All errors together.
    pub(super) fn errors(&self) -> u64 {
        self.errors.values().map(|counted| counted.count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_keep_three_digits_and_the_longest_is_an_hour() {
        let mut tally = Tally::new();
        let answered = Answered { jobs: 2, refused: Vec::new() };
        for micros in [1_u64, 999, 50_049, 7_200_000_000] {
            tally.answered(Duration::from_micros(micros), &answered);
        }
        assert_eq!((tally.calls, tally.jobs), (4, 8));
        assert_eq!(tally.latencies.value_at_quantile(0.25), 1);
        assert_eq!(tally.latencies.value_at_quantile(0.5), 999);
        assert!(tally.latencies.value_at_quantile(0.75).abs_diff(50_049) <= 50);
        assert!(tally.latencies.max().abs_diff(LATENCY_MAX_US) <= LATENCY_MAX_US / 1_000);
    }

    #[test]
    fn errors_are_counted_by_slug_and_their_kinds_are_bounded() {
        let (mut one, mut other) = (Tally::new(), Tally::new());
        for number in 0..200 {
            one.failed(&Failure::new(format!("slug-{number}"), "no"));
        }
        assert_eq!((one.errors.len(), one.errors()), (KINDS_MAX + 1, 200));
        other.failed(&Failure::new("slug-0", "again"));
        one.merge(&other);
        assert_eq!(one.errors["slug-0"], Counted { count: 2, example: "no".to_owned() });
    }
}
