//! All that an app is built of: its configuration, its sockets, and how it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use relay_bridge::broker::Capabilities;
use relay_bridge::clock::Clock;
use relay_bridge::contract::QueueName;
use relay_bridge::policy::QueuePolicy;
use relay_nats::config::NatsConfig;
use relay_workers::{Handler, WorkerConfig};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::ended::AppError;
use crate::admin::{self, Tokens};
use crate::audit::Audit;
use crate::auth::Authenticator;
use crate::broker::BrokerConfig;
use crate::ingress::front::Bound;
use crate::ingress::{http, nats, tcp};
use crate::reload::Reload;
use crate::telemetry::Traces;
use crate::tls::{Secured, Tls};

/// Everything an [`App`](super::App) needs to know. It holds only valid values.
pub struct Config {
    /// Where jobs and results are kept.
    pub broker: BrokerConfig,
    /// Queues that must be there before anything is served.
    pub queues: QueueSetup,
    /// Decides which callers may call.
    pub authenticator: Arc<Authenticator>,
    /// The limits on a caller's requests.
    pub limits: http::Limits,
    /// Where clients are served over NATS, if they are.
    pub nats: Option<NatsIngress>,
    /// The limits on workers of other processes.
    pub worker_limits: tcp::WorkerLimits,
    /// A worker in this process, for development.
    pub worker: Option<LocalWorker>,
    /// Where spans of jobs go, if they are wanted.
    pub traces: Option<Traces>,
    /// The tokens of which callers of the admin port have to send one; without them everybody who reaches it may ask.
    pub admin_tokens: Option<Arc<Tokens>>,
    /// Where calls are written, if they are.
    pub audit: Option<Arc<Audit>>,
    /// The certificates of its listeners, where any speaks TLS.
    pub tls: Option<Arc<Tls>>,
    /// The parts that read their files again, which are looked at while the process serves.
    pub reload: Arc<Reload>,
    /// How long readiness fails before anything else is stopped, so that load balancers notice.
    pub drain_delay: Duration,
    /// How long requests and handlers in flight may take once the process is asked to stop.
    pub drain: Duration,
    /// Tells the time.
    pub clock: Clock,
}

/// Makes a queue's policy out of the one before.
pub type PolicyOf = Box<dyn Fn(&QueueName, QueuePolicy) -> QueuePolicy + Send + Sync>;

/// Which queues there shall be, and what holds for them.
pub struct QueueSetup {
    /// The queues, which are created where that is asked for.
    pub queues: Vec<QueueName>,
    /// Whether somebody named them. Where nothing is created, those that are there stand for queues that nobody named.
    pub are_named: bool,
    /// Makes a queue's policy out of the one that is stored, or out of the default one for a new queue.
    pub policy: PolicyOf,
    /// The sizes that were asked for, as far as they were.
    pub sizes: Vec<Size>,
    /// Whether changes that shorten what a client relies on are applied.
    pub force: bool,
}

/// A size of payloads or results that somebody asked for.
pub struct Size {
    /// The flag or the setting that says it.
    pub by: String,
    /// In bytes.
    pub bytes: u64,
}

impl QueueSetup {
    /// Finds that the broker takes payloads and results of the sizes that were asked for.
    ///
    /// # Errors
    /// [`AppError::TooLarge`] with the first that it does not take.
    pub fn fits(&self, broker: &Capabilities) -> Result<(), AppError> {
        let max = broker.payload_max;
        let Some(Size { by, bytes }) = self.sizes.iter().find(|size| size.bytes > max) else { return Ok(()) };
        let what = format!("{by} is {bytes} bytes, and the broker takes at most {max}");
        let fix = match broker.adapter {
            "nats" => ", or raise `max_payload` of the NATS servers, of which relay itself needs 64 KiB",
            _ => ": this broker keeps nothing larger",
        };
        Err(AppError::TooLarge { what, fix: format!("ask for `{max}B` or less{fix}") })
    }
}

/// The NATS servers on which clients find relay as a micro service. It has a connection of its own, so that what clients
/// send can't hold up the broker's traffic.
pub struct NatsIngress {
    /// How to reach them.
    pub config: NatsConfig,
    /// The limits on clients' requests.
    pub limits: nats::Limits,
}

/// A worker in this process.
pub struct LocalWorker {
    /// The handler that runs each job.
    pub handler: Arc<dyn Handler>,
    /// Its name, queues and slots.
    pub config: WorkerConfig,
}

/// The sockets, bound by the caller.
pub struct Listeners {
    /// For clients over HTTP.
    pub http: Vec<Bound>,
    /// For clients over TCP, if they are wanted.
    pub tcp: Vec<Bound>,
    /// For workers of other processes, if they are wanted.
    pub workers: Vec<Bound>,
    /// For operators, and for health checks, if they are wanted.
    pub admin: admin::Listeners,
    /// For KEDA, if it is served, and TLS there.
    pub scaler: Option<(TcpListener, Option<Secured>)>,
}

/// How to stop an [`App`](super::App): first drain, then force.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Stop accepting, finish or hand back what is in flight, end.
    pub drain: CancellationToken,
    /// Don't wait any longer. Jobs in flight are left to their leases; accepted jobs are in the store.
    pub force: CancellationToken,
}
