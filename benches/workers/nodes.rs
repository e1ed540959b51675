//! NATS as a case asks for it: one server, or three that share one JetStream.

use std::time::Duration;

use relay_conformance::testing::{NatsCluster, NatsServer};

use crate::support::cpu_of;

pub(crate) enum Nodes {
    One(NatsServer),
    Three(NatsCluster),
}

impl Nodes {
    /// As many as `RELAY_BENCH_NODES` says: one, unless it says three.
    pub(crate) async fn start() -> Self {
        match std::env::var("RELAY_BENCH_NODES").as_deref() {
            Ok("3") => Self::Three(NatsCluster::start(3).await),
            Ok("1") | Err(_) => Self::One(NatsServer::start().await),
            Ok(other) => panic!("RELAY_BENCH_NODES is 1 or 3, not {other}"),
        }
    }

    pub(crate) fn all(&self) -> &[NatsServer] {
        match self {
            Self::One(node) => std::slice::from_ref(node),
            Self::Three(nodes) => nodes.nodes(),
        }
    }

    /// Where clients connect.
    pub(crate) fn url(&self) -> String {
        self.all().iter().map(NatsServer::url).collect::<Vec<_>>().join(",")
    }

    /// Copies of each message.
    pub(crate) fn replicas(&self) -> usize {
        self.all().len()
    }

    /// CPU time of all of them.
    pub(crate) fn cpu(&self) -> Duration {
        self.all().iter().map(|node| cpu_of(node.pid().unwrap())).sum()
    }

    /// A client of theirs.
    pub(crate) async fn client(&self) -> async_nats::Client {
        connect(&self.url()).await
    }
}

/// A client of the servers at these addresses, which commas separate.
pub(crate) async fn connect(urls: &str) -> async_nats::Client {
    async_nats::connect(urls.split(',').map(str::to_owned).collect::<Vec<_>>()).await.unwrap()
}
