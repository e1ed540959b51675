//! A position in one client's results. It grants nothing, because reads are filtered by the caller, so it is not
//! signed; it carries enough to notice that the log behind it was replaced.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{ClientId, Timestamp};

/// The longest text of a cursor, in bytes.
pub const CURSOR_BYTES_MAX: usize = 192;
const VERSION: u8 = 1;
const FIXED_BYTES: usize = 1 + 16 + 8 + 8;

/// Identifies one result log: random, made when the stream, table or file was created or restored.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogId(pub [u8; 16]);

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// An opaque position in one client's results: everything up to and including `sequence` was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Whose results.
    pub client: ClientId,
    /// Which log.
    pub log: LogId,
    /// The last entry that was read; 0 before the first.
    pub sequence: u64,
    /// When that entry was recorded, so that a reused sequence is noticed; the epoch if `sequence` is 0.
    pub at: Timestamp,
}

/// The text is not a cursor that relay gave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of this relay: pass a `Relay-Cursor` value unchanged, `now`, or leave it out")]
pub struct InvalidCursor;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(FIXED_BYTES + self.client.as_str().len());
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.log.0);
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.at.as_millis().to_be_bytes());
        bytes.extend_from_slice(self.client.as_str().as_bytes());
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        if text.len() > CURSOR_BYTES_MAX {
            return Err(InvalidCursor);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidCursor)?;
        let (version, rest) = bytes.split_first().ok_or(InvalidCursor)?;
        let (log, rest) = rest.split_first_chunk::<16>().ok_or(InvalidCursor)?;
        let (sequence, rest) = rest.split_first_chunk::<8>().ok_or(InvalidCursor)?;
        let (at, client) = rest.split_first_chunk::<8>().ok_or(InvalidCursor)?;
        if *version != VERSION {
            return Err(InvalidCursor);
        }
        let client = std::str::from_utf8(client).map_err(|_| InvalidCursor)?;
        Ok(Self {
            client: client.parse().map_err(|_| InvalidCursor)?,
            log: LogId(*log),
            sequence: u64::from_be_bytes(*sequence),
            at: Timestamp::from_millis(i64::from_be_bytes(*at)),
        })
    }
}
