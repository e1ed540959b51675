//! The process that serves: `Config -> App::build(config, listeners) -> App::run(stop) -> drained | forced`.
//!
//! Sockets and the stop signal are arguments, so that tests bring port 0 and their own signal. Every task is joined in
//! the drain, in this order: readiness fails, HTTP and NATS stop accepting and finish what is in flight, the worker in this process
//! finishes or hands back while the worker listener lets its workers hand back, the store is closed, and the admin port last.
//! A peer that does not take its answer holds up nobody: workers are told a second after the doors of clients at the latest, so
//! that all of it ends within the time of the drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::WorkerId;
use relay_bridge::leasing::Leasing;
use relay_nats::config::NatsConfig;
use relay_nats::connection::{Connection, Wait};
use relay_workers::Worker;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::admin::sampler::Watched;
use crate::admin::{self, Admin, Port, collect};
use crate::audit::Audit;
use crate::auth::{Authenticator, Presented, Refused, WorkerRights};
use crate::broker::{Opened, sweep};
use crate::ingress::tcp::client::{ClientLimits, Clients};
use crate::ingress::{http, nats, tcp};
use crate::reload::Reload;
use crate::scaler::{self, Looks};
use crate::telemetry::{Telemetry, Traces};
use crate::tls::Tls;
pub use config::{Config, Listeners, LocalWorker, NatsIngress, PolicyOf, QueueSetup, Size, Stop};
pub use ended::{AppError, Ended};
use stage::Stage;

mod config;
mod ended;
mod stage;
#[cfg(test)]
mod tests;

/// How long closing the broker may take, after what is on its way from it has ended: a last commit and a checkpoint.
const CLOSE_MAX: Duration = Duration::from_secs(10);
/// The longest that workers are told to stop after the doors of clients were: a tenth of the drain, if that is less.
const WORKERS_AFTER: Duration = Duration::from_secs(1);
/// How long the last lines of the audit may take.
const AUDIT_MAX: Duration = Duration::from_secs(5);
/// How long the collector of traces may take for the last spans.
pub(crate) const TRACES_MAX: Duration = Duration::from_secs(5);

/// A process that is ready to serve.
pub struct App {
    opened: Opened,
    broker: Broker,
    /// For the worker in this process.
    leasing_here: Arc<dyn Leasing>,
    ingress: Arc<http::Ingress>,
    nats: Option<(NatsConfig, Arc<nats::Ingress>)>,
    clients: Arc<Clients>,
    authenticator: Arc<Authenticator>,
    worker_limits: tcp::WorkerLimits,
    worker: Option<LocalWorker>,
    listeners: Listeners,
    port: Option<Port>,
    /// The looks that scalers ask for, if anybody may.
    looks: Option<Arc<Looks>>,
    audit: Option<Arc<Audit>>,
    tls: Option<Arc<Tls>>,
    reload: Arc<Reload>,
    traces: Option<Traces>,
    drain_delay: Duration,
    drain: Duration,
    clock: Clock,
}

impl App {
    /// Opens the broker and sees to the queues. Connections wait in the listeners' backlog meanwhile, for as long as a
    /// broker on other machines is not there: drop the future to stop waiting.
    ///
    /// # Errors
    /// [`AppError::Store`] if the store is damaged, newer than this build, or held by another process;
    /// [`AppError::Destructive`]; [`AppError::Unprovisioned`].
    pub async fn build(config: Config, mut listeners: Listeners) -> Result<Self, AppError> {
        let clock = config.clock;
        // Nobody asks a process without an admin port, so it does not count.
        let admin = Some(std::mem::take(&mut listeners.admin)).filter(admin::Listeners::are_any);
        let scaled = admin.is_some() || listeners.scaler.is_some();
        let watched = scaled || config.traces.is_some();
        let telemetry = watched.then(|| Telemetry::new(clock.clone(), config.traces.clone()));
        let port = admin.zip(telemetry.clone());
        let mut port = port.map(|(listeners, telemetry)| Port::open(listeners, config.admin_tokens, telemetry));
        if let Some(port) = &port {
            port.admin().reloads(Arc::clone(&config.reload));
            config.audit.iter().for_each(|audit| port.admin().audits(Arc::clone(audit)));
        }
        let opened = Opened::open(config.broker, &clock).await?;
        // Without its type, as AWS's are deep: those of which they are a part have a limit.
        let queues = match opened.prepare(&config.queues).boxed_local().await {
            Ok(queues) => queues,
            Err(error) => {
                opened.close(Instant::now()).await;
                return Err(error);
            }
        };
        let (mut broker, mut leasing_here) = (opened.broker(), opened.leasing_here());
        let mut looks = None;
        if let Some(telemetry) = telemetry {
            (broker, leasing_here) = (telemetry.broker(broker), telemetry.leasing(leasing_here));
            if scaled {
                let measured = looks.insert(Looks::new(&broker, clock.clone()));
                let measured = Arc::clone(measured);
                telemetry.tells(move |queue| measured.came(queue));
            }
        }
        let shares = Arc::clone(&config.limits.shares);
        let ingress =
            http::Ingress::new(broker.clone(), Arc::clone(&config.authenticator), config.limits, clock.clone());
        ingress.listens(&listeners.http, &listeners.tcp);
        let clients = Clients::new(Arc::clone(&ingress), ClientLimits::default());
        let authenticator = Arc::clone(&config.authenticator);
        let audit = config.audit.clone();
        audit.iter().for_each(|audit| ingress.audits(Arc::clone(audit)));
        let nats = config.nats.map(|NatsIngress { config, limits }| {
            let (bytes, rates) = ((ingress.byte_budget(), ingress.answer_budget()), ingress.rates());
            let limits = nats::Limits { shares, ..limits };
            let nats = nats::Ingress::new(broker.clone(), limits, bytes, rates, clock.clone());
            nats.ask(Arc::clone(&authenticator));
            audit.iter().for_each(|audit| nats.audits(Arc::clone(audit)));
            (config, nats)
        });
        if let Some(port) = &mut port {
            let nats_ingress = nats.as_ref().map(|(_, nats_ingress)| Arc::clone(nats_ingress));
            let (http, tcp, tls) = (Arc::clone(&ingress), Arc::clone(&clients), config.tls.clone());
            port.admin().collect(move |text| {
                collect::ingresses(text, (&http, &tcp), nats_ingress.as_deref(), tls.as_deref());
            });
            opened.describe(port.admin());
            if let Some(traces) = config.traces.clone() {
                port.admin().collect(move |text| traces.report(text));
            }
            looks.iter().for_each(|looks| port.admin().scales(Arc::clone(looks)));
            port.admin().hands_back(opened.newer_jobs());
            port.watch(Watched::Broker { broker: broker.clone(), check: opened.check(&config.queues), queues });
        }
        Ok(Self {
            opened,
            broker,
            leasing_here,
            ingress,
            nats,
            clients,
            authenticator: config.authenticator,
            worker_limits: config.worker_limits,
            worker: config.worker,
            listeners,
            port,
            looks,
            audit: config.audit,
            tls: config.tls,
            reload: config.reload,
            traces: config.traces,
            drain_delay: config.drain_delay,
            drain: config.drain,
            clock,
        })
    }

    /// Where clients connect: the first of their listeners.
    #[must_use]
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.listeners.http.first()?.listener.local_addr().ok()
    }

    /// Where clients connect over TCP, if they may: the first of their listeners.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.listeners.tcp.first()?.listener.local_addr().ok()
    }

    /// Where workers of other processes connect, if they may: the first of their listeners.
    #[must_use]
    pub fn workers_address(&self) -> Option<SocketAddr> {
        self.listeners.workers.first()?.listener.local_addr().ok()
    }

    /// Where KEDA connects, if it may.
    #[must_use]
    pub fn scaler_address(&self) -> Option<SocketAddr> {
        self.listeners.scaler.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// Where operators connect, if they may.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.port.as_ref()?.address()
    }

    /// Where health checks ask, if they have a port of their own.
    #[must_use]
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.port.as_ref()?.health_address()
    }

    /// Readiness holds from now on, until `stop` drains, whatever becomes of the broker: for whoever says that the process is there before it runs.
    pub fn serves_until(&self, stop: &Stop) {
        if let Some(port) = &self.port {
            port.admin().serves_until(stop.drain.clone());
        }
    }

    /// Serves until `stop` says otherwise, then drains in order.
    ///
    /// # Errors
    /// If a listener or a task fails; the store is closed before the error is returned.
    pub async fn run(mut self, stop: Stop) -> Result<Ended, AppError> {
        self.serves_until(&stop);
        let opened = self.opened.clone();
        let force = stop.force.clone();
        let port = self.port.take();
        let (traces, audit) = (self.traces.clone(), self.audit.clone());
        let admin = port.as_ref().map(|port| Arc::clone(port.admin()));
        let (until, ended) = tokio::select! {
            biased;
            () = force.cancelled() => (Instant::now(), Ok(Ended::Forced)),
            (until, ended) = self.serve(stop, admin) => (until, ended.map(|()| Ended::Drained)),
        };
        // Also when it was forced: accepted jobs are durable anyway, closing only makes the next start quicker.
        let limit = until.saturating_duration_since(Instant::now()) + CLOSE_MAX;
        // Without its type, as above.
        let closed = opened.close(until).boxed();
        tokio::select! {
            closed = tokio::time::timeout(limit, closed) => if closed.is_err() {
                warn!("the broker was still busy at the end; what was accepted is safe");
            },
            () = force.cancelled(), if !matches!(ended, Ok(Ended::Forced)) => {}
        }
        if let Some(traces) = traces.filter(|_| !matches!(ended, Ok(Ended::Forced))) {
            traces.finish(TRACES_MAX).await;
        }
        if let Some(port) = port {
            port.close().await;
        }
        if let Some(audit) = audit {
            audit.close(AUDIT_MAX).await;
        }
        ended
    }

    /// Serves until `stop` or until a part fails; also until when what is on its way may take.
    async fn serve(self, stop: Stop, admin: Option<Arc<Admin>>) -> (Instant, Result<(), AppError>) {
        // They are told to stop in this order: see the module's first lines.
        let names = ["HTTP", "NATS", "local worker", "worker listener", "forwarder", "sweep", "files", "scaler"];
        let mut stages = names.map(Stage::new);
        let [http, nats, local, remote, forwarder, sweeper, files, scaling] = &mut stages;
        let (listeners, drain) = (self.listeners, self.drain);
        let workers_after = (drain / 10).min(WORKERS_AFTER);
        let workers_drain = drain - workers_after;
        let leasing = self.ingress.watched(Arc::clone(&self.broker.leasing));
        let leasing_here = self.ingress.watched(self.leasing_here);
        let (authentications, arrivals) = (self.ingress.authentications(), self.ingress.arrivals());
        let (mut workers, going) = (None, self.ingress);
        let serving = Arc::clone(&self.clients).serve_beside_http(listeners.http, http.stop.clone(), drain);
        http.tasks.spawn(async { serving.await.map_err(|error| AppError::Listener("HTTP", error)) });
        if !listeners.tcp.is_empty() {
            // Of the same stage: both are doors of clients.
            let serving = self.clients.serve(listeners.tcp, http.stop.clone(), drain);
            http.tasks.spawn(async { serving.await.map_err(|error| AppError::Listener("TCP", error)) });
        }
        if let Some((config, nats_ingress)) = self.nats {
            nats.tasks.spawn(serve_nats(config, nats_ingress, nats.stop.clone(), drain));
        }
        if let Some(LocalWorker { handler, mut config }) = self.worker {
            config.drain = config.drain.min(workers_drain);
            let handler = match &self.traces {
                Some(traces) => traces.handler(handler),
                None => handler,
            };
            let worker = Worker::new(leasing_here, handler, self.clock, config);
            if let Some(admin) = admin {
                let stats = worker.stats();
                admin.collect(move |text| collect::worker(text, &stats.report()));
            }
            let stopped = local.stop.clone();
            local.tasks.spawn(async move {
                let report = worker.run(stopped).await;
                debug!(?report, "local worker ended");
                Ok(())
            });
        }
        let (auth, reload, stopped) = (Arc::clone(&self.authenticator), self.reload, files.stop.clone());
        let tls = self.tls;
        files.tasks.spawn(async move {
            let expiries = async {
                if let Some(tls) = tls {
                    tls.watch().await;
                }
            };
            stopped.run_until_cancelled(async { tokio::join!(auth.watch(), reload.watch(), expiries) }).await;
            Ok(())
        });
        if !listeners.workers.is_empty() {
            let (listening, stopped) = (tcp::WorkerListener::new(leasing, self.authenticator), remote.stop.clone());
            let listening = listening.with_limits(self.worker_limits).with_audit(self.audit);
            let listening = listening.with_authentications(authentications).with_arrivals(arrivals);
            workers = Some(listening.leaving());
            remote.tasks.spawn(async move {
                let served = listening.serve(listeners.workers, stopped, workers_drain).await;
                served.map_err(|error| AppError::Listener("worker", error))
            });
        }
        if let Some(looks) = self.looks {
            let (measured, stopped) = (Arc::clone(&looks), scaling.stop.clone());
            scaling.tasks.spawn(async move {
                measured.measure(stopped).await;
                Ok(())
            });
            if let Some((listener, secured)) = listeners.scaler {
                let served = scaler::serve(listener, secured, looks, scaling.stop.clone());
                scaling.tasks.spawn(async move { served.await.map_err(|error| AppError::Listener("scaler", error)) });
            }
        }
        let (opened, stopped) = (self.opened, forwarder.stop.clone());
        forwarder.tasks.spawn(async move {
            opened.forward(stopped).await;
            Ok(())
        });
        let (broker, stopped) = (self.broker, sweeper.stop.clone());
        sweeper.tasks.spawn(async move {
            sweep(&broker, &stopped).await;
            Ok(())
        });

        // A stage that ends before it was asked to is a failure of the whole.
        let failed = tokio::select! {
            () = async {
                stop.drain.cancelled().await;
                let workers = async {
                    if let Some(workers) = &workers {
                        workers.leave(self.drain_delay).await;
                    }
                };
                if !self.drain_delay.is_zero() {
                    tokio::join!(going.leave(self.drain_delay), workers);
                }
            } => None,
            Some(error) = http.ended_early() => Some(error),
            Some(error) = nats.ended_early() => Some(error),
            Some(error) = local.ended_early() => Some(error),
            Some(error) = remote.ended_early() => Some(error),
            Some(error) = forwarder.ended_early() => Some(error),
            Some(error) = sweeper.ended_early() => Some(error),
            Some(error) = files.ended_early() => Some(error),
            Some(error) = scaling.ended_early() => Some(error),
        };
        let begun = Instant::now();
        let (doors, others) = stages.split_at_mut(2);
        let (of_workers, rest) = others.split_at_mut(2);
        doors.iter().for_each(Stage::tell);
        let doors_ended = join_all(doors.iter_mut().map(Stage::joined));
        drop(tokio::time::timeout_at(begun + workers_after, doors_ended).await);
        of_workers.iter().for_each(Stage::tell);
        join_all(doors.iter_mut().chain(of_workers).map(Stage::joined)).await;
        rest.iter().for_each(Stage::tell);
        join_all(rest.iter_mut().map(Stage::joined)).await;
        let failed = failed.or_else(|| stages.into_iter().find_map(|stage| stage.failed));
        let until = begun + drain;
        (until, failed.map_or(Ok(()), Err))
    }
}

/// Serves clients over NATS as soon as a server is there: clients that come by other ways do not wait for it.
async fn serve_nats(
    config: NatsConfig,
    nats_ingress: Arc<nats::Ingress>,
    stop: CancellationToken,
    drain: Duration,
) -> Result<(), AppError> {
    let Some(opened) = stop.run_until_cancelled(Connection::open_core(config, Wait::Forever)).await else {
        return Ok(());
    };
    let connection = opened.map_err(AppError::Nats)?;
    let served = nats::serve(connection.clone(), nats_ingress, stop, drain).await;
    connection.close().await;
    served.map_err(|error| AppError::Listener("NATS", error))
}

/// The same keys let workers in that let clients in; each key has one role.
impl tcp::WorkerAuth for Authenticator {
    fn authorize<'a>(
        &'a self,
        worker: &'a WorkerId,
        key: Option<&'a str>,
        presented: Presented<'a>,
    ) -> BoxFuture<'a, Result<tcp::WorkerGrant, Refused>> {
        Box::pin(async move {
            let WorkerRights { key, queues, credential } = self.authorize_worker(worker, key, presented).await?;
            Ok(tcp::WorkerGrant { key, queues, credential })
        })
    }
}
