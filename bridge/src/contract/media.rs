//! Content types that a queue takes: `image/png`, or `text/*` for all of a kind. Only a type's essence counts, without case
//! and parameters, as in a [`Fingerprint`](super::Fingerprint).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ids::InvalidId;

/// The longest range, in bytes: as long as a header `Content-Type` may be.
const BYTES_MAX: usize = 255;

/// A content type without parameters in lower case, or all of a kind: `application/json`, `text/*`. Printed as it is read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MediaRange(Box<str>);

/// The part of a content type that counts: no parameters, no space around it.
#[must_use]
pub fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or("").trim()
}

impl MediaRange {
    /// Whether a payload with this header `Content-Type` is one of them.
    #[must_use]
    pub fn contains(&self, content_type: &str) -> bool {
        let found = essence(content_type);
        match self.0.strip_suffix('*') {
            // `text/`, which the type must go on from.
            Some(start) => found.len() > start.len() && has_prefix(found, start),
            None => found.eq_ignore_ascii_case(&self.0),
        }
    }
}

fn has_prefix(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// Whether `text` is a token as RFC 9110, section 5.6.2, defines it.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&byte))
}

impl FromStr for MediaRange {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = |problem: &str| InvalidId { what: "content type", problem: problem.to_owned() };
        if text.len() > BYTES_MAX {
            return Err(invalid(&format!("has more than {BYTES_MAX} bytes")));
        }
        if text.contains(';') {
            return Err(invalid("has parameters, which do not count: leave them out"));
        }
        let parts = text.split_once('/').filter(|(kind, rest)| is_token(kind) && (*rest == "*" || is_token(rest)));
        if parts.is_none() {
            return Err(invalid("must be such as application/json, or text/* for all of a kind"));
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for MediaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for MediaRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for MediaRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> MediaRange {
        text.parse().unwrap()
    }

    #[test]
    fn only_the_essence_counts_without_case_and_parameters() {
        for text in ["application/json", "Application/JSON; charset=utf-8", " application/json ;x"] {
            assert!(range("application/JSON").contains(text), "{text}");
        }
        for text in ["", "application", "application/json5", "application/jso", "text/json", ";application/json"] {
            assert!(!range("application/json").contains(text), "{text}");
        }
    }

    #[test]
    fn a_star_stands_for_all_of_a_kind_and_for_no_other() {
        for text in ["text/plain", "TEXT/csv; header=present", "text/*"] {
            assert!(range("text/*").contains(text), "{text}");
        }
        for text in ["text", "text/", "textual/plain", "te\u{fc}t/plain", "application/text"] {
            assert!(!range("text/*").contains(text), "{text}");
        }
    }

    #[test]
    fn what_is_no_content_type_is_refused() {
        for text in ["", "/", "text", "text/", "/plain", "*/*", "*", "text/*n", "a b/c", "a/b;c=d", "a/b/c", "a/\u{fc}"]
        {
            assert!(text.parse::<MediaRange>().is_err(), "{text}");
        }
        assert!(format!("a/{}", "b".repeat(254)).parse::<MediaRange>().is_err());
        assert_eq!(range("IMAGE/svg+XML").to_string(), "image/svg+xml");
    }
}
