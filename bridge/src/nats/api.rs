//! JetStream calls as relay needs them: a bounded number of publishes in flight, conditions with three answers, reads at
//! the leader, acknowledgements that were confirmed. What a server's error means for relay is decided here.
//!
//! Calls of async-nats are boxed: their futures are large, and so would be that of every caller, whichever call it makes.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::{self, Context};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageError, RawMessageErrorKind};
use async_nats::{Client, HeaderMap, jetstream};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::connection::Connection;
use super::hints::Hints;
use super::record::{Outgoing, Stored};
use super::requests::{Question, Requests};
use crate::contract::{JobId, Timestamp};
use crate::error::{BrokerError, BrokerErrorKind};

/// How long the server may take to answer.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long a condition that another write in flight keeps undecided is tried again.
const UNDECIDED_MAX: Duration = Duration::from_secs(2);

/// JetStream's error codes that mean something to relay: <https://github.com/nats-io/nats-server/blob/main/server/errors.json>
pub(super) mod code {
    /// The condition does not hold; the text names the sequence there is.
    pub(crate) const WRONG_LAST_SEQUENCE: u64 = 10_071;
    /// The condition can't be decided yet: a write under it is in flight.
    pub(crate) const WRONG_LAST_SEQUENCE_IN_FLIGHT: u64 = 10_164;
    /// The message id can't be decided yet: it is in flight.
    pub(crate) const DUPLICATE_IN_FLIGHT: u64 = 10_158;
    /// No message found.
    pub(crate) const NO_MESSAGE: u64 = 10_037;
    /// The message to delete is gone.
    pub(crate) const SEQUENCE_NOT_FOUND: u64 = 10_043;
    /// The message could not be deleted: it is gone.
    pub(crate) const MESSAGE_DELETE_FAILED: u64 = 10_057;
    /// There is no such stream.
    pub(crate) const STREAM_NOT_FOUND: u64 = 10_059;
    /// There is no such consumer.
    pub(crate) const CONSUMER_NOT_FOUND: u64 = 10_014;
    /// The account's storage is full.
    pub(crate) const ACCOUNT_FULL: u64 = 10_002;
    /// The server's storage is full.
    pub(crate) const INSUFFICIENT_RESOURCES: u64 = 10_023;
    /// The server's storage is full.
    pub(crate) const STORAGE_FULL: u64 = 10_047;
    /// The stream takes no larger message.
    pub(crate) const MESSAGE_TOO_LARGE: u64 = 10_054;
    /// Too many messages wait to be stored.
    pub(crate) const TOO_MANY_WAITING: u64 = 10_167;
}

/// What became of a conditional publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It is stored, with this sequence.
    At(u64),
    /// Something else is there: the last sequence under the condition's subject, if the server told it.
    Conflict(Option<u64>),
}

/// The connection and what bounds its use. Clones share both.
#[derive(Clone)]
pub(super) struct Api {
    connection: Connection,
    client: Client,
    context: Context,
    in_flight: Arc<Semaphore>,
    requests: Requests,
    hints: Arc<Hints>,
    /// Whether the server is one of several.
    clustered: bool,
}

impl Api {
    /// The connection's JetStream carries the domain.
    ///
    /// # Errors
    /// `Unavailable` if the connection is closed.
    pub(super) async fn new(connection: Connection) -> Result<Self, BrokerError> {
        let (client, mut context) = (connection.client().clone(), connection.jetstream().clone());
        context.set_timeout(ANSWER_WITHIN);
        let in_flight = Arc::new(Semaphore::new(connection.config().in_flight));
        let clustered = client.server_info().cluster.is_some();
        let requests = Requests::start(&connection).await?;
        Ok(Self { connection, client, context, in_flight, requests, hints: Arc::default(), clustered })
    }

    /// How the connection stands, and when announcements may have been missed.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// For subscriptions and core messages.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// What workers are to be told.
    pub(super) fn hints(&self) -> &Hints {
        &self.hints
    }

    /// For managing streams and consumers.
    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    /// Publishes and waits for the confirmation. A condition in the headers that another write keeps undecided is tried
    /// again for at most 2 s.
    ///
    /// # Errors
    /// `Ambiguous` if there was no answer in time or the condition stayed undecided; `Overloaded` if storage is full;
    /// `TooLarge`; `Unavailable` if nothing was listening.
    ///
    /// Workers are hinted at the message while it is stored, so that their pull is there when it is.
    pub(super) async fn publish(&self, mut message: Outgoing, operation: &'static str) -> Result<Written, BrokerError> {
        let Some((queue, lane, hint)) = message.hint.take() else { return self.write(message, operation).await };
        // In this order: a message that is sent at once is followed by its hint in the same write to the connection.
        let (written, ()) = tokio::join!(biased; self.write(message, operation), self.hint(&queue, &lane, hint));
        written
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
            match error.error_code().0 {
                code::WRONG_LAST_SEQUENCE => return Ok(Written::Conflict(named_sequence(&error.to_string()))),
                code::WRONG_LAST_SEQUENCE_IN_FLIGHT | code::DUPLICATE_IN_FLIGHT => {
                    let wait = Duration::from_millis(20 + jitter(180));
                    let next = again.take().filter(|_| Instant::now() + wait < give_up);
                    let Some(next) = next else {
                        let why = "another write to the same subject was not decided in time: try again";
                        return Err(BrokerError::new(BrokerErrorKind::Ambiguous, operation, why));
                    };
                    tokio::time::sleep(wait).await;
                    (again, message) = (Some(next.clone()), *next);
                }
                _ => return Err(refused(&error, operation)),
            }
        }
    }

    /// The sequence it was stored with, or why it was not.
    async fn publish_once(
        &self,
        message: Outgoing,
        operation: &'static str,
    ) -> Result<Result<u64, jetstream::Error>, BrokerError> {
        /// Only what is looked at: async-nats reads an answer twice to find out which kind it is.
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
    /// As the server's error code says; `Ambiguous` without an answer in time.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        subject: String,
        body: &impl Serialize,
        operation: &'static str,
    ) -> Result<T, BrokerError> {
        self.connection.up(operation)?;
        let asked = Box::pin(self.context.request(subject, body));
        let answer: Response<T> = asked.await.map_err(|e| unheard(e, operation))?;
        match answer {
            Response::Ok(answer) => Ok(answer),
            Response::Err { error } => Err(refused(&error, operation)),
        }
    }

    /// The last message on `subject`, which may have wildcards, as the stream's leader has it.
    pub(super) async fn last_at_leader(
        &self,
        stream: &str,
        subject: String,
        operation: &'static str,
    ) -> Result<Option<Stored>, BrokerError> {
        self.connection.up(operation)?;
        let stream = self.context.get_stream_no_info(stream).await.map_err(|e| invalid(e, operation))?;
        match Box::pin(stream.get_last_raw_message_by_subject(&subject)).await {
            Ok(found) => Ok(Some(stored(found))),
            Err(e) => match e.kind() {
                LastRawMessageErrorKind::NoMessageFound => Ok(None),
                LastRawMessageErrorKind::JetStream(error) => match error.error_code().0 {
                    code::NO_MESSAGE => Ok(None),
                    _ => Err(refused(&error, operation)),
                },
                _ => Err(unread(e, operation)),
            },
        }
    }

    /// The first message on `subject`, which may have wildcards, from sequence `from` on, as the leader has it.
    pub(super) async fn next_at_leader(
        &self,
        stream: &str,
        from: u64,
        subject: String,
        operation: &'static str,
    ) -> Result<Option<Stored>, BrokerError> {
        self.connection.up(operation)?;
        let stream = self.context.get_stream_no_info(stream).await.map_err(|e| invalid(e, operation))?;
        let answer = Box::pin(stream.raw_message_builder().sequence(from).next_by_subject(subject).send()).await;
        found_or_none(answer, operation)
    }

    /// Removes one message for good. `false` if it was gone, or had been replaced.
    pub(super) async fn delete(&self, stream: &str, seq: u64, operation: &'static str) -> Result<bool, BrokerError> {
        self.remove(stream, seq, false, operation).await
    }

    /// The same, and its bytes are overwritten on every replica.
    pub(super) async fn overwrite(&self, stream: &str, seq: u64, operation: &'static str) -> Result<bool, BrokerError> {
        self.remove(stream, seq, true, operation).await
    }

    async fn remove(
        &self,
        stream: &str,
        seq: u64,
        overwrite: bool,
        operation: &'static str,
    ) -> Result<bool, BrokerError> {
        #[derive(serde::Deserialize)]
        struct Deleted {
            success: bool,
        }
        self.connection.up(operation)?;
        let body = serde_json::json!({ "seq": seq, "no_erase": !overwrite });
        let asked = Box::pin(self.context.request(format!("STREAM.MSG.DELETE.{stream}"), &body));
        let answer: Response<Deleted> = asked.await.map_err(|e| unheard(e, operation))?;
        match answer {
            Response::Ok(deleted) => Ok(deleted.success),
            Response::Err { error } => match error.error_code().0 {
                code::NO_MESSAGE | code::SEQUENCE_NOT_FOUND | code::MESSAGE_DELETE_FAILED => Ok(false),
                _ => Err(refused(&error, operation)),
            },
        }
    }

    /// Answers a delivery (`+ACK`, `+WPI`, `-NAK …`) and waits until the server confirmed it. It confirms an answer to a
    /// delivery that is over as well.
    ///
    /// # Errors
    /// `Unavailable` if the consumer is gone; `Ambiguous` without an answer in time.
    pub(super) async fn answer(
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
    pub(super) async fn tell(&self, subject: String, headers: HeaderMap, payload: Bytes) {
        if self.connection.up("tell").is_err() {
            return;
        }
        if let Err(failure) = self.client.publish_with_headers(subject, headers, payload).await {
            tracing::debug!(error = %failure, "a message that may be lost was not sent");
        }
    }
}

/// A message of a stream as async-nats gives it.
pub(super) fn stored(message: StreamMessage) -> Stored {
    let StreamMessage { subject, sequence, headers, payload, time } = message;
    Stored { subject: subject.into_string(), seq: sequence, headers, payload, at: millis(time.unix_timestamp_nanos()) }
}

/// Nanoseconds since the epoch as relay's time.
pub(super) fn millis(nanos: i128) -> Timestamp {
    Timestamp::from_millis(i64::try_from(nanos.div_euclid(1_000_000)).unwrap_or(i64::MAX))
}

fn found_or_none(
    answer: Result<StreamMessage, RawMessageError>,
    operation: &'static str,
) -> Result<Option<Stored>, BrokerError> {
    match answer {
        Ok(found) => Ok(Some(stored(found))),
        Err(e) => match e.kind() {
            RawMessageErrorKind::NoMessageFound => Ok(None),
            RawMessageErrorKind::JetStream(error) => match error.error_code().0 {
                code::NO_MESSAGE => Ok(None),
                _ => Err(refused(&error, operation)),
            },
            _ => Err(unread(e, operation)),
        },
    }
}

/// What a server's refusal means. It had no effect.
pub(super) fn refused(error: &async_nats::jetstream::Error, operation: &'static str) -> BrokerError {
    let kind = match error.error_code().0 {
        code::STREAM_NOT_FOUND | code::CONSUMER_NOT_FOUND => BrokerErrorKind::NotFound,
        code::ACCOUNT_FULL | code::INSUFFICIENT_RESOURCES | code::STORAGE_FULL => {
            BrokerErrorKind::Overloaded { retry_after: Duration::from_secs(10) }
        }
        code::TOO_MANY_WAITING => BrokerErrorKind::Overloaded { retry_after: Duration::from_secs(1) },
        // The server does not say by how much.
        code::MESSAGE_TOO_LARGE => BrokerErrorKind::TooLarge { actual: 0, limit: 0 },
        _ if error.code() == 503 => BrokerErrorKind::Unavailable,
        _ => BrokerErrorKind::Invalid,
    };
    BrokerError::new(kind, operation, format!("NATS refused it: {error}"))
}

/// What it means that JetStream's API did not answer.
pub(super) fn unheard(error: context::RequestError, operation: &'static str) -> BrokerError {
    let (kind, what) = match error.kind() {
        context::RequestErrorKind::NoResponders => {
            (BrokerErrorKind::Unavailable, "nothing in NATS serves JetStream: is it enabled for this account?")
        }
        context::RequestErrorKind::TimedOut => (BrokerErrorKind::Ambiguous, "JetStream did not answer in time"),
        _ => (BrokerErrorKind::Ambiguous, "the connection to NATS broke"),
    };
    BrokerError::new(kind, operation, what).with_source(error)
}

/// A read that had no answer: it had no effect either.
pub(super) fn unread(error: impl std::error::Error + Send + Sync + 'static, operation: &'static str) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Unavailable, operation, "NATS did not answer").with_source(error)
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static, operation: &'static str) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Invalid, operation, "not a stream's name").with_source(error)
}

fn read_json<T: DeserializeOwned>(bytes: &[u8], operation: &'static str) -> Result<T, BrokerError> {
    serde_json::from_slice(bytes).map_err(|e| no_answer(operation).with_source(e))
}

fn no_answer(operation: &'static str) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Ambiguous, operation, "NATS answered what is no answer")
}

/// The N of `wrong last sequence: N`.
fn named_sequence(text: &str) -> Option<u64> {
    let (_, after) = text.rsplit_once("wrong last sequence: ")?;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// A random number from 0 to `max`, both included.
pub(super) fn jitter(max: u64) -> u64 {
    // The last bytes of a UUIDv7 are random.
    let random = JobId::mint().as_bytes().last_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
    u64::from(random) % (max + 1)
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
