//! Lets a caller in at one of the doors, by all that it shows.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::bounds::Lines;
use super::credential::Credential;
use super::files::{LiveKey, Snapshot};
use super::identity::Shown;
use super::judge::{Denied, judge};
use super::keys::{InvalidKey, Key, Role};
use super::live::Live;
use super::standing::{Grant, Proof};
use super::tokens::Believed;
use super::{Authenticated, Presented, Refused, token};

/// The files that say who may call, and the lines of the log about those that almost may.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) live: Live,
    pub(super) lines: Lines,
}

/// A caller that was let in, whichever door it came to.
pub(super) struct Admitted {
    pub(super) grant: Grant,
    pub(super) authenticated: Vec<Authenticated>,
    pub(super) credential: Credential,
}

impl Known {
    /// The caller with `bearer` and the rest of `presented`, at the door of `role`.
    pub(super) async fn admit(
        &self,
        role: Role,
        bearer: Option<&str>,
        presented: Presented<'_>,
    ) -> Result<Admitted, Refused> {
        let certificate = presented.certificate.map(|certificate| certificate.name.as_ref()).transpose();
        let certificate = certificate.map_err(|why| {
            Refused::Forbidden(format!("the client certificate names nobody that relay knows: {why}"))
        })?;
        let (mut key, mut token) = (None, None);
        match bearer {
            Some(text) if token::is_token(text) => {
                let snapshot = self.live.snapshot();
                let believed = believed(&snapshot).ok_or_else(|| {
                    Refused::Unauthenticated("relay believes no issuer's tokens here: send a key".to_owned())
                })?;
                let source = (presented.endpoint.map(str::to_owned), presented.address);
                token = Some(self.live.tokens.verify(believed, text, &source).await?);
            }
            Some(text) => key = Some(self.key(text, role)?),
            None => {}
        }
        loop {
            let snapshot = self.live.snapshot();
            let Some(believed) = believed(&snapshot) else {
                let LiveKey { entry, credential } = key.ok_or_else(no_credentials)?;
                let authenticated = vec![Authenticated::ApiKey(entry.id.clone())];
                return Ok(Admitted { grant: Grant::of_key(&entry), authenticated, credential });
            };
            if let Some((_, verified)) = &token
                && !self.live.tokens.stands(believed, verified)
            {
                return Err(Refused::Unauthenticated("relay does not believe this token any more".to_owned()));
            }
            let shown = Shown {
                key: key.as_ref().map(|key| (key.entry.id.as_str(), &key.entry.name)),
                token: token.as_ref().map(|(_, token)| (token.issuer.url.as_str(), token.subject.as_str())),
                certificate,
                endpoint: presented.endpoint,
            };
            let entry = key.as_ref().map(|key| &key.entry);
            let judged = judge(&snapshot, role, &shown, entry);
            let grant = judged.map_err(|denied| self.refusal(role, denied, &shown))?;
            let proof = Proof {
                role,
                key: entry.map(|entry| entry.id.clone()),
                token: token.as_ref().map(|(digest, _)| *digest),
                certificate: certificate.cloned(),
                endpoint: presented.endpoint.map(str::to_owned),
            };
            let credential = key.as_ref().map(|key| key.credential.clone());
            let verified = token.as_ref().map(|(_, verified)| Arc::clone(verified));
            let begun = self.live.begin(&snapshot, proof, &grant, (credential, verified));
            let begun = begun.map_err(|_| Refused::TooMany {
                detail: "too much goes on with different credentials; nothing was done: send it again later".to_owned(),
                after: Duration::from_secs(1),
            })?;
            if let Some(credential) = begun {
                return Ok(Admitted { grant, authenticated: factors(&shown), credential });
            }
        }
    }

    /// The key `text`, which has to be one for `role`.
    fn key(&self, text: &str, role: Role) -> Result<LiveKey, Refused> {
        let key: Key = text.parse().map_err(|error: InvalidKey| match error {
            InvalidKey::Form => {
                Refused::Unauthenticated("the key has not the form `rlyk_<key id>_<secret>`".to_owned())
            }
            InvalidKey::Checksum => Refused::Unauthenticated(error.to_string()),
        })?;
        let unknown = || Refused::Unauthenticated("relay does not know this key, or it was revoked".to_owned());
        let live = self.live.find(&key).ok_or_else(unknown)?;
        let id = &live.entry.id;
        match (role, live.entry.role) {
            (Role::Client, Role::Worker) => Err(Refused::Forbidden(format!(
                "key {id} is a worker's: it may lease jobs, and neither submit nor read; use a client's key"
            ))),
            (Role::Worker, Role::Client) => {
                Err(Refused::Forbidden(format!("key {id} is a client's: a worker needs one of role worker")))
            }
            (Role::Client, Role::Client) | (Role::Worker, Role::Worker) => Ok(live),
        }
    }

    fn refusal(&self, role: Role, denied: Denied, shown: &Shown<'_>) -> Refused {
        match denied {
            Denied::Several(one, other) => Refused::Forbidden(format!(
                "the credentials of this {role} are those of {one} and of {other} at once: send those of one of them"
            )),
            Denied::OtherEndpoint { name, line } => {
                let endpoint = shown.endpoint.unwrap_or("none");
                if self.lines.is_due(&format!("{name} {endpoint}")) {
                    let add = format!("{{ vpce = [\"{endpoint}\"] }}");
                    let add = shown.endpoint.map(|_| add);
                    warn!(
                        target: "audit", %role, client = %name, endpoint, line, add,
                        "a caller with the right credentials came through an endpoint that is not in its list, and was refused"
                    );
                }
                Refused::Forbidden(format!(
                    "{role} {name} is not let in through this VPC endpoint ({endpoint}): ask the operator to add it"
                ))
            }
            Denied::Nobody if shown.key.is_none() && shown.token.is_none() && shown.certificate.is_none() => {
                no_credentials()
            }
            Denied::Nobody => {
                let shown: Vec<_> = factors(shown).iter().map(Authenticated::method).collect();
                Refused::Forbidden(format!(
                    "the credentials are right ({}), and no {role} is let in by them alone: ask the operator for the list",
                    shown.join(", ")
                ))
            }
        }
    }
}

/// The factors of a caller for people.
fn factors(shown: &Shown<'_>) -> Vec<Authenticated> {
    let token = |(issuer, subject): (&str, &str)| Authenticated::Token {
        issuer: issuer.to_owned(),
        subject: subject.to_owned(),
    };
    let all = [
        shown.key.map(|(id, _)| Authenticated::ApiKey(id.to_owned())),
        shown.token.map(token),
        shown.certificate.map(|name| Authenticated::Certificate(name.to_string())),
        shown.endpoint.map(|id| Authenticated::Endpoint(id.to_owned())),
    ];
    all.into_iter().flatten().collect()
}

fn believed(snapshot: &Snapshot) -> Option<Believed<'_>> {
    snapshot.identity.as_ref().map(|identity| Believed { identity, sets: &snapshot.sets })
}

fn no_credentials() -> Refused {
    let detail =
        "no credentials: send a key, over HTTP as `Authorization: Bearer <key>`, over TCP as `key` of the hello";
    Refused::Unauthenticated(detail.to_owned())
}
