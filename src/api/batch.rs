//! Many submissions in one request. Each entry is a job of its own: one that is refused says why, and the others are
//! accepted.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use relay_bridge::contract::job::DEFAULT_CONTENT_TYPE;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

#[cfg(feature = "server")]
use super::schema;
use super::{DurationText, Problem, Receipt};

/// The most entries of one batch.
pub const BATCH_ENTRIES_MAX: usize = 1_000;
/// The largest batch, in bytes.
pub const BATCH_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// One job of a batch. Exactly one of `payload`, `payload_base64` and `text` is the payload.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BatchEntry {
    /// What makes a retry the same job. Without it, a batch under `Idempotency-Key: k` gives entry `i`, counted from 0,
    /// the key `k/i`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Key>))]
    pub key: Option<String>,
    /// The payload as JSON; it reaches the handler byte for byte as it stands here.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    #[cfg_attr(feature = "server", schema(value_type = schema::Json, required = false))]
    pub payload: Option<Box<RawValue>>,
    /// The payload in base64 (RFC 4648, padded).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
    /// The payload as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The payload's content type. Without it: `application/json` for `payload`, `text/plain; charset=utf-8` for `text`,
    /// else `application/octet-stream`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// No attempt before this duration has passed, `10s`; at most 7 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Span>))]
    pub delay: Option<DurationText>,
    /// The job expires this long after its delay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Span>))]
    pub expires_in: Option<DurationText>,
    /// What reaches the handler as `Relay-Meta-*`, by the part of the name behind the prefix; 2 KiB together.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
}

impl BatchEntry {
    /// Takes the one payload out, and the content type that goes with how it was written.
    ///
    /// # Errors
    /// The correction to make: there is no payload, there are several, or it is not base64.
    pub fn take_payload(&mut self) -> Result<(Bytes, &'static str), String> {
        match (self.payload.take(), self.payload_base64.take(), self.text.take()) {
            (Some(json), None, None) => Ok((String::from(Box::<str>::from(json)).into(), "application/json")),
            (None, None, Some(text)) => Ok((text.into(), "text/plain; charset=utf-8")),
            (None, Some(base64), None) => match STANDARD.decode(base64) {
                Ok(bytes) => Ok((bytes.into(), DEFAULT_CONTENT_TYPE)),
                Err(error) => Err(format!("field `payload_base64` can't be read: {error}: pad it as RFC 4648 does")),
            },
            _ => Err("it needs exactly one of `payload`, `payload_base64` and `text`".to_owned()),
        }
    }
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct BatchAnswer {
    /// Entries that have a receipt.
    pub accepted: usize,
    /// Entries that have a problem.
    pub refused: usize,
    /// One for each entry, in their order.
    pub entries: Vec<BatchItem>,
}

/// What became of one entry: `{"receipt": …}` or `{"problem": …}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum BatchItem {
    /// It is durable and in line, or was before.
    Receipt(Box<Receipt>),
    /// It was refused; the rest of the batch was not, for that.
    Problem(Box<Problem>),
}

/// A value that is there, also if it is `null`: that is JSON too.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}
