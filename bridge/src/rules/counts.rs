//! How often a rule corrected or refused what a worker said, or found that it had been said before.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Verdict;
use super::record::{Corrections, Ending};
use crate::leasing::Recorded;

/// Counters of one adapter. They only grow.
#[derive(Debug, Default)]
pub struct Counts {
    /// Results whose times were not within their run.
    pub times_corrected: AtomicU64,
    /// Results that named an attempt which was not started.
    pub attempts_corrected: AtomicU64,
    /// Results whose other facts (keeping, generation, acceptance, key, headers, trace) were not the record's.
    pub facts_corrected: AtomicU64,
    /// Results that ended their run as `failed` because they were too large.
    pub results_too_large: AtomicU64,
    /// Results that ended their run as `failed` because of their content type, reason or detail.
    pub results_invalid: AtomicU64,
    /// Results that were sent again, and were the run's result.
    pub results_resent: AtomicU64,
    /// Results of runs that had ended before.
    pub results_superseded: AtomicU64,
    /// Dead letters that were taken back because their run did not fail after all.
    pub letters_retracted: AtomicU64,
}

impl Counts {
    /// Counts a result that was written as `ending` says.
    pub fn written(&self, ending: &Ending) {
        let Corrections { times, attempt, facts, too_large, invalid } = ending.corrections;
        let counters = [
            (times, &self.times_corrected),
            (attempt, &self.attempts_corrected),
            (facts, &self.facts_corrected),
            (too_large, &self.results_too_large),
            (invalid, &self.results_invalid),
        ];
        counters.into_iter().filter(|(is, _)| *is).for_each(|(_, counter)| add(counter));
    }

    /// Counts a result that was not written.
    pub fn not_written(&self, recorded: &Recorded) {
        match recorded {
            Recorded::First => add(&self.results_resent),
            Recorded::Superseded(_) => add(&self.results_superseded),
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
        add(&self.letters_retracted);
    }

    /// Every counter with the word that metrics have for it.
    #[must_use]
    pub fn read(&self) -> [(&'static str, u64); 8] {
        [
            ("times_corrected", &self.times_corrected),
            ("attempt_corrected", &self.attempts_corrected),
            ("facts_corrected", &self.facts_corrected),
            ("result_too_large", &self.results_too_large),
            ("result_invalid", &self.results_invalid),
            ("result_resent", &self.results_resent),
            ("result_superseded", &self.results_superseded),
            ("letter_retracted", &self.letters_retracted),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
