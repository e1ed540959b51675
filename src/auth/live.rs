//! Keys and identities of a running process. The files are looked at about once a second, and read only when one changed; files
//! that can't be read leave everything as it was, so that a slip of an editor locks nobody out.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, Timestamp};
use relay_bridge::support::lock;
use tracing::{info, warn};

use super::credential::Credential;
use super::files::{Files, LiveKey, Snapshot};
use super::identity::Shown;
use super::judge::judge;
use super::keys::{Key, SecretDigest};
use super::mistake::{Mistake, Mistakes};
use super::standing::{Begun, Full, Grant, Proof, Standing};
use super::tokens::{Believed, Tokens, Verified};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The files as they were when they were last looked at.
#[derive(Debug)]
pub(super) struct Live {
    files: Files,
    clock: Clock,
    state: Mutex<State>,
    /// How many clients there are.
    clients: AtomicUsize,
    /// The shares that clients are given, in percent.
    shares: RwLock<HashMap<ClientId, u8>>,
    /// Whether the files are what holds.
    is_taken: AtomicBool,
    /// The digest that a secret of an unknown id is compared with, so that the answer takes the same time.
    nobody: SecretDigest,
    pub(super) tokens: Tokens,
}

#[derive(Debug)]
struct State {
    snapshot: Arc<Snapshot>,
    /// The mistakes for which the files were refused when they were looked at last: said once.
    refused: Option<Vec<Mistake>>,
    looked_at: Duration,
    standing: Standing,
}

impl Live {
    /// Reads `files`.
    ///
    /// # Errors
    /// If one of them is not there or can't be read: relay would let nobody in.
    pub(super) fn open(files: Files, clock: Clock) -> Result<Self, Mistakes> {
        let snapshot = Snapshot::read(&files).map_err(Mistakes)?;
        Snapshot::warn_if_open(&files);
        let tokens = Tokens::new(clock.clone());
        if let Some(identity) = &snapshot.identity {
            tokens.issuers.configure(&identity.issuers);
        }
        let clients = AtomicUsize::new(snapshot.clients());
        let shares = RwLock::new(shares(&snapshot));
        let (snapshot, looked_at) = (Arc::new(snapshot), clock.monotonic());
        let state = Mutex::new(State { snapshot, refused: None, looked_at, standing: Standing::default() });
        let (is_taken, nobody) = (AtomicBool::new(true), SecretDigest::of_nobody());
        Ok(Self { files, clock, state, clients, shares, is_taken, nobody, tokens })
    }

    /// Everything that holds now.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.current(LOOK_EVERY)
    }

    /// The entry of `key`, if there is one and the secret is right. An unknown id is looked for in the file at once, so
    /// that a key works from the moment it was created; but not in files that could not be taken, which are read once a second
    /// however many strangers call.
    pub(super) fn find(&self, key: &Key) -> Option<LiveKey> {
        let mut snapshot = self.current(LOOK_EVERY);
        if !snapshot.keys.contains_key(key.id()) && self.is_taken() {
            snapshot = self.current(Duration::ZERO);
        }
        let live = snapshot.keys.get(key.id());
        let stored = live.map_or(&self.nobody, |live| &live.entry.sha256);
        let right = key.digest().matches(stored);
        live.filter(|live| right && stands(live, self.clock.now())).cloned()
    }

    /// The credential of what begins with `proof`, which lets in for `grant` by `snapshot`. `None` if that holds no more, and is to
    /// be judged anew: nothing begins by what was changed meanwhile.
    pub(super) fn begin(
        &self,
        snapshot: &Arc<Snapshot>,
        proof: Proof,
        grant: &Grant,
        (key, token): (Option<Credential>, Option<Arc<Verified>>),
    ) -> Result<Option<Credential>, Full> {
        let mut state = lock(&self.state);
        if !Arc::ptr_eq(&state.snapshot, snapshot) {
            return Ok(None);
        }
        state.standing.begin(proof, grant, key, token).map(Some)
    }

    /// The share of a client, in percent, if it has one of its own.
    pub(super) fn share_of(&self, client: &ClientId) -> Option<u8> {
        self.shares.read().unwrap_or_else(PoisonError::into_inner).get(client).copied()
    }

    /// How many clients there are, those of expired keys included.
    pub(super) fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Whether the files, when they were looked at last, could be taken as they were.
    pub(super) fn is_taken(&self) -> bool {
        self.is_taken.load(Ordering::Relaxed)
    }

    /// Reads all files now, changed or not.
    pub(super) fn reload(&self) -> Result<(), Vec<Mistake>> {
        let mut state = lock(&self.state);
        state.looked_at = self.clock.monotonic();
        self.take(&mut state)
    }

    /// Looks at the files and at the clock once a second, so that what ends takes with it what was begun with it, also while
    /// nobody calls; and asks issuers for their keys. Never ends by itself.
    pub(super) async fn watch(&self) {
        let look = async {
            let mut asked = self.tokens.issuers.answers();
            loop {
                self.clock.sleep_until(self.clock.monotonic() + LOOK_EVERY).await;
                let snapshot = self.current(Duration::ZERO);
                if std::mem::replace(&mut asked, self.tokens.issuers.answers()) != asked {
                    self.check(&mut lock(&self.state).standing, &snapshot);
                }
            }
        };
        tokio::join!(look, self.tokens.issuers.run()).0
    }

    /// Everything that holds, no older than `age`, as far as the files can be read. Credentials that have ended are told so.
    fn current(&self, age: Duration) -> Arc<Snapshot> {
        let mut state = lock(&self.state);
        let now = self.clock.monotonic();
        if now.saturating_sub(state.looked_at) >= age {
            state.looked_at = now;
            if state.snapshot.is_outdated()
                // It is tried again: a file may be half written, or files be too many.
                && let Err(mistakes) = self.take(&mut state)
            {
                let mistakes = Some(mistakes);
                if state.refused != mistakes {
                    for mistake in mistakes.iter().flatten() {
                        warn!(%mistake, "keys and identities can't be read again; those read before stand");
                    }
                    state.refused = mistakes;
                }
            } else if state.refused.is_some() && !state.snapshot.is_outdated() {
                state.refused = None;
                self.is_taken.store(true, Ordering::Relaxed);
            }
            end_expired(&state.snapshot.keys, self.clock.now());
            state.standing.expire(self.clock.now());
        }
        Arc::clone(&state.snapshot)
    }

    /// Makes what the files say hold, all of it or nothing.
    fn take(&self, state: &mut State) -> Result<(), Vec<Mistake>> {
        let read = Snapshot::read(&self.files);
        self.is_taken.store(read.is_ok(), Ordering::Relaxed);
        let mut snapshot = read?;
        state.refused = None;
        snapshot.keep_credentials(&state.snapshot);
        if let Some(identity) = &snapshot.identity {
            self.tokens.issuers.configure(&identity.issuers);
        }
        info!(keys = snapshot.keys.len(), clients = snapshot.clients(), "API keys and identities read again");
        self.clients.store(snapshot.clients(), Ordering::Relaxed);
        let before = std::mem::replace(&mut state.snapshot, Arc::new(snapshot));
        end_missing(&before.keys, &state.snapshot.keys);
        *self.shares.write().unwrap_or_else(PoisonError::into_inner) = shares(&state.snapshot);
        let snapshot = Arc::clone(&state.snapshot);
        self.check(&mut state.standing, &snapshot);
        Ok(())
    }

    /// Ends what was begun with something that would let in no more, or for less.
    fn check(&self, standing: &mut Standing, snapshot: &Snapshot) {
        let now = self.clock.now();
        standing.check(|proof, begun| {
            let live = match &proof.key {
                Some(id) => Some(snapshot.keys.get(id).filter(|live| stands(live, now))?),
                None => None,
            };
            let token = begun.token.as_deref();
            if let Some(verified) = token {
                let believed = Believed { identity: snapshot.identity.as_ref()?, sets: &snapshot.sets };
                self.tokens.stands(believed, verified).then_some(())?;
            }
            let is_same = |begun: &Begun| live.is_none_or(|live| begun.key.as_ref() == Some(&live.credential));
            let shown = Shown {
                key: live.map(|live| (live.entry.id.as_str(), &live.entry.name)),
                token: token.map(|token| (token.issuer.url.as_str(), token.subject.as_str())),
                certificate: proof.certificate.as_ref(),
                endpoint: proof.endpoint.as_deref(),
            };
            let grant = judge(snapshot, proof.role, &shown, live.map(|live| &live.entry)).ok();
            grant.filter(|_| is_same(begun))
        });
    }
}

fn stands(live: &LiveKey, now: Timestamp) -> bool {
    !live.entry.is_expired(now) && !live.credential.has_ended()
}

/// The shares that clients are given, by name.
fn shares(snapshot: &Snapshot) -> HashMap<ClientId, u8> {
    let clients = snapshot.identity.iter().flat_map(|identity| identity.clients.all());
    clients.filter_map(|client| Some((client.name.clone(), client.share?))).collect()
}

/// Ends the credentials that no key of `now` has any more.
fn end_missing(before: &HashMap<String, LiveKey>, now: &HashMap<String, LiveKey>) {
    for (id, old) in before {
        let kept = now.get(id).is_some_and(|new| new.credential == old.credential);
        if !kept && !old.credential.has_ended() {
            info!(key_id = id, "a key was revoked or grants less; what was begun with it ends");
            old.credential.end();
        }
    }
}

fn end_expired(keys: &HashMap<String, LiveKey>, now: Timestamp) {
    for (id, live) in keys {
        if live.entry.is_expired(now) && !live.credential.has_ended() {
            info!(key_id = id, "a key has expired; what was begun with it ends");
            live.credential.end();
        }
    }
}
