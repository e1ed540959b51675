//! What a worker process listens to for one queue: hints of what came into line, changes of the policy, and consumers that
//! were made or have another leader. All of it may be lost; a full round makes up for it.

use std::sync::Weak;

use futures_util::StreamExt as _;

use super::dispatch::Line;
use super::{Inner, Nats, names, policy};
use crate::contract::{ClientId, QueueName};
use crate::error::{BrokerError, BrokerErrorKind};

/// What a line listens to.
pub(super) struct Listening {
    hints: async_nats::Subscriber,
    control: async_nats::Subscriber,
    /// Consumers that were made, or that have another leader.
    changes: futures_util::stream::SelectAll<async_nats::Subscriber>,
}

impl Listening {
    pub(super) async fn begin(nats: &Nats, queue: &QueueName) -> Result<Self, BrokerError> {
        let client = nats.api().client();
        let subscribe = |subject: String| async move {
            client.subscribe(subject).await.map_err(|e| {
                let what = "can't subscribe: the connection to NATS is closed";
                BrokerError::new(BrokerErrorKind::Unavailable, "lease", what).with_source(e)
            })
        };
        let stream = names::jobs_stream(queue);
        let advisories = ["CREATED", "LEADER_ELECTED"];
        let mut changes = futures_util::stream::SelectAll::new();
        for advisory in advisories {
            changes.push(subscribe(format!("$JS.EVENT.ADVISORY.CONSUMER.{advisory}.{stream}.*")).await?);
        }
        let listening = Self {
            hints: subscribe(names::hints(queue)).await?,
            control: subscribe(names::control(queue)).await?,
            changes,
        };
        // A request after them on the same connection: once it is answered, they are in place.
        nats.policies().require(queue, "lease").await?;
        Ok(listening)
    }

    pub(super) async fn run(mut self, inner: Weak<Inner>, line: Weak<Line>) {
        let Some(closing) = inner.upgrade().map(|inner| inner.closing.clone()) else { return };
        loop {
            let heard = tokio::select! {
                Some(hint) = self.hints.next() => Heard::Hint(names::client_of_hint(&hint.subject)),
                Some(told) = self.control.next() => Heard::Told(told.payload),
                Some(_) = self.changes.next() => Heard::Changed,
                () = closing.cancelled() => return,
                else => return,
            };
            let (Some(inner), Some(line)) = (inner.upgrade(), line.upgrade()) else { return };
            match heard {
                Heard::Hint(Some(client)) => line.hint(&client),
                Heard::Hint(None) => {}
                Heard::Changed => line.raise_mark(inner.settings.clock.now()),
                Heard::Told(what) if *what == *policy::CHANGED.as_bytes() => {
                    inner.policies.forget(&line.queue);
                    line.woken.notify_waiters();
                }
                Heard::Told(_) => {}
            }
        }
    }
}

enum Heard {
    Hint(Option<ClientId>),
    Told(bytes::Bytes),
    Changed,
}
