//! The queues from which this process leases: how many of their jobs may be on their way, and the recheck mark of each,
//! up to which its consumers are in doubt.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use async_nats::HeaderMap;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::lanes::Lanes;
use super::places::Places;
use super::queue_state::QueueState;
use crate::stored::control;
use crate::stored::names::{self, Lane};
use crate::wire::api::Api;
use crate::wire::stream_calls;
use relay_bridge::contract::QueueName;
use relay_bridge::error::BrokerError;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::support::lock;

/// The queue states of this process.
pub(crate) struct Lines {
    pub(crate) api: Api,
    pub(crate) tasks: TaskTracker,
    pub(crate) lanes: Arc<Lanes>,
    /// The queues from which this process leases.
    pub(crate) open: tokio::sync::Mutex<HashMap<QueueName, Arc<QueueState>>>,
    /// How many jobs of these may be on their way.
    pub(crate) places: Mutex<Places>,
}

impl Lines {
    /// The queue's state, if this process leases from it.
    pub(crate) async fn known_line(&self, queue: &QueueName) -> Option<Arc<QueueState>> {
        self.open.lock().await.get(queue).cloned()
    }

    pub(crate) fn places(&self) -> MutexGuard<'_, Places> {
        lock(&self.places)
    }

    /// How many more jobs of the queue may be on their way to this process.
    pub(crate) fn free(&self, line: &QueueState) -> u32 {
        self.places().free(&line.queue, Instant::now())
    }

    /// If the connection was made again since the recheck mark was set, every job is looked up first from here on,
    /// until the server says up to which one.
    pub(crate) fn recheck_all_if_reconnected(self: &Arc<Self>, line: &Arc<QueueState>) {
        let connections = self.api.connections();
        if line.connections.swap(connections, Ordering::AcqRel) != connections {
            line.recheck_all();
            let (lines, line) = (Arc::clone(self), Arc::clone(line));
            // If that fails, the next round asks again.
            self.tasks.spawn(async move { drop(lines.raise_recheck_mark(&line).await) });
        }
    }

    /// Raises the recheck mark if the connection was made again since it was set.
    pub(crate) async fn recheck_if_reconnected(&self, line: &QueueState) -> Result<(), BrokerError> {
        let connections = self.api.connections();
        if line.connections.swap(connections, Ordering::AcqRel) != connections {
            self.raise_recheck_mark(line).await?;
        }
        Ok(())
    }

    /// Raises the recheck mark: from here on every job that is stored already is looked up first, because its consumer
    /// was made again, or has another leader, or the connection was lost meanwhile. Until the server says how far that
    /// goes, all jobs are looked up.
    pub(crate) async fn raise_recheck_mark(&self, line: &QueueState) -> Result<(), BrokerError> {
        let raised = line.recheck_all();
        let stream =
            stream_calls::get(&self.api, &names::jobs_stream(&line.queue), "lease").await.inspect_err(|_| {
                // As after a reconnect: the next round asks again.
                line.connections.store(u64::MAX, Ordering::Release);
                line.rounds.soon();
            })?;
        line.set_recheck_mark(raised, stream.info.state.last_sequence);
        Ok(())
    }

    /// The lane's consumer was reset, or somebody made another of its name: here and in the other processes every job that is
    /// stored is looked up from now on.
    pub(crate) async fn begins_anew(&self, line: &QueueState, lane: &Lane) {
        tracing::warn!(queue = %line.queue, consumer = %lane, "a consumer began anew: its deliveries are looked up first");
        let anew = control::BEGAN_ANEW.into();
        let told = self.api.tell(names::control(&line.queue), HeaderMap::new(), anew);
        // If it fails, every job is looked up until the stream was asked again.
        drop(tokio::join!(self.raise_recheck_mark(line), told));
    }

    /// Makes a consumer again that somebody deleted. It delivers everything again, so everything is looked up.
    pub(crate) async fn restore_consumer(
        &self,
        line: &QueueState,
        policy: &QueuePolicy,
        lane: &Lane,
    ) -> Result<(), BrokerError> {
        tracing::warn!(queue = %line.queue, consumer = %lane, "a consumer was gone: made again");
        self.raise_recheck_mark(line).await?;
        self.lanes.consumers.forget(&line.queue, lane);
        self.lanes.make_consumer(&line.queue, lane, policy).await?;
        line.more(lane);
        Ok(())
    }
}
