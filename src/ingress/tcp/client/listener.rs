//! Accepts connections into the pools that those of HTTP have, waits out errors of accepting, and drains.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpStream;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Clients, session};
use crate::audit::record::Door;
use crate::ingress::front::{Bound, Front, keep_alive};
use crate::ingress::http;
use crate::ingress::http::beside::{Handed, Stop};
use crate::ingress::http::pools::Member;
use crate::ingress::http::proxied;
use crate::ingress::tcp::listener::{PAUSE_MAX, PAUSE_MIN, of_one_peer, prepare};

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
        let now = CancellationToken::new();
        let stop = Stop { shutdown, now: now.clone(), within: drain };
        let _now = now.drop_guard_ref();
        let connections = TaskTracker::new();
        listeners.iter().for_each(|bound| keep_alive(&bound.listener));
        join_all(listeners.iter().map(|bound| accept(&self, bound, &stop, &connections))).await;
        drop(listeners);
        connections.close();
        if time::timeout(drain, connections.wait()).await.is_err() {
            tracing::warn!(connections = connections.len(), "the drain is over; connections of clients are closed");
            stop.now.cancel();
            connections.wait().await;
        }
        Ok(())
    }

    /// Serves HTTP on `listeners` as [`http::serve`] does, and this protocol to clients whose handshake agreed on `relay/1`, on those
    /// that offer it ([`Secured::clients`](crate::tls::Secured::clients)).
    ///
    /// # Errors
    /// Those of [`http::serve`].
    pub async fn serve_beside_http(
        self: Arc<Self>,
        listeners: Vec<Bound>,
        shutdown: CancellationToken,
        drain: Duration,
    ) -> std::io::Result<()> {
        let ingress = Arc::clone(&self.ingress);
        let beside = Arc::new(move |handed| -> futures_util::future::BoxFuture<'static, ()> {
            Box::pin(session::serve(Arc::clone(&self), handed))
        });
        http::serve_beside(listeners, ingress, Some(beside), shutdown, drain).await
    }
}

async fn accept(clients: &Arc<Clients>, bound: &Bound, stop: &Stop, connections: &TaskTracker) {
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
                // This one waits unread, and the ones behind it in the listen queue, where they cost nothing here.
                let entered = tokio::select! {
                    () = stop.shutdown.cancelled() => return,
                    entered = clients.ingress.pools.enter(peer.ip()) => entered,
                };
                let Some(member) = entered else {
                    tracing::debug!(%peer, "there are as many connections from this address as may be");
                    continue;
                };
                let (clients, front, stop) = (Arc::clone(clients), Arc::clone(&bound.front), stop.clone());
                connections.spawn(async move {
                    prepare(&stream);
                    // On the heap, and gone before the session begins.
                    if let Some(handed) = Box::pin(arrive(&clients, &front, stream, member, stop)).await {
                        session::serve(clients, handed).await;
                    }
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

/// Goes through `front`. `None` if the connection is to be closed.
async fn arrive(clients: &Clients, front: &Front, mut stream: TcpStream, member: Member, stop: Stop) -> Option<Handed> {
    let (ingress, connection) = (&clients.ingress, &member.connection);
    let hello = clients.limits.hello_timeout;
    let until = connection.came() + if front.is_any() { hello * 3 / 2 } else { hello };
    let over = async || {
        tokio::select! {
            () = stop.shutdown.cancelled() => {}
            () = connection.is_to_end() => {}
            () = time::sleep_until(until) => {}
        }
    };
    if front.proxy.is_some() && !proxied::begins(ingress, front, &mut stream, connection, over()).await {
        return None;
    }
    let (stream, holder) = proxied::secured(ingress, (Door::Tcp, front), stream, connection, over()).await.ok()?;
    Some(Handed { stream, holder, member, until, stop })
}
