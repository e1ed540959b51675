//! The messages that go back to a worker: a bounded queue of them, encoded when their turn comes, many in one write.
//! When the worker reads too slowly or is gone, every delivery that was not written goes back in line without spending
//! an attempt.

use std::io::ErrorKind;
use std::sync::Arc;

use bytes::BytesMut;
use relay_bridge::contract::wire::{FromServer, Response};
use relay_bridge::leasing::Receipt;
use tokio::io::AsyncWrite;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::memory::Share;
use super::session::Session;
use super::writing;

/// A message with the permit of the request that it ends.
pub(super) struct Outgoing {
    pub(super) message: FromServer,
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// The bytes of its deliveries, until they are written.
    pub(super) held: Vec<Share>,
}

impl Outgoing {
    /// A message that ends no request.
    pub(super) fn notice(message: FromServer) -> Self {
        Self { message, permit: None, held: Vec::new() }
    }

    /// The receipts of the deliveries in it.
    pub(super) fn receipts(&self) -> impl Iterator<Item = Receipt> {
        let deliveries = match &self.message {
            FromServer::Response { response: Response::Deliveries { deliveries, .. }, .. } => &deliveries[..],
            _ => &[],
        };
        deliveries.iter().map(|delivery| delivery.receipt.clone())
    }
}

/// Writes until every sender is gone or the worker takes no more. `None` if a message is half written: nothing may follow it.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    session: Arc<Session>,
    mut queue: mpsc::Receiver<Outgoing>,
    mut to: W,
) -> Option<W> {
    let mut messages = Vec::with_capacity(MESSAGES_PER_WRITE);
    let mut batch = BytesMut::new();
    let (mut unwritten, mut held) = (Vec::new(), Vec::new());
    while queue.recv_many(&mut messages, MESSAGES_PER_WRITE).await > 0 {
        let mut pending = messages.drain(..).peekable();
        while let Some(outgoing) = pending.next() {
            unwritten.extend(outgoing.receipts());
            outgoing.message.encode(&mut batch);
            held.extend(outgoing.held);
            // Before the write: the worker may send its next request as soon as it has read the answer.
            drop(outgoing.permit);
            if batch.len() < BATCH_BYTES && pending.peek().is_some() {
                continue;
            }
            let mut at = 0;
            let written = tokio::select! {
                biased;
                () = session.ended.cancelled() => Err(ErrorKind::ConnectionAborted.into()),
                () = session.grant.credential.ended() => Err(ErrorKind::ConnectionAborted.into()),
                written = writing::write(&mut to, &batch, &mut at, session.server.limits.write_timeout) => written,
            };
            match written {
                Ok(()) => {
                    unwritten.clear();
                    held.clear();
                }
                Err(error) => {
                    if error.kind() == ErrorKind::TimedOut {
                        tracing::warn!(worker = %session.worker, "the worker takes no more bytes");
                    }
                    unwritten.extend(pending.flat_map(|outgoing| outgoing.receipts().collect::<Vec<_>>()));
                    session.ended.cancel();
                    give_back(&session, queue, unwritten).await;
                    return (at == 0).then_some(to);
                }
            }
            batch.clear();
            if batch.capacity() > BATCH_KEPT_BYTES {
                batch = BytesMut::new();
            }
        }
        session.changed.notify_one();
    }
    Some(to)
}

async fn give_back(session: &Session, mut queue: mpsc::Receiver<Outgoing>, mut unwritten: Vec<Receipt>) {
    queue.close();
    while let Some(outgoing) = queue.recv().await {
        unwritten.extend(outgoing.receipts());
    }
    session.hand_back(unwritten, std::time::Duration::ZERO).await;
}

const MESSAGES_PER_WRITE: usize = 64;
const BATCH_BYTES: usize = 64 * 1024;
/// A buffer that a large payload made larger than this is not kept.
const BATCH_KEPT_BYTES: usize = 1024 * 1024;
