//! The fingerprint, which decides whether two submissions under one key are the same: content type, content encoding
//! and payload.
//!
//! Delay, expiry, meta and trace context are not in it: on a replay the first ones stand.

use std::fmt;
use std::sync::LazyLock;

use blake3::hazmat::{ContextKey, HasherExt as _, hash_derive_key_context};

use super::hashing::update_length_prefixed;
use super::media::essence;

/// The encoding that is none.
const IDENTITY: &str = "identity";

/// BLAKE3 over a version, the content type's lower-case essence, the content encoding and the payload.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a payload. `content_type` counts without parameters and in lower case.
    ///
    /// BLAKE3 in derive-key mode, context `relay fingerprint v1`, over the three parts, each preceded by its length
    /// as an unsigned 32-bit big-endian integer; no encoding is the empty one, and so is `identity`.
    #[must_use]
    pub fn of(content_type: &str, content_encoding: Option<&str>, payload: &[u8]) -> Self {
        let encoding = content_encoding.unwrap_or("").trim().to_ascii_lowercase();
        Self::with(content_type, if encoding == IDENTITY { "" } else { &encoding }, payload)
    }

    fn with(content_type: &str, encoding: &str, payload: &[u8]) -> Self {
        let essence = essence(content_type).to_ascii_lowercase();
        static CONTEXT: LazyLock<ContextKey> = LazyLock::new(|| hash_derive_key_context("relay fingerprint v1"));
        let mut hasher = blake3::Hasher::new_from_context_key(&CONTEXT);
        for part in [essence.as_bytes(), encoding.as_bytes(), payload] {
            update_length_prefixed(&mut hasher, part);
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// Whether this is the fingerprint of a payload. In one of an earlier release `identity` was an encoding of its own.
    #[must_use]
    pub fn is_of(&self, content_type: &str, content_encoding: Option<&str>, payload: &[u8]) -> bool {
        let encoding = content_encoding.unwrap_or("").trim();
        let is_identity = encoding.is_empty() || encoding.eq_ignore_ascii_case(IDENTITY);
        *self == Self::of(content_type, content_encoding, payload)
            || (is_identity && *self == Self::with(content_type, IDENTITY, payload))
    }

    /// The fingerprint from its 32 bytes, as stored by relay itself.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
