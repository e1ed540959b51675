//! `Prefer` (RFC 7240): `wait=SECONDS` and `respond-async`. Other preferences are ignored, as the RFC asks.

use std::time::Duration;

use http::HeaderMap;

use super::answer::Refusal;
use crate::api::header;

/// The client's preferences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Preference {
    /// How long to wait for the result, already within the limit; `None` if not asked for.
    pub(super) wait: Option<Duration>,
    /// Whether an answer without the result is asked for by name.
    pub(super) respond_async: bool,
}

impl Preference {
    /// Reads every `Prefer` header; the first of two equal preferences counts.
    pub(super) fn read(headers: &HeaderMap, wait_max: Duration) -> Result<Self, Refusal> {
        let mut found = Self::default();
        for value in headers.get_all(header::PREFER) {
            let invalid = || Refusal::malformed("header Prefer can't be read: send `wait=20` or `respond-async`");
            let text = value.to_str().map_err(|_| invalid())?;
            for preference in text.split(',') {
                let preference = preference.split(';').next().unwrap_or("").trim();
                let (name, value) = match preference.split_once('=') {
                    Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
                    None => (preference, None),
                };
                if name.eq_ignore_ascii_case("respond-async") {
                    found.respond_async = true;
                } else if name.eq_ignore_ascii_case("wait") {
                    let seconds = value.filter(|value| value.bytes().all(|b| b.is_ascii_digit()) && value.len() <= 9);
                    let seconds = seconds.and_then(|value| value.parse().ok()).ok_or_else(|| {
                        Refusal::malformed(
                            "header Prefer: `wait` takes whole seconds without a unit, such as `wait=20`",
                        )
                    })?;
                    found.wait.get_or_insert(Duration::from_secs(seconds).min(wait_max));
                }
            }
        }
        Ok(found)
    }

    /// `Preference-Applied`, or `None` if nothing was asked for.
    pub(super) fn applied(self) -> Option<String> {
        let wait = self.wait.map(|wait| format!("wait={}", wait.as_secs()));
        match (wait, self.respond_async) {
            (Some(wait), true) => Some(format!("respond-async, {wait}")),
            (Some(wait), false) => Some(wait),
            (None, true) => Some("respond-async".to_owned()),
            (None, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const MAX: Duration = Duration::from_secs(55);

    fn read(text: &'static str) -> Result<Preference, Refusal> {
        let mut headers = HeaderMap::new();
        headers.insert(header::PREFER, HeaderValue::from_static(text));
        Preference::read(&headers, MAX)
    }

    #[test]
    fn a_wait_is_read_in_every_spelling_and_capped() {
        for (text, applied) in [
            ("wait=20", "wait=20"),
            ("WAIT = \"20\"", "wait=20"),
            ("wait=3600", "wait=55"),
            ("respond-async", "respond-async"),
            ("respond-async, wait=5; x=y, handling=lenient", "respond-async, wait=5"),
            ("wait=0", "wait=0"),
        ] {
            assert_eq!(read(text).unwrap().applied().as_deref(), Some(applied), "{text}");
        }
        assert_eq!(read("return=minimal").unwrap(), Preference::default());
    }

    #[test]
    fn a_wait_that_is_not_whole_seconds_is_refused() {
        for text in ["wait", "wait=", "wait=-1", "wait=20s", "wait=1.5", "wait=99999999999999999999"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
