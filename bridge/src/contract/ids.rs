//! Names and ids. Each is parsed at the edge, once, and printed with `Display`.
//!
//! A job id under a key is derived, not assigned: every replica and every protocol computes the same one without
//! asking anyone.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use blake3::hazmat::{ContextKey, HasherExt as _, hash_derive_key_context};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::{NoContext, Uuid};

use super::Timestamp;

/// The longest client or queue name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;
/// The longest idempotency key, in bytes.
pub const KEY_BYTES_MAX: usize = 255;
/// The longest worker name, in bytes.
pub const WORKER_BYTES_MAX: usize = 128;

/// The text is not a name, key or id of the kind asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {problem}")]
pub struct InvalidId {
    /// The kind of text that was being read: `client`, `queue`, `idempotency key`, `job id`, `run id` or `worker`.
    pub what: &'static str,
    /// The problem with it, and the allowed form; never more than 200 bytes of the text itself.
    pub problem: String,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text as it was given.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let check: fn(&str) -> Result<(), String> = $check;
                check(text).map_err(|problem| InvalidId { what: $what, problem })?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id!(
    /// An authenticated submitter, `[a-z0-9][a-z0-9-]{0,62}`. It owns its jobs and its results.
    ClientId, "client", |text| name(text, "-")
);
text_id!(
    /// A named line of work, `[a-z0-9][a-z0-9_-]{0,62}`.
    QueueName, "queue", |text| name(text, "_-")
);
text_id!(
    /// 1 to 255 visible ASCII characters (0x21 to 0x7e) given by the client; one scope per (client, queue).
    ///
    /// Parsing takes the bare and the quoted spelling (`abc` and `"abc"`, the structured-field string of
    /// draft-ietf-httpapi-idempotency-key-header) for the same key: see [`IdempotencyKey::from_header`].
    IdempotencyKey, "idempotency key", key
);
text_id!(
    /// The name of a worker process in logs and leases: 1 to 128 visible ASCII characters, as the worker says it. See
    /// [`under_key`](WorkerId::under_key).
    WorkerId, "worker", worker
);

impl WorkerId {
    /// The name by which a server knows a worker that came with the key `key`: `<key>/<worker>`, at most 192 characters. No
    /// client's name has a slash, so that what is in front of the first one is the key's.
    #[must_use]
    pub fn under_key(key: &ClientId, worker: &Self) -> Self {
        Self(format!("{key}/{worker}").into())
    }
}

impl IdempotencyKey {
    /// Whether `key` begins with `prefix`. Without a prefix every job counts, and with one a job without a key does not.
    #[must_use]
    pub fn begins_with(key: Option<&Self>, prefix: Option<&str>) -> bool {
        prefix.is_none_or(|prefix| key.is_some_and(|key| key.as_str().starts_with(prefix)))
    }

    /// The key as a header value that [`from_header`](Self::from_header) reads as the same key: bare, and in quotes only
    /// where it begins with one.
    #[must_use]
    pub fn to_header(&self) -> String {
        let text = self.as_str();
        if !text.starts_with('"') {
            return text.to_owned();
        }
        let mut quoted = String::with_capacity(text.len() + 4);
        quoted.push('"');
        for c in text.chars() {
            if matches!(c, '"' | '\\') {
                quoted.push('\\');
            }
            quoted.push(c);
        }
        quoted.push('"');
        quoted
    }

    /// Reads a header value: `abc` and `"abc"` are the same key; inside quotes `\"` and `\\` are escapes.
    ///
    /// # Errors
    /// [`InvalidId`] if the key is empty, too long, has other than visible ASCII, or a quote is left open.
    pub fn from_header(value: &str) -> Result<Self, InvalidId> {
        let value = value.trim_matches([' ', '\t']);
        let Some(inner) = value.strip_prefix('"') else {
            return value.parse();
        };
        let open = || InvalidId {
            what: "idempotency key",
            problem: "opens with a quote that is not closed at its end".to_owned(),
        };
        let mut text = String::with_capacity(inner.len());
        let mut chars = inner.chars();
        loop {
            match chars.next().ok_or_else(open)? {
                '"' if chars.as_str().is_empty() => return text.parse(),
                '"' => return Err(open()),
                '\\' => text.push(chars.next().filter(|c| matches!(c, '"' | '\\')).ok_or_else(open)?),
                other => text.push(other),
            }
        }
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// The id from its 16 bytes, as stored by relay itself.
            #[must_use]
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The id's 16 bytes, most significant first.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            /// Takes the lower-case hyphenated form, 36 characters, and no other spelling.
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let id = Uuid::try_parse(text)
                    .ok()
                    .filter(|id| *id.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == *text);
                id.map(Self).ok_or_else(|| InvalidId {
                    what: $what,
                    problem: "is not a lower-case hyphenated UUID of 36 characters".to_owned(),
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.0.hyphenated().encode_lower(&mut Uuid::encode_buffer()))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.0.hyphenated().encode_lower(&mut Uuid::encode_buffer()))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

uuid_id!(
    /// A job: UUIDv7 without a key, else UUIDv8 derived from (client, queue, key).
    JobId, "job id"
);
uuid_id!(
    /// One life of a job, a UUIDv7: always greater than the job's previous run. Clients deduplicate results on it.
    RunId, "run id"
);

impl JobId {
    /// A new id for a job without a key: UUIDv7, so that ids of one moment sort together.
    #[must_use]
    pub fn mint() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id of the job that `client` submits to `queue` under `key`.
    ///
    /// BLAKE3 in derive-key mode, context `relay job id v1`, over each of the three texts preceded by its length as
    /// an unsigned 32-bit big-endian integer; the first 16 bytes become a UUIDv8 (RFC 9562, section 5.8). Vectors:
    /// `docs/vectors/job-id.json`.
    #[must_use]
    pub fn derive(client: &ClientId, queue: &QueueName, key: &IdempotencyKey) -> Self {
        // Hashing the context again for each id would cost a third of it.
        static CONTEXT: LazyLock<ContextKey> = LazyLock::new(|| hash_derive_key_context("relay job id v1"));
        let mut hasher = blake3::Hasher::new_from_context_key(&CONTEXT);
        for part in [client.as_str(), queue.as_str(), key.as_str()] {
            super::hashing::update_length_prefixed(&mut hasher, part.as_bytes());
        }
        let mut bytes = [0; 16];
        hasher.finalize_xof().fill(&mut bytes);
        Self(Uuid::new_v8(bytes))
    }

    /// Whether it is derived from a key.
    #[must_use]
    pub fn has_key(self) -> bool {
        self.0.get_version_num() == 8
    }
}

impl RunId {
    /// A run that begins at `now` and is greater than `previous`, also if the clock stepped back in between.
    #[must_use]
    pub fn mint(now: Timestamp, previous: Option<Self>) -> Self {
        let at = |millis: u64| {
            let nanos = u32::try_from(millis % 1_000).unwrap_or(0) * 1_000_000;
            Self(Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, millis / 1_000, nanos)))
        };
        let run = at(u64::try_from(now.as_millis()).unwrap_or(0));
        match previous {
            Some(previous) if run <= previous => at(previous.millis() + 1),
            _ => run,
        }
    }

    /// The milliseconds since the epoch in the id's first 48 bits.
    pub fn millis(self) -> u64 {
        u64::try_from(self.0.as_u128() >> 80).unwrap_or(0)
    }
}

fn name(text: &str, more: &str) -> Result<(), String> {
    let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let shape = text.starts_with(lower) && text.chars().all(|c| lower(c) || more.contains(c));
    if shape && text.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    Err(format!("`{}` must be [a-z0-9][a-z0-9{more}]{{0,62}}", excerpt(text)))
}

fn key(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > KEY_BYTES_MAX {
        return Err(format!("has {} bytes, allowed are 1 to {KEY_BYTES_MAX}", text.len()));
    }
    visible(text)
}

fn worker(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > WORKER_BYTES_MAX {
        return Err(format!("has {} bytes, allowed are 1 to {WORKER_BYTES_MAX}", text.len()));
    }
    visible(text)
}

fn visible(text: &str) -> Result<(), String> {
    match text.bytes().position(|b| !b.is_ascii_graphic()) {
        None => Ok(()),
        Some(at) => Err(format!("has a byte at {at} that is not visible ASCII (0x21 to 0x7e)")),
    }
}

fn excerpt(text: &str) -> String {
    text.chars().take(NAME_BYTES_MAX + 1).flat_map(char::escape_default).take(150).collect()
}
