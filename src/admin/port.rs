//! The admin port of a process as the process holds it: open before anything else, closed last.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::sampler::{self, Watched};
use super::{Admin, Tokens, serve};
use crate::reload::Reload;
use crate::scaler::Looks;
use crate::telemetry::Telemetry;
use crate::tls::Secured;

/// How many connections the sockets take.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Of operators: probes, scrapers and a few people. Half of it is for connections that were let in; the oldest of the
    /// others is closed where there are more. Default 256.
    pub admin: usize,
    /// Of health checks. Beyond it the oldest is closed. Default 64.
    pub health: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self { admin: 256, health: 64 }
    }
}

/// The sockets of an admin port: either, or both.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For operators: everything.
    pub admin: Option<TcpListener>,
    /// TLS of the one for operators; without it they come in clear text.
    pub tls: Option<Secured>,
    /// For health checks: `/livez` and `/readyz`, with connections of their own.
    pub health: Option<TcpListener>,
    /// Whether health checks may begin with a PROXY header, which means nothing then.
    pub accepts_header: bool,
    /// How many connections each takes.
    pub caps: Caps,
}

impl Listeners {
    /// Whether there is one.
    #[must_use]
    pub fn are_any(&self) -> bool {
        self.admin.is_some() || self.health.is_some()
    }
}

impl From<TcpListener> for Listeners {
    fn from(admin: TcpListener) -> Self {
        Self { admin: Some(admin), ..Self::default() }
    }
}

/// The listeners and the sampler. Dropping the port stops all at once.
pub struct Port {
    admin: Arc<Admin>,
    address: Option<SocketAddr>,
    health_address: Option<SocketAddr>,
    tasks: JoinSet<()>,
}

impl Port {
    /// Answers on `listeners` from now on; without `tokens` whoever reaches the one for operators may ask.
    #[must_use]
    pub fn open(listeners: impl Into<Listeners>, tokens: Option<Arc<Tokens>>, telemetry: Telemetry) -> Self {
        let listeners = listeners.into();
        let admin = Admin::new(tokens, telemetry);
        let address = |listener: &Option<TcpListener>| listener.as_ref()?.local_addr().ok();
        let (address, health_address) = (address(&listeners.admin), address(&listeners.health));
        let mut tasks = JoinSet::new();
        if let Some(listener) = listeners.admin {
            let (tls, most) = (listeners.tls, listeners.caps.admin);
            tasks.spawn(serve::serve(listener, tls, most, Arc::clone(&admin), admin.closing.clone()));
        }
        if let Some(listener) = listeners.health {
            let (most, header) = (listeners.caps.health, listeners.accepts_header);
            tasks.spawn(serve::serve_health(listener, most, header, Arc::clone(&admin), admin.closing.clone()));
        }
        Self { admin, address, health_address, tasks }
    }

    /// Looks at where jobs come from, from now on.
    pub fn watch(&mut self, watched: Watched) {
        if let Watched::Broker { broker, .. } = &watched {
            self.admin.operates(broker.clone());
            // Unless the process has a scaler, whose looks are there before.
            self.admin.scales(Looks::new(broker, self.admin.telemetry.clock().clone()));
        }
        self.tasks.spawn(sampler::watch(Arc::clone(&self.admin), watched, self.admin.closing.clone()));
    }

    /// Reads files again when they change, and when an operator asks for it. For processes that do so for nothing else.
    pub fn reads_again(&mut self, reload: Arc<Reload>) {
        self.admin.reloads(Arc::clone(&reload));
        let closing = self.admin.closing.clone();
        self.tasks.spawn(async move {
            closing.run_until_cancelled(reload.watch()).await;
        });
    }

    /// The admin state, from which the port answers.
    #[must_use]
    pub fn admin(&self) -> &Arc<Admin> {
        &self.admin
    }

    /// Where health checks ask.
    #[must_use]
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health_address
    }

    /// Where operators ask.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Ends the port, and lets go of the watched parts.
    pub async fn close(mut self) {
        self.admin.closing.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "the admin port failed");
            }
        }
    }
}
