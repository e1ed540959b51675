//! Broker errors. A kind says what the caller can do and whether the call took effect, not which library failed.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A broker call that did not do what was asked. Clones share its source: all who waited for one call get one answer.
#[derive(Clone, Debug)]
pub struct BrokerError {
    kind: BrokerErrorKind,
    operation: &'static str,
    detail: String,
    source: Option<Arc<dyn Error + Send + Sync>>,
    of_storage: bool,
}

/// The kind of a [`BrokerError`], which says what the caller can do. Exhaustive on purpose: code that turns errors into
/// answers must decide about a new kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerErrorKind {
    /// The broker is away or can't write. No effect; retry with backoff.
    Unavailable,
    /// The call may or may not have taken effect. Repeat it only if repeating is harmless: with an idempotency key,
    /// or for the calls of [`Leasing`](crate::leasing::Leasing), which all may be repeated.
    Ambiguous,
    /// The payload is larger than the broker or the queue takes. No effect; shrink it.
    TooLarge {
        /// Bytes there were.
        actual: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The client's own `max_queued` or `max_stored` is reached, as the text says. No effect; wait for own jobs to finish, or
    /// for results to be past their keeping.
    QuotaExceeded {
        /// Jobs waiting, or bytes that would be kept.
        actual: u64,
        /// Jobs allowed to wait, or bytes to be kept.
        limit: u64,
    },
    /// Relay's storage is nearly full or its queues are. No effect; wait.
    Overloaded {
        /// When to try again.
        retry_after: Duration,
    },
    /// The lease ended before the call. No effect; the job is someone else's: stop and drop the receipt.
    LeaseLost,
    /// The job, result, dead letter or queue is not there, or is another client's. No effect.
    NotFound,
    /// The thing is there but in another state than the call needs. No effect.
    StateConflict,
    /// A message or store of a newer version than this build reads. No effect; hand it back or upgrade.
    NewerVersion {
        /// The version found.
        found: u16,
        /// The newest version this build reads.
        newest: u16,
    },
    /// The broker refused relay's credentials, or this worker may not use the queue. No effect; fix the credentials.
    Unauthorized,
    /// Stored bytes that no version of relay wrote. No effect; an operator must look.
    Corrupt,
    /// The call itself was wrong: a bug or a bad argument. No effect.
    Invalid,
}

impl BrokerError {
    /// An error of `operation` (a word or two: `enqueue`, `open store`), with what happened and what to do.
    #[must_use]
    pub fn new(kind: BrokerErrorKind, operation: &'static str, detail: impl Into<String>) -> Self {
        Self { kind, operation, detail: detail.into(), source: None, of_storage: false }
    }

    /// The same, because the broker's storage has no room or can't be written: more than this call is refused until an
    /// operator sees to it.
    #[must_use]
    pub fn of_storage(mut self) -> Self {
        self.of_storage = true;
        self
    }

    /// The same with the error below it, for the log.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// The kind, which says what the caller can do.
    #[must_use]
    pub fn kind(&self) -> BrokerErrorKind {
        self.kind
    }

    /// The operation that failed.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// A description in words, without internals.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Whether the broker's storage has no room or can't be written. `false` of an error that came from another process.
    #[must_use]
    pub fn is_of_storage(&self) -> bool {
        self.of_storage
    }

    /// Whether the same call may succeed later without any change.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        use BrokerErrorKind as Kind;
        matches!(self.kind, Kind::Unavailable | Kind::Ambiguous | Kind::Overloaded { .. })
    }

    /// Whether the call can't have changed anything.
    #[must_use]
    pub fn had_no_effect(&self) -> bool {
        self.kind != BrokerErrorKind::Ambiguous
    }
}

impl fmt::Display for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.operation, self.detail)
    }
}

impl Error for BrokerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}
