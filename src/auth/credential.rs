//! A handle on the credential that let a caller in: what was begun with the credential ends with it.

use tokio_util::sync::CancellationToken;

/// The credential of a caller, for as long as it stands. Clones are handles on the same one. The default is one that
/// never ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credential(CancellationToken);

impl Credential {
    /// Waits until the credential is taken away, has expired, or grants less than when it let the caller in. Costs no
    /// polling; dropping the future costs nothing.
    pub async fn ended(&self) {
        self.0.cancelled().await;
    }

    /// Whether it came to that. It never goes back.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Ends it, for every handle.
    pub(super) fn end(&self) {
        self.0.cancel();
    }
}
