//! The proofs that callers were let in with. All that was begun with it ends as soon as the same would let in no more, or for less.

use std::collections::HashMap;
use std::sync::Arc;

use relay_bridge::contract::{ClientId, QueueName, Timestamp};

use super::credential::Credential;
use super::keys::{KeyEntry, Role};
use super::presented::CertificateName;
use super::rights::Rights;
use super::tokens::{Digest, Verified};

/// How many are remembered at a time. Those that nothing goes on with are forgotten first.
const STANDING_MAX: usize = 20_000;

/// All that a caller has shown: the same lets in the same client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Proof {
    pub(super) role: Role,
    pub(super) key: Option<String>,
    pub(super) token: Option<Digest>,
    pub(super) certificate: Option<CertificateName>,
    pub(super) endpoint: Option<String>,
}

/// The client, or worker, and what it may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) name: ClientId,
    /// `None` means all.
    pub(super) queues: Option<Vec<QueueName>>,
    pub(super) rights: Rights,
}

impl Grant {
    pub(super) fn of_key(entry: &KeyEntry) -> Self {
        Self { name: entry.name.clone(), queues: entry.queues.clone(), rights: entry.rights }
    }

    /// The part of it that `entry` grants as well.
    pub(super) fn within(self, entry: &KeyEntry) -> Self {
        let queues = match (self.queues, &entry.queues) {
            (None, queues) => queues.clone(),
            (queues, None) => queues,
            (Some(queues), Some(keys)) => Some(queues.into_iter().filter(|queue| keys.contains(queue)).collect()),
        };
        Self { name: self.name, queues, rights: self.rights.both(entry.rights) }
    }

    /// Whether nothing of `other` is missing.
    fn grants_all_of(&self, other: &Self) -> bool {
        let queues = match (&self.queues, &other.queues) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(now), Some(before)) => before.iter().all(|queue| now.contains(queue)),
        };
        self.name == other.name && queues && other.rights.iter().all(|right| self.rights.has(right))
    }
}

/// Everything that was begun with one proof.
#[derive(Clone, Debug)]
pub(super) struct Begun {
    pub(super) grant: Grant,
    /// That of the key of the proof.
    pub(super) key: Option<Credential>,
    pub(super) token: Option<Arc<Verified>>,
    credential: Credential,
}

/// All that was begun.
#[derive(Debug, Default)]
pub(super) struct Standing(HashMap<Proof, Begun>);

/// There is no room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Full;

impl Standing {
    /// The credential of what begins with `proof`.
    ///
    /// # Errors
    /// [`Full`].
    pub(super) fn begin(
        &mut self,
        proof: Proof,
        grant: &Grant,
        key: Option<Credential>,
        token: Option<Arc<Verified>>,
    ) -> Result<Credential, Full> {
        if let Some(begun) = self.0.get(&proof)
            && begun.grant == *grant
            && begun.key == key
            && !begun.credential.has_ended()
        {
            return Ok(begun.credential.clone());
        }
        if self.0.len() >= STANDING_MAX {
            self.0.retain(|_, begun| begun.credential.is_held() && !begun.credential.has_ended());
            if self.0.len() >= STANDING_MAX {
                return Err(Full);
            }
        }
        let credential = Credential::standing();
        let new = Begun { grant: grant.clone(), key, token, credential: credential.clone() };
        if let Some(old) = self.0.insert(proof, new) {
            old.credential.end();
        }
        Ok(credential)
    }

    /// Ends what was begun with keys and tokens that have ended.
    pub(super) fn expire(&mut self, now: Timestamp) {
        self.0.retain(|_, begun| {
            let is_over = begun.key.as_ref().is_some_and(Credential::has_ended)
                || begun.token.as_ref().is_some_and(|token| token.until <= now);
            if is_over {
                begun.credential.end();
            }
            !is_over
        });
    }

    /// Ends what was begun with proofs that `judge` lets in no more, or for less.
    pub(super) fn check(&mut self, judge: impl Fn(&Proof, &Begun) -> Option<Grant>) {
        self.0.retain(|proof, begun| {
            let stands = !begun.key.as_ref().is_some_and(Credential::has_ended);
            match judge(proof, begun).filter(|now| stands && now.grants_all_of(&begun.grant)) {
                Some(grant) => {
                    begun.grant = grant;
                    true
                }
                None => {
                    begun.credential.end();
                    false
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_are_bounded_and_those_that_nothing_goes_on_with_make_room() {
        let mut standing = Standing::default();
        let grant = Grant { name: "acme".parse().unwrap(), queues: None, rights: Rights::ALL };
        let mut begin = |n: usize| {
            let (key, certificate, endpoint) = (Some(n.to_string()), None, None);
            let proof = Proof { role: Role::Client, key, token: None, certificate, endpoint };
            standing.begin(proof, &grant, None, None)
        };
        let mut held: Vec<_> = (0..STANDING_MAX).map(|n| begin(n).unwrap()).collect();
        assert!(begin(STANDING_MAX).is_err(), "each of them goes on");
        assert_eq!(begin(7).unwrap(), held[7], "one that is there needs no room");
        held.truncate(10);
        begin(STANDING_MAX).unwrap();
        assert!(held.iter().all(|credential| !credential.has_ended()));
        assert_eq!(begin(7).unwrap(), held[7]);
    }
}
