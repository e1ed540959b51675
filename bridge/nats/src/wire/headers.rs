//! Reads headers of messages without their payloads. NATS sends them to consumers alone, so that each read has one of its own,
//! in the memory of one server and for as long as the read takes.
//!
//! A user who may make no consumer gets no answer: the server tells the connection of its refusal. So a read listens for that,
//! and is not tried again for a while.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::HeaderMap;
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::wire::api::Api;
use crate::wire::header_reads::{CREATE, DELETE};
use crate::wire::requests::ANSWER_WITHIN;
use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// How long the server keeps a consumer whose reader is gone.
const ABANDONED: Duration = Duration::from_secs(5);

impl Api {
    /// The headers of the last messages on `subjects`, which have no wildcards, by subject. A subject without a message is left
    /// out, and so may be one whose message a replica does not have yet.
    ///
    /// # Errors
    /// `Unauthorized` if relay's user may make no consumer of the stream, at once; `Unavailable`; `Ambiguous` if the server did
    /// not answer; `Overloaded` if the account or the stream has too many consumers.
    pub(crate) async fn headers(
        &self,
        stream: &'static str,
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
        // Never closed.
        let _place = self.header_reads().places.acquire().await;
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
        let made: Made = self.call_if_allowed(CREATE, stream, &name, &body, operation).await?;
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
        drop(self.call_if_allowed::<Value>(DELETE, stream, &name, &json!({}), operation).await);
        Ok(found)
    }

    /// A call of JetStream's API that relay's user may lack the permission for.
    async fn call_if_allowed<T: DeserializeOwned>(
        &self,
        call: &'static str,
        stream: &'static str,
        name: &str,
        body: &Value,
        operation: &'static str,
    ) -> Result<T, BrokerError> {
        let reads = self.header_reads();
        let refused = |why: String| BrokerError::new(BrokerErrorKind::Unauthorized, operation, why);
        if !reads.may(call, stream) {
            return Err(refused(format!("NATS refused `{call}.{stream}` lately")));
        }
        let subject = format!("{call}.{stream}.{name}");
        let answer = tokio::select! {
            answer = self.call(subject.clone(), body, operation) => answer,
            () = self.connection().refused_publish(&subject) => Err(refused(format!("NATS refused `{subject}`"))),
        };
        // A server that is not asked directly, but through another one, refuses without a word.
        let unanswered = answer
            .as_ref()
            .err()
            .filter(|error| matches!(error.kind(), BrokerErrorKind::Unauthorized | BrokerErrorKind::Ambiguous));
        match (&answer, unanswered) {
            (Ok(_), _) | (_, Some(_)) => reads.note(call, stream, unanswered),
            // The server said why not.
            (Err(_), None) => {}
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use relay_conformance::testing::NatsServer;

    use super::*;
    use crate::config::{Credentials, NatsConfig, Secret};
    use crate::stored::names::{DEAD_STREAM, RESULTS_STREAM};
    use crate::stored::record::Outgoing;
    use crate::wire::connection::{Connection, Wait};

    async fn api(server: &NatsServer, user: &str) -> Api {
        let credentials = Credentials::User { name: user.to_owned(), password: Secret::Value("x".to_owned()) };
        let config = NatsConfig { credentials, ..NatsConfig::new([server.url()]) };
        Api::new(Connection::open(config, Wait::AtMost(Duration::from_secs(30))).await.unwrap()).await.unwrap()
    }

    /// A server with `relay`, and with `half` who may not publish on `denied`; a stream of one message with headers.
    async fn server(denied: &str) -> (NatsServer, String) {
        let half = format!("{{ user: half, password: x, permissions: {{ publish: {{ deny: [\"{denied}\"] }} }} }}");
        let users = format!("authorization {{ users: [{{ user: relay, password: x }}, {half}] }}");
        let server = NatsServer::builder().config(&users).start().await;
        let (relay, subject) = (api(&server, "relay").await, "relay.dead.x".to_owned());
        let stream = json!({ "name": DEAD_STREAM, "subjects": ["relay.dead.>"] });
        relay.call::<Value>(format!("STREAM.CREATE.{DEAD_STREAM}"), &stream, "test").await.unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("Name", "value");
        let message = Outgoing { subject: subject.clone(), headers, payload: "payload".into(), hint: None };
        relay.publish(message, "test").await.unwrap();
        (server, subject)
    }

    #[tokio::test]
    async fn a_user_who_may_make_no_consumer_is_told_by_the_refusal_and_is_not_refused_again() {
        let (server, subject) = server("$JS.API.CONSUMER.CREATE.relay-dead.>").await;
        let (relay, half) = (api(&server, "relay").await, api(&server, "half").await);
        let subjects = [subject];
        assert_eq!(relay.headers(DEAD_STREAM, &subjects, "test").await.unwrap().len(), 1);
        for why in ["NATS refused `CONSUMER.CREATE.relay-dead.", "lately", "lately"] {
            let refused = half.headers(DEAD_STREAM, &subjects, "test").await.unwrap_err();
            // One that got no answer would be `Ambiguous`.
            assert_eq!(refused.kind(), BrokerErrorKind::Unauthorized, "{refused}");
            assert!(refused.detail().contains(why), "{refused}");
        }
        assert_eq!(half.connection().counts().refusals, 1);
        assert!(half.header_reads().may(CREATE, RESULTS_STREAM), "another stream was not asked for");
    }

    #[tokio::test]
    async fn headers_are_read_by_a_user_who_may_not_delete_the_consumer() {
        let (server, subject) = server("$JS.API.CONSUMER.DELETE.>").await;
        let half = api(&server, "half").await;
        for _ in 0..2 {
            let headers = half.headers(DEAD_STREAM, std::slice::from_ref(&subject), "test").await.unwrap();
            assert_eq!(headers[&subject].get("Name").map(|value| value.as_str()), Some("value"));
        }
        assert_eq!(half.connection().counts().refusals, 1);
    }
}
