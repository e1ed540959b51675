//! The keys of a running process. The file is looked at about once a second, and read only when it changed; a file that
//! can't be read leaves the keys as they were, so that a slip of an editor locks nobody out.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::contract::Timestamp;
use tracing::{info, warn};

use super::credential::Credential;
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
    keys: Arc<Keys>,
    stamp: Option<Stamp>,
    /// The file that could not be read when it was looked at last: said once.
    refused: Option<Stamp>,
    looked_at: Duration,
}

/// The keys by their ids.
type Keys = HashMap<String, LiveKey>;

/// A key, and the handle of all that was begun with it.
#[derive(Clone, Debug)]
pub struct LiveKey {
    /// The key as the file has it.
    pub entry: KeyEntry,
    /// Ends when the key is revoked, expires, or is replaced by an entry that grants less.
    pub credential: Credential,
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
        let keys = Arc::new(replaced(&Keys::new(), file.list()?));
        let clients = AtomicUsize::new(clients(&keys));
        warn_if_open(file.path(), "the names of clients and the hashes of their keys");
        let state = Mutex::new(State { keys, stamp, refused: None, looked_at: clock.monotonic() });
        Ok(Self { file, clock, state, clients, nobody: SecretDigest::of_nobody() })
    }

    /// The entry of `key`, if there is one and the secret is right. An unknown id is looked for in the file at once, so
    /// that a key works from the moment it was created.
    pub fn find(&self, key: &Key) -> Option<LiveKey> {
        let mut keys = self.current(LOOK_EVERY);
        if !keys.contains_key(key.id()) {
            keys = self.current(Duration::ZERO);
        }
        let live = keys.get(key.id());
        let stored = live.map_or(&self.nobody, |live| &live.entry.sha256);
        let right = key.digest().matches(stored);
        let stands = |live: &&LiveKey| !live.entry.is_expired(self.clock.now()) && !live.credential.has_ended();
        live.filter(|live| right && stands(live)).cloned()
    }

    /// How many clients the keys name, expired ones included.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Looks at the file and at the clock once a second, so that a key that ends takes with it what was begun with it,
    /// also while nobody calls. Never ends by itself.
    pub async fn watch(&self) {
        loop {
            self.clock.sleep_until(self.clock.monotonic() + LOOK_EVERY).await;
            self.current(Duration::ZERO);
        }
    }

    /// The keys, no older than `age`, as far as the file can be read. Those that have ended are told so.
    fn current(&self, age: Duration) -> Arc<Keys> {
        let mut state = lock(&self.state);
        let now = self.clock.monotonic();
        if now.saturating_sub(state.looked_at) >= age {
            state.looked_at = now;
            let found = stamp(self.file.path());
            if found != state.stamp {
                match self.file.list() {
                    Ok(entries) => {
                        (state.stamp, state.refused) = (found, None);
                        let keys = Arc::new(replaced(&state.keys, entries));
                        info!(keys = keys.len(), "API keys read again");
                        self.clients.store(clients(&keys), Ordering::Relaxed);
                        let before = std::mem::replace(&mut state.keys, keys);
                        end_missing(&before, &state.keys);
                    }
                    // It is tried again: a file may be half written, or files be too many.
                    Err(error) if state.refused != found => {
                        state.refused = found;
                        warn!(%error, "API keys can't be read again; those read before stand");
                    }
                    Err(_) => {}
                }
            }
            end_expired(&state.keys, self.clock.now());
        }
        Arc::clone(&state.keys)
    }
}

/// The keys of `entries`. One that may do all that it could before keeps its credential.
fn replaced(before: &Keys, entries: Vec<KeyEntry>) -> Keys {
    let live = |entry: KeyEntry| {
        let kept = before.get(&entry.id).filter(|old| !old.credential.has_ended() && entry.grants_all_of(&old.entry));
        let credential = kept.map_or_else(Credential::standing, |old| old.credential.clone());
        (entry.id.clone(), LiveKey { entry, credential })
    };
    entries.into_iter().map(live).collect()
}

/// Ends the credentials that no key of `now` has any more.
fn end_missing(before: &Keys, now: &Keys) {
    for (id, old) in before {
        let kept = now.get(id).is_some_and(|new| new.credential == old.credential);
        if !kept && !old.credential.has_ended() {
            info!(key_id = id, "a key was revoked or grants less; what was begun with it ends");
            old.credential.end();
        }
    }
}

fn end_expired(keys: &Keys, now: Timestamp) {
    for (id, live) in keys {
        if live.entry.is_expired(now) && !live.credential.has_ended() {
            info!(key_id = id, "a key has expired; what was begun with it ends");
            live.credential.end();
        }
    }
}

fn clients(keys: &Keys) -> usize {
    let of_clients = keys.values().filter(|key| key.entry.role == Role::Client);
    of_clients.map(|key| &key.entry.name).collect::<HashSet<_>>().len()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()))
}
