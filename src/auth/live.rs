//! The keys of a running process. The file is looked at once a second at most, and read only when it changed; a file
//! that can't be read leaves the keys as they were, so that a slip of an editor locks nobody out.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use relay_bridge::clock::Clock;
use tracing::{info, warn};

use super::keys::{Key, KeyEntry, KeyFile, KeysError, Role, SecretDigest};
use crate::private_file::warn_if_open;
use relay_bridge::support::lock;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The keys as the file had them when it was last looked at.
#[derive(Debug)]
pub struct LiveKeys {
    file: KeyFile,
    clock: Clock,
    state: Mutex<State>,
    /// How many clients the keys name.
    clients: AtomicUsize,
    /// The digest that a secret of an unknown id is compared with, so that the answer takes the same time.
    nobody: SecretDigest,
}

#[derive(Debug)]
struct State {
    keys: Arc<HashMap<String, KeyEntry>>,
    stamp: Option<Stamp>,
    looked_at: Duration,
}

/// Changes whenever the file is replaced, edited, or given other permissions.
type Stamp = (u64, u64, i64, i64);

impl LiveKeys {
    /// Reads the keys of the file at `path`.
    ///
    /// # Errors
    /// If the file is not there or can't be read: a relay without keys would let nobody in.
    pub fn open(path: impl AsRef<Path>, clock: Clock) -> Result<Self, KeysError> {
        let file = KeyFile::new(path.as_ref());
        // The stamp first: a change in between is then seen at the next look.
        let stamp = stamp(file.path());
        let keys = Arc::new(by_id(file.list()?));
        let clients = AtomicUsize::new(clients(&keys));
        warn_if_open(file.path(), "the names of clients and the hashes of their keys");
        let state = Mutex::new(State { keys, stamp, looked_at: clock.monotonic() });
        Ok(Self { file, clock, state, clients, nobody: SecretDigest::of_nobody() })
    }

    /// The entry of `key`, if there is one and the secret is right. An unknown id is looked for in the file at once, so
    /// that a key works from the moment it was created.
    pub fn find(&self, key: &Key) -> Option<KeyEntry> {
        let mut keys = self.current(LOOK_EVERY);
        if !keys.contains_key(key.id()) {
            keys = self.current(Duration::ZERO);
        }
        let entry = keys.get(key.id());
        let stored = entry.map_or(&self.nobody, |entry| &entry.sha256);
        let right = key.digest().matches(stored);
        entry.filter(|entry| right && !entry.is_expired(self.clock.now())).cloned()
    }

    /// How many clients the keys name, expired ones included.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// The keys, no older than `age`, as far as the file can be read.
    fn current(&self, age: Duration) -> Arc<HashMap<String, KeyEntry>> {
        let mut state = lock(&self.state);
        let now = self.clock.monotonic();
        if now.saturating_sub(state.looked_at) >= age {
            state.looked_at = now;
            let found = stamp(self.file.path());
            if found != state.stamp {
                state.stamp = found;
                match self.file.list() {
                    Ok(entries) => {
                        info!(keys = entries.len(), "API keys read again");
                        state.keys = Arc::new(by_id(entries));
                        self.clients.store(clients(&state.keys), Ordering::Relaxed);
                    }
                    Err(error) => warn!(%error, "API keys can't be read again; those read before stand"),
                }
            }
        }
        Arc::clone(&state.keys)
    }
}

fn by_id(entries: Vec<KeyEntry>) -> HashMap<String, KeyEntry> {
    entries.into_iter().map(|entry| (entry.id.clone(), entry)).collect()
}

fn clients(keys: &HashMap<String, KeyEntry>) -> usize {
    let of_clients = keys.values().filter(|entry| entry.role == Role::Client);
    of_clients.map(|entry| &entry.name).collect::<HashSet<_>>().len()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()))
}
