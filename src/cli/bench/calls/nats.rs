//! Calls over NATS: requests on relay's subjects, over connections of their own.

use std::time::Duration;

use async_nats::client::{Request, RequestErrorKind};
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures_util::StreamExt as _;
use relay_bridge::contract::ClientId;
use relay_nats::connection::{Connection, Wait};
use tokio_util::sync::CancellationToken;

use super::pushed::Pushed;
use super::{Access, Answered, Failure, Who, Width, finished};
use crate::api::{DurationText, header};
use crate::cli::bench::workload::{Operation, Workload};

/// How long a connection, and the first answer, may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// No job has this id.
const NOBODYS_JOB: &str = "00000000-0000-8000-8000-000000000000";
/// The client of a relay without authentication.
const CLIENT: &str = "dev";

/// Connections to the servers of NATS.
pub(super) struct Nats {
    connections: Vec<Connection>,
    client: String,
    wait: Duration,
}

impl Nats {
    pub(super) async fn connect(access: &Access, width: Width) -> Result<(Self, Who), Failure> {
        let Some(config) = &access.nats else {
            return Err(Failure::new("nats", "no servers of NATS are named"));
        };
        let mut connections = Vec::with_capacity(width.connections);
        for _ in 0..width.connections {
            let opened = Connection::open_core(config.clone(), Wait::AtMost(CONNECT_MAX)).await;
            connections.push(opened.map_err(|error| Failure::unreachable(error.to_string()))?);
        }
        let client = access.client.as_ref().map_or_else(|| CLIENT.to_owned(), ClientId::to_string);
        let nats = Self { connections, client, wait: width.timeout / 2 };
        let subject = format!("relay.status.{}", nats.client);
        let asked = nats.ask(0, subject, HeaderMap::new(), Bytes::from_static(NOBODYS_JOB.as_bytes()));
        let asked = tokio::time::timeout(CONNECT_MAX, asked).await;
        let answer = asked.map_err(|_| Failure::new("timeout", "relay did not answer: this user may not ask it"))??;
        match slug(&answer) {
            Some("not-found") => {}
            Some(slug) => return Err(Failure::new(slug, String::from_utf8_lossy(&answer.payload))),
            None => return Err(Failure::not_relay("somebody else answers on relay's subjects")),
        }
        let who = Who { client: Some(nats.client.clone()), ..Who::default() };
        Ok((nats, who))
    }

    pub(super) async fn call(&self, slot: usize, workload: &Workload, number: u64) -> Result<Answered, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert("Idempotency-Key", workload.key(number));
        let waits = workload.operation == Operation::Wait;
        if waits {
            headers.insert("Relay-Wait", DurationText(self.wait).to_string());
        }
        let subject = format!("relay.submit.{}.{}", self.client, workload.queue);
        let answer = self.ask(slot, subject, headers, workload.payload(number)).await?;
        if let Some(slug) = slug(&answer) {
            return Err(Failure::new(slug, String::from_utf8_lossy(&answer.payload)));
        }
        if !waits {
            return Ok(Answered::one());
        }
        match value(&answer, header::OUTCOME) {
            Some(outcome) => finished(outcome),
            None => Err(Failure::no_result()),
        }
    }

    /// Takes the announcements of results, which only NATS as the broker makes.
    pub(super) async fn follow(
        &self,
        workload: &Workload,
        pushed: &Pushed,
        ready: &CancellationToken,
    ) -> Result<(), Failure> {
        let client = self.connections[0].client();
        let wrong = |error: &dyn std::error::Error| Failure::interrupted(error.to_string());
        let mut results =
            client.subscribe(format!("relay.reply.{}.*", self.client)).await.map_err(|error| wrong(&error))?;
        client.flush().await.map_err(|error| wrong(&error))?;
        ready.cancel();
        while let Some(result) = results.next().await {
            let key = value(&result, header::IDEMPOTENCY_KEY);
            pushed.announce(workload, key, value(&result, header::OUTCOME).unwrap_or_default());
        }
        Err(Failure::interrupted("announcements ended"))
    }

    async fn ask(&self, slot: usize, subject: String, headers: HeaderMap, payload: Bytes) -> Result<Message, Failure> {
        let connection = &self.connections[slot % self.connections.len()];
        // The client library would keep the request and send it when NATS is back.
        connection.up("bench").map_err(|error| Failure::unreachable(error.to_string()))?;
        let request = Request::new().headers(headers).payload(payload).timeout(None);
        connection.client().send_request(subject, request).await.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => Failure {
                slug: "no-responders".to_owned(),
                ..Failure::unreachable("NATS is there, and no relay listens on it")
            },
            _ => Failure::interrupted(error.to_string()),
        })
    }

    pub(super) async fn close(&self) {
        for connection in &self.connections {
            connection.close().await;
        }
    }
}

fn slug(answer: &Message) -> Option<&str> {
    value(answer, "nats-service-error")
}

/// A header, in whatever case it is written: NATS tells them apart.
fn value<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    let headers = message.headers.as_ref()?;
    let (_, values) = headers.iter().find(|(found, _)| found.to_string().eq_ignore_ascii_case(name))?;
    values.first().map(|value| value.as_str())
}
