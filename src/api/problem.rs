//! The answer to whatever was refused: RFC 9457, `application/problem+json`. The detail says what to do next.

use std::time::Duration;

use relay_bridge::contract::ids::InvalidId;
use relay_bridge::contract::{JobId, Outcome, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use serde::{Deserialize, Serialize};

#[cfg(feature = "server")]
use super::schema;
use super::{DurationText, Retry, Slug};

/// The content type of a [`Problem`].
pub const PROBLEM_CONTENT_TYPE: &str = "application/problem+json";

/// When to try again after a refusal that passes and says no time of its own.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// One refusal. Fields that do not apply are left out of the JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Problem {
    /// The path of the slug's page, `/problems/<slug>`, on the same server: it asks for no credentials.
    #[serde(rename = "type")]
    pub page: String,
    /// What it is, the same for every occurrence.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time and what to do about it, for people.
    pub detail: String,
    /// `urn:relay:request:<id>`; empty until the server sends it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance: String,
    /// What it is, for programs.
    #[cfg_attr(feature = "server", schema(value_type = schema::SlugName))]
    pub slug: Slug,
    /// Whether a retry is safe.
    pub retry: Retry,
    /// When to try again; the header `Retry-After` says the same in whole seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Span>))]
    pub retry_after: Option<DurationText>,
    /// What was allowed: bytes, jobs or seconds, as the detail says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// What there was, in the unit of `limit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual: Option<u64>,
    /// The job in question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::JobId>))]
    pub job_id: Option<JobId>,
    /// When the first request with the same key came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Time>))]
    pub first_at: Option<Timestamp>,
    /// How the job ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Outcome>))]
    pub outcome: Option<Outcome>,
    /// When the job ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Time>))]
    pub finished_at: Option<Timestamp>,
}

impl Problem {
    /// A refusal; `detail` says what happened and what to do.
    #[must_use]
    pub fn new(slug: Slug, detail: impl Into<String>) -> Self {
        Self {
            page: slug.page(),
            title: slug.title().to_owned(),
            status: slug.status(),
            detail: detail.into(),
            instance: String::new(),
            slug,
            retry: slug.retry(),
            retry_after: matches!(slug.status(), 429 | 503).then_some(DurationText(RETRY_AFTER_DEFAULT)),
            limit: None,
            actual: None,
            job_id: None,
            first_at: None,
            outcome: None,
            finished_at: None,
        }
    }

    /// The same with what was allowed and what there was.
    #[must_use]
    pub fn with_limit(mut self, limit: u64, actual: u64) -> Self {
        self.limit = Some(limit);
        self.actual = Some(actual);
        self
    }

    /// The same with the job in question.
    #[must_use]
    pub fn with_job(mut self, job: JobId) -> Self {
        self.job_id = Some(job);
        self
    }

    /// The same with a time to wait before the next try.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(DurationText(after));
        self
    }

    /// `Retry-After` in whole seconds, rounded up; at least 1.
    #[must_use]
    pub fn retry_after_seconds(&self) -> Option<u64> {
        let after = self.retry_after?.0;
        Some((after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1))
    }
}

impl From<&BrokerError> for Problem {
    /// The problem that a client gets for a broker error. Every kind is decided here, so that no new one can be
    /// forgotten.
    fn from(error: &BrokerError) -> Self {
        use BrokerErrorKind as Kind;
        let what = error.detail();
        match error.kind() {
            Kind::Unavailable => Self::new(
                Slug::BrokerUnavailable,
                "the broker behind relay does not answer; nothing was done: send the same request again",
            ),
            Kind::Ambiguous => Self::new(
                Slug::Unconfirmed,
                "the broker did not confirm, so it may or may not have been done: send it again with the same \
                 Idempotency-Key; without a key it may be done twice",
            ),
            Kind::TooLarge { actual, limit } => {
                let detail =
                    format!("{actual} bytes were sent, {limit} are allowed: send less, or a link to where it is");
                Self::new(Slug::PayloadTooLarge, detail).with_limit(limit, actual)
            }
            Kind::QuotaExceeded { actual, limit } => {
                let detail = format!("{what}; nothing was done: send it again once there is room");
                Self::new(Slug::QuotaExceeded, detail).with_limit(limit, actual)
            }
            Kind::Overloaded { retry_after } => Self::new(
                Slug::Overloaded,
                "relay has as many jobs as it can keep; nothing was done: send it again after Retry-After",
            )
            .with_retry_after(retry_after),
            Kind::LeaseLost => Self::new(Slug::StateConflict, format!("the lease has ended: {what}")),
            Kind::NotFound => Self::new(Slug::NotFound, what),
            Kind::StateConflict => Self::new(Slug::StateConflict, what),
            // During a rollout another replica, of the newer version, answers the retry.
            Kind::NewerVersion { .. } => Self::new(
                Slug::BrokerUnavailable,
                "a newer version of relay wrote this and this one can't read it; nothing was done: send the same \
                 request again",
            ),
            // Relay's credentials, not the caller's.
            Kind::Unauthorized => Self::new(
                Slug::BrokerUnavailable,
                "the broker refused relay's own credentials; nothing was done: tell the operator of relay",
            ),
            Kind::Corrupt => {
                Self::new(Slug::Internal, "the stored record can't be read: tell the operator of relay the request id")
            }
            Kind::Invalid => Self::new(Slug::MalformedRequest, what),
        }
    }
}

impl From<InvalidId> for Problem {
    fn from(error: InvalidId) -> Self {
        Self::new(Slug::MalformedRequest, format!("{error}: correct it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_the_fields_of_the_contract_and_no_empty_ones() {
        let problem = Problem::new(Slug::PayloadTooLarge, "too large").with_limit(10, 11);
        let json = serde_json::to_value(&problem).unwrap();
        let expected = serde_json::json!({
            "type": "/problems/payload-too-large", "title": "The payload is too large", "status": 413,
            "detail": "too large", "slug": "payload-too-large", "retry": "no", "limit": 10, "actual": 11,
        });
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_value::<Problem>(json).unwrap(), problem);
    }

    #[test]
    fn what_is_refused_for_now_says_when_to_try_again() {
        for slug in Slug::ALL {
            let passes = matches!(slug.status(), 429 | 503);
            assert_eq!(Problem::new(*slug, "").retry_after_seconds().is_some(), passes, "{slug}");
        }
        let problem = Problem::new(Slug::Overloaded, "").with_retry_after(Duration::from_millis(1_200));
        assert_eq!(problem.retry_after_seconds(), Some(2));
    }

    #[test]
    fn an_unconfirmed_write_asks_for_the_same_key() {
        let error = BrokerError::new(BrokerErrorKind::Ambiguous, "enqueue", "the commit failed");
        let problem = Problem::from(&error);
        assert_eq!((problem.status, problem.retry), (504, Retry::WithIdempotencyKey));
    }
}
