//! Several servers on loopback that are routed together and share one JetStream.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::process::Port;
use super::server::{NatsServer, NatsServerBuilder};

/// How long the nodes may take to agree on a leader after each of them is up.
const AGREE_MAX: Duration = Duration::from_secs(60);

/// A cluster of [`NatsServer`]s. All are killed when it is dropped.
#[derive(Debug)]
pub struct NatsCluster {
    nodes: Vec<NatsServer>,
    /// Where the nodes talk to each other; held for as long as the cluster lives.
    _routes: Vec<Port>,
}

impl NatsCluster {
    /// `size` nodes as usual, ready to hold a stream with as many replicas.
    ///
    /// # Panics
    /// If they don't agree within a minute, with the end of a log.
    pub async fn start(size: usize) -> Self {
        Self::start_with(size, NatsServer::builder()).await
    }

    /// `size` nodes of one configuration.
    ///
    /// # Panics
    /// If they don't agree within a minute, with the end of a log.
    pub async fn start_with(size: usize, builder: NatsServerBuilder) -> Self {
        let routes: Vec<_> = (0..size).map(|_| Port::reserve()).collect();
        let all: Vec<_> = routes.iter().map(Port::address).collect();
        let node = |port: &Port| NatsServer::prepare(builder.clone().routed(port.address(), &all));
        let mut cluster = Self { nodes: routes.iter().map(node).collect(), _routes: routes };
        cluster.nodes.iter_mut().for_each(NatsServer::launch);
        for node in &mut cluster.nodes {
            node.ready().await;
        }
        cluster.agreed().await;
        cluster
    }

    /// Waits until the nodes have one leader, which counts all of the others as current.
    async fn agreed(&self) {
        let until = Instant::now() + AGREE_MAX;
        while !self.is_agreed().await {
            let log = || self.nodes.first().map(NatsServer::log).unwrap_or_default();
            assert!(Instant::now() < until, "the nodes have no leader; the first said:\n{}", log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn is_agreed(&self) -> bool {
        let Some(leader) = self.leader().await else { return false };
        let Some(seen) = self.nodes[leader].monitor("/jsz").await else { return false };
        let is_current = |replica: &Value| replica["current"] == true && replica["offline"] != true;
        let others = seen["meta_cluster"]["replicas"].as_array().map_or(&[][..], Vec::as_slice);
        others.len() + 1 == self.nodes.len() && others.iter().all(is_current)
    }

    /// The node that leads JetStream's own group, if every node that runs names the same.
    pub async fn leader(&self) -> Option<usize> {
        let mut leader = None;
        for node in self.nodes.iter().filter(|node| node.runs()) {
            let seen = node.monitor("/jsz").await?;
            let name = seen["meta_cluster"]["leader"].as_str().filter(|name| !name.is_empty())?.to_owned();
            if *leader.get_or_insert_with(|| name.clone()) != name {
                return None;
            }
        }
        self.nodes.iter().position(|node| Some(node.name()) == leader.as_deref())
    }

    /// Where clients connect, in the order of the nodes.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(NatsServer::url).collect()
    }

    /// All of [`Self::urls`], separated by commas.
    #[must_use]
    pub fn url(&self) -> String {
        self.urls().join(",")
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[NatsServer] {
        &self.nodes
    }

    /// The place of the node named `name`, as streams and consumers name their leader.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name() == name)
    }

    /// SIGKILL for one node.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// SIGKILL for all nodes at once, and all of them again, until they agree.
    ///
    /// # Panics
    /// If they don't agree within a minute, with the end of a log.
    pub async fn crash(&mut self) {
        self.nodes.iter_mut().for_each(NatsServer::kill);
        self.nodes.iter_mut().for_each(NatsServer::launch);
        for node in &mut self.nodes {
            node.ready().await;
        }
        self.agreed().await;
    }

    /// Starts one node again and waits until it is current; it is killed first if it runs.
    ///
    /// # Panics
    /// If it does not become ready within a minute, with the end of its log.
    pub async fn restart(&mut self, node: usize) {
        self.nodes[node].restart().await;
    }
}
