//! Where a worker, or a bridge, takes jobs from: a server over relay's own protocol, or the broker itself.

use std::sync::Arc;
use std::time::Duration;

use relay_bridge::backoff::random;
use relay_bridge::contract::{QueueName, WorkerId};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::Leasing;
use relay_bridge::newer_jobs::NewerJobs;
use relay_bridge::support::without_passwords;
use relay_nats::config::NatsConfig;
use relay_nats::connection::Wait;
use relay_nats::{Nats, Settings};
use relay_remote::{Remote, RemoteConfig, RemoteTls};
use relay_sqs::Sqs;
use tokio::time::Instant;

use super::exit::CliError;
use super::provision::from_broker;
use crate::config::settings::TLS_SCHEME;

/// The longest wait before the second attempt to connect.
const BACKOFF_BASE: Duration = Duration::from_millis(100);
/// The longest wait between two looks at NATS.
const BACKOFF_MAX: Duration = Duration::from_secs(4);

/// How to reach it.
#[derive(Clone, Debug)]
pub(crate) enum SourceConfig {
    /// The worker address of a server, with `tls://` in front where it speaks TLS.
    Tcp { address: String, key: Option<String>, tls: RemoteTls },
    /// NATS, as the broker that keeps the jobs.
    Nats(Box<NatsConfig>),
    /// SQS with DynamoDB, as the broker that keeps the jobs.
    Sqs(Box<relay_sqs::config::SqsConfig>),
}

impl SourceConfig {
    /// Where it is, for people.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Tcp { address, .. } => address.clone(),
            Self::Nats(nats) => without_passwords(&nats.servers.join(",")).into_owned(),
            Self::Sqs(sqs) => format!("table {}", sqs.table),
        }
    }
}

/// A connection to it.
pub(crate) enum Source {
    /// A server, over relay's own protocol.
    Remote(Arc<Remote>),
    /// The broker itself.
    Nats(Nats),
    /// The broker itself.
    Sqs(Sqs),
}

impl Source {
    /// Connects, waiting for what is not there yet, and finds that the queues of a broker are there.
    ///
    /// # Errors
    /// A problem that waiting does not mend: the address, the key, the queues.
    pub(crate) async fn connect(
        config: SourceConfig,
        worker: &WorkerId,
        queues: &[QueueName],
    ) -> Result<Self, CliError> {
        match config {
            SourceConfig::Nats(config) => Ok(Self::Nats(provisioned(*config, queues).await?)),
            SourceConfig::Sqs(config) => Ok(Self::Sqs(provisioned_on_sqs(*config, queues).await?)),
            SourceConfig::Tcp { address, key, tls } => {
                if let Some((scheme, _)) = address.split_once("://").filter(|_| !address.starts_with(TLS_SCHEME)) {
                    // No name of a host would ever be found in it.
                    let what = format!("{address}: the worker address of a server has no {scheme}:// in front");
                    return Err(CliError::usage(what).hint(
                        "write HOST:PORT, or tls://HOST:PORT: the address that `relay serve --worker-listen` printed",
                    ));
                }
                let (host, tls) = match address.strip_prefix(TLS_SCHEME) {
                    Some(host) => {
                        tls.check().map_err(CliError::usage)?;
                        (host, Some(tls))
                    }
                    None if tls == RemoteTls::default() => (address.as_str(), None),
                    None => {
                        let what = format!("{address}: certificates are of no use without TLS");
                        return Err(
                            CliError::usage(what).hint("write tls:// in front of the address, or leave them out")
                        );
                    }
                };
                let remote = RemoteConfig { key, tls, ..RemoteConfig::new(host, worker.clone()) };
                let connected = dial(remote).await.map_err(|error| unconnected(&address, &error))?;
                // One that is not there would keep it from the jobs of all others.
                if let Err(error) = known(&connected, queues, &address, GRANTED).await {
                    connected.close().await;
                    return Err(error);
                }
                Ok(Self::Remote(Arc::new(connected)))
            }
        }
    }

    pub(crate) fn leasing(&self) -> Arc<dyn Leasing> {
        match self {
            Self::Remote(remote) => Arc::clone(remote) as Arc<dyn Leasing>,
            Self::Nats(nats) => nats.broker().leasing,
            Self::Sqs(sqs) => sqs.broker().leasing,
        }
    }

    /// The jobs that are handed back because a newer relay wrote them; a server does that itself.
    pub(crate) fn newer_jobs(&self) -> Option<Arc<NewerJobs>> {
        match self {
            Self::Remote(_) => None,
            Self::Nats(nats) => Some(nats.newer_jobs()),
            Self::Sqs(sqs) => Some(sqs.newer_jobs()),
        }
    }

    /// Jobs that nobody waited for go back before it closes; messages on their way from SQS are waited for until `until`.
    pub(crate) async fn close(self, until: Instant) {
        match self {
            // Nobody else holds the connection any more.
            Self::Remote(remote) => {
                if let Some(remote) = Arc::into_inner(remote) {
                    remote.close().await;
                }
            }
            Self::Nats(nats) => nats.close().await,
            Self::Sqs(sqs) => sqs.close_by(until).await,
        }
    }
}

/// Finds that the queues are there on SQS, waiting for AWS.
///
/// # Errors
/// A problem that waiting does not mend: the configuration, and queues that nobody created.
pub(crate) async fn provisioned_on_sqs(
    config: relay_sqs::config::SqsConfig,
    queues: &[QueueName],
) -> Result<Sqs, CliError> {
    let sqs = Sqs::connect(config, relay_sqs::Settings::default()).await;
    let sqs = sqs.map_err(|error| CliError::usage(error.to_string()))?;
    let hint = "`relay provision` with the same --sqs flags and --queue creates the missing queue";
    match known(&*sqs.broker().leasing, queues, "AWS", hint).await {
        Ok(()) => Ok(sqs),
        Err(error) => {
            sqs.close().await;
            Err(error)
        }
    }
}

/// What to do about a queue that a server does not have, or not for this key.
const GRANTED: &str = "correct its name, add the queue to the server, or give a key that may take its jobs; `relay worker` takes none \
                       as long as one of its queues is missing";

/// Finds that the queues are there, waiting for `whom` while that is away; `hint` is for one that is not.
async fn known(leasing: &dyn Leasing, queues: &[QueueName], whom: &str, hint: &str) -> Result<(), CliError> {
    for queue in queues {
        let mut ceiling = BACKOFF_BASE;
        loop {
            match leasing.queue_policy(queue).await {
                Ok(_) => break,
                Err(error) if error.is_transient() => tracing::warn!("waiting for {whom}: {error}"),
                Err(error) => return Err(CliError::usage(format!("queue {queue}: {error}")).hint(hint)),
            }
            tokio::time::sleep(ceiling.mul_f64(random())).await;
            ceiling = (ceiling * 2).min(BACKOFF_MAX);
        }
    }
    Ok(())
}

/// Connects to NATS, waiting for it, and finds that the queues are there.
///
/// # Errors
/// A problem that waiting does not mend: queues that nobody created.
pub(crate) async fn provisioned(config: NatsConfig, queues: &[QueueName]) -> Result<Nats, CliError> {
    let nats = Nats::connect(config, Wait::Forever, Settings::default()).await.map_err(from_broker)?;
    let mut ceiling = BACKOFF_BASE;
    loop {
        match nats.check_provisioned(queues).await {
            Ok(()) => return Ok(nats),
            Err(error) if error.is_transient() => tracing::warn!("waiting for NATS: {error}"),
            Err(error) => {
                nats.close().await;
                return Err(from_broker(error).hint("`relay provision` with the same --nats and --queue creates it"));
            }
        }
        tokio::time::sleep(ceiling.mul_f64(random())).await;
        ceiling = (ceiling * 2).min(BACKOFF_MAX);
    }
}

/// Connects, waiting for a server that is not up yet: what starts both need not know which is first. Everything that a
/// wait does not mend is an error at once.
async fn dial(config: RemoteConfig) -> Result<Remote, BrokerError> {
    let mut ceiling = BACKOFF_BASE;
    let mut told = false;
    loop {
        let error = match Remote::connect(config.clone()).await {
            Err(error) if may_pass(&error) => error,
            ended => return ended,
        };
        if !told {
            tracing::warn!(
                "{}: {error}; waiting for it: is `relay serve` running with --worker-listen, and is this the address it printed?",
                config.address
            );
            told = true;
        }
        tokio::time::sleep(ceiling.mul_f64(random())).await;
        ceiling = (ceiling * 2).min(config.backoff_max);
    }
}

/// An address that is none, such as one without a port, never answers.
fn may_pass(error: &BrokerError) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    error.is_transient() && source.is_none_or(|error| error.kind() != std::io::ErrorKind::InvalidInput)
}

fn unconnected(address: &str, error: &BrokerError) -> CliError {
    let text = format!("{address}: {error}");
    match error.kind() {
        BrokerErrorKind::Unauthorized => CliError::usage(text)
            .hint("give a worker's key, such as in RELAY_WORKER_KEY; `relay keys new NAME --role worker` makes one"),
        BrokerErrorKind::Invalid | BrokerErrorKind::NotFound => CliError::usage(text),
        _ => {
            CliError::usage(text).hint("write it as HOST:PORT: the address that `relay serve --worker-listen` printed")
        }
    }
}
