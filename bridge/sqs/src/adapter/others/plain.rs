//! Queues of SQS that know nothing of relay: one from which a bridge takes messages, one where it puts aside the
//! messages that it can't take, and one for the results, if somebody waits for them there.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::time::Duration;

use aws_sdk_sqs::types::{Message, MessageAttributeValue, MessageSystemAttributeName};
use tokio_util::task::TaskTracker;

use crate::adapter::aws::connect::{Clients, Effect, failed};
use crate::adapter::aws::queue::{BATCH_MAX, SqsQueue, whole_seconds};
use crate::adapter::others::mailbox::{Mailbox, largest};
use crate::config::SqsConfig;
use crate::forward::Render;
use crate::limits::FIFO;
use relay_bridge::contract::job;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::result_log::Finished;

/// The most attributes of a message that AWS takes.
const ATTRIBUTES_MAX: usize = 10;
/// The attribute that says how many bridges a message came over. It is the first of those that a bridge adds.
const HOPS: &str = "Relay-Hops";
/// The longest reason that goes with a message, in bytes.
const DETAIL_MAX: usize = 1_024;

/// A queue that others send to.
pub struct PlainQueue {
    clients: Clients,
    queue: SqsQueue,
    url: String,
    put_aside: String,
    /// The most bytes of a message that is put aside, attributes included.
    aside_max: usize,
    replies: Option<Mailbox>,
    tasks: TaskTracker,
}

/// A message that was received from a queue.
#[derive(Clone, Debug)]
pub struct PlainMessage {
    /// The message's id in SQS. The same message comes again under the same id.
    pub id: String,
    /// The body.
    pub body: String,
    /// Its attributes that are text or numbers, by their names in lower case.
    pub attributes: BTreeMap<String, String>,
    /// About how often the message was received, this time included.
    pub receives: u64,
    /// All attributes, as they came.
    all: HashMap<String, MessageAttributeValue>,
    handle: String,
}

impl PlainQueue {
    /// Opens the queue at `url`, which must exist. `config` says how SQS is reached; its table and prefix are not used.
    /// `put_aside` is the queue for messages that can't be taken, and `reply` the one for results.
    ///
    /// # Errors
    /// `Invalid` for a configuration that is wrong; `NotFound`, `Unauthorized` and `Unavailable` as AWS says.
    pub async fn open(
        config: &SqsConfig,
        url: &str,
        put_aside: &str,
        reply: Option<&str>,
    ) -> Result<Self, BrokerError> {
        const OPERATION: &str = "open queue";
        for url in [url, put_aside].into_iter().chain(reply) {
            if !["http://", "https://"].iter().any(|scheme| url.starts_with(scheme)) {
                let why = format!("`{url}` is no queue: write its URL, https://sqs.REGION.amazonaws.com/ACCOUNT/NAME");
                return Err(BrokerError::new(BrokerErrorKind::Invalid, OPERATION, why));
            }
        }
        if url == put_aside || reply.is_some_and(|reply| reply == url || reply == put_aside) {
            let why = "what is put aside, or answered, would come back as a message: name three different queues";
            return Err(BrokerError::new(BrokerErrorKind::Invalid, OPERATION, why));
        }
        let (clients, tasks) = (Clients::new(config).await?, TaskTracker::new());
        let queue = |url: &str| SqsQueue::new(clients.clone(), &tasks, url.to_owned(), url.ends_with(FIFO));
        let opened = queue(url);
        opened.counts(OPERATION).await?;
        let (message_max, aside_max) =
            (largest(&clients.queues, url, OPERATION).await?, largest(&clients.queues, put_aside, OPERATION).await?);
        if aside_max < message_max {
            let why = format!(
                "{put_aside} takes messages of {aside_max} bytes, {url} of {message_max}: raise its MaximumMessageSize, or \
                 large messages could not be put aside"
            );
            return Err(BrokerError::new(BrokerErrorKind::Invalid, OPERATION, why));
        }
        let replies = match reply {
            Some(reply) => Some(Mailbox::open(&clients.queues, queue(reply), OPERATION).await?),
            None => None,
        };
        let (url, put_aside) = (url.to_owned(), put_aside.to_owned());
        Ok(Self { queue: opened, url, put_aside, aside_max, replies, clients, tasks })
    }

    /// The queue's name: the last part of its URL.
    #[must_use]
    pub fn name(&self) -> &str {
        self.url.rsplit('/').next().unwrap_or_default()
    }

    /// Receives up to `max` messages, at most 10, hidden from others for `hidden`; waits for the first one up to
    /// `wait`, at most 20 s.
    ///
    /// # Errors
    /// As AWS says. Messages whose receipt was lost come again after `hidden`.
    pub async fn receive(
        &self,
        max: NonZeroU32,
        hidden: Duration,
        wait: Duration,
    ) -> Result<Vec<PlainMessage>, BrokerError> {
        let max = usize::try_from(max.get()).unwrap_or(BATCH_MAX).min(BATCH_MAX);
        let call = self
            .clients
            .receiving
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(i32::try_from(max).unwrap_or(1))
            .visibility_timeout(whole_seconds(hidden))
            .wait_time_seconds(whole_seconds(wait).min(20))
            .message_attribute_names("All")
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount);
        let output = call.send().await.map_err(|error| failed("receive", Effect::None, error))?;
        Ok(output.messages.unwrap_or_default().into_iter().filter_map(read).collect())
    }

    /// Takes a message out of line for good.
    ///
    /// # Errors
    /// As AWS says; it may be repeated.
    pub async fn delete(&self, message: &PlainMessage) -> Result<(), BrokerError> {
        self.queue.delete(&message.handle).await
    }

    /// Makes a message come again after `time`, rounded up to a second; zero means at once.
    ///
    /// # Errors
    /// As AWS says; it may be repeated.
    pub async fn hide(&self, message: &PlainMessage, time: Duration) -> Result<(), BrokerError> {
        self.queue.hide(&message.handle, time).await
    }

    /// Sends a copy of a message to the queue for messages that are put aside, with its hops and the reason as
    /// attributes. SQS allows ten attributes: the message's own attributes go first, but one of them makes room for the
    /// hops if there is none, because the hops end circles. If all of them are too large for one message, the message's
    /// own attributes stay behind first, then the reason, and then the hops.
    ///
    /// # Errors
    /// As AWS says. Repeated, it may be there twice, except in a FIFO queue.
    pub async fn copy_aside(&self, message: &PlainMessage, reason: &str, detail: &str) -> Result<(), BrokerError> {
        const OPERATION: &str = "put aside";
        let hops = job::hops(&message.attributes).saturating_add(1).to_string();
        let mut facts = Vec::new();
        for (name, value) in
            [(HOPS, &*hops), ("Relay-Reason", reason), ("Relay-Detail", detail), ("Relay-Queue", self.name())]
        {
            let end = value.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= DETAIL_MAX).last();
            let value = MessageAttributeValue::builder()
                .data_type("String")
                .string_value(&value[..end.unwrap_or_default()])
                .build()
                .map_err(|error| BrokerError::new(BrokerErrorKind::Invalid, OPERATION, error.to_string()))?;
            facts.push((name.to_owned(), value));
        }
        let mut all = message.all.clone();
        // Of names that differ in case only one would count, and it might be the old one.
        all.retain(|name, _| !name.eq_ignore_ascii_case(HOPS));
        if all.len() == ATTRIBUTES_MAX
            && let Some(last) = all.keys().max().cloned()
        {
            all.remove(&last);
            tracing::warn!(message_id = %message.id, attribute = last, "an attribute of what is put aside makes room for its hops");
        }
        for (name, value) in &facts {
            if all.len() < ATTRIBUTES_MAX || all.contains_key(name) {
                all.insert(name.clone(), value.clone());
            }
        }
        let room = self.aside_max.saturating_sub(message.body.len());
        let fits = |attributes: &HashMap<_, _>| attributes.iter().map(size).sum::<usize>() <= room;
        let bare = facts.iter().take(1).cloned().collect();
        let less = [all, facts.into_iter().collect(), bare];
        let attributes = less.into_iter().find(fits);
        let fifo = self.put_aside.ends_with(FIFO);
        let call = self.clients.queues.send_message().queue_url(&self.put_aside).message_body(&message.body);
        let call = call
            .set_message_attributes(attributes)
            .set_message_group_id(fifo.then(|| self.name().to_owned()))
            .set_message_deduplication_id(fifo.then(|| message.id.clone()));
        call.send().await.map(drop).map_err(|error| failed(OPERATION, Effect::Write, error))
    }

    /// Whether there is a queue for results.
    #[must_use]
    pub fn has_replies(&self) -> bool {
        self.replies.is_some()
    }

    /// Sends a result to the queue for results, if there is one: the text that `render` makes of it, with the message's
    /// id as `Relay-In-Reply-To`.
    ///
    /// # Errors
    /// As AWS says. Repeated, it may be there twice, except in a FIFO queue within 5 minutes: readers deduplicate on
    /// `Relay-Run-Id`.
    pub async fn reply(&self, message: &PlainMessage, render: &Render, finished: &Finished) -> Result<(), BrokerError> {
        let Some(replies) = &self.replies else { return Ok(()) };
        let mut outgoing = replies.message(render, finished);
        outgoing.attributes.push(("Relay-In-Reply-To", message.id.clone()));
        // One answer for each message, also where two messages came to one job. SQS takes 128 characters.
        let both = |run| format!("{run}-{}", message.id).chars().take(128).collect();
        outgoing.deduplication = outgoing.deduplication.map(both);
        replies.queue.send(outgoing).await
    }

    /// Waits until everything that was handed over is sent.
    pub async fn close(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The share of an attribute in a message's bytes: its name, type and value, as the developer guide of SQS says.
fn size((name, value): (&String, &MessageAttributeValue)) -> usize {
    let bytes = value.string_value().map_or(0, str::len) + value.binary_value().map_or(0, |bytes| bytes.as_ref().len());
    name.len() + value.data_type().len() + bytes
}

/// `None` for a message without a handle, which AWS does not send.
fn read(message: Message) -> Option<PlainMessage> {
    let receives = message
        .attributes()
        .and_then(|all| all.get(&MessageSystemAttributeName::ApproximateReceiveCount)?.parse().ok())
        .unwrap_or(1);
    let all = message.message_attributes.unwrap_or_default();
    // Of names that differ in case only, the first in the order of their bytes counts, each time.
    let mut attributes = BTreeMap::new();
    for (name, value) in all.iter().collect::<BTreeMap<_, _>>() {
        if let Some(value) = value.string_value() {
            attributes.entry(name.to_ascii_lowercase()).or_insert_with(|| value.to_owned());
        }
    }
    Some(PlainMessage {
        id: message.message_id?,
        body: message.body.unwrap_or_default(),
        attributes,
        receives,
        handle: message.receipt_handle?,
        all,
    })
}
