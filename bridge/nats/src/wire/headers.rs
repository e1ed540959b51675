//! Reads headers of messages without their payloads. NATS sends them to consumers alone, so that each read has one of its own,
//! in the memory of one server and for as long as the read takes.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use crate::wire::api::Api;
use crate::wire::requests::ANSWER_WITHIN;
use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// How long the server keeps a consumer whose reader is gone.
const ABANDONED: Duration = Duration::from_secs(5);

impl Api {
    /// The headers of the last messages on `subjects`, which have no wildcards, by subject. A subject without a message is left
    /// out, and so may be one whose message a replica does not have yet.
    ///
    /// # Errors
    /// `Unavailable`; `Ambiguous` if the server did not answer; `Overloaded` if the account or the stream has too many consumers.
    pub(crate) async fn headers(
        &self,
        stream: &str,
        subjects: &[String],
        operation: &'static str,
    ) -> Result<HashMap<String, HeaderMap>, BrokerError> {
        #[derive(Deserialize)]
        struct Made {
            num_pending: u64,
            delivered: Delivered,
        }
        #[derive(Deserialize)]
        struct Delivered {
            consumer_seq: u64,
        }
        let inbox = self.client().new_inbox();
        let name = inbox.rsplit('.').next().unwrap_or_default().to_owned();
        let mut messages = self.subscribe(inbox.clone(), operation).await?;
        let body = json!({
            "stream_name": stream,
            "config": {
                "name": name,
                "deliver_subject": inbox,
                "filter_subjects": subjects,
                // The server finds the last message of each subject by its index of subjects, and reads no others.
                "deliver_policy": "last_per_subject",
                "headers_only": true,
                "ack_policy": "none",
                "replay_policy": "instant",
                "mem_storage": true,
                "num_replicas": 1,
                "inactive_threshold": u64::try_from(ABANDONED.as_nanos()).unwrap_or(0),
            },
        });
        let made: Made = self.call(format!("CONSUMER.CREATE.{stream}.{name}"), &body, operation).await?;
        let mut found = HashMap::new();
        // Some may have been sent before the answer was.
        for _ in 0..made.num_pending + made.delivered.consumer_seq {
            let Ok(Some(message)) = timeout(ANSWER_WITHIN, messages.next()).await else {
                let why = "NATS did not send all headers that it has in time";
                return Err(BrokerError::new(BrokerErrorKind::Unavailable, operation, why));
            };
            found.insert(message.subject.into_string(), message.headers.unwrap_or_default());
        }
        // One that is not removed now ends by itself.
        drop(self.ask(format!("CONSUMER.DELETE.{stream}.{name}"), Bytes::new(), operation).await);
        Ok(found)
    }
}
