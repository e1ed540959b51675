//! The messages that go back to a client: a bounded queue of them, encoded when their turn comes, many in one write. A client
//! that takes no bytes loses its connection; what was not written is answered again when it asks again.

use std::io::ErrorKind;
use std::sync::Arc;

use bytes::BytesMut;
use relay_bridge::contract::wire::client::ToClient;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;

use super::session::Session;
use crate::ingress::budget::Share;
use crate::ingress::tcp::writing;

/// A message on its way.
pub(super) struct Outgoing {
    pub(super) message: ToClient,
    /// The room for its payload, until it has left.
    pub(super) room: Option<Share>,
}

impl Outgoing {
    /// A message that holds nothing.
    pub(super) fn notice(message: ToClient) -> Self {
        Self { message, room: None }
    }
}

/// Writes until every sender is gone or the client takes no more. `None` if a message is half written: nothing may follow it.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    session: Arc<Session>,
    mut queue: mpsc::Receiver<Box<Outgoing>>,
    mut to: W,
) -> Option<W> {
    let mut messages = Vec::new();
    let mut batch = BytesMut::new();
    let mut held: Vec<Share> = Vec::new();
    while queue.recv_many(&mut messages, MESSAGES_PER_WRITE).await > 0 {
        let mut pending = messages.drain(..).peekable();
        while let Some(outgoing) = pending.next() {
            let Outgoing { message, room } = *outgoing;
            message.encode(&mut batch);
            // The payload is in the batch now.
            drop(message);
            held.extend(room);
            if batch.len() < BATCH_BYTES && pending.peek().is_some() {
                continue;
            }
            let mut at = 0;
            let written = tokio::select! {
                biased;
                () = session.ended.cancelled() => Err(ErrorKind::ConnectionAborted.into()),
                () = session.caller.credential.ended() => Err(ErrorKind::ConnectionAborted.into()),
                written = writing::write(&mut to, &batch, &mut at, session.clients.limits.write_timeout) => written,
            };
            held.clear();
            if let Err(error) = written {
                if error.kind() == ErrorKind::TimedOut {
                    tracing::info!(client = %session.caller.client, "a client takes no more bytes");
                }
                session.ended.cancel();
                return (at == 0).then_some(to);
            }
            batch.clear();
        }
        drop(pending);
        // Nothing of a burst is kept while nothing is written.
        if queue.is_empty() && batch.capacity() > BATCH_KEPT_BYTES || batch.capacity() > BATCH_BYTES {
            batch = BytesMut::new();
        }
        if queue.is_empty() && messages.capacity() > MESSAGES_KEPT {
            messages = Vec::new();
            held = Vec::new();
        }
    }
    Some(to)
}

const MESSAGES_PER_WRITE: usize = 64;
const MESSAGES_KEPT: usize = 4;
const BATCH_BYTES: usize = 64 * 1024;
/// A buffer that grew larger than this is not kept while nothing is to be written.
const BATCH_KEPT_BYTES: usize = 512;
