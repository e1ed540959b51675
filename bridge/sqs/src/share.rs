//! Queues of SQS that other accounts use: where a client reads its results, and from where a bridge takes messages. They are
//! made in relay's account, because their owner alone may change them, and each has a policy of exactly the grants that are
//! named for it: what somebody else wrote into it is a change.
//!
//! Relay's own queues are never among them: who may send to those could wake workers up for nothing, and who may receive
//! from them would hold up jobs.

use std::fmt;
use std::str::FromStr;

use crate::limits::{FIFO, QUEUE_MAX};

/// A queue of SQS that others use, and one of those who may. As text: `QUEUE=send:WHO`, `QUEUE=receive:WHO`, or `QUEUE` for one
/// that nobody outside of the account may use. WHO is an account's 12 digits, or the ARN of one of its roles or users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// What it is called in SQS; with `.fifo` it is one of that kind.
    pub queue: String,
    /// Who may do what there.
    pub grant: Option<Grant>,
}

/// Who may do what with a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What.
    pub access: Access,
    /// Who: an account's number or the ARN of a role or user.
    pub principal: String,
}

/// What others may do with a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Send messages.
    Send,
    /// Receive, hide and delete them, and see how many there are.
    Receive,
}

impl Access {
    pub(crate) const ALL: [Self; 2] = [Self::Send, Self::Receive];

    fn word(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Receive => "receive",
        }
    }

    pub(crate) fn statement(self) -> &'static str {
        match self {
            Self::Send => "RelaySend",
            Self::Receive => "RelayReceive",
        }
    }

    pub(crate) fn actions(self) -> &'static [&'static str] {
        match self {
            Self::Send => &["sqs:GetQueueUrl", "sqs:SendMessage"],
            Self::Receive => &[
                "sqs:ChangeMessageVisibility",
                "sqs:DeleteMessage",
                "sqs:GetQueueAttributes",
                "sqs:GetQueueUrl",
                "sqs:ReceiveMessage",
            ],
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.grant {
            None => f.write_str(&self.queue),
            Some(grant) => write!(f, "{}={}:{}", self.queue, grant.access.word(), grant.principal),
        }
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (queue, grant) = text.split_once('=').map_or((text, None), |(queue, grant)| (queue, Some(grant)));
        let stem = queue.strip_suffix(FIFO).unwrap_or(queue);
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if stem.is_empty() || queue.len() > QUEUE_MAX || !stem.chars().all(plain) {
            return Err(format!(
                "`{queue}` is no name of a queue in relay's account: up to {QUEUE_MAX} letters, digits, `-` or `_`, and \
                 `{FIFO}` if it is one of that kind"
            ));
        }
        let grant = grant.map(|grant| {
            let (word, principal) = grant.split_once(':').unwrap_or((grant, ""));
            let access = Access::ALL.into_iter().find(|access| access.word() == word);
            let access = access.ok_or(format!("`{word}`: write send:WHO or receive:WHO"))?;
            if is_account(principal) || is_identity(principal) {
                return Ok(Grant { access, principal: principal.to_owned() });
            }
            Err(format!(
                "`{principal}` is nobody: write an account's 12 digits, or arn:aws:iam::ACCOUNT:role/NAME of a role or user"
            ))
        });
        Ok(Self { queue: queue.to_owned(), grant: grant.transpose()? })
    }
}

pub(crate) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether this is the ARN of a role or a user. Policies know no wildcards in it.
fn is_identity(text: &str) -> bool {
    let words: Vec<_> = text.splitn(6, ':').collect();
    let [arn, partition, service, region, account, resource] = words[..] else { return false };
    let named = ["role/", "user/"].iter().any(|kind| resource.len() > kind.len() && resource.starts_with(kind));
    (arn, service, region) == ("arn", "iam", "")
        && partition.starts_with("aws")
        && is_account(account)
        && named
        && !text.contains(['*', '?', '"', ' '])
}
