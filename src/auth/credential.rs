//! A handle on the credential that let a caller in: what was begun with the credential ends with it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

/// The credential of a caller, for as long as it stands. Clones are handles on the same one, and cost no more than a counter:
/// each request has some. The default is one that never ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credential(Option<Arc<CancellationToken>>);

impl Credential {
    /// One that stands, and may end.
    pub(super) fn standing() -> Self {
        Self(Some(Arc::default()))
    }

    /// Waits until the credential is taken away, has expired, or grants less than when it let the caller in. Costs no
    /// polling; dropping the future costs nothing.
    pub async fn ended(&self) {
        match &self.0 {
            Some(token) => token.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Whether it came to that. It never goes back.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.0.as_ref().is_some_and(|token| token.is_cancelled())
    }

    /// Whether anybody else has a handle.
    pub(super) fn is_held(&self) -> bool {
        self.0.as_ref().is_some_and(|token| Arc::strong_count(token) > 1)
    }

    /// Ends it, for every handle.
    pub(super) fn end(&self) {
        if let Some(token) = &self.0 {
            token.cancel();
        }
    }
}
