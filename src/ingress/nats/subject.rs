//! Which subject is what, and which reply subjects are answered.

use relay_bridge::contract::{ClientId, QueueName};

use crate::ingress::refusal::Refusal;

/// The requests that a client can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// A job comes in.
    Submit,
    /// Where a job stands.
    Status,
    /// The result of one job.
    Result,
    /// All results after a cursor.
    Results,
    /// The end of a job.
    Cancel,
}

impl Endpoint {
    pub(super) const ALL: [Self; 5] = [Self::Submit, Self::Status, Self::Result, Self::Results, Self::Cancel];

    /// The name in the micro service, and the second token of the subject.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Status => "status",
            Self::Result => "result",
            Self::Results => "results",
            Self::Cancel => "cancel",
        }
    }

    /// The subject that relay listens on.
    pub(super) fn subject(self) -> &'static str {
        match self {
            Self::Submit => "relay.submit.*.*",
            Self::Status => "relay.status.*",
            Self::Result => "relay.result.*",
            Self::Results => "relay.results.*",
            Self::Cancel => "relay.cancel.*",
        }
    }

    /// Its text in `nats micro info`.
    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Submit => {
                "relay.submit.CLIENT.QUEUE: the body is the job, the answer its receipt, or with Relay-Wait its result"
            }
            Self::Status => "relay.status.CLIENT: the body is a job id, the answer where the job stands",
            Self::Result => {
                "relay.result.CLIENT: the body is a job id, the answer its raw result; Relay-Wait waits for it"
            }
            Self::Results => "relay.results.CLIENT: a message per result after Relay-After, then an empty one",
            Self::Cancel => "relay.cancel.CLIENT: the body is a job id, the answer where the job stands",
        }
    }
}

/// Whom a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// The client: the subject's third token, which NATS permissions guard.
    pub(super) client: ClientId,
    /// The queue of a submission.
    pub(super) queue: Option<QueueName>,
}

impl Address {
    /// Reads a subject that the endpoint's own matched.
    ///
    /// # Errors
    /// `malformed-request` if client or queue are no names.
    pub(super) fn read(subject: &str) -> Result<Self, Refusal> {
        let client = Self::client(subject)?;
        let queue = subject.split('.').nth(3).map(str::parse).transpose()?;
        Ok(Self { client, queue })
    }

    /// The client alone, whatever the rest of the subject is.
    ///
    /// # Errors
    /// `malformed-request` if it is no name.
    pub(super) fn client(subject: &str) -> Result<ClientId, Refusal> {
        Ok(subject.split('.').nth(2).unwrap_or_default().parse()?)
    }
}

/// The first tokens of reply subjects that are nobody's: of clients without an inbox prefix of their own, and of the
/// server where it carries requests between accounts.
const INBOXES: [&str; 2] = ["_INBOX", "_R_"];

/// The prefix of the reply subjects of relay itself. No client's begin with it: a name can't begin with `_`.
pub const RELAY_INBOX: &str = "_INBOX__relay";

/// The prefix of the reply subjects of a client, which its permissions let it alone subscribe.
#[must_use]
pub fn client_inbox(client: &ClientId) -> String {
    format!("_INBOX_{client}")
}

/// The prefix of the reply subjects of a worker on NATS.
#[must_use]
pub fn worker_inbox(worker: &ClientId) -> String {
    format!("_INBOX__worker-{worker}")
}

/// Whether a request of `client` may be answered on `reply`; `None` if its subject names nobody that there can be.
///
/// NATS does not check the reply subject that a request names, and relay may publish where its clients may not: a
/// request could otherwise have relay publish a receipt, or a result that the client chose, on another client's subject,
/// or an empty message on `$JS.API.STREAM.DELETE.*`.
pub(super) fn may_reply(client: Option<&ClientId>, reply: &str) -> bool {
    let Some((first, _)) = reply.split_once('.').filter(|_| can_be_published(reply)) else { return false };
    let own = client.is_some_and(|client| first.strip_prefix("_INBOX_") == Some(client.as_str()));
    own || INBOXES.contains(&first)
}

/// Whether it is a subject of one message: without empty tokens, wildcards and blanks.
fn can_be_published(subject: &str) -> bool {
    let is_token = |token: &str| {
        !token.is_empty()
            && token != "*"
            && token != ">"
            && !token.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    subject.split('.').all(is_token)
}

/// Whether a request of the service API, which names no client, may be answered on `reply`: on anybody's inbox but
/// relay's and its workers'.
pub(super) fn may_reply_to_service(reply: &str) -> bool {
    let Some((first, _)) = reply.split_once('.').filter(|_| can_be_published(reply)) else { return false };
    let owned = first.strip_prefix("_INBOX_").is_some_and(|owner| !owner.starts_with('_'));
    owned || INBOXES.contains(&first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_names_client_and_queue() {
        let address = Address::read("relay.submit.me.mail").unwrap();
        assert_eq!((address.client.as_str(), address.queue.unwrap().as_str()), ("me", "mail"));
        assert_eq!(Address::read("relay.status.me").unwrap().queue, None);
        for bad in
            ["relay.submit.Me.mail", "relay.submit.me.*", "relay.submit.>.mail", "relay.status._", "relay.status"]
        {
            assert!(Address::read(bad).is_err(), "{bad}");
        }
        assert_eq!(Address::client("relay.submit.me.BAD").unwrap().as_str(), "me");
    }

    #[test]
    fn a_reply_subject_with_an_empty_token_or_a_wildcard_is_never_answered() {
        let me: ClientId = "me".parse().unwrap();
        for bad in ["_INBOX..x", "_INBOX.x.", "_INBOX.*", "_INBOX.x.>", "_INBOX_me.*.1", "_R_.x y", "_INBOX.x\r\n"] {
            assert!(!may_reply(Some(&me), bad) && !may_reply(None, bad) && !may_reply_to_service(bad), "{bad:?}");
        }
        assert!(may_reply(None, "_INBOX.a*b.c>d"), "only a whole token is a wildcard");
    }

    #[test]
    fn only_inboxes_are_answered_and_of_those_with_a_name_only_the_clients_own() {
        let me: ClientId = "me".parse().unwrap();
        for good in ["_INBOX.a", "_INBOX.a.b", "_INBOX_me.x.1", "_R_.x.y"] {
            assert!(may_reply(Some(&me), good), "{good}");
        }
        for bad in [
            "",
            "_INBOX",
            "_INBOX.",
            "_INBOX_me",
            "_INBOX_other.x",
            "_INBOX_.x",
            "_INBOX__relay.x",
            "relay.submit.other.mail",
            "relay.reply.other.x",
            "relay.jobs.mail.other.x",
            "$JS.API.STREAM.DELETE.relay-results",
            "$SRV.PING",
            "x._INBOX.y",
        ] {
            assert!(!may_reply(Some(&me), bad) && !may_reply(None, bad), "{bad}");
        }
        assert!(may_reply(None, "_INBOX.a") && may_reply(None, "_R_.x") && !may_reply(None, "_INBOX_me.x"));
        assert!(may_reply_to_service("_INBOX_ops.x") && !may_reply_to_service("relay.submit.me.mail"));
        assert!(!may_reply_to_service("_INBOX__relay.x"));
    }
}
