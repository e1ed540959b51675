//! How long to wait before a call is tried again, and the random numbers that keep many callers apart.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// A random number from 0 (included) to 1 (excluded), for waits. Nothing secret may hang on it: each call asks for the fresh
/// keys of a [`RandomState`].
#[must_use]
pub fn random() -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "these are the 53 bits that a double holds exactly")]
    let bits = (RandomState::new().hash_one(0_u8) >> 11) as f64;
    bits / (1_u64 << 53) as f64
}

/// The wait after failure `failures` (from 1): between half and all of `base * 2^(failures-1)`, at most `cap`. Half is certain,
/// so that the calls never turn into a busy loop.
#[must_use]
pub fn backoff(failures: u32, base: Duration, cap: Duration) -> Duration {
    let most = base.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(cap);
    most.mul_f64(0.5 + random() / 2.0)
}

/// The wait after failure `failures` (from 1) in a row of calls of a server: up to 0.4 s for some seconds, so that one that
/// starts again is noticed soon, and then up to 5 s.
#[must_use]
pub fn away(failures: u32) -> Duration {
    backoff(failures.min(SHORT_UP_TO).max(failures.saturating_sub(SHORT_FOR)), AWAY_BASE, AWAY_CAP)
}

const AWAY_BASE: Duration = Duration::from_millis(50);
const AWAY_CAP: Duration = Duration::from_secs(5);
/// Up to which failure the wait doubles at first, and for how many it stays so long then: longer than a server needs to start
/// again.
const SHORT_UP_TO: u32 = 4;
const SHORT_FOR: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_stay_below_one_and_spread() {
        let drawn: Vec<f64> = (0..1_000).map(|_| random()).collect();
        assert!(drawn.iter().all(|number| (0.0..1.0).contains(number)));
        let mean = drawn.iter().sum::<f64>() / 1_000.0;
        assert!((0.4..0.6).contains(&mean), "mean {mean}");
    }

    #[test]
    fn a_backoff_grows_to_its_cap_and_is_never_less_than_half() {
        let (base, cap) = (Duration::from_millis(100), Duration::from_secs(10));
        for failures in 1..100 {
            let wait = backoff(failures, base, cap);
            let most = base.saturating_mul(1 << (failures - 1).min(20)).min(cap);
            assert!(wait >= most / 2 && wait <= most, "{failures}: {wait:?}");
        }
    }

    #[test]
    fn a_server_that_starts_again_is_noticed_soon_and_one_that_stays_away_is_asked_rarely() {
        for (failures, most) in [(1, 50), (4, 400), (24, 400), (25, 800), (26, 1_600), (40, 5_000), (u32::MAX, 5_000)] {
            let wait = away(failures).as_millis();
            assert!(wait >= most / 2 && wait <= most, "{failures}: {wait} ms");
        }
    }
}
