//! The identity of a caller by all that it has shown, and what that grants.

use relay_bridge::contract::ClientId;

use super::files::Snapshot;
use super::identity::{Factor, Principals, Shown, Verdict};
use super::keys::{KeyEntry, Role};
use super::standing::Grant;

/// Why nobody is let in by what was shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// It is of two clients.
    Several(ClientId, ClientId),
    /// It would let this client in, whose lists are from this line on, through another endpoint.
    OtherEndpoint { name: ClientId, line: usize },
    /// It is right, and no list of anybody.
    Nobody,
}

/// Judges `shown`, whose key is `key`.
pub(super) fn judge(
    snapshot: &Snapshot,
    role: Role,
    shown: &Shown<'_>,
    key: Option<&KeyEntry>,
) -> Result<Grant, Denied> {
    let nobody = Principals::default();
    let principals = match (&snapshot.identity, role) {
        (Some(identity), Role::Client) => &identity.clients,
        (Some(identity), Role::Worker) => &identity.workers,
        (None, _) => &nobody,
    };
    match principals.judge(shown) {
        Verdict::In(principal, list) => {
            let (name, queues) = (principal.name.clone(), principal.queues.clone());
            let grant = Grant { name, queues, rights: principal.rights };
            // Never more than the key was made for.
            let is_key = list.iter().any(|factor| matches!(factor, Factor::Key(_)));
            Ok(match key.filter(|_| is_key) {
                Some(key) => grant.within(key),
                None => grant,
            })
        }
        Verdict::ByKey(_) => key.map(Grant::of_key).ok_or(Denied::Nobody),
        Verdict::Several(one, other) => Err(Denied::Several(one.clone(), other.clone())),
        Verdict::OtherEndpoint(of) => Err(Denied::OtherEndpoint { name: of.name.clone(), line: of.line }),
        Verdict::Nobody => Err(Denied::Nobody),
    }
}
