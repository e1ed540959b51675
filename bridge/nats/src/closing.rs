//! How an adapter ends.

use tokio_util::sync::CancellationToken;

/// Ends the tasks of an adapter that nobody closed when the last of what uses it is gone.
pub(crate) struct Alive(pub(crate) CancellationToken);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
