//! A stream of NATS JetStream as a foreign queue: a durable pull consumer, whose messages are ended by request, so that
//! the server confirms it.
//!
//! A message that is put aside goes to a subject of its own, which a stream must keep, and only then is the message
//! terminated. Without such a subject it stays where it is, in a stream that keeps messages after consumers have ended
//! them.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{self, AckPolicy, Consumer, pull};
use async_nats::jetstream::context::{GetStreamByNameErrorKind, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Info, RetentionPolicy};
use async_nats::{HeaderMap, HeaderValue, Request, RequestErrorKind};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use relay_bridge::contract::{Failure, IdempotencyKey, job};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_nats::connection::Connection;
use tokio::sync::Mutex;

use super::{ForeignQueue, Incoming, Message};

#[cfg(test)]
mod tests;

/// The source to take messages from, and the treatment of those that can't be taken.
#[derive(Clone, Debug)]
pub struct StreamSource {
    /// The stream.
    pub stream: String,
    /// The durable consumer; it is created if it is not there.
    pub consumer: String,
    /// The subjects of the stream to take; empty for all of it. A consumer that is there must have the same.
    pub subjects: Vec<String>,
    /// Where messages go that can't become jobs; a stream must keep it. `None`: they stay in the stream.
    pub put_aside: Option<String>,
    /// Where results are sent, if they are.
    pub reply: Option<String>,
}

/// A stream that messages are taken from.
pub struct NatsQueue {
    connection: Connection,
    source: StreamSource,
    /// `None` after an error: it is looked for again.
    bound: Mutex<Option<Arc<Bound>>>,
}

struct Bound {
    consumer: Consumer<pull::Config>,
    /// The prefix of every message's place: the stream, and when it was made, because a stream that is made again
    /// counts from the start.
    stream: String,
    ack_wait: Duration,
}

/// A message as it came.
pub struct NatsReceipt {
    message: async_nats::Message,
    place: String,
    hops: u32,
    hold_every: Duration,
}

/// How long one pull waits for messages; also how long a drain waits for those that are on their way.
const PULL_WAIT: Duration = Duration::from_secs(1);
/// How long a confirmation may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long a consumer that is created here waits for the end of a message.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// The headers of a message that was put aside: why, and where it came from.
const REASON: &str = "Relay-Reason";
const DETAIL: &str = "Relay-Detail";
const SUBJECT: &str = "Relay-Subject";
const PLACE: &str = "Relay-Place";
const HOPS: &str = "Relay-Hops";
const FACTS: [&str; 5] = [REASON, DETAIL, SUBJECT, PLACE, HOPS];

impl NatsQueue {
    /// Finds the stream, and finds or creates the consumer.
    ///
    /// # Errors
    /// `Invalid` with what to do, for a stream or consumer that would lose messages; `NotFound` without the stream;
    /// `Unavailable` while NATS is away.
    pub async fn open(connection: Connection, source: StreamSource) -> Result<Self, BrokerError> {
        let queue = Self { connection, source, bound: Mutex::default() };
        queue.bound().await?;
        Ok(queue)
    }

    async fn bound(&self) -> Result<Arc<Bound>, BrokerError> {
        const OPERATION: &str = "open stream";
        let mut bound = self.bound.lock().await;
        if let Some(bound) = &*bound {
            return Ok(Arc::clone(bound));
        }
        self.connection.up(OPERATION)?;
        let (source, jetstream) = (&self.source, self.connection.jetstream());
        let stream = jetstream.get_stream(&source.stream).await.map_err(|error| {
            let kind = match error.kind() {
                async_nats::jetstream::context::GetStreamErrorKind::JetStream(_) => BrokerErrorKind::NotFound,
                _ => BrokerErrorKind::Unavailable,
            };
            BrokerError::new(kind, OPERATION, format!("stream {}: {error}", source.stream))
        })?;
        let info = stream.cached_info();
        self.check_sent(info).await?;
        let away = |error: async_nats::Error| {
            let detail = format!("consumer {} of stream {}: {error}", source.consumer, source.stream);
            BrokerError::new(BrokerErrorKind::Unavailable, OPERATION, detail)
        };
        let wanted = pull::Config {
            durable_name: Some(source.consumer.clone()),
            description: Some("relay bridge: messages become jobs".to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_deliver: -1,
            // A message held back for long keeps no other out; slots bound what is in hand.
            max_ack_pending: -1,
            filter_subjects: source.subjects.clone(),
            ..pull::Config::default()
        };
        let consumer: Consumer<pull::Config> =
            stream.get_or_create_consumer(&source.consumer, wanted).await.map_err(|error| away(error.into()))?;
        let config = &consumer.cached_info().config;
        check_consumer(source, config)?;
        let created = info.created.unix_timestamp_nanos() / 1_000_000;
        let found =
            Arc::new(Bound { stream: format!("{}.{created}", source.stream), ack_wait: config.ack_wait, consumer });
        format!("{}.1", found.stream).parse::<IdempotencyKey>().map_err(|error| {
            invalid(OPERATION, format!("stream {}: its name can't be part of a key: {error}", source.stream))
        })?;
        *bound = Some(Arc::clone(&found));
        Ok(found)
    }

    /// Nothing that is sent from here may come back as a message, and nothing that is put aside may be lost.
    async fn check_sent(&self, info: &Info) -> Result<(), BrokerError> {
        const OPERATION: &str = "open stream";
        let source = &self.source;
        if source.put_aside.is_none() && info.config.retention != RetentionPolicy::Limits {
            let what = format!(
                "stream {} removes what its consumer has ended, so messages that can't become jobs would be lost: name a \
                 subject for them with `put_aside`",
                source.stream
            );
            return Err(invalid(OPERATION, what));
        }
        for (key, subject) in [("put_aside", &source.put_aside), ("reply", &source.reply)] {
            let Some(subject) = subject else { continue };
            let kept =
                self.connection.jetstream().stream_by_subject(subject).await.map_err(|error| match error.kind() {
                    GetStreamByNameErrorKind::NotFound => {
                        invalid(OPERATION, format!("no stream keeps the subject {subject}: create one that does"))
                    }
                    _ => BrokerError::new(BrokerErrorKind::Unavailable, OPERATION, format!("{subject}: {error}")),
                })?;
            let comes_back =
                source.subjects.is_empty() || source.subjects.iter().any(|filter| matches(filter, subject));
            if kept == source.stream && comes_back {
                let what = format!(
                    "`{key}` is {subject}, which is among the messages that are taken and would come back for ever: name \
                     another subject"
                );
                return Err(invalid(OPERATION, what));
            }
        }
        Ok(())
    }

    /// Sends an answer to a delivery and waits for the server's word.
    async fn answer(&self, receipt: &NatsReceipt, answer: String, operation: &'static str) -> Result<(), BrokerError> {
        self.connection.up(operation)?;
        let Some(reply) = receipt.message.reply.clone() else {
            return Err(invalid(operation, "the message is no delivery of a consumer".to_owned()));
        };
        let request = Request::new().payload(answer.into()).timeout(Some(ANSWER_WITHIN));
        match self.connection.client().send_request(reply, request).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                let detail = "the consumer is gone: the message comes again when it is back";
                Err(BrokerError::new(BrokerErrorKind::Unavailable, operation, detail))
            }
            Err(_) => Err(self.connection.unanswered(operation)),
        }
    }

    /// With all its headers and the reason; without its own if that is too large; with its hops alone if that is too; and bare
    /// if that is too large as well, which a message that came through this server never is.
    async fn publish_aside(&self, subject: &str, receipt: &NatsReceipt, why: &Failure) -> Result<(), BrokerError> {
        let original = &receipt.message;
        let mut own = HeaderMap::new();
        for (name, values) in original.headers.iter().flat_map(HeaderMap::iter) {
            // Headers that the server obeys are not repeated, nor those that relay sets below, however they are spelled.
            let name_is = |other: &str| name.to_string().eq_ignore_ascii_case(other);
            if !name.to_string().to_ascii_lowercase().starts_with("nats-") && !FACTS.iter().any(|fact| name_is(fact)) {
                values.iter().for_each(|value| own.append(name.clone(), value.clone()));
            }
        }
        let hops = receipt.hops.saturating_add(1).to_string();
        let values = [&*why.reason, &why.detail, &original.subject, &receipt.place, &hops];
        let with = |mut headers: HeaderMap, facts: &[&str]| {
            for (name, value) in FACTS.into_iter().zip(values).filter(|(name, _)| facts.contains(name)) {
                let line: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                headers.insert(name, line.parse::<HeaderValue>().unwrap_or_else(|_| HeaderValue::from("")));
            }
            headers
        };
        let message = || PublishMessage::build().payload(original.payload.clone());
        let marked = |headers| message().headers(headers).message_id(&receipt.place);
        let [all, bare] = [own, HeaderMap::new()];
        for less in [with(all, &FACTS), with(bare.clone(), &FACTS), with(bare, &[HOPS])].map(marked) {
            match self.publish(subject, less).await {
                Err(error) if matches!(error.kind(), BrokerErrorKind::TooLarge { .. }) => {}
                ended => return ended,
            }
        }
        self.publish(subject, message()).await
    }

    async fn publish(&self, subject: &str, message: PublishMessage) -> Result<(), BrokerError> {
        const OPERATION: &str = "put aside";
        self.connection.up(OPERATION)?;
        let published = async {
            let sent = self.connection.jetstream().send_publish(subject.to_owned(), message).await?;
            sent.await
        };
        published.await.map(drop).map_err(|error| {
            let kind = match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => BrokerErrorKind::TooLarge { actual: 0, limit: 0 },
                PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => BrokerErrorKind::Ambiguous,
                _ => BrokerErrorKind::Invalid,
            };
            BrokerError::new(kind, OPERATION, format!("{subject}: {error}"))
        })
    }
}

#[async_trait]
impl ForeignQueue for NatsQueue {
    type Receipt = NatsReceipt;

    fn pull(&self, max: NonZeroU32) -> BoxStream<'_, Result<Incoming<NatsReceipt>, BrokerError>> {
        let begun = async move {
            let bound = self.bound().await?;
            self.connection.up("take messages")?;
            let max = usize::try_from(max.get()).unwrap_or(usize::MAX);
            // Without a heartbeat: the client library loses a wake-up with one.
            let batch = bound.consumer.batch().max_messages(max).expires(PULL_WAIT).messages().await;
            let batch = batch.map_err(|error| away(error.to_string()))?;
            Ok(batch.map(move |next| match next {
                Ok(message) => incoming(message, &bound),
                Err(error) => Err(away(error.to_string())),
            }))
        };
        let pulled = stream::once(begun).flat_map(|begun| match begun {
            Ok(batch) => batch.boxed(),
            Err(error) => stream::once(std::future::ready(Err(error))).boxed(),
        });
        pulled
            .then(async |next| {
                if next.is_err() {
                    *self.bound.lock().await = None;
                }
                next
            })
            .boxed()
    }

    fn hold_every(&self, receipt: &NatsReceipt) -> Duration {
        receipt.hold_every
    }

    async fn hold(&self, receipt: &NatsReceipt) -> Result<(), BrokerError> {
        self.answer(receipt, "+WPI".to_owned(), "hold").await
    }

    async fn taken(&self, receipt: &NatsReceipt) -> Result<(), BrokerError> {
        self.answer(receipt, "+ACK".to_owned(), "acknowledge").await
    }

    async fn give_back(&self, receipt: &NatsReceipt, after: Duration) -> Result<(), BrokerError> {
        let answer = match after.is_zero() {
            true => "-NAK".to_owned(),
            false => format!("-NAK {{\"delay\":{}}}", after.as_nanos()),
        };
        self.answer(receipt, answer, "give back").await
    }

    async fn put_aside(&self, incoming: &Incoming<NatsReceipt>, why: &Failure) -> Result<(), BrokerError> {
        if let Some(subject) = &self.source.put_aside {
            self.publish_aside(subject, &incoming.receipt, why).await?;
        }
        self.answer(&incoming.receipt, format!("+TERM {}", why.reason), "terminate").await
    }
}

fn incoming(message: async_nats::jetstream::Message, bound: &Bound) -> Result<Incoming<NatsReceipt>, BrokerError> {
    let info = message.info().map_err(|error| away(error.to_string()))?;
    let place = format!("{}.{}", bound.stream, info.stream_sequence);
    let delivered = u64::try_from(info.delivered).unwrap_or(1);
    let message = message.message;
    let all = message.headers.iter().flat_map(HeaderMap::iter);
    let named = all.filter_map(|(name, values)| Some((name.to_string(), values.first()?.as_str().to_owned())));
    let headers = super::by_lower_case(named);
    let hops = job::hops(&headers);
    let read = Message {
        subject: message.subject.to_string(),
        id: headers.get("nats-msg-id").cloned(),
        headers,
        // A delivery has no status, and without one this is all that a description can say.
        headers_malformed: message.description.is_some(),
        place: Some(place.clone()),
        body: message.payload.clone(),
        delivered,
    };
    let receipt = NatsReceipt { message, place, hops, hold_every: bound.ack_wait / 3 };
    Ok(Incoming { message: read, receipt })
}

/// A consumer that somebody made must not give up on messages, nor end them by itself.
fn check_consumer(source: &StreamSource, found: &consumer::Config) -> Result<(), BrokerError> {
    let mut filters = found.filter_subjects.clone();
    if !found.filter_subject.is_empty() {
        filters.push(found.filter_subject.clone());
    }
    let mut wanted = source.subjects.clone();
    filters.sort();
    wanted.sort();
    let wrong = if found.ack_policy != AckPolicy::Explicit {
        "it does not wait for each message's end: it needs explicit acknowledgements".to_owned()
    } else if found.max_deliver > 0 {
        format!("it gives up on a message after {} deliveries: it needs max_deliver -1", found.max_deliver)
    } else if !found.backoff.is_empty() {
        "it has a backoff, which ends the time of a message that is being held: remove it".to_owned()
    } else if found.headers_only {
        "it delivers headers without bodies".to_owned()
    } else if filters != wanted {
        format!("it takes {filters:?}, the configuration says {wanted:?}")
    } else {
        return Ok(());
    };
    Err(invalid("open stream", format!("consumer {} of stream {}: {wrong}", source.consumer, source.stream)))
}

/// Whether `subject` is one of `filter`, which may have `*` and a last `>`.
fn matches(filter: &str, subject: &str) -> bool {
    let mut words = subject.split('.');
    for part in filter.split('.') {
        match (part, words.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (part, Some(word)) if part == word => {}
            _ => return false,
        }
    }
    words.next().is_none()
}

fn away(detail: String) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Unavailable, "take messages", detail)
}

fn invalid(operation: &'static str, detail: String) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Invalid, operation, detail)
}
