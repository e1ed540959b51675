//! Reads stretches of a stream without a consumer (direct get): one request, many messages, from any replica.

use std::time::Duration;

use async_nats::header::{HeaderName, NATS_SEQUENCE};
use async_nats::{HeaderMap, Message, StatusCode};
use futures_util::StreamExt as _;
use tokio::time::{Instant, sleep, timeout};

use crate::stored::names;
use crate::stored::record::{Stored, number};
use crate::wire::api::Api;
use crate::wire::requests::ANSWER_WITHIN;
use crate::wire::stream_calls;
use relay_bridge::contract::Timestamp;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::rules;

/// The most messages of one request: a read holds up the stream's writers. Measured on nats-server 2.15.1: publishes wait
/// up to 260 ms behind large ones.
pub(crate) const BATCH_MAX: usize = 50;
/// How long a stream that is there may take until it answers reads.
pub(crate) const SERVED_WITHIN: Duration = Duration::from_secs(2);
/// How long to wait before a stream that does not answer reads yet is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// The part of a stream to read.
#[derive(Clone, Debug)]
pub(crate) struct Stretch {
    /// The first sequence that may come.
    pub(crate) from: u64,
    /// Only messages whose subject this covers.
    pub(crate) subject: String,
    /// At most this many, up to [`BATCH_MAX`].
    pub(crate) messages: usize,
    /// About this many bytes, and one message more.
    pub(crate) bytes: usize,
}

/// The messages that a read brought.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// In the order of sequences.
    pub(crate) messages: Vec<Stored>,
    /// Whether the replica had no more messages of the stretch.
    pub(crate) is_end: bool,
    /// How many more messages of the stretch the replica had.
    pub(crate) left: u64,
}

impl Api {
    /// Reads a stretch of `stream` at any replica, which may lag behind: no message is left out between those that
    /// come, but there may be more after them.
    ///
    /// A stream that was made just now has a leader before it answers reads, and other servers learn of it later still.
    /// So a stream that exists and does not answer is asked again for a while.
    ///
    /// # Errors
    /// `Unavailable`, `Corrupt`.
    pub(crate) async fn batch(
        &self,
        stream: &str,
        stretch: &Stretch,
        operation: &'static str,
    ) -> Result<Batch, BrokerError> {
        let give_up = Instant::now() + SERVED_WITHIN;
        loop {
            if let Some(batch) = Box::pin(self.batch_once(stream, stretch, operation)).await? {
                return Ok(batch);
            }
            self.unserved(stream, give_up, operation).await?;
        }
    }

    /// The first message on `subject`, which may have wildcards, from sequence `from` on, as a replica has it, which may lag
    /// behind. Unlike a batch it does not make the server count what else there is on a subject with wildcards, which takes the
    /// longer the more there is (nats-server 2.15.1, `NumPending` of a stream with one message a subject).
    ///
    /// # Errors
    /// As [`Self::batch`].
    pub(crate) async fn next(
        &self,
        stream: &str,
        from: u64,
        subject: &str,
        operation: &'static str,
    ) -> Result<Option<Stored>, BrokerError> {
        let body = serde_json::json!({ "seq": from.max(1), "next_by_subj": subject }).to_string();
        let give_up = Instant::now() + SERVED_WITHIN;
        loop {
            match self.ask(format!("DIRECT.GET.{stream}"), body.clone().into(), operation).await {
                Err(error) if error.kind() == BrokerErrorKind::Unavailable => {}
                Err(error) => return Err(error),
                Ok(Message { status: Some(StatusCode::NOT_FOUND), .. }) => return Ok(None),
                Ok(Message { status: Some(status), description, .. }) => {
                    return Err(refused(stream, status, description, operation));
                }
                Ok(answer) => return read(answer, operation).map(Some),
            }
            self.unserved(stream, give_up, operation).await?;
        }
    }

    /// Nobody answered: waits a little, if the stream is there and it may be asked again until `give_up`.
    async fn unserved(&self, stream: &str, give_up: Instant, operation: &'static str) -> Result<(), BrokerError> {
        let is_there = stream_calls::find(self, stream, operation).await?.is_some();
        if !is_there && let Some(queue) = names::queue_of_stream(stream) {
            return Err(rules::refusal::no_queue(operation, &queue));
        }
        if !is_there || Instant::now() >= give_up {
            let why = format!("nothing serves stream `{stream}`: is it provisioned?");
            return Err(BrokerError::new(BrokerErrorKind::Unavailable, operation, why));
        }
        sleep(ASK_AGAIN_AFTER).await;
        Ok(())
    }

    /// The same, asked once; `None` if nobody serves it.
    async fn batch_once(
        &self,
        stream: &str,
        stretch: &Stretch,
        operation: &'static str,
    ) -> Result<Option<Batch>, BrokerError> {
        let away = |what: String| BrokerError::new(BrokerErrorKind::Unavailable, operation, what);
        let inbox = self.client().new_inbox();
        let mut answers = self.subscribe(inbox.clone(), operation).await?;
        let body = serde_json::json!({
            "seq": stretch.from.max(1),
            "next_by_subj": stretch.subject,
            "batch": stretch.messages.clamp(1, BATCH_MAX),
            "max_bytes": stretch.bytes.max(1),
        });
        self.send(format!("DIRECT.GET.{stream}"), inbox, body.to_string().into(), operation).await?;
        let mut batch = Batch::default();
        while let Some(answer) = timeout(ANSWER_WITHIN, answers.next())
            .await
            .map_err(|_| away("NATS did not answer a read in time".to_owned()))?
        {
            match answer.status {
                None => batch.messages.push(read(answer, operation)?),
                // The end of the batch.
                Some(status) if status.as_u16() == 204 => {
                    let left = answer.headers.as_ref().and_then(|headers| number::<u64>(headers, NUM_PENDING));
                    (batch.is_end, batch.left) = (left == Some(0), left.unwrap_or(0));
                    return Ok(Some(batch));
                }
                Some(StatusCode::NOT_FOUND) => {
                    batch.is_end = true;
                    return Ok(Some(batch));
                }
                Some(StatusCode::NO_RESPONDERS) => return Ok(None),
                Some(status) => return Err(refused(stream, status, answer.description, operation)),
            }
        }
        Err(away("the connection was lost while reading".to_owned()))
    }
}

fn refused(stream: &str, status: StatusCode, why: Option<String>, operation: &'static str) -> BrokerError {
    let why = format!("NATS refused a read of stream `{stream}`: {status} {}", why.unwrap_or_default());
    BrokerError::new(BrokerErrorKind::Unavailable, operation, why)
}

const NUM_PENDING: HeaderName = HeaderName::from_static("Nats-Num-Pending");

/// A message that the server took from a stream, or republished as it was stored.
pub(crate) fn read(message: Message, operation: &'static str) -> Result<Stored, BrokerError> {
    let headers = message.headers.unwrap_or_default();
    let (subject, seq, at) = place(&headers).ok_or_else(|| {
        BrokerError::new(BrokerErrorKind::Corrupt, operation, "NATS sent a stored message without saying which it is")
    })?;
    Ok(Stored { subject, seq, headers, payload: message.payload, at })
}

fn place(headers: &HeaderMap) -> Option<(String, u64, Timestamp)> {
    let subject = headers.get("Nats-Subject")?.as_str().to_owned();
    let at: jiff::Timestamp = headers.get("Nats-Time-Stamp")?.as_str().parse().ok()?;
    Some((subject, number(headers, NATS_SEQUENCE)?, Timestamp::from_millis(at.as_millisecond())))
}
