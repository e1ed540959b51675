//! The memory of a process that serves holds keys and payloads: it must not be left on a disk when the process crashes.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// Lowers the soft limit of this process' cores to nothing. Handlers inherit it; one that wants a core raises it again, up to the
/// hard limit, which stays: `ulimit -S -c unlimited`.
pub(super) fn forbid() {
    let lowered = getrlimit(Resource::RLIMIT_CORE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_CORE, 0, most));
    if let Err(error) = lowered {
        warn!(%error, "a crash of this process may leave a core with keys and payloads in it: set `ulimit -c 0`");
    }
}
