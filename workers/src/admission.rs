//! Whether a delivery may start, before anything is done with it.

use std::time::Duration;

use relay_bridge::contract::Timestamp;

/// The decision about a delivery that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Run the handler.
    Start,
    /// Its attempts were all spent before: end it as `exhausted` without starting it.
    Exhausted,
    /// Its deadline has passed: end it as `expired` without starting it.
    Expired,
    /// It came too early: hand it back for this long.
    NotYetDue(Duration),
}

/// Decides. `now`, `due_at` and `expires_at` are on the broker's clock; `attempt` counts this delivery.
///
/// Spent attempts come before the deadline, because a dead letter keeps the payload for an operator.
pub(crate) fn on_delivery(
    attempt: u32,
    max_attempts: u32,
    now: Timestamp,
    due_at: Timestamp,
    expires_at: Timestamp,
) -> Admission {
    if attempt > max_attempts {
        Admission::Exhausted
    } else if now >= expires_at {
        Admission::Expired
    } else if now < due_at {
        Admission::NotYetDue(due_at.since(now))
    } else {
        Admission::Start
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    #[test]
    fn a_delivery_starts_only_in_its_time_and_with_an_attempt_left() {
        let table = [
            // attempt, max, now, due, expires
            (1, 10, 100, 100, 200, Admission::Start),
            (10, 10, 199, 100, 200, Admission::Start),
            (11, 10, 150, 100, 200, Admission::Exhausted),
            (11, 10, 250, 100, 200, Admission::Exhausted),
            (1, 10, 200, 100, 200, Admission::Expired),
            (1, 10, 90, 100, 200, Admission::NotYetDue(Duration::from_secs(10))),
            (1, 1, 150, 100, 200, Admission::Start),
            // The policy was lowered while the job waited.
            (5, 3, 150, 100, 200, Admission::Exhausted),
        ];
        for (attempt, max, now, due, expires, expected) in table {
            assert_eq!(on_delivery(attempt, max, at(now), at(due), at(expires)), expected, "{attempt} {max} {now}");
        }
    }

    proptest! {
        #[test]
        fn nothing_starts_before_it_is_due_after_it_expired_or_without_an_attempt(
            attempt in 1_u32..20, max in 1_u32..20, now in 0_i64..1_000, due in 0_i64..1_000, span in 1_i64..1_000,
        ) {
            let (now, due, expires) = (at(now), at(due), at(due + span));
            let started = on_delivery(attempt, max, now, due, expires) == Admission::Start;
            prop_assert_eq!(started, attempt <= max && due <= now && now < expires);
        }
    }
}
