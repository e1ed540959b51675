//! A queue of SQS as a foreign queue. A message that is put aside goes to another queue of SQS, and only then is it
//! deleted here.
//!
//! With a queue for results a message is hidden until its result was sent there, and deleted then: the bridge keeps nothing,
//! and whoever gets the message after a crash finds the job, and its result, once more.
//!
//! A message has no place: without a key its id is the key, which SQS gives each message that is sent.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use relay_bridge::contract::Failure;
use relay_bridge::error::BrokerError;
use relay_bridge::result_log::Finished;
use relay_sqs::Render;
use relay_sqs::plain::{PlainMessage, PlainQueue};

use super::{ForeignQueue, Incoming, Message};
use crate::api::result::ResultView;

/// How long a message in hand is hidden from others; it is hidden again at a third of it.
const HIDDEN: Duration = Duration::from_secs(30);
/// How long one receive waits for messages. Each is paid for, and a drain waits for the last one.
const WAIT: Duration = Duration::from_secs(5);

#[async_trait]
impl ForeignQueue for PlainQueue {
    type Receipt = PlainMessage;

    fn pull(&self, max: NonZeroU32) -> BoxStream<'_, Result<Incoming<PlainMessage>, BrokerError>> {
        let received = async move { self.receive(max, HIDDEN, WAIT).await };
        let messages = stream::once(received).flat_map(move |received| match received {
            Ok(messages) => stream::iter(messages).map(|message| Ok(incoming(self.name(), message))).boxed(),
            Err(error) => stream::once(std::future::ready(Err(error))).boxed(),
        });
        messages.boxed()
    }

    fn hold_every(&self, _: &PlainMessage) -> Duration {
        HIDDEN / 3
    }

    async fn hold(&self, receipt: &PlainMessage) -> Result<(), BrokerError> {
        self.hide(receipt, HIDDEN).await
    }

    async fn taken(&self, receipt: &PlainMessage) -> Result<(), BrokerError> {
        self.delete(receipt).await
    }

    fn replies(&self) -> bool {
        self.has_replies()
    }

    async fn reply(&self, receipt: &PlainMessage, finished: &Finished) -> Result<(), BrokerError> {
        let render: Render = Arc::new(ResultView::message);
        Self::reply(self, receipt, &render, finished).await
    }

    async fn give_back(&self, receipt: &PlainMessage, after: Duration) -> Result<(), BrokerError> {
        self.hide(receipt, after).await
    }

    async fn put_aside(&self, incoming: &Incoming<PlainMessage>, why: &Failure) -> Result<(), BrokerError> {
        self.copy_aside(&incoming.receipt, &why.reason, &why.detail).await?;
        self.delete(&incoming.receipt).await
    }
}

fn incoming(queue: &str, message: PlainMessage) -> Incoming<PlainMessage> {
    let read = Message {
        subject: queue.to_owned(),
        headers: message.attributes.clone(),
        headers_malformed: false,
        id: Some(message.id.clone()),
        place: None,
        body: message.body.clone().into(),
        delivered: message.receives,
    };
    Incoming { message: read, receipt: message }
}
