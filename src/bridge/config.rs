//! A bridge as it is configured: the source of its jobs or messages, the jobs that they become, and their target.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use relay_bridge::contract::{ClientId, QueueName};
use relay_nats::config::{NatsConfig, Secret};

use super::foreign::mapping::JobMapping;
use super::foreign::nats::StreamSource;

/// Messages or jobs in hand of one bridge, unless it says otherwise.
pub const SLOTS: NonZeroU32 = NonZeroU32::new(64).unwrap();

/// One bridge, with valid values only.
#[derive(Clone, Debug)]
pub struct BridgeConfig {
    /// The bridge's name in logs and lists of connections.
    pub name: ClientId,
    /// Jobs or messages in hand at once.
    pub slots: NonZeroU32,
    /// Where they come from, and what they become.
    pub from: Origin,
    /// Where they go. `None`: to the broker that the process is told otherwise.
    pub to: Option<Destination>,
}

/// The relay to which jobs go: the broker that keeps them there.
#[derive(Clone, Debug)]
pub enum Destination {
    /// NATS JetStream.
    Nats(Box<NatsConfig>),
    /// SQS with DynamoDB.
    Sqs(Box<relay_sqs::config::SqsConfig>),
}

/// Where a bridge takes its jobs from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A relay, of which the bridge is a worker.
    Relay {
        /// How to reach it.
        source: RelaySource,
        /// Its queues, and those at the target.
        queues: BTreeMap<QueueName, QueueName>,
        /// Whose jobs they are at the target. `None`: the same client's.
        client: Option<ClientId>,
    },
    /// A stream of NATS that others write to.
    Stream(Box<ForeignStream>),
    /// A queue of SQS that others send to.
    Sqs(Box<ForeignSqs>),
}

/// A queue of SQS that others send to.
#[derive(Clone, Debug)]
pub struct ForeignSqs {
    /// How to reach it.
    pub connection: relay_sqs::config::SqsConfig,
    /// Its URL.
    pub url: String,
    /// The URL of the queue for messages that can't become jobs.
    pub put_aside: String,
    /// The URL of the queue for results: each message then stays until its result was sent there. `None`: results wait in relay.
    pub reply: Option<String>,
    /// The jobs that its messages become.
    pub job: JobMapping,
}

/// A stream of NATS that others write to.
#[derive(Clone, Debug)]
pub struct ForeignStream {
    /// How to reach it.
    pub connection: NatsConfig,
    /// Which one.
    pub source: StreamSource,
    /// The jobs that its messages become.
    pub job: JobMapping,
    /// Where results are sent: whose, of which queue, and to which subject of the same NATS.
    pub reply: Option<(ClientId, QueueName, String)>,
}

impl Origin {
    /// The queue, if there is one, whose jobs would be submitted to itself at `to`.
    #[must_use]
    pub fn leads_back_to(&self, to: &Destination) -> Option<&QueueName> {
        let Self::Relay { source, queues, .. } = self else { return None };
        let same = match (source, to) {
            (RelaySource::Nats(source), Destination::Nats(to)) => {
                source.servers.iter().any(|server| to.servers.contains(server))
            }
            (RelaySource::Sqs(source), Destination::Sqs(to)) => {
                let place = |config: &relay_sqs::config::SqsConfig| {
                    (config.region.clone(), config.endpoint.clone(), config.table.clone())
                };
                place(source) == place(to)
            }
            _ => false,
        };
        queues.iter().find(|(from, to)| same && from == to).map(|(queue, _)| queue)
    }
}

/// How a relay is reached by a worker.
#[derive(Clone, Debug)]
pub enum RelaySource {
    /// The worker address of a server.
    Tcp {
        /// `HOST:PORT`, with `tls://` in front where it speaks TLS.
        address: String,
        /// The worker's key, or the file that holds it.
        key: Option<Secret>,
        /// The authorities that may sign the server's certificate; `None`: those of the platform.
        ca: Option<PathBuf>,
        /// The certificate to show, and its key.
        identity: Option<(PathBuf, PathBuf)>,
    },
    /// NATS, as the broker that keeps the jobs.
    Nats(Box<NatsConfig>),
    /// SQS with DynamoDB, as the broker that keeps the jobs.
    Sqs(Box<relay_sqs::config::SqsConfig>),
}
