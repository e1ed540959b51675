//! Where answers leave: they are sent, and their requests counted.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use relay_bridge::contract::ClientId;
use relay_bridge::support::lock;
use tokio::task::unconstrained;
use tokio::time::timeout;
use tracing::{debug, info};

use super::Ingress;
use super::answer::{Outbox, Reply, Unsent};
use super::gate::Answer;
use super::results;
use super::subject::Endpoint;
use crate::api::{Problem, Slug, header};
use crate::audit::Line;
use crate::audit::record::{Action, Door, Record};
use crate::ingress::refusal::Refusal;

/// Answers one request and counts it.
pub(super) struct Desk {
    pub(super) ingress: Arc<Ingress>,
    pub(super) endpoint: Endpoint,
    pub(super) came: Instant,
    /// How long it took until a request began to wait for a result: how long it waits then says nothing about relay.
    pub(super) until_wait: Option<Duration>,
    /// The line of the audit that ends with the answer, if there is one.
    pub(super) line: Mutex<Option<Line>>,
}

impl Desk {
    /// Holds a line of the audit for the request `id` of `client`, if it is to have one.
    ///
    /// # Errors
    /// `overloaded`, where every call has to be on record and there is no room for another one.
    pub(super) fn begin(&self, id: &str, client: &ClientId, about: impl FnOnce(&mut Record)) -> Result<(), Refusal> {
        let Some(audit) = self.ingress.audit.get() else { return Ok(()) };
        let action = match self.endpoint {
            Endpoint::Submit => Action::Submit,
            Endpoint::Status | Endpoint::Result => Action::Read,
            Endpoint::Results => Action::List,
            Endpoint::Cancel => Action::Cancel,
        };
        let line = audit.begin(Door::Nats, action).map_err(|full| Refusal::new(Slug::Overloaded, full.to_string()))?;
        *lock(&self.line) = line;
        self.note(|record| {
            (record.who, record.method) = (Some(client.to_string()), Some("nats"));
            record.request_id = Some(id.to_owned());
            about(record);
        });
        Ok(())
    }

    /// Adds to the line, if there is one.
    pub(super) fn note(&self, change: impl FnOnce(&mut Record)) {
        if let Some(line) = &mut *lock(&self.line) {
            line.set(change);
        }
    }

    /// Sends the answer, or its last message, and counts the request. It waits no longer than who asked.
    pub(super) async fn answer(&self, outbox: &Outbox, id: &str, answer: Answer) {
        self.answer_within(self.ingress.limits.answer_within, outbox, id, answer).await;
    }

    /// The same; whether the connection took the answer within `patience`, zero for at once.
    pub(super) async fn answer_within(
        &self,
        patience: Duration,
        outbox: &Outbox,
        id: &str,
        mut answer: Answer,
    ) -> bool {
        let room = answer.as_mut().ok().and_then(|reply| reply.room.take());
        let sending = self.send(outbox, id, answer);
        let sent = if patience.is_zero() {
            // A timer takes a millisecond at least.
            unconstrained(sending).now_or_never()
        } else {
            timeout(patience, sending).await.ok()
        };
        let Some(problem) = sent else {
            self.count(Some(&Problem::new(Slug::Overloaded, "the connection to NATS did not take the answer")));
            return false;
        };
        self.count(problem.as_ref());
        if room.is_some() {
            // Until then the connection has the body in its buffers.
            outbox.flush().await.ok();
        }
        true
    }

    /// Sends the answer, or its last message. Returns the problem, if there was one.
    async fn send(&self, outbox: &Outbox, id: &str, answer: Answer) -> Option<Problem> {
        let problem = match answer {
            Ok(reply) => {
                let job = reply.job;
                match outbox.send(reply.with(header::REQUEST_ID, id)).await {
                    Err(Unsent::TooLarge) => Some(results::too_large_to_send(outbox, job)),
                    Ok(()) | Err(Unsent::Closed) => None,
                }
            }
            Err(Refusal(problem)) => Some(*problem),
        };
        let mut problem = problem?;
        problem.instance = format!("urn:relay:request:{id}");
        if outbox.to.is_none() {
            info!(slug = %problem.slug, detail = problem.detail, "a request without a reply subject was refused");
        }
        outbox.send(Reply::problem(&problem).with(header::REQUEST_ID, id)).await.ok();
        if self.endpoint == Endpoint::Results {
            // A client that reads until the empty message must not wait for it in vain.
            outbox.send(Reply::default().marked(&problem)).await.ok();
        }
        Some(problem)
    }

    /// Counts the request: its time is that until it was answered, or began to wait.
    pub(super) fn count(&self, problem: Option<&Problem>) {
        let took = self.until_wait.unwrap_or_else(|| self.came.elapsed());
        debug!(
            endpoint = self.endpoint.name(),
            slug = problem.map(|problem| problem.slug.as_str()),
            "request answered"
        );
        if let Some(problem) = problem {
            self.ingress.refusals.add(problem.slug);
        }
        if let Some(line) = lock(&self.line).take() {
            line.end(problem.map_or(200, |problem| problem.status), problem.map(|problem| problem.slug));
        }
        self.ingress.service.count(self.endpoint, took, problem);
    }
}
