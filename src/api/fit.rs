//! Of a result, what a reader can be told. Relay holds what its workers record against the contract, but a process with the
//! broker's own credentials can write anything: here it is brought within what a result may be, and never an error.

use std::collections::BTreeMap;

#[cfg(feature = "server")]
use relay_bridge::contract::TraceParent;
use relay_bridge::contract::job::{DEFAULT_CONTENT_TYPE, meta_that_fits};
use relay_bridge::contract::result::{DETAIL_BYTES_MAX, REASON_BYTES_MAX};
use relay_bridge::contract::{Failure, JobResult, Outcome};
use relay_bridge::rules::record::{CONTENT_TYPE_BYTES_MAX, fits_header};

/// Its content type, if a header can carry it, else [`DEFAULT_CONTENT_TYPE`].
pub(crate) fn content_type(result: &JobResult) -> &str {
    let text = result.content_type.as_str();
    let fits = !text.is_empty() && text.len() <= CONTENT_TYPE_BYTES_MAX && fits_header(text);
    if fits { text } else { DEFAULT_CONTENT_TYPE }
}

/// The client's own notes on its job: those that relay would have taken.
pub(crate) fn meta(result: &JobResult) -> BTreeMap<String, String> {
    meta_that_fits(&result.meta).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Why it did not succeed, within the lengths of a [`Failure`]: there exactly if it did not.
pub(crate) fn failure(result: &JobResult) -> Option<Failure> {
    match (result.outcome, &result.failure) {
        (Outcome::Succeeded, _) => None,
        (_, Some(failure)) => Some(within_lengths(failure)),
        (outcome, None) => Some(Failure::new(outcome.as_str(), "")),
    }
}

/// The same failure, cut to the lengths that a [`Failure`] has.
pub(crate) fn within_lengths(Failure { reason, detail }: &Failure) -> Failure {
    // Cut before it is copied: it may have any length.
    Failure::new(head(reason, REASON_BYTES_MAX), head(detail, DETAIL_BYTES_MAX))
}

/// Its trace context, if it is one.
#[cfg(feature = "server")]
pub(crate) fn traceparent(result: &JobResult) -> Option<&str> {
    result.traceparent.as_deref().filter(|parent| parent.parse::<TraceParent>().is_ok())
}

/// The beginning of `text`, of at most `bytes_max` bytes, cut at a character boundary.
fn head(text: &str, bytes_max: usize) -> &str {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing;

    fn result() -> JobResult {
        testing::result("", Vec::new())
    }

    #[test]
    fn a_content_type_is_told_as_it_is_if_a_header_can_carry_it() {
        let longest = format!("text/{}", "x".repeat(250));
        for fits in ["text/plain", "application/json; charset=utf-8", "no type at all", "a/b;\tc=d", &longest] {
            assert_eq!(content_type(&JobResult { content_type: fits.to_owned(), ..result() }), fits);
        }
        for unfit in ["", " ", " text/plain", "a/b\r\nc: d", "a/b;\t", "a/b\0", "a/\u{fc}", &(longest.clone() + "x")] {
            let told = JobResult { content_type: unfit.to_owned(), ..result() };
            assert_eq!(content_type(&told), DEFAULT_CONTENT_TYPE, "{unfit:?}");
        }
    }

    #[test]
    fn meta_is_told_as_far_as_relay_would_have_taken_it() {
        let told = |name: &str, value: &str| {
            let meta = [("a".to_owned(), "1".to_owned()), (name.to_owned(), value.to_owned())].into();
            super::meta(&JobResult { meta, ..result() }).len() == 2
        };
        assert!(told("tenant", "blue and\tgreen"));
        let long = "x".repeat(3_000);
        for (name, value) in [("", "1"), ("b c", "1"), ("b", "1\r\nc: 2"), ("b", "\u{43f}"), ("b", " 1"), ("b", &long)]
        {
            assert!(!told(name, value), "{name:?}: {value:.20?}");
        }
    }

    #[test]
    fn a_failure_is_told_exactly_where_a_run_did_not_succeed_and_within_its_lengths() {
        let long = Failure { reason: "\u{43f}".repeat(100), detail: format!("x{}", "\u{43f}".repeat(10_000)) };
        let of = |outcome, failure: Option<&Failure>| failure_of(outcome, failure.cloned());
        assert_eq!(of(Outcome::Succeeded, Some(&long)), None);
        assert_eq!(of(Outcome::Succeeded, None), None);
        assert_eq!(of(Outcome::Expired, None), Some(Failure::new("expired", "")));
        let short = Failure::new("", "");
        assert_eq!(of(Outcome::Failed, Some(&short)).as_ref(), Some(&short));
        let cut = of(Outcome::Exhausted, Some(&long)).unwrap();
        assert_eq!((cut.reason.len(), cut.detail.len()), (REASON_BYTES_MAX, DETAIL_BYTES_MAX - 1));
    }

    fn failure_of(outcome: Outcome, of: Option<Failure>) -> Option<Failure> {
        failure(&JobResult { outcome, failure: of, ..result() })
    }

    #[cfg(feature = "server")]
    #[test]
    fn what_is_no_trace_context_is_left_out() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        for (said, told) in [(Some(parent), Some(parent)), (Some("00-x"), None), (Some("\r\n"), None), (None, None)] {
            let result = JobResult { traceparent: said.map(ToOwned::to_owned), ..result() };
            assert_eq!(traceparent(&result), told);
        }
    }
}
