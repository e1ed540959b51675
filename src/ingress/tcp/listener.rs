//! Accepts connections, of which those of unknown peers are few, waits out errors of accepting, and drains.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use relay_bridge::contract::wire::FRAME_MAX;

use super::memory::Memory;
use super::{WorkerListener, session};
use crate::evicting::{EvictingPool, Member};

/// When connections stop.
#[derive(Clone)]
pub(super) struct Stop {
    /// Lease no more, finish what is held.
    pub(super) drain: CancellationToken,
    /// Close now.
    pub(super) now: CancellationToken,
    /// When `now` is, at the latest.
    pub(super) within: Duration,
}

/// A new connection's way in.
pub(super) struct Door {
    /// The places of workers.
    pub(super) places: Arc<Semaphore>,
    /// The place of a peer that is not known yet.
    pub(super) unknown: Member,
    pub(super) memory: Memory,
}

impl WorkerListener {
    /// Accepts workers until `shutdown`. Then it stops accepting, tells the connected workers, answers waiting leases,
    /// and keeps each connection until its requests are answered and the jobs it holds are settled, at most for
    /// `drain` and the few seconds that handing back and farewells may take.
    ///
    /// Dropping the future closes every connection.
    ///
    /// # Errors
    /// None so far: errors of accepting (out of file descriptors, a peer that left) are waited out.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: CancellationToken,
        drain: Duration,
    ) -> std::io::Result<()> {
        let stop = Stop { drain: shutdown.child_token(), now: CancellationToken::new(), within: drain };
        let _now = stop.now.clone().drop_guard();
        let connections = TaskTracker::new();
        let server = Arc::new(self);
        accept(&server, listener, &stop, &connections).await;
        connections.close();
        if time::timeout(drain, connections.wait()).await.is_err() {
            tracing::warn!(connections = connections.len(), "the drain is over; connections are closed");
            stop.now.cancel();
            connections.wait().await;
        }
        Ok(())
    }
}

async fn accept(server: &Arc<WorkerListener>, listener: TcpListener, stop: &Stop, connections: &TaskTracker) {
    let permits = usize::try_from(server.limits.connections_max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
    let places = Arc::new(Semaphore::new(permits));
    let unknown = EvictingPool::new(usize::try_from(server.limits.unknown_max).unwrap_or(usize::MAX));
    let memory = Memory::new(server.limits.bytes, server.limits.frame_max.min(FRAME_MAX));
    let mut pause = PAUSE_MIN;
    loop {
        let accepted = tokio::select! {
            () = stop.drain.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                pause = PAUSE_MIN;
                let door = Door { places: Arc::clone(&places), unknown: unknown.enter(), memory: memory.clone() };
                // It may be told to go before the others.
                let (server, stop) = (Arc::clone(server), Stop { drain: stop.drain.child_token(), ..stop.clone() });
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

fn prepare(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "small frames may wait for others");
    }
}

/// Whether the error is of the connection that was to be accepted, not of the listener.
fn of_one_peer(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted)
}

const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(1);
