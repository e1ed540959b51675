//! Accepts connections, of which those of unknown peers are few, waits out errors of accepting, and drains.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpStream;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use relay_bridge::contract::wire::FRAME_MAX;

use super::memory::Memory;
use super::places::Places;
use super::{WorkerLimits, WorkerListener, session};
use crate::evicting::{EvictingPool, Member};
use crate::ingress::front::{Bound, Front, keep_alive};

/// When connections stop.
#[derive(Clone)]
pub(super) struct Stop {
    /// Lease no more, finish what is held.
    pub(super) drain: CancellationToken,
    /// Close now.
    pub(super) now: CancellationToken,
    /// When `now` is, at the latest.
    pub(super) within: Duration,
    /// The connection is old: it is drained, and keeps no job that it holds from its worker's next one.
    pub(super) old: CancellationToken,
}

/// A new connection's way in.
pub(super) struct Door {
    pub(super) front: Arc<Front>,
    /// The places of workers.
    pub(super) places: Arc<Places>,
    /// The place of a peer that is not known yet.
    pub(super) unknown: Member,
    pub(super) memory: Memory,
    /// The leases that may wait.
    pub(super) leases: Memory,
}

/// The places, the memory and the waits of workers, whichever listener they come by.
struct Rooms {
    places: Arc<Places>,
    unknown: EvictingPool,
    memory: Memory,
    leases: Memory,
}

impl WorkerListener {
    /// Accepts workers on all `listeners` until `shutdown`. Then it stops accepting, tells the connected workers, answers waiting leases,
    /// and keeps each connection until its requests are answered and the jobs it holds are settled, at most for
    /// `drain` and the few seconds that handing back and farewells may take.
    ///
    /// Dropping the future closes every connection.
    ///
    /// # Errors
    /// None so far: errors of accepting (out of file descriptors, a peer that left) are waited out.
    pub async fn serve(
        self,
        listeners: Vec<Bound>,
        shutdown: CancellationToken,
        drain: Duration,
    ) -> std::io::Result<()> {
        let stop = Stop {
            drain: shutdown.child_token(),
            now: CancellationToken::new(),
            within: drain,
            old: CancellationToken::new(),
        };
        let _now = stop.now.clone().drop_guard();
        let connections = TaskTracker::new();
        let server = Arc::new(self);
        let rooms = Rooms::new(&server.limits);
        listeners.iter().for_each(|bound| keep_alive(&bound.listener));
        join_all(listeners.iter().map(|bound| accept(&server, bound, &rooms, &stop, &connections))).await;
        drop(listeners);
        connections.close();
        if time::timeout(drain, connections.wait()).await.is_err() {
            tracing::warn!(connections = connections.len(), "the drain is over; connections are closed");
            stop.now.cancel();
            connections.wait().await;
        }
        Ok(())
    }
}

impl Rooms {
    fn new(limits: &WorkerLimits) -> Self {
        Self {
            places: Places::new(limits.connections_max),
            unknown: EvictingPool::new(usize::try_from(limits.unknown_max).unwrap_or(usize::MAX)),
            memory: Memory::new(limits.bytes, limits.frame_max.min(FRAME_MAX)),
            leases: Memory::of_leases(),
        }
    }

    fn door(&self, front: &Arc<Front>) -> Door {
        Door {
            front: Arc::clone(front),
            places: Arc::clone(&self.places),
            unknown: self.unknown.enter(),
            memory: self.memory.clone(),
            leases: self.leases.clone(),
        }
    }
}

async fn accept(server: &Arc<WorkerListener>, bound: &Bound, rooms: &Rooms, stop: &Stop, connections: &TaskTracker) {
    let mut pause = PAUSE_MIN;
    loop {
        let accepted = tokio::select! {
            () = stop.drain.cancelled() => return,
            accepted = bound.listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                pause = PAUSE_MIN;
                if !bound.front.lets_in(peer.ip(), &server.arrivals) {
                    continue;
                }
                let door = rooms.door(&bound.front);
                // It may be told to go before the others.
                let old = CancellationToken::new();
                let (server, stop) =
                    (Arc::clone(server), Stop { drain: stop.drain.child_token(), old, ..stop.clone() });
                let member = server.leaving.enter(stop.drain.clone());
                connections.spawn(async move {
                    prepare(&stream);
                    session::serve(server, stream, peer, door, stop).await;
                    drop(member);
                });
            }
            Err(error) if of_one_peer(error.kind()) => {}
            Err(error) => {
                tracing::warn!(%error, pause_ms = pause.as_millis(), "accepting failed");
                tokio::select! {
                    () = stop.drain.cancelled() => return,
                    () = time::sleep(pause) => {}
                }
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

pub(super) fn prepare(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "small frames may wait for others");
    }
}

/// Whether the error is of the connection that was to be accepted, not of the listener.
pub(super) fn of_one_peer(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted)
}

pub(super) const PAUSE_MIN: Duration = Duration::from_millis(5);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(1);
