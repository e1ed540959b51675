//! The admin port of a process as the process holds it: open before anything else, closed last.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::sampler::{self, Watched};
use super::{Admin, Token, serve};
use crate::telemetry::Telemetry;

/// What listens and looks. Dropping it stops both at once.
pub struct Port {
    admin: Arc<Admin>,
    address: Option<SocketAddr>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Port {
    /// Answers on `listener` from now on; without a `token` whoever reaches it may ask.
    #[must_use]
    pub fn open(listener: TcpListener, token: Option<Token>, telemetry: Telemetry) -> Self {
        let (admin, stop) = (Admin::new(token, telemetry), CancellationToken::new());
        let address = listener.local_addr().ok();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve::serve(listener, Arc::clone(&admin), stop.clone()));
        Self { admin, address, tasks, stop }
    }

    /// Looks at where jobs come from, from now on.
    pub fn watch(&mut self, watched: Watched) {
        if let Watched::Broker(broker) = &watched {
            self.admin.operates(broker.clone());
        }
        self.tasks.spawn(sampler::watch(Arc::clone(&self.admin), watched, self.stop.clone()));
    }

    /// What it knows and answers.
    #[must_use]
    pub fn admin(&self) -> &Arc<Admin> {
        &self.admin
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Ends it. What was watched is let go of.
    pub async fn close(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "the admin port failed");
            }
        }
    }
}
