//! Queues of SQS that other accounts use: clients read their results from them, and bridges take messages from them.
//! Relay makes these queues in its own account, because only a queue's owner may change it. The policy of each queue
//! has exactly the grants that are configured for it: anything else in the policy is planned as a change.
//!
//! Relay's own queues are never shared: an account that may send to them could wake workers up for nothing, and one
//! that may receive from them would hold up jobs.

use std::fmt;
use std::str::FromStr;

use crate::limits::{FIFO, QUEUE_MAX};

/// A queue of SQS that others use, and one grant on it. As text: `QUEUE=send:WHO`, `QUEUE=receive:WHO`, or `QUEUE` for
/// a queue that nobody outside of the account may use. WHO stands for an account's 12 digits, or the ARN of one of its
/// roles or users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The queue's name in SQS; a name that ends with `.fifo` is that of a FIFO queue.
    pub queue: String,
    /// The grant, if there is one.
    pub grant: Option<Grant>,
}

/// A right on a queue, and the principal that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The right.
    pub access: Access,
    /// The principal: an account's number or the ARN of a role or user.
    pub principal: String,
}

/// A right of others on a queue.
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
