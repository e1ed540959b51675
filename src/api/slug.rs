//! The names of everything that can be refused. Slugs are part of the contract: a released one never vanishes, and each has a page
//! under `docs/problems/`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where a server has the pages of the slugs, for whoever asks, so that they are of its version and need no other host.
const PROBLEM_PAGES: &str = "/problems/";

/// Whether sending the same request again is harmless and may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Retry {
    /// Nothing was done: send it again, after `Retry-After` where it is given.
    Safe,
    /// It may have been done: send it again only under the same idempotency key.
    WithIdempotencyKey,
    /// The same request will be refused again: change it first.
    No,
}

impl Retry {
    /// The word that the contract uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::WithIdempotencyKey => "with-idempotency-key",
            Self::No => "no",
        }
    }
}

macro_rules! slugs {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $status:literal, $retry:ident, $title:literal;)+) => {
        /// The kind of a refusal, for programs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Slug {
            $($(#[$doc])* $variant,)+
        }

        impl Slug {
            /// Every slug.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The text: lower case with hyphens.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The HTTP status, 4xx or 5xx.
            #[must_use]
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)+ }
            }

            /// The problem in a few words, the same for every occurrence.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)+ }
            }

            /// Whether a retry is safe, where an occurrence does not say otherwise.
            #[must_use]
            pub fn retry(self) -> Retry {
                match self { $(Self::$variant => Retry::$retry,)+ }
            }

            /// The text of the slug's page, as Markdown.
            #[cfg(feature = "server")]
            pub(crate) fn explanation(self) -> &'static str {
                match self { $(Self::$variant => include_str!(concat!("../../docs/problems/", $text, ".md")),)+ }
            }
        }
    };
}

slugs! {
    /// A name, id, header, cursor or parameter can't be read.
    MalformedRequest = "malformed-request", 400, No, "The request can't be read";
    /// No credentials, or ones that relay does not know.
    Unauthenticated = "unauthenticated", 401, No, "The caller is not known";
    /// The caller is known and may not do this.
    Forbidden = "forbidden", 403, No, "The caller may not do this";
    /// There is no such thing, or it is another client's.
    NotFound = "not-found", 404, No, "There is no such thing";
    /// The path is there, the method is not; `Allow` names those that are.
    MethodNotAllowed = "method-not-allowed", 405, No, "The method is not allowed here";
    /// The request's body did not arrive in time.
    RequestTimeout = "request-timeout", 408, Safe, "The request did not arrive in time";
    /// The job is in another state than the call needs.
    StateConflict = "state-conflict", 409, No, "The job is in another state";
    /// The outcome is known, the result's payload is gone.
    ResultExpired = "result-expired", 410, No, "The result's payload is gone";
    /// The body is larger than the queue takes.
    PayloadTooLarge = "payload-too-large", 413, No, "The payload is too large";
    /// The queue does not take this content type.
    UnsupportedMediaType = "unsupported-media-type", 415, No, "The content type is not taken";
    /// The same key came before with another body.
    IdempotencyConflict = "idempotency-conflict", 422, No, "The key was used with another body";
    /// The client sends faster than it may.
    RateLimited = "rate-limited", 429, Safe, "The client sends too fast";
    /// The client has as many jobs waiting as it may, or as many bytes kept.
    QuotaExceeded = "quota-exceeded", 429, Safe, "The client has too many jobs waiting, or too many bytes kept";
    /// The request's head is larger than relay takes.
    HeadersTooLarge = "headers-too-large", 431, No, "The headers are too large";
    /// A bug in relay.
    Internal = "internal", 500, WithIdempotencyKey, "Relay failed";
    /// This relay is going away; another one answers.
    Draining = "draining", 503, Safe, "Relay is shutting down";
    /// Relay has as much in hand as it takes.
    Overloaded = "overloaded", 503, Safe, "Relay is overloaded";
    /// The broker behind relay does not answer or can't write.
    BrokerUnavailable = "broker-unavailable", 503, Safe, "The broker is not available";
    /// The keys of the issuer that signed the token are not there.
    IssuerUnavailable = "issuer-unavailable", 503, Safe, "The token's issuer is not available";
    /// The broker may or may not have taken it.
    Unconfirmed = "unconfirmed", 504, WithIdempotencyKey, "The broker did not confirm";
}

impl Slug {
    /// The path of the slug's page on the server: the `type` of its problems, a relative reference (RFC 9457, section
    /// 3.1.1).
    #[must_use]
    pub fn page(self) -> String {
        format!("{PROBLEM_PAGES}{self}")
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text is not a slug that this build knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a slug that this version of relay knows")]
pub struct UnknownSlug;

impl FromStr for Slug {
    type Err = UnknownSlug;

    fn from_str(text: &str) -> Result<Self, UnknownSlug> {
        Self::ALL.iter().copied().find(|slug| slug.as_str() == text).ok_or(UnknownSlug)
    }
}

impl Serialize for Slug {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Slug {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
