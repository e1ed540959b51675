//! The highest rate that still meets a limit: rates are doubled until one does not, and then halved in between.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::config::values;

/// Rates that are tried at most.
pub(super) const STEPS_MAX: usize = 28;
/// The highest rate that is tried, in calls a second.
pub(super) const RATE_MAX: f64 = 1_000_000.0;
/// How close the two rates around the knee are in the end.
const CLOSE: f64 = 1.05;

/// `p99<50ms`: a quantile of the latencies, and what it must be below.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limit {
    /// From 0 to 1; 1 is the longest.
    quantile: f64,
    below: Duration,
}

impl Limit {
    /// Whether these latencies meet it.
    pub(super) fn holds(&self, latencies: &Histogram<u64>) -> bool {
        !latencies.is_empty() && u128::from(latencies.value_at_quantile(self.quantile)) < self.below.as_micros()
    }
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a limit such as p99<50ms, p99.9<1s or max<2s");
        let (quantile, below) = text.split_once('<').ok_or_else(wrong)?;
        let quantile = match quantile.trim() {
            "max" => 1.0,
            percent => {
                let percent: f64 = percent.strip_prefix('p').and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
                percent / 100.0
            }
        };
        let below = values::duration(below.trim().trim_start_matches('='))?;
        if !(0.0..=1.0).contains(&quantile) || quantile == 0.0 || below.is_zero() {
            return Err(wrong());
        }
        Ok(Self { quantile, below })
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let below = values::show_duration(self.below);
        if self.quantile >= 1.0 {
            return write!(f, "max<{below}");
        }
        // Four digits behind the point are more than anybody writes, and hide what a fraction of two is not.
        let percent = format!("{:.4}", self.quantile * 100.0);
        write!(f, "p{}<{below}", percent.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// The search. It asks for one rate after the other and is told whether each held.
#[derive(Debug)]
pub(super) struct Search {
    next: f64,
    held: Option<f64>,
    failed: Option<f64>,
    steps: usize,
}

impl Search {
    /// Begins at `rate`, in calls a second.
    pub(super) fn from(rate: f64) -> Self {
        Self { next: rate.clamp(1.0, RATE_MAX), held: None, failed: None, steps: 0 }
    }

    /// The rate to try, or `None` at the end.
    pub(super) fn next(&self) -> Option<f64> {
        let is_close = match (self.held, self.failed) {
            (Some(held), Some(failed)) => failed / held <= CLOSE,
            (Some(held), None) => held >= RATE_MAX,
            (None, Some(failed)) => failed <= 1.0,
            (None, None) => false,
        };
        (!is_close && self.steps < STEPS_MAX).then_some(self.next)
    }

    /// Takes whether the rate that was asked for held.
    pub(super) fn told(&mut self, held: bool) {
        self.steps += 1;
        *(if held { &mut self.held } else { &mut self.failed }) = Some(self.next);
        self.next = match (self.held, self.failed) {
            (Some(held), Some(failed)) => f64::midpoint(held, failed),
            (Some(held), None) => (held * 2.0).min(RATE_MAX),
            (None, Some(failed)) => (failed / 2.0).max(1.0),
            (None, None) => self.next,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knee(begin: f64, capacity: f64) -> (Option<f64>, usize) {
        let mut search = Search::from(begin);
        let mut steps = 0;
        while let Some(rate) = search.next() {
            search.told(rate <= capacity);
            steps += 1;
        }
        (search.held, steps)
    }

    #[test]
    fn the_knee_is_found_from_below_and_from_above_within_a_twentieth() {
        for (begin, capacity) in [(100.0, 7_300.0), (50_000.0, 7_300.0), (1.0, 999_999.0), (100.0, 3.0)] {
            let (held, steps) = knee(begin, capacity);
            let held = held.unwrap();
            assert!(held <= capacity && held * CLOSE >= capacity * 0.99, "{begin} {capacity}: {held}");
            assert!(steps <= STEPS_MAX, "{steps}");
        }
    }

    #[test]
    fn the_search_ends_where_nothing_holds_and_where_everything_does() {
        assert_eq!(knee(100.0, 0.0).0, None);
        assert_eq!(knee(100.0, f64::INFINITY).0, Some(RATE_MAX));
    }

    #[test]
    fn limits_are_read_as_they_are_shown_and_say_what_is_wrong() {
        for text in ["p99<50ms", "p99.9<1s", "p50<2ms", "max<2s"] {
            assert_eq!(text.parse::<Limit>().unwrap().to_string(), text);
        }
        for text in ["p99", "99<50ms", "p0<1s", "p101<1s", "p99<5", "p99<0ms"] {
            assert!(text.parse::<Limit>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_limit_holds_below_it_and_not_without_any_answer() {
        let limit: Limit = "p50<10ms".parse().unwrap();
        let mut latencies = Histogram::<u64>::new(3).unwrap();
        assert!(!limit.holds(&latencies));
        latencies.record(9_000).unwrap();
        assert!(limit.holds(&latencies));
        latencies.record_n(11_000, 5).unwrap();
        assert!(!limit.holds(&latencies));
    }
}
