//! The configuration for AWS. It is checked as a whole before the first call: all problems are reported at once, each
//! with its key, its value and the remedy.

use std::fmt;

use crate::forward::Forward;
use crate::limits::QUEUE_MAX;
use crate::share::Share;

/// The longest name of a table.
const TABLE_MAX: usize = 255;

/// How relay reaches SQS and DynamoDB, and the names of its table and queues there.
#[derive(Clone, Debug)]
pub struct SqsConfig {
    /// The region. `None`: the region of `AWS_REGION`, of the profile, or of the machine.
    pub region: Option<String>,
    /// The URL of both services in place of the region's own endpoints: that of an emulator, or of a VPC endpoint
    /// without private names. `None`: `AWS_ENDPOINT_URL_SQS` and `AWS_ENDPOINT_URL_DYNAMODB`, else the region's
    /// endpoints.
    pub endpoint: Option<String>,
    /// The identity with which relay calls AWS.
    pub credentials: Credentials,
    /// The table of DynamoDB. Default `relay`.
    pub table: String,
    /// The prefix of the names of relay's queues in SQS. Default `relay-`. A queue's name in SQS has at most 80
    /// characters, prefix included.
    pub queue_prefix: String,
    /// Whether relay's queues are FIFO queues, in which a send that is repeated within 5 minutes makes no second
    /// message. Default: standard queues.
    pub fifo: bool,
    /// Clients that read their results from a queue of SQS of their own. Default: none.
    pub forward: Vec<Forward>,
    /// Queues of SQS that other accounts use, and their rights on them. Provisioning creates these queues and writes
    /// their policies. Default: none.
    pub shares: Vec<Share>,
}

/// The identity with which relay calls AWS.
#[derive(Clone, Debug, Default)]
pub enum Credentials {
    /// The credentials of the environment, the profile, the pod or the machine: the chain of the AWS SDK.
    #[default]
    Chain,
    /// These keys, for emulators.
    Keys(Keys),
}

/// An access key and its secret, which its `Debug` does not print.
#[derive(Clone)]
pub struct Keys {
    pub(crate) id: String,
    pub(crate) secret: String,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Credentials {
    /// An access key and its secret.
    #[must_use]
    pub fn keys(id: &str, secret: &str) -> Self {
        Self::Keys(Keys { id: id.to_owned(), secret: secret.to_owned() })
    }
}

impl Default for SqsConfig {
    fn default() -> Self {
        Self {
            region: None,
            endpoint: None,
            credentials: Credentials::Chain,
            table: "relay".to_owned(),
            queue_prefix: "relay-".to_owned(),
            fifo: false,
            forward: Vec::new(),
            shares: Vec::new(),
        }
    }
}

/// Everything that is wrong with an [`SqsConfig`]: one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidConfig(Vec<String>);

impl InvalidConfig {
    /// The problems, each with its key, its value and the remedy.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for InvalidConfig {}

impl SqsConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// All problems at once.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let mut problems = Vec::new();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let table_fits = (3..=TABLE_MAX).contains(&self.table.len());
        if !table_fits || !self.table.chars().all(|c| plain(c) || c == '.') {
            problems.push(format!(
                "table: `{}` is no name of a table: 3 to {TABLE_MAX} letters, digits, `-`, `_` or `.`",
                self.table
            ));
        }
        if self.queue_prefix.len() > QUEUE_MAX / 2 || !self.queue_prefix.chars().all(plain) {
            problems.push(format!(
                "queue_prefix: `{}` must be at most {} letters, digits, `-` or `_`",
                self.queue_prefix,
                QUEUE_MAX / 2
            ));
        }
        if let Some(endpoint) = &self.endpoint
            && !["http://", "https://"]
                .iter()
                .any(|scheme| endpoint.len() > scheme.len() && endpoint.starts_with(scheme))
        {
            problems.push(format!("endpoint: `{endpoint}` must be http://HOST[:PORT] or https://HOST[:PORT]"));
        }
        if self.region.as_ref().is_some_and(|region| region.is_empty() || !region.chars().all(plain)) {
            problems.push(format!(
                "region: `{}` is no region: write it as eu-central-1",
                self.region.as_deref().unwrap_or_default()
            ));
        }
        for (at, forward) in self.forward.iter().enumerate() {
            if self.forward[..at].iter().any(|other| other.client == forward.client) {
                problems.push(format!("forward: client `{}` has more than one queue: leave one", forward.client));
            }
        }
        let own = |share: &&Share| share.queue.starts_with(&self.queue_prefix);
        for share in self.shares.iter().filter(own) {
            problems.push(format!(
                "share: `{}` begins with `{}`, as queues in which jobs are in line: those are relay's alone; name another",
                share.queue, self.queue_prefix
            ));
        }
        if problems.is_empty() { Ok(()) } else { Err(InvalidConfig(problems)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_told_at_once_with_their_keys() {
        assert_eq!(SqsConfig::default().check(), Ok(()));
        let wrong = SqsConfig {
            region: Some("eu central".to_owned()),
            endpoint: Some("127.0.0.1:4566".to_owned()),
            table: "r".to_owned(),
            queue_prefix: "relay.".to_owned(),
            forward: ["shop=https://sqs/1/a", "shop=https://sqs/1/b"].map(|text| text.parse().unwrap()).to_vec(),
            shares: vec!["orders=send:111122223333".parse().unwrap()],
            ..SqsConfig::default()
        };
        let problems = wrong.check().unwrap_err();
        let keys: Vec<_> = problems.problems().iter().filter_map(|problem| problem.split(':').next()).collect();
        assert_eq!(keys, ["table", "queue_prefix", "endpoint", "region", "forward"]);
        let shares = ["relay-orders=receive:111122223333", "orders"].map(|text| text.parse().unwrap()).to_vec();
        let problems = SqsConfig { shares, ..SqsConfig::default() }.check().unwrap_err();
        assert!(matches!(problems.problems(), [own] if own.starts_with("share: `relay-orders`")), "{problems}");
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = SqsConfig { credentials: Credentials::keys("id", "hush"), ..SqsConfig::default() };
        assert!(!format!("{config:?}").contains("hush"));
    }
}
