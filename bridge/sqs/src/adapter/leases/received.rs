//! Received messages, and the outcomes of their claims.

use std::time::Duration;

use aws_sdk_sqs::types::{Message, MessageSystemAttributeName};
use tokio::time::Instant;

use crate::adapter::stored::wake_up::Wake;
use relay_bridge::contract::Timestamp;
use relay_bridge::leasing::Delivery;

/// The greatest age of a received message whose lease runs from its receive on, as SQS hides it from then on. An older
/// message was at hand, and is hidden anew.
const FRESH: Duration = Duration::from_secs(1);

/// A message that was received.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) wake: Wake,
    pub(crate) handle: String,
    pub(crate) at: Instant,
    /// The same moment on the wall clock.
    pub(crate) received_at: Timestamp,
    hidden: Duration,
    /// Nobody received the message before.
    pub(crate) first: bool,
}

/// The outcome of a claim.
pub(crate) enum Claimed {
    /// A lease.
    Delivery(Box<Delivery>),
    /// No lease: the message's client runs as many jobs as it may.
    Bounded(Received),
    /// No lease: the job may not run now, or not any more.
    Nothing,
}

impl Received {
    /// `None` if the message is none of relay's.
    pub(crate) fn read(message: &Message, handle: String, hidden: Duration, now: Timestamp) -> Option<Self> {
        let wake = serde_json::from_str(message.body()?).ok()?;
        let count =
            message.attributes().and_then(|told| told.get(&MessageSystemAttributeName::ApproximateReceiveCount));
        let first = count.is_some_and(|count| count == "1");
        Some(Self { wake, handle, at: Instant::now(), received_at: now, hidden, first })
    }

    pub(crate) fn is_fresh(&self) -> bool {
        self.at.elapsed() < FRESH
    }

    /// When SQS gives the message to others.
    pub(crate) fn visible_at(&self) -> Instant {
        self.at + self.hidden
    }
}
