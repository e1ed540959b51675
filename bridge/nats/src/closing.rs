//! Ends the tasks of an adapter that nobody closed.

use tokio_util::sync::CancellationToken;

/// Cancels its token when it is dropped: the tasks of an adapter that nobody closed end when its last user is gone.
pub(crate) struct Alive(pub(crate) CancellationToken);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
