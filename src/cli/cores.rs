//! The memory of a process that serves holds keys and payloads, and its environment may: no crash must leave them on a disk, and
//! no handler may look into the process that started it.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// Lowers the soft limit of this process' cores to nothing. Handlers inherit it; one that wants a core raises it again, up to the
/// hard limit, which stays: `ulimit -S -c unlimited`.
///
/// On Linux the process is undumpable besides: other processes of its user can't read its memory and its environment, or trace it,
/// and no core is given to a program either (`core_pattern` with `|`), for which the limit does not count. A handler
/// is dumpable again. Root, with CAP_SYS_PTRACE, can do all of it still.
pub(super) fn forbid() {
    let lowered = getrlimit(Resource::RLIMIT_CORE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_CORE, 0, most));
    if let Err(error) = lowered {
        warn!(%error, "a crash of this process may leave a core with keys and payloads in it: set `ulimit -c 0`");
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        warn!(%error, "handlers can read the environment and the memory of this process: give keys by files, and to other users");
    }
}
