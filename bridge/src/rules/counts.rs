//! How often a rule corrected or refused what a worker said, or found that it had been said before.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Verdict;
use super::record::{Corrections, Ending};
use crate::leasing::Recorded;

/// Counters of one adapter. They only grow.
#[derive(Debug, Default)]
pub struct Counts {
    times: AtomicU64,
    attempts: AtomicU64,
    facts: AtomicU64,
    too_large: AtomicU64,
    invalid: AtomicU64,
    resent: AtomicU64,
    retracted: AtomicU64,
}

/// The numbers counted since the adapter was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Results whose times were not within their run.
    pub times_corrected: u64,
    /// Results that named an attempt which was not started.
    pub attempts_corrected: u64,
    /// Results whose other facts (keeping, generation, acceptance, key, headers, trace) were not the record's.
    pub facts_corrected: u64,
    /// Results that ended their run as `failed` because they were too large.
    pub results_too_large: u64,
    /// Results that ended their run as `failed` because of their content type, reason or detail.
    pub results_invalid: u64,
    /// Results that came again, and were the run's result.
    pub results_resent: u64,
    /// Dead letters that were taken back because their run did not fail after all.
    pub letters_retracted: u64,
}

impl Counts {
    /// Counts a result that was written as `ending` says.
    pub fn written(&self, ending: &Ending) {
        let Corrections { times, attempt, facts, too_large, invalid } = ending.corrections;
        let counters = [
            (times, &self.times),
            (attempt, &self.attempts),
            (facts, &self.facts),
            (too_large, &self.too_large),
            (invalid, &self.invalid),
        ];
        counters.into_iter().filter(|(is, _)| *is).for_each(|(_, counter)| add(counter));
    }

    /// Counts a result that was not written.
    pub fn not_written(&self, recorded: &Recorded) {
        if *recorded == Recorded::First {
            add(&self.resent);
        }
    }

    /// Counts what became of a result whose verdict is final.
    pub fn judged(&self, verdict: &Verdict<Ending, Recorded>) {
        match verdict {
            Verdict::Do(ending) => self.written(ending),
            Verdict::Already(recorded) => self.not_written(recorded),
            Verdict::Refuse(_) => {}
        }
    }

    /// Counts a dead letter that was taken back.
    pub fn retracted(&self) {
        add(&self.retracted);
    }

    /// As they are now.
    #[must_use]
    pub fn read(&self) -> Counted {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counted {
            times_corrected: read(&self.times),
            attempts_corrected: read(&self.attempts),
            facts_corrected: read(&self.facts),
            results_too_large: read(&self.too_large),
            results_invalid: read(&self.invalid),
            results_resent: read(&self.resent),
            letters_retracted: read(&self.retracted),
        }
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
