//! Results of a client, sent to a subject of NATS that a stream keeps: each once, in order, by any number of replicas.
//!
//! There is no cursor to keep beside the messages: the last one that was sent carries it, and a message is stored only if
//! it follows the one that its sender last saw. So a result and the place to go on from are one write, and who comes
//! second is told.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::HeaderValue;
use async_nats::jetstream::context::{GetStreamByNameErrorKind, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, RetentionPolicy};
use bytes::Bytes;
use relay_bridge::backoff::random;
use relay_bridge::broker::Broker;
use relay_bridge::contract::job::HOPS;
use relay_bridge::contract::{ClientId, JobStatus, QueueName};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::{Finished, PAGE_ENTRIES_MAX, ResultFilter, Start};
use relay_nats::connection::Connection;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::api::{fit, header};
use crate::bridge::stats::{ForeignStats, count};
use crate::bridge::target::AWAY;

/// How long one read waits for results.
const WAIT: Duration = Duration::from_secs(20);
/// How long a replica stands back that came second: another one is at work, and is left to it.
const STAND_BACK: Duration = Duration::from_secs(5);

/// Which results, and where to.
pub struct Replies {
    target: Broker,
    connection: Connection,
    client: ClientId,
    queue: QueueName,
    subject: String,
    /// The stream that keeps `subject`.
    stream: String,
    stats: Arc<ForeignStats>,
}

/// The outcome of sending a message.
enum Sent {
    /// It is stored, with this sequence.
    At(u64),
    /// Another one is, from another replica.
    Outrun,
}

impl Replies {
    /// Finds that a stream keeps `subject`, for long enough to go on from its last message.
    ///
    /// # Errors
    /// `Invalid` with what to do; `Unavailable` while one of the two sides is away.
    pub async fn open(
        target: Broker,
        connection: Connection,
        (client, queue): (ClientId, QueueName),
        subject: String,
        stats: Arc<ForeignStats>,
    ) -> Result<Self, BrokerError> {
        const OPERATION: &str = "open replies";
        let invalid = |detail| BrokerError::new(BrokerErrorKind::Invalid, OPERATION, detail);
        let away = |detail| BrokerError::new(BrokerErrorKind::Unavailable, OPERATION, detail);
        connection.up(OPERATION)?;
        let jetstream = connection.jetstream();
        let stream = jetstream.stream_by_subject(&subject).await.map_err(|error| match error.kind() {
            GetStreamByNameErrorKind::NotFound => {
                invalid(format!("no stream keeps the subject {subject}: create one that does"))
            }
            _ => away(format!("{subject}: {error}")),
        })?;
        let config = jetstream.get_stream(&stream).await.map_err(|error| away(format!("{stream}: {error}")))?;
        let config = &config.cached_info().config;
        if config.retention != RetentionPolicy::Limits {
            let what = format!(
                "stream {stream} removes what was read: it needs limits retention, to go on from the last result"
            );
            return Err(invalid(what));
        }
        let policy = target.policies.policy(&queue).await?.unwrap_or_else(QueuePolicy::default);
        let kept = policy.job_ttl + policy.retention;
        if !config.max_age.is_zero() && config.max_age <= kept {
            let what = format!(
                "stream {stream} forgets after {:?}, and relay keeps results of queue {queue} for {kept:?}: make it longer, or \
                 results would be sent again after a quiet time",
                config.max_age
            );
            return Err(invalid(what));
        }
        Ok(Self { target, connection, client, queue, subject, stream, stats })
    }

    /// Sends results until `shutdown`. Whichever side is away is waited for.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut failures = 0_u32;
        while !shutdown.is_cancelled() {
            let ended = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                ended = self.follow(&mut failures) => ended,
            };
            let pause = match ended {
                Ok(()) => STAND_BACK.mul_f64(0.5 + random() / 2.0),
                Err(error) => {
                    failures = failures.saturating_add(1);
                    if failures == 1 || failures.is_multiple_of(10) {
                        tracing::warn!(client = %self.client, failures, %error, "no results can be sent, trying again");
                    }
                    AWAY.backoff(failures, random())
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Sends what follows the last message, until another replica was first.
    async fn follow(&self, failures: &mut u32) -> Result<(), BrokerError> {
        let (mut last, mut start) = self.last().await?;
        let filter = ResultFilter { queues: Some(vec![self.queue.clone()]), key_prefix: None };
        loop {
            let page = self.target.results.page(&self.client, &start, &filter, PAGE_ENTRIES_MAX, WAIT).await?;
            if let Some(reset) = page.reset {
                tracing::warn!(client = %self.client, ?reset, "results are read from the oldest one again, and may be sent again");
            }
            for entry in &page.entries {
                match self.send(entry, last).await? {
                    Sent::At(sequence) => {
                        count(&self.stats.replied);
                        last = sequence;
                    }
                    Sent::Outrun => {
                        count(&self.stats.outrun);
                        return Ok(());
                    }
                }
            }
            *failures = 0;
            start = Start::After(page.next);
        }
    }

    /// The last message's sequence, and where its result is in the log.
    async fn last(&self) -> Result<(u64, Start), BrokerError> {
        const OPERATION: &str = "read last reply";
        self.connection.up(OPERATION)?;
        let away = |detail| BrokerError::new(BrokerErrorKind::Unavailable, OPERATION, detail);
        let stream = self.connection.jetstream().get_stream_no_info(&self.stream).await;
        let stream = stream.map_err(|error| away(error.to_string()))?;
        match stream.get_last_raw_message_by_subject(&self.subject).await {
            Ok(found) => {
                let cursor =
                    found.headers.get(spelled(header::CURSOR).as_str()).and_then(|text| text.as_str().parse().ok());
                if cursor.is_none() {
                    tracing::warn!(
                        subject = self.subject,
                        "the last message is none of relay's: results are sent from the oldest"
                    );
                }
                Ok((found.sequence, cursor.map_or(Start::Oldest, Start::After)))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok((0, Start::Oldest)),
            Err(error) => Err(away(error.to_string())),
        }
    }

    async fn send(&self, entry: &Finished, last: u64) -> Result<Sent, BrokerError> {
        const OPERATION: &str = "send result";
        let status = self.target.jobs.status(&self.client, entry.result.job_id).await?;
        let headers = headers(entry, status.as_ref());
        let sent = match self.publish(headers.clone(), entry.result.payload.clone(), last).await {
            Err(PublishErrorKind::MaxPayloadExceeded) => {
                let mut headers = headers;
                headers.insert(OMITTED, "payload");
                self.publish(headers, Bytes::new(), last).await
            }
            sent => sent,
        };
        match sent {
            Ok(sequence) => Ok(Sent::At(sequence)),
            Err(PublishErrorKind::WrongLastSequence) => Ok(Sent::Outrun),
            // In doubt: the last message says what became of it.
            Err(PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe) => {
                Err(self.connection.unanswered(OPERATION))
            }
            Err(error) => {
                let detail = format!("{}: {error}", self.subject);
                Err(BrokerError::new(BrokerErrorKind::Unavailable, OPERATION, detail))
            }
        }
    }

    async fn publish(&self, headers: HeaderMap, payload: Bytes, last: u64) -> Result<u64, PublishErrorKind> {
        self.connection.up("send result").map_err(|_| PublishErrorKind::BrokenPipe)?;
        let message = PublishMessage::build().headers(headers).payload(payload).expected_last_subject_sequence(last);
        let sent = self.connection.jetstream().send_publish(self.subject.clone(), message).await;
        let stored = sent.map_err(|error| error.kind())?.await;
        stored.map(|ack| ack.sequence).map_err(|error| error.kind())
    }
}

/// Of a result that is larger than a message may be: it is fetched from relay.
const OMITTED: &str = "Relay-Omitted";
/// The key under which the job was submitted, by which whoever waits knows it.
const KEY: &str = "Relay-Key";

fn headers(entry: &Finished, status: Option<&JobStatus>) -> HeaderMap {
    let result = &entry.result;
    let mut headers = HeaderMap::new();
    let mut set = |name: String, value: &str| {
        // A value that a header can't carry is left out.
        if let Ok(value) = value.parse::<HeaderValue>() {
            headers.insert(name.as_str(), value);
        }
    };
    for (name, value) in status.iter().flat_map(|status| &status.headers) {
        set(spelled(name), value);
    }
    if let Some(key) = result.key.as_ref().or_else(|| status?.key.as_ref()) {
        set(KEY.to_owned(), key.as_str());
    }
    if result.hops > 0 {
        set(spelled(HOPS), &result.hops.to_string());
    }
    for (name, value) in [
        (header::JOB_ID, result.job_id.to_string()),
        (header::RUN_ID, result.run_id.to_string()),
        (header::OUTCOME, result.outcome.to_string()),
        (header::ATTEMPT, result.attempt.to_string()),
        (header::CURSOR, entry.cursor.to_string()),
        ("content-type", fit::content_type(result).to_owned()),
    ] {
        set(spelled(name), &value);
    }
    if entry.erased {
        set(OMITTED.to_owned(), "payload");
    }
    headers
}

/// `relay-job-id` as `Relay-Job-Id`: NATS compares names letter by letter. Those of W3C are in lower case everywhere.
fn spelled(name: &str) -> String {
    if [header::TRACEPARENT, header::TRACESTATE].contains(&name) {
        return name.to_owned();
    }
    let mut up = true;
    let letter = |c: char| {
        let spelled = if up { c.to_ascii_uppercase() } else { c };
        up = c == '-';
        spelled
    };
    name.chars().map(letter).collect()
}
