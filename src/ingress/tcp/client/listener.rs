//! Accepts connections, of which those of unknown peers are few, waits out errors of accepting, and drains.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Clients, session};
use crate::evicting::EvictingPool;
use crate::ingress::front::Bound;
use crate::ingress::tcp::listener::{PAUSE_MAX, PAUSE_MIN, of_one_peer, prepare};

/// When connections stop.
#[derive(Clone)]
pub(super) struct Stop {
    /// The client is to connect elsewhere.
    pub(super) go: CancellationToken,
    /// Nothing new is begun, and waits are answered.
    pub(super) shutdown: CancellationToken,
    /// Close now.
    pub(super) now: CancellationToken,
    /// When `now` is after `shutdown`, at the latest.
    pub(super) within: Duration,
}

impl Clients {
    /// Accepts clients on all `listeners` until `shutdown`. Then it stops accepting, answers waits, and keeps each connection until its requests are
    /// answered, at most for `drain`.
    ///
    /// Dropping the future closes every connection.
    ///
    /// # Errors
    /// None so far: errors of accepting (out of file descriptors, a peer that left) are waited out.
    pub async fn serve(
        self: Arc<Self>,
        listeners: Vec<Bound>,
        shutdown: CancellationToken,
        drain: Duration,
    ) -> std::io::Result<()> {
        let (go, now) = (shutdown.child_token(), CancellationToken::new());
        let stop = Stop { go, shutdown, now: now.clone(), within: drain };
        let _now = now.drop_guard_ref();
        let connections = TaskTracker::new();
        let unknown = EvictingPool::new(usize::try_from(self.limits.unknown_max).unwrap_or(usize::MAX));
        join_all(listeners.iter().map(|bound| accept(&self, bound, &unknown, &stop, &connections))).await;
        drop(listeners);
        connections.close();
        if time::timeout(drain, connections.wait()).await.is_err() {
            tracing::warn!(connections = connections.len(), "the drain is over; connections of clients are closed");
            stop.now.cancel();
            connections.wait().await;
        }
        Ok(())
    }
}

async fn accept(clients: &Arc<Clients>, bound: &Bound, unknown: &EvictingPool, stop: &Stop, connections: &TaskTracker) {
    let mut pause = PAUSE_MIN;
    loop {
        let accepted = tokio::select! {
            () = stop.shutdown.cancelled() => return,
            accepted = bound.listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                pause = PAUSE_MIN;
                if !bound.front.lets_in(peer.ip(), &clients.ingress.arrivals) {
                    continue;
                }
                // It may be told to go before the others.
                let stop = Stop { go: stop.go.child_token(), ..stop.clone() };
                let (clients, unknown, front) = (Arc::clone(clients), unknown.enter(), Arc::clone(&bound.front));
                let member = clients.leaving.enter(stop.go.clone());
                connections.spawn(async move {
                    prepare(&stream);
                    session::serve(clients, (stream, peer.ip()), &front, unknown, stop).await;
                    drop(member);
                });
            }
            Err(error) if of_one_peer(error.kind()) => {}
            Err(error) => {
                tracing::warn!(%error, pause_ms = pause.as_millis(), "accepting failed");
                tokio::select! {
                    () = stop.shutdown.cancelled() => return,
                    () = time::sleep(pause) => {}
                }
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}
