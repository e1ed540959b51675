//! The users' permissions on NATS, in the form of nats-server's configuration. A client may ask relay on its own
//! subjects and listen to its own answers; streams and JetStream are relay's and its workers'.

use std::collections::BTreeSet;
use std::fmt;

use relay_bridge::contract::{ClientId, QueueName, Timestamp};
use relay_nats::names;

use crate::auth::rights::{Right, Rights};
use crate::ingress::nats::{RELAY_INBOX, client_inbox, worker_inbox};

/// Everybody on NATS that has to do with relay.
pub(super) struct Users {
    pub(super) relay: ClientId,
    /// The JetStream domain by which relay and workers reach the streams.
    pub(super) domain: Option<String>,
    pub(super) clients: Vec<Client>,
    pub(super) workers: Vec<Worker>,
    /// Whether they are printed for the block of an account, and not as the server's only users.
    pub(super) in_account: bool,
}

/// A submitter.
pub(super) struct Client {
    pub(super) name: ClientId,
    /// The queues that it may submit to; empty for all.
    pub(super) queues: BTreeSet<QueueName>,
    pub(super) rights: Rights,
    /// When the first of its keys expires.
    pub(super) expires: Option<Timestamp>,
}

/// A worker that leases from NATS itself.
pub(super) struct Worker {
    pub(super) name: ClientId,
    pub(super) queues: BTreeSet<QueueName>,
    /// When the first of its keys expires.
    pub(super) expires: Option<Timestamp>,
}

/// One user's permissions; everything else is refused.
struct User {
    about: String,
    name: ClientId,
    password: String,
    publish: Vec<String>,
    subscribe: Vec<String>,
}

impl Users {
    fn all(&self) -> Vec<User> {
        let mut users = vec![self.relay()];
        users.extend(self.clients.iter().map(Client::user));
        users.extend(self.workers.iter().map(|worker| worker.user(self)));
        users
    }

    /// JetStream's API for `what`. In a domain in both forms: a server of that domain checks a permission after it mapped
    /// the subject to its own, one that only leads there, over a leaf node, before.
    fn api(&self, what: &str) -> impl Iterator<Item = String> {
        let of_domain = self.domain.as_ref().map(|domain| format!("$JS.{domain}.API.{what}"));
        std::iter::once(format!("$JS.API.{what}")).chain(of_domain)
    }

    /// `relay serve`. It answers in the inboxes of these clients, in those of users without permissions, and in other
    /// accounts.
    fn relay(&self) -> User {
        let mut publish: Vec<_> =
            ["relay.>", "$JS.ACK.>", "$SYS.REQ.USER.INFO", "_INBOX.>", "_R_.>"].map(Into::into).into();
        publish.extend(self.api(">"));
        publish.extend(self.clients.iter().map(|client| format!("{}.>", client_inbox(&client.name))));
        User {
            about: format!("relay serve; inbox prefix {RELAY_INBOX}"),
            name: self.relay.clone(),
            password: "RELAY_NATS_PASSWORD".to_owned(),
            publish,
            subscribe: vec![
                "relay.>".to_owned(),
                "$SRV.>".to_owned(),
                // Of the consumers from which it takes jobs for the workers that are connected to it.
                "$JS.EVENT.ADVISORY.CONSUMER.CREATED.>".to_owned(),
                "$JS.EVENT.ADVISORY.CONSUMER.LEADER_ELECTED.>".to_owned(),
                format!("{RELAY_INBOX}.>"),
            ],
        }
    }
}

impl Client {
    fn user(&self) -> User {
        let Self { name, queues, rights, expires } = self;
        let inbox = client_inbox(name);
        let (mut publish, mut subscribe) = (Vec::new(), vec![format!("{inbox}.>")]);
        for right in rights.iter() {
            match right {
                Right::Submit if queues.is_empty() => publish.push(format!("relay.submit.{name}.*")),
                Right::Submit => publish.extend(queues.iter().map(|queue| format!("relay.submit.{name}.{queue}"))),
                Right::Read => {
                    publish.extend(["status", "result", "results"].map(|what| format!("relay.{what}.{name}")));
                    subscribe.extend([names::client_replies(name), format!("relay.events.{name}.*")]);
                }
                Right::Manage => publish.push(format!("relay.cancel.{name}")),
            }
        }
        User {
            about: format!("client {name}; inbox prefix {inbox}{}", until(*expires)),
            name: name.clone(),
            password: format!("CLIENT_{}_PASSWORD", variable(name)),
            publish,
            subscribe,
        }
    }
}

impl Worker {
    fn user(&self, among: &Users) -> User {
        let Self { name, queues, expires } = self;
        let inbox = worker_inbox(name);
        // Results, states and dead letters are by client, and a queue's clients are not known here.
        let mut publish: Vec<_> =
            ["relay.state.*.*", "relay.events.*.*", names::RESULTS_SUBJECTS, names::ERASED_SUBJECTS]
                .map(Into::into)
                .into();
        let mut calls = vec!["INFO".to_owned(), format!("STREAM.MSG.DELETE.{}", names::DEAD_STREAM)];
        for stream in [names::RESULTS_STREAM, names::DEAD_STREAM, names::STATE_STREAM] {
            calls.extend(reads(stream));
        }
        let mut subscribe = vec![format!("{inbox}.>")];
        for queue in queues {
            let stream = names::jobs_stream(queue);
            // Its jobs in every place, and their deadlines.
            publish.extend([names::records(queue), format!("relay.deadline.*.{queue}.*.*")]);
            publish.push(format!("relay.dead.*.*.{queue}.*"));
            // Jobs that it puts back in line or on a timer, and that a consumer began anew.
            publish.extend([names::hints(queue), names::control(queue)]);
            // Both forms of acknowledgements that servers use.
            publish.extend([format!("$JS.ACK.{stream}.>"), format!("$JS.ACK.*.*.{stream}.>")]);
            calls.extend(reads(&stream));
            calls.extend([
                format!("STREAM.MSG.DELETE.{stream}"),
                format!("CONSUMER.NAMES.{stream}"),
                format!("CONSUMER.LIST.{stream}"),
                format!("CONSUMER.INFO.{stream}.*"),
                // Its lanes' consumers only: the filter is part of the subject.
                format!("CONSUMER.CREATE.{stream}.*.{}", names::records(queue)),
                format!("CONSUMER.MSG.NEXT.{stream}.*"),
            ]);
            subscribe.extend([
                names::hints(queue),
                names::control(queue),
                format!("$JS.EVENT.ADVISORY.CONSUMER.CREATED.{stream}.*"),
                format!("$JS.EVENT.ADVISORY.CONSUMER.LEADER_ELECTED.{stream}.*"),
            ]);
        }
        publish.extend(calls.iter().flat_map(|call| among.api(call)));
        User {
            about: format!("worker {name}; inbox prefix {inbox}{}", until(*expires)),
            name: name.clone(),
            password: format!("WORKER_{}_PASSWORD", variable(name)),
            publish,
            subscribe,
        }
    }
}

/// The API calls for reading a stream's messages and its state.
fn reads(stream: &str) -> [String; 4] {
    [
        format!("STREAM.INFO.{stream}"),
        format!("STREAM.MSG.GET.{stream}"),
        format!("DIRECT.GET.{stream}"),
        format!("DIRECT.GET.{stream}.>"),
    ]
}

/// The end of a user's comment if one of its keys expires, in one line.
fn until(expires: Option<Timestamp>) -> String {
    let told = |at| format!("; a key of it expires at {at}, which NATS does not know: print this block again then");
    expires.map(told).unwrap_or_default()
}

/// A name as names of variables are written.
fn variable(name: &ClientId) -> String {
    name.as_str().to_ascii_uppercase().replace('-', "_")
}

impl fmt::Display for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Who may do what for relay; everything else is refused. Printed by `relay nats permissions`.")?;
        writeln!(f, "# $NAMES are variables of the server's environment. Without JetStream permissions of their own,")?;
        writeln!(
            f,
            "# clients can neither read nor change a stream. The server reads a variable's value as configuration:"
        )?;
        writeln!(
            f,
            "# put the value into double quotes, CLIENT_ME_PASSWORD='\"...\"', or parts of it may be left out."
        )?;
        let (open, close) = if self.in_account { ("users: [", "]") } else { ("authorization {\n  users: [", "  ]\n}") };
        writeln!(f, "{open}")?;
        for user in self.all() {
            writeln!(f, "    # {}", user.about)?;
            writeln!(f, "    {{\n      user: \"{}\", password: ${}", user.name, user.password)?;
            writeln!(f, "      permissions: {{")?;
            for (what, subjects) in [("publish", &user.publish), ("subscribe", &user.subscribe)] {
                writeln!(f, "        {what}: {{ allow: [")?;
                for subject in subjects {
                    writeln!(f, "          \"{subject}\"")?;
                }
                writeln!(f, "        ] }}")?;
            }
            writeln!(f, "      }}\n    }}")?;
        }
        write!(f, "{close}")
    }
}
