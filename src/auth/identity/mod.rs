//! The identity file: which factors let a client or a worker in, and whose tokens are believed. Each client has lists of factors;
//! all of one list must hold, and of several clients whose lists hold none is let in.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use relay_bridge::contract::{ClientId, QueueName};

use super::presented::CertificateName;
use super::rights::Rights;

mod factors;
mod read;

pub(super) use read::read;

/// One factor of a list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Factor {
    /// A key of this client; with an id that one key.
    Key(Option<String>),
    /// NATS says who it is.
    Nats,
    /// A certificate of this name.
    Certificate(CertificateName),
    /// A token of this issuer about this subject.
    Token { issuer: String, subject: String },
    /// The connection came through one of these VPC endpoints.
    Endpoints(Vec<String>),
}

/// A client or a worker of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Principal {
    pub(super) name: ClientId,
    /// Its line in the file.
    pub(super) line: usize,
    /// Each list lets it in.
    pub(super) any: Vec<Vec<Factor>>,
    /// The queues that it may use; `None` means all.
    pub(super) queues: Option<Vec<QueueName>>,
    pub(super) rights: Rights,
    /// Its share of what there is for all clients, in percent.
    pub(super) share: Option<u8>,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeySource {
    File(PathBuf),
    /// An address, and a file with certificates that are believed in place of the system's.
    Url {
        url: String,
        ca: Option<PathBuf>,
    },
}

/// An issuer whose tokens are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Issuer {
    /// The claim `iss` of its tokens.
    pub(super) url: String,
    pub(super) audience: String,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) keys: KeySource,
    /// The longest time from `iat` to `exp`.
    pub(super) lifetime_max: Duration,
}

/// The content of an identity file.
#[derive(Debug, Default)]
pub(super) struct Identity {
    pub(super) clients: Principals,
    pub(super) workers: Principals,
    pub(super) issuers: Vec<Issuer>,
}

/// The factor that a list is found by: each list has one that is about a caller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Anchor {
    Key(ClientId),
    Certificate(CertificateName),
    Token(String, String),
}

/// The factors that a caller has shown and that hold.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shown<'a> {
    /// The id of its key, and the key's name.
    pub(super) key: Option<(&'a str, &'a ClientId)>,
    /// Issuer and subject of its token.
    pub(super) token: Option<(&'a str, &'a str)>,
    pub(super) certificate: Option<&'a CertificateName>,
    pub(super) endpoint: Option<&'a str>,
}

/// The word of the lists on a caller.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict<'a> {
    /// The client, and the first of its lists that holds.
    In(&'a Principal, &'a [Factor]),
    /// A client without a block, by its key alone.
    ByKey(&'a ClientId),
    /// Lists of both hold, or a key is one's and the rest another's.
    Several(&'a ClientId, &'a ClientId),
    /// All of a list of this client holds but the endpoint.
    OtherEndpoint(&'a Principal),
    /// No list holds.
    Nobody,
}

/// Clients, or workers, by name and by what their lists are found by.
#[derive(Debug, Default)]
pub(super) struct Principals {
    all: Vec<Principal>,
    by_name: HashMap<ClientId, usize>,
    by_anchor: HashMap<Anchor, Vec<(usize, usize)>>,
}

impl Principals {
    fn new(all: Vec<Principal>) -> Self {
        let by_name = all.iter().enumerate().map(|(at, of)| (of.name.clone(), at)).collect();
        let mut by_anchor: HashMap<Anchor, Vec<(usize, usize)>> = HashMap::new();
        for (at, principal) in all.iter().enumerate() {
            for (place, list) in principal.any.iter().enumerate() {
                let anchor = list.iter().find_map(|factor| match factor {
                    Factor::Key(_) => Some(Anchor::Key(principal.name.clone())),
                    Factor::Certificate(name) => Some(Anchor::Certificate(name.clone())),
                    Factor::Token { issuer, subject } => Some(Anchor::Token(issuer.clone(), subject.clone())),
                    Factor::Nats | Factor::Endpoints(_) => None,
                });
                if let Some(anchor) = anchor {
                    by_anchor.entry(anchor).or_default().push((at, place));
                }
            }
        }
        Self { all, by_name, by_anchor }
    }

    pub(super) fn all(&self) -> &[Principal] {
        &self.all
    }

    pub(super) fn named(&self, name: &ClientId) -> Option<&Principal> {
        self.by_name.get(name).map(|at| &self.all[*at])
    }

    /// The one who shows `shown`.
    pub(super) fn judge<'a>(&'a self, shown: &Shown<'a>) -> Verdict<'a> {
        let anchors = [
            shown.key.map(|(_, name)| Anchor::Key(name.clone())),
            shown.certificate.cloned().map(Anchor::Certificate),
            shown.token.map(|(issuer, subject)| Anchor::Token(issuer.to_owned(), subject.to_owned())),
        ];
        let lists = anchors.iter().flatten().filter_map(|anchor| self.by_anchor.get(anchor)).flatten();
        let mut lists: Vec<_> = lists.copied().collect();
        // The first list of the file counts, whatever it was found by.
        lists.sort_unstable();
        let unlisted = shown.key.map(|(_, name)| name).filter(|name| !self.by_name.contains_key(*name));
        let (mut found, mut elsewhere): (Option<(&Principal, &[Factor])>, _) = (None, None);
        for (at, place) in lists {
            let (principal, list) = (&self.all[at], self.all[at].any[place].as_slice());
            let holds = |factor: &Factor| holds(&principal.name, factor, shown);
            match (list.iter().all(holds), found) {
                (true, None) => found = Some((principal, list)),
                (true, Some((first, _))) if first.name != principal.name => {
                    return Verdict::Several(&first.name, &principal.name);
                }
                (true, Some(_)) => {}
                (false, _) => {
                    let rest = |factor: &Factor| matches!(factor, Factor::Endpoints(_)) || holds(factor);
                    elsewhere = elsewhere.or(list.iter().all(rest).then_some(principal));
                }
            }
        }
        match (found, unlisted, elsewhere) {
            (Some((principal, _)), Some(other), _) => Verdict::Several(&principal.name, other),
            (Some((principal, list)), None, _) => Verdict::In(principal, list),
            (None, Some(name), _) => Verdict::ByKey(name),
            (None, None, Some(principal)) => Verdict::OtherEndpoint(principal),
            (None, None, None) => Verdict::Nobody,
        }
    }
}

/// Whether `factor` of a list of client `of` holds.
fn holds(of: &ClientId, factor: &Factor, shown: &Shown<'_>) -> bool {
    match factor {
        Factor::Key(id) => {
            shown.key.is_some_and(|(shown, name)| name == of && id.as_ref().is_none_or(|id| id == shown))
        }
        Factor::Nats => false,
        Factor::Certificate(name) => shown.certificate == Some(name),
        Factor::Token { issuer, subject } => shown.token == Some((issuer.as_str(), subject.as_str())),
        Factor::Endpoints(ids) => shown.endpoint.is_some_and(|shown| ids.iter().any(|id| id == shown)),
    }
}
