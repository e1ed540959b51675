//! The admin port of a process as the process holds it: open before anything else, closed last.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::sampler::{self, Watched};
use super::{Admin, Token, serve};
use crate::telemetry::Telemetry;

/// The listener and the sampler. Dropping the port stops both at once.
pub struct Port {
    admin: Arc<Admin>,
    address: Option<SocketAddr>,
    tasks: JoinSet<()>,
}

impl Port {
    /// Answers on `listener` from now on; without a `token` whoever reaches it may ask.
    #[must_use]
    pub fn open(listener: TcpListener, token: Option<Token>, telemetry: Telemetry) -> Self {
        let admin = Admin::new(token, telemetry);
        let address = listener.local_addr().ok();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve::serve(listener, Arc::clone(&admin), admin.closing.clone()));
        Self { admin, address, tasks }
    }

    /// Looks at where jobs come from, from now on.
    pub fn watch(&mut self, watched: Watched) {
        if let Watched::Broker { broker, .. } = &watched {
            self.admin.operates(broker.clone());
        }
        self.tasks.spawn(sampler::watch(Arc::clone(&self.admin), watched, self.admin.closing.clone()));
    }

    /// The admin state, from which the port answers.
    #[must_use]
    pub fn admin(&self) -> &Arc<Admin> {
        &self.admin
    }

    /// Where it listens.
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
