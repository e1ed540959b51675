//! Calls of JetStream: publishes, of which a bounded number is in flight; conditional writes, which are stored, are
//! refused, or stay in doubt; reads at a stream's leader; acknowledgements that the server confirmed.
//!
//! No call waits for longer than a server may take to answer. While a server hangs, the client library takes no
//! messages, and the library's own calls would wait until the server is back.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::RawMessage;
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures_util::FutureExt as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use crate::stored::bookings::{Booking, Bookings};
use crate::stored::names::{self, Lane};
use crate::stored::record::{Outgoing, Stored};
use crate::wire::connection::Connection;
use crate::wire::header_reads::HeaderReads;
use crate::wire::hints::{Hint, Hints};
use crate::wire::refusal::{
    DUPLICATE_IN_FLIGHT, LAST_SEQUENCE_NOT_READY, WRONG_LAST_SEQUENCE_IN_FLIGHT, not_stored, refused_about,
};
use crate::wire::requests::{ANSWER_WITHIN, Question, Requests};
use relay_bridge::backoff::random;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{QueueName, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// For how long a conditional write is tried again while another write in flight keeps its condition undecided.
const UNDECIDED_MAX: Duration = Duration::from_secs(2);

/// The outcome of a conditional publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// It is stored, with this sequence.
    At(u64),
    /// Something else is there: the last sequence under the condition's subject, if the server told it.
    Conflict(Option<u64>),
}

/// The connection and the bounds of its use. Clones share both.
#[derive(Clone)]
pub(crate) struct Api {
    connection: Connection,
    client: Client,
    /// The prefix of the subjects of JetStream's API, with the domain.
    prefix: String,
    in_flight: Arc<Semaphore>,
    requests: Requests,
    hints: Arc<Hints>,
    bookings: Arc<Bookings>,
    header_reads: Arc<HeaderReads>,
    /// Whether the server is one of several.
    clustered: bool,
}

impl Api {
    /// Opens JetStream over the connection, in the configured domain.
    ///
    /// # Errors
    /// `Unavailable` if the connection is closed.
    pub(crate) async fn new(connection: Connection) -> Result<Self, BrokerError> {
        let client = connection.client().clone();
        let prefix = match &connection.config().domain {
            Some(domain) => format!("$JS.{domain}.API"),
            None => "$JS.API".to_owned(),
        };
        let in_flight = Arc::new(Semaphore::new(connection.config().in_flight));
        let clustered = client.server_info().cluster.is_some();
        let requests = Requests::start(&connection).await?;
        Ok(Self {
            connection,
            client,
            prefix,
            in_flight,
            requests,
            hints: Arc::default(),
            bookings: Arc::default(),
            header_reads: Arc::default(),
            clustered,
        })
    }

    /// How the connection stands, and when announcements may have been missed.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// How often the connection was made.
    pub(crate) fn connections(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// Changes when announcements may have been missed from now on.
    pub(crate) fn missed(&self) -> watch::Receiver<u64> {
        let mut missed = self.connection.missed();
        missed.mark_unchanged();
        missed
    }

    /// The client library, for subscriptions and core messages.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The hints that this process sends to workers.
    pub(crate) fn hints(&self) -> &Hints {
        &self.hints
    }

    /// The bytes that this process writes.
    pub(crate) fn bookings(&self) -> &Arc<Bookings> {
        &self.bookings
    }

    /// What bounds the reads of headers.
    pub(crate) fn header_reads(&self) -> &HeaderReads {
        &self.header_reads
    }

    /// Whether the server is one of several.
    pub(crate) fn is_clustered(&self) -> bool {
        self.clustered
    }

    /// For reading messages of consumers.
    pub(crate) fn context(&self) -> &Context {
        self.connection.jetstream()
    }

    /// Publishes and waits for the confirmation. If another write keeps a condition in the headers undecided, the
    /// publish is tried again for at most 2 s.
    ///
    /// # Errors
    /// `Ambiguous` if there was no answer in time or the condition stayed undecided; `Overloaded` if storage is full;
    /// `TooLarge`; `Unavailable` if nothing was listening.
    ///
    /// The hint to workers is sent while the message is being stored, so that their pull is there when the message is.
    pub(crate) async fn publish(&self, message: Outgoing, operation: &'static str) -> Result<Written, BrokerError> {
        let mut booking = self.bookings.book(&message);
        self.publish_booked(message, &mut booking, operation).await
    }

    /// The same for a message whose bytes were booked before.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub(crate) async fn publish_booked(
        &self,
        message: Outgoing,
        booking: &mut Booking,
        operation: &'static str,
    ) -> Result<Written, BrokerError> {
        booking.sent();
        let written = self.write_and_hint(message, operation).await;
        match &written {
            Ok(Written::At(_)) => {}
            Ok(Written::Conflict(_)) => booking.refused(),
            Err(error) if error.had_no_effect() => booking.refused(),
            Err(_) => {}
        }
        written
    }

    async fn write_and_hint(&self, mut message: Outgoing, operation: &'static str) -> Result<Written, BrokerError> {
        let Some(hint) = message.hint.take() else { return self.write(message, operation).await };
        let (mut writing, mut hinting) = (pin!(self.write(message, operation)), pin!(self.hint(&hint)));
        // In this order: a message that is sent at once is followed by its hint in the same write to the connection. A hint
        // that can't be sent holds up nothing.
        tokio::select! {
            biased;
            written = &mut writing => {
                hinting.now_or_never();
                return written;
            }
            () = &mut hinting => {}
        }
        writing.await
    }

    async fn write(&self, message: Outgoing, operation: &'static str) -> Result<Written, BrokerError> {
        // One server decides at once; only between several may a condition stay open.
        let mut again = self.clustered.then(|| Box::new(message.clone()));
        let (mut message, give_up) = (message, Instant::now() + UNDECIDED_MAX);
        loop {
            let error = match self.publish_once(message, operation).await? {
                Ok(sequence) => return Ok(Written::At(sequence)),
                Err(error) => error,
            };
            match error.error_code() {
                ErrorCode::STREAM_WRONG_LAST_SEQUENCE => {
                    return Ok(Written::Conflict(named_sequence(&error.to_string())));
                }
                WRONG_LAST_SEQUENCE_IN_FLIGHT | LAST_SEQUENCE_NOT_READY | DUPLICATE_IN_FLIGHT => {
                    let wait = Duration::from_millis(20) + Duration::from_millis(180).mul_f64(random());
                    let next = again.take().filter(|_| Instant::now() + wait < give_up);
                    let Some(next) = next else {
                        let why = "another write to the same subject was not decided in time: try again";
                        return Err(BrokerError::new(BrokerErrorKind::Ambiguous, operation, why));
                    };
                    tokio::time::sleep(wait).await;
                    (again, message) = (Some(next.clone()), *next);
                }
                _ => return Err(not_stored(&error, operation)),
            }
        }
    }

    /// The sequence it was stored with, or why it was not.
    async fn publish_once(
        &self,
        message: Outgoing,
        operation: &'static str,
    ) -> Result<Result<u64, jetstream::Error>, BrokerError> {
        /// Only the fields that are used: async-nats reads an answer twice to find out which kind it is.
        #[derive(serde::Deserialize)]
        struct Confirmed {
            seq: Option<u64>,
            error: Option<jetstream::Error>,
        }
        let closed = |_| BrokerError::new(BrokerErrorKind::Unavailable, operation, "the adapter is closed");
        let permit = Some(Arc::clone(&self.in_flight).acquire_owned().await.map_err(closed)?);
        // Looked at last: a message that the client queues while NATS is away would be sent when it is back.
        self.connection.up(operation)?;
        let Outgoing { subject, headers, payload, .. } = message;
        let answer = self.requests.ask(Question { subject, headers, payload, operation, permit }).await?;
        match read_json(&answer.payload, operation)? {
            Confirmed { error: Some(error), .. } => Ok(Err(error)),
            Confirmed { seq: Some(sequence), .. } => Ok(Ok(sequence)),
            Confirmed { .. } => Err(no_answer(operation)),
        }
    }

    /// A call of JetStream's API. `subject` goes without its prefix.
    ///
    /// # Errors
    /// As the server's error code says. Without an answer within 5 s: `Unavailable` if the call only reads, else
    /// `Ambiguous`.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        subject: String,
        body: &impl Serialize,
        operation: &'static str,
    ) -> Result<T, BrokerError> {
        let called = self.call_raw(&subject, body, operation).await?;
        called.map_err(|error| refused_about(&subject, &error, operation))
    }

    /// The same, with the server's error as it came.
    pub(crate) async fn call_raw<T: DeserializeOwned>(
        &self,
        subject: &str,
        body: &impl Serialize,
        operation: &'static str,
    ) -> Result<Result<T, jetstream::Error>, BrokerError> {
        self.connection.up(operation)?;
        let payload = serde_json::to_vec(body).map_err(|error| {
            BrokerError::new(BrokerErrorKind::Invalid, operation, "the request is no JSON").with_source(error)
        })?;
        let reads = only_reads(subject);
        let answer = self.ask(subject.to_owned(), payload.into(), operation).await;
        match answer.and_then(|answer| read_json(&answer.payload, operation)) {
            Ok(Response::Ok(answer)) => Ok(Ok(answer)),
            Ok(Response::Err { error }) => Ok(Err(error)),
            Err(error) if reads && error.kind() == BrokerErrorKind::Ambiguous => {
                Err(BrokerError::new(BrokerErrorKind::Unavailable, operation, error.detail()).with_source(error))
            }
            Err(error) => Err(error),
        }
    }

    /// A call of JetStream's API, and its answer as it came. `subject` goes without its prefix.
    ///
    /// # Errors
    /// As [`Requests::ask`].
    pub(crate) async fn ask(
        &self,
        subject: String,
        payload: Bytes,
        operation: &'static str,
    ) -> Result<Message, BrokerError> {
        self.connection.up(operation)?;
        let (subject, headers) = (format!("{}.{subject}", self.prefix), HeaderMap::new());
        self.requests.ask(Question { subject, headers, payload, operation, permit: None }).await
    }

    /// The last message on `subject`, which may have wildcards, as the stream's leader has it.
    pub(crate) async fn last_at_leader(
        &self,
        stream: &str,
        subject: String,
        operation: &'static str,
    ) -> Result<Option<Stored>, BrokerError> {
        self.at_leader(stream, json!({ "last_by_subj": subject }), operation).await
    }

    /// The first message on `subject`, which may have wildcards, from sequence `from` on, as the leader has it.
    pub(crate) async fn next_at_leader(
        &self,
        stream: &str,
        from: u64,
        subject: String,
        operation: &'static str,
    ) -> Result<Option<Stored>, BrokerError> {
        self.at_leader(stream, json!({ "seq": from, "next_by_subj": subject }), operation).await
    }

    async fn at_leader(
        &self,
        stream: &str,
        which: serde_json::Value,
        operation: &'static str,
    ) -> Result<Option<Stored>, BrokerError> {
        #[derive(Deserialize)]
        struct Found {
            message: RawMessage,
        }
        match self.call_raw(&format!("STREAM.MSG.GET.{stream}"), &which, operation).await? {
            Ok(Found { message }) => StreamMessage::try_from(message).map(stored).map(Some).map_err(|error| {
                let why = "NATS sent a stored message that can't be read";
                BrokerError::new(BrokerErrorKind::Corrupt, operation, why).with_source(error)
            }),
            Err(error) if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => Ok(None),
            Err(error) => Err(refused_about(stream, &error, operation)),
        }
    }

    /// Removes one message for good. `false` if it was gone, or had been replaced.
    pub(crate) async fn delete(&self, stream: &str, seq: u64, operation: &'static str) -> Result<bool, BrokerError> {
        self.remove(stream, seq, false, operation).await
    }

    /// The same, and its bytes are overwritten on every replica.
    pub(crate) async fn overwrite(&self, stream: &str, seq: u64, operation: &'static str) -> Result<bool, BrokerError> {
        self.remove(stream, seq, true, operation).await
    }

    async fn remove(
        &self,
        stream: &str,
        seq: u64,
        overwrite: bool,
        operation: &'static str,
    ) -> Result<bool, BrokerError> {
        #[derive(Deserialize)]
        struct Deleted {
            success: bool,
        }
        let body = json!({ "seq": seq, "no_erase": !overwrite });
        match self.call_raw(&format!("STREAM.MSG.DELETE.{stream}"), &body, operation).await? {
            Ok(Deleted { success }) => Ok(success),
            Err(error) => match error.error_code() {
                // It is gone.
                ErrorCode::NO_MESSAGE_FOUND
                | ErrorCode::SEQUENCE_NOT_FOUND
                | ErrorCode::STREAM_MESSAGE_DELETE_FAILED => Ok(false),
                _ => Err(refused_about(stream, &error, operation)),
            },
        }
    }

    /// Answers a delivery (`+ACK`, `+WPI`, `-NAK …`) and waits until the server confirmed it. It confirms an answer to a
    /// delivery that is over as well.
    ///
    /// # Errors
    /// `Unavailable` if the consumer is gone; `Ambiguous` without an answer in time.
    pub(crate) async fn answer(
        &self,
        reply: &str,
        answer: impl Into<Bytes>,
        operation: &'static str,
    ) -> Result<(), BrokerError> {
        self.connection.up(operation)?;
        let (subject, headers, payload) = (reply.to_owned(), HeaderMap::new(), answer.into());
        let question = Question { subject, headers, payload, operation, permit: None };
        self.requests.ask(question).await.map(drop)
    }

    /// Publishes without a confirmation: best effort.
    pub(crate) async fn tell(&self, subject: String, headers: HeaderMap, payload: Bytes) {
        if self.connection.up("tell").is_err() {
            return;
        }
        if let Err(failure) = taken(self.client.publish_with_headers(subject, headers, payload), "tell").await {
            tracing::debug!(error = %failure, "a message that may be lost was not sent");
        }
    }

    /// Hints that a job is being put in line, or on a timer. The write itself may still fail: a hint is no proof of a
    /// job.
    async fn hint(&self, Hint { queue, lane, at }: &Hint) {
        let now = Instant::now();
        match at {
            // By the machine's clock: the server's, which the timer goes by, is near it.
            Some(at) => self.hints().note_later(queue, lane, now + at.since(Clock::system().now())),
            None if self.hints().note(queue, lane, now) => {
                // Boxed: few calls get here, and the future of all that write would be the larger by it.
                Box::pin(self.tell_hint(queue, lane, 1)).await;
            }
            None => {}
        }
    }

    pub(crate) async fn tell_hint(&self, queue: &QueueName, lane: &Lane, jobs: u32) {
        self.tell(names::hint(queue, lane), HeaderMap::new(), jobs.to_string().into()).await;
    }

    /// Subscribes to a subject. The answer to a later request on the same connection proves that the subscription is in
    /// place.
    ///
    /// # Errors
    /// `Unavailable` if the connection is down or closed, or takes nothing within 5 s.
    pub(crate) async fn subscribe(&self, subject: String, operation: &'static str) -> Result<Subscriber, BrokerError> {
        self.connection.up(operation)?;
        taken(self.client.subscribe(subject), operation).await
    }

    /// Subscribes as one of a group of subscribers: each message goes to one of them.
    ///
    /// # Errors
    /// As [`Self::subscribe`].
    pub(crate) async fn subscribe_in(
        &self,
        subject: String,
        group: String,
        operation: &'static str,
    ) -> Result<Subscriber, BrokerError> {
        self.connection.up(operation)?;
        taken(self.client.queue_subscribe(subject, group), operation).await
    }

    /// Sends a call of JetStream's API whose answers go to `reply`. `subject` goes without its prefix.
    ///
    /// # Errors
    /// As [`Self::subscribe`]: nothing was sent.
    pub(crate) async fn send(
        &self,
        subject: String,
        reply: String,
        payload: Bytes,
        operation: &'static str,
    ) -> Result<(), BrokerError> {
        self.connection.up(operation)?;
        let subject = format!("{}.{subject}", self.prefix);
        taken(self.client.publish_with_reply(subject, reply, payload), operation).await
    }
}

/// Waits until the client library took something over. It takes nothing while the server does not read.
pub(crate) async fn taken<T, E: std::error::Error + Send + Sync + 'static>(
    handing_over: impl Future<Output = Result<T, E>>,
    operation: &'static str,
) -> Result<T, BrokerError> {
    let failed = |why| BrokerError::new(BrokerErrorKind::Unavailable, operation, why);
    // Boxed: it is large, and every caller's future would be.
    match timeout(ANSWER_WITHIN, Box::pin(handing_over)).await {
        Ok(Ok(taken)) => Ok(taken),
        Ok(Err(error)) => Err(failed("the connection to NATS is closed").with_source(error)),
        Err(_) => Err(failed("NATS takes no more messages at present; nothing was done: try again")),
    }
}

/// Whether a call of the API changes nothing, so that one without an answer had no effect.
fn only_reads(subject: &str) -> bool {
    let reading =
        ["INFO", "STREAM.INFO.", "STREAM.LIST", "STREAM.NAMES", "STREAM.MSG.GET.", "CONSUMER.INFO.", "CONSUMER.LIST."];
    reading.iter().any(|call| subject.starts_with(call))
}

/// A message of a stream as async-nats gives it.
pub(crate) fn stored(message: StreamMessage) -> Stored {
    let StreamMessage { subject, sequence, headers, payload, time } = message;
    Stored { subject: subject.into_string(), seq: sequence, headers, payload, at: millis(time.unix_timestamp_nanos()) }
}

/// Nanoseconds since the epoch as relay's time.
pub(crate) fn millis(nanos: i128) -> Timestamp {
    Timestamp::from_millis(i64::try_from(nanos.div_euclid(1_000_000)).unwrap_or(i64::MAX))
}

fn read_json<T: DeserializeOwned>(bytes: &[u8], operation: &'static str) -> Result<T, BrokerError> {
    serde_json::from_slice(bytes).map_err(|e| no_answer(operation).with_source(e))
}

fn no_answer(operation: &'static str) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Ambiguous, operation, "NATS sent no valid answer")
}

/// The N of `wrong last sequence: N`.
fn named_sequence(text: &str) -> Option<u64> {
    let (_, after) = text.rsplit_once("wrong last sequence: ")?;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_in_a_conflict_is_read() {
        let text = "JetStream error: 400 (error code 10071, wrong last sequence: 4711)";
        assert_eq!(named_sequence(text), Some(4_711));
        assert_eq!(named_sequence("wrong last sequence"), None);
    }
}
