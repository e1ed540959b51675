//! A broker's error on the wire: the kind for programs that know this protocol, the slug and the retry word of the HTTP
//! API for all others.

use std::time::Duration;

use super::DETAIL_BYTES_MAX;
use crate::error::{BrokerError, BrokerErrorKind as Kind};

/// Why a request, or the connection, was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError {
    /// The kind of error, as a word that says what the caller can do; see `docs/protocol.md`. Unknown words are judged
    /// by `retry`.
    pub kind: Box<str>,
    /// The slug that the HTTP API uses for it.
    pub slug: Box<str>,
    /// Whether the same request may be sent again.
    pub retry: Retry,
    /// The cause and the remedy, for people; at most 1 KiB.
    pub detail: String,
    /// The number that was too large, or the version found.
    pub actual: Option<u64>,
    /// The number that is allowed, or the newest version that is read.
    pub limit: Option<u64>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// Whether it was refused for want of storage.
    pub of_storage: bool,
}

/// Whether a refused request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It had no effect, and may succeed later.
    Safe,
    /// It may have had its effect. Every request of the worker role may be repeated.
    WithIdempotencyKey,
    /// It had no effect and will have none.
    No,
}

impl Retry {
    /// `safe`, `with-idempotency-key` or `no`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::WithIdempotencyKey => "with-idempotency-key",
            Self::No => "no",
        }
    }

    /// The word read back; one that is not known means `no`.
    #[must_use]
    pub fn from_word(word: &str) -> Self {
        match word {
            "safe" => Self::Safe,
            "with-idempotency-key" => Self::WithIdempotencyKey,
            _ => Self::No,
        }
    }
}

impl WireError {
    /// An error of `kind`, with the slug and the retry word that belong to it.
    #[must_use]
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let (word, slug, retry) = words(kind);
        let (actual, limit, retry_after) = match kind {
            Kind::TooLarge { actual, limit } | Kind::QuotaExceeded { actual, limit } => {
                (Some(actual), Some(limit), None)
            }
            Kind::Overloaded { retry_after } => (None, None, Some(retry_after)),
            Kind::NewerVersion { found, newest } => (Some(u64::from(found)), Some(u64::from(newest)), None),
            _ => (None, None, None),
        };
        let mut detail = detail.into();
        detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
        Self { kind: word.into(), slug: slug.into(), retry, detail, actual, limit, retry_after, of_storage: false }
    }

    /// The same under another slug of the HTTP API, where that one says more.
    #[must_use]
    pub fn with_slug(mut self, slug: &str) -> Self {
        self.slug = slug.into();
        self
    }

    /// The error of a broker call. Sources stay in the log of this side.
    #[must_use]
    pub fn of(error: &BrokerError) -> Self {
        Self { of_storage: error.is_of_storage(), ..Self::new(error.kind(), error.detail()) }
    }

    /// The kind of broker error, which says what the caller can do.
    #[must_use]
    pub fn broker_kind(&self) -> Kind {
        let (actual, limit) = (self.actual.unwrap_or(0), self.limit.unwrap_or(0));
        let version = |number| u16::try_from(number).unwrap_or(u16::MAX);
        match &*self.kind {
            "unavailable" => Kind::Unavailable,
            "ambiguous" => Kind::Ambiguous,
            "too-large" => Kind::TooLarge { actual, limit },
            "quota-exceeded" => Kind::QuotaExceeded { actual, limit },
            "overloaded" => Kind::Overloaded { retry_after: self.retry_after.unwrap_or(Duration::from_secs(1)) },
            "lease-lost" => Kind::LeaseLost,
            "not-found" => Kind::NotFound,
            "state-conflict" => Kind::StateConflict,
            "newer-version" => Kind::NewerVersion { found: version(actual), newest: version(limit) },
            "unauthorized" => Kind::Unauthorized,
            "corrupt" => Kind::Corrupt,
            "invalid" => Kind::Invalid,
            _ => match self.retry {
                Retry::Safe => Kind::Unavailable,
                Retry::WithIdempotencyKey => Kind::Ambiguous,
                Retry::No => Kind::Invalid,
            },
        }
    }

    /// The broker error that the caller of `operation` sees.
    #[must_use]
    pub fn into_broker_error(self, operation: &'static str) -> BrokerError {
        let (kind, of_storage) = (self.broker_kind(), self.of_storage);
        let error = BrokerError::new(kind, operation, self.detail);
        if of_storage { error.of_storage() } else { error }
    }
}

/// Kind, slug and retry word of every kind.
fn words(kind: Kind) -> (&'static str, &'static str, Retry) {
    match kind {
        Kind::Unavailable => ("unavailable", "broker-unavailable", Retry::Safe),
        Kind::Ambiguous => ("ambiguous", "unconfirmed", Retry::WithIdempotencyKey),
        Kind::TooLarge { .. } => ("too-large", "payload-too-large", Retry::No),
        Kind::QuotaExceeded { .. } => ("quota-exceeded", "quota-exceeded", Retry::Safe),
        Kind::Overloaded { .. } => ("overloaded", "overloaded", Retry::Safe),
        Kind::LeaseLost => ("lease-lost", "state-conflict", Retry::No),
        Kind::NotFound => ("not-found", "not-found", Retry::No),
        Kind::StateConflict => ("state-conflict", "state-conflict", Retry::No),
        Kind::NewerVersion { .. } => ("newer-version", "internal", Retry::No),
        Kind::Unauthorized => ("unauthorized", "forbidden", Retry::No),
        Kind::Corrupt => ("corrupt", "internal", Retry::No),
        Kind::Invalid => ("invalid", "malformed-request", Retry::No),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_kind_comes_back_as_it_was_sent() {
        let second = Duration::from_secs(1);
        for kind in [
            Kind::Unavailable,
            Kind::Ambiguous,
            Kind::TooLarge { actual: 9, limit: 8 },
            Kind::QuotaExceeded { actual: 9, limit: 8 },
            Kind::Overloaded { retry_after: second },
            Kind::LeaseLost,
            Kind::NotFound,
            Kind::StateConflict,
            Kind::NewerVersion { found: 3, newest: 2 },
            Kind::Unauthorized,
            Kind::Corrupt,
            Kind::Invalid,
        ] {
            assert_eq!(WireError::new(kind, "x").broker_kind(), kind);
        }
    }

    #[test]
    fn a_kind_of_a_newer_server_is_judged_by_its_retry_word() {
        let unknown = |retry| WireError { kind: "novel".into(), retry, ..WireError::new(Kind::Invalid, "") };
        assert_eq!(unknown(Retry::Safe).broker_kind(), Kind::Unavailable);
        assert_eq!(unknown(Retry::WithIdempotencyKey).broker_kind(), Kind::Ambiguous);
        assert_eq!(unknown(Retry::No).broker_kind(), Kind::Invalid);
    }

    #[test]
    fn a_long_detail_is_cut_at_a_character() {
        let error = WireError::new(Kind::Invalid, "\u{20ac}".repeat(1_000));
        assert_eq!(error.detail.len(), 1_023);
    }
}
