//! The meaning of a status for the attempt: the table in [`http`](super).

use std::time::Duration;

use relay_bridge::contract::Failure;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use crate::handler::Attempt;

/// The meaning of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The body is the result.
    Done,
    /// Not now; not before this long, if the service said so.
    Retry(Option<Duration>),
    /// Never.
    Reject,
    /// Somewhere else, where no job goes.
    Redirect,
}

/// Judges a response by its status and `Retry-After`.
pub(super) fn verdict(status: StatusCode, headers: &HeaderMap, retry_after_max: Duration) -> Verdict {
    let after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let after = after.map(|seconds| Duration::from_secs(seconds).min(retry_after_max));
    match status.as_u16() {
        200..=299 => Verdict::Done,
        300..=399 => Verdict::Redirect,
        408 | 409 | 425 | 429 | 500..=599 => Verdict::Retry(after),
        400..=499 => Verdict::Reject,
        // No class that HTTP knows.
        _ => Verdict::Retry(None),
    }
}

/// The attempt of a response that is no success. `excerpt` is the start of its body.
pub(super) fn refused(status: StatusCode, verdict: Verdict, excerpt: &[u8]) -> Attempt {
    let excerpt = String::from_utf8_lossy(excerpt);
    let separator = if excerpt.trim().is_empty() { "" } else { ": " };
    let detail = format!("the service answered {status}{separator}{}", excerpt.trim());
    match verdict {
        Verdict::Retry(after) => Attempt::Retry { failure: Failure::new("http-status", detail), after },
        Verdict::Redirect => Attempt::reject("http-redirect", format!("{detail} (redirects are not followed)")),
        Verdict::Reject | Verdict::Done => Attempt::reject("http-status", detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(60);

    fn judge(status: u16, retry_after: Option<&str>) -> Verdict {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert(RETRY_AFTER, value.parse().unwrap());
        }
        verdict(StatusCode::from_u16(status).unwrap(), &headers, MAX)
    }

    #[test]
    fn every_status_has_one_meaning() {
        for status in 100..1_000 {
            let expected = match status {
                200..=299 => Verdict::Done,
                300..=399 => Verdict::Redirect,
                408 | 409 | 425 | 429 => Verdict::Retry(None),
                400..=499 => Verdict::Reject,
                _ => Verdict::Retry(None),
            };
            assert_eq!(judge(status, None), expected, "{status}");
        }
    }

    #[test]
    fn retry_after_is_honoured_in_seconds_up_to_its_cap() {
        for (value, expected) in [
            ("7", Some(7)),
            ("0", Some(0)),
            ("100000", Some(60)),
            ("99999999999999999999999", None),
            ("-1", None),
            ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ] {
            assert_eq!(judge(503, Some(value)), Verdict::Retry(expected.map(Duration::from_secs)), "{value}");
        }
    }
}
