//! Which tokens are believed: those that a configured issuer signed, for relay, and that have not expired. A token that was
//! verified once is remembered by its SHA-256 until it expires, or its issuer's keys or configuration change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use relay_bridge::clock::Clock;
use relay_bridge::contract::Timestamp;
use relay_bridge::support::lock;
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::Refused;
use super::bounds::{Failures, Lines, Source};
use super::identity::{Identity, Issuer, KeySource};
use super::issuers::{Asked, Issuers};
use super::jwks::{KeySet, NoKey};
use super::token::Unverified;

/// Verified tokens that are remembered at a time.
const CACHED_MAX: usize = 10_000;

/// The SHA-256 of a token.
pub(super) type Digest = [u8; 32];

/// A token whose signature is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verified {
    /// The issuer as it was configured when the token was verified.
    pub(super) issuer: Issuer,
    pub(super) subject: String,
    /// From when on the token is not taken any more.
    pub(super) until: Timestamp,
    /// The digest of the key that signed it.
    key: [u8; 32],
}

/// The files' part of what tokens are judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Believed<'a> {
    pub(super) identity: &'a Identity,
    /// Of the issuers whose keys are in files.
    pub(super) sets: &'a HashMap<String, Arc<KeySet>>,
}

/// Judges tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    clock: Clock,
    pub(super) issuers: Issuers,
    verified: Mutex<HashMap<Digest, Arc<Verified>>>,
    failures: Failures,
    lines: Lines,
}

impl Tokens {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            issuers: Issuers::new(clock.clone()),
            verified: Mutex::default(),
            failures: Failures::new(clock.clone()),
            lines: Lines::new(clock.clone()),
            clock,
        }
    }

    /// The keys of `issuer` that hold now.
    fn keys(&self, believed: Believed<'_>, issuer: &Issuer) -> Option<Arc<KeySet>> {
        match issuer.keys {
            KeySource::File(_) => believed.sets.get(&issuer.url).cloned(),
            KeySource::Url { .. } => self.issuers.keys(&issuer.url),
        }
    }

    /// Whether a token that was verified once is still good. One whose issuer can't be asked for a day is, for what was begun
    /// with it.
    pub(super) fn stands(&self, believed: Believed<'_>, verified: &Verified) -> bool {
        let is_same = believed.identity.issuers.contains(&verified.issuer);
        let keys = self.keys(believed, &verified.issuer);
        is_same && self.clock.now() < verified.until && keys.is_none_or(|keys| keys.has(&verified.key))
    }

    /// The token `text`, if it is believed.
    ///
    /// # Errors
    /// [`Refused::Unauthenticated`] in words that the caller is told; `TooMany` if `source` has shown too many bad signatures;
    /// `Unavailable` if the keys of its issuer are not there.
    pub(super) async fn verify(
        &self,
        believed: Believed<'_>,
        text: &str,
        source: &Source,
    ) -> Result<(Digest, Arc<Verified>), Refused> {
        let refused = Refused::Unauthenticated;
        let digest: Digest = Sha256::digest(text.as_bytes()).into();
        let cached = lock(&self.verified).get(&digest).cloned();
        if let Some(verified) = cached.filter(|verified| self.stands(believed, verified)) {
            return match self.keys(believed, &verified.issuer) {
                Some(_) => Ok((digest, verified)),
                None => Err(unavailable(&verified.issuer)),
            };
        }
        let token = Unverified::read(text).map_err(refused)?;
        let issuer = believed.identity.issuers.iter().find(|issuer| issuer.url == token.issuer).ok_or_else(|| {
            refused(
                "relay does not believe the issuer of this token: its `iss` must be one that is configured".to_owned(),
            )
        })?;
        token.is_signed_as(issuer).map_err(refused)?;
        // Before the signature, because it costs less; whether it is true, the signature says.
        let stated = token.judge(issuer, self.clock.now()).map_err(refused)?;
        let set = self.set_for(believed, issuer, &token).await?;
        let key = set.find(token.key_id.as_deref(), token.algorithm).map_err(|why| self.no_key(issuer, why))?;
        self.failures.take(source).map_err(|after| {
            let detail = "too many tokens with wrong signatures came from here; this one was not looked at: send it again \
                          after Retry-After";
            Refused::TooMany { detail: detail.to_owned(), after }
        })?;
        if !key.verifies(token.signature, token.message.as_bytes(), token.algorithm) {
            return Err(refused("the token's signature is not its issuer's".to_owned()));
        }
        self.failures.give_back(source);
        let verified =
            Verified { issuer: issuer.clone(), subject: stated.subject, until: stated.until, key: key.digest };
        let verified = Arc::new(verified);
        self.remember(digest, &verified);
        Ok((digest, verified))
    }

    /// The keys of `issuer`; it is asked for new ones if the token's is not among them.
    async fn set_for(
        &self,
        believed: Believed<'_>,
        issuer: &Issuer,
        token: &Unverified<'_>,
    ) -> Result<Arc<KeySet>, Refused> {
        let known = |set: &Arc<KeySet>| {
            let found = set.find(token.key_id.as_deref(), token.algorithm);
            !matches!(found, Err(NoKey::Unknown))
        };
        let set = self.keys(believed, issuer);
        if matches!(issuer.keys, KeySource::File(_)) || set.as_ref().is_some_and(known) {
            return set.ok_or_else(|| unavailable(issuer));
        }
        let asked = self.issuers.ask(&issuer.url).await;
        let set = self.keys(believed, issuer).ok_or_else(|| unavailable(issuer))?;
        match asked {
            Asked::Busy if !known(&set) => Err(unavailable(issuer)),
            _ => Ok(set),
        }
    }

    fn no_key(&self, issuer: &Issuer, why: NoKey) -> Refused {
        if why == NoKey::Unknown && self.lines.is_due(&issuer.url) {
            warn!(issuer = issuer.url, "a token names a key that its issuer does not have; add it if it is new");
        }
        Refused::Unauthenticated(match why {
            NoKey::Unnamed => "the token names no key (`kid`), and its issuer has several".to_owned(),
            NoKey::Unknown => "the token names a key (`kid`) that its issuer does not have".to_owned(),
            NoKey::Unfit => "the token names a key (`kid`) that does not sign in this way".to_owned(),
        })
    }

    fn remember(&self, digest: Digest, verified: &Arc<Verified>) {
        let mut all = lock(&self.verified);
        if all.len() >= CACHED_MAX {
            let now = self.clock.now();
            all.retain(|_, verified| now < verified.until);
        }
        if all.len() >= CACHED_MAX {
            // Any of them: it is verified anew when it comes again.
            let one = all.keys().next().copied();
            one.map(|one| all.remove(&one));
        }
        all.insert(digest, Arc::clone(verified));
    }
}

fn unavailable(issuer: &Issuer) -> Refused {
    let url = &issuer.url;
    Refused::Unavailable(format!("the keys of issuer {url} are not there now; nothing was done: send it again later"))
}
