//! A follow request on a connection.

use std::sync::Arc;

use relay_bridge::contract::wire::client::{Follow, FromClient};
use tokio::sync::mpsc;

use super::connection::{Answer, Connection, Unbegun};

/// A follow request; dropped, it is stopped.
pub(super) struct Followed {
    connection: Arc<Connection>,
    id: u64,
    receiver: mpsc::Receiver<Answer>,
}

impl Followed {
    /// Begins to follow on `connection`.
    pub(super) async fn begin(connection: Arc<Connection>, follow: Follow) -> Result<Self, Unbegun> {
        let (id, receiver) = connection.follow(follow).await?;
        Ok(Self { connection, id, receiver })
    }

    /// The next message.
    pub(super) async fn next(&mut self) -> Answer {
        self.receiver.recv().await.unwrap_or_else(|| Err(self.connection.why()))
    }

    /// The next message, if it is here.
    pub(super) fn here(&mut self) -> Option<Answer> {
        self.receiver.try_recv().ok()
    }

    /// Gives the server new credit for so many results that were taken.
    pub(super) fn credit(&self, results: u32) {
        self.connection.credits(self.id, results);
    }

    pub(super) fn stop(&self) {
        self.connection.add(self.id, &FromClient::Stop { id: self.id });
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.connection.give_up(self.id, true);
    }
}
