//! What every request passes first, and every answer last: reply subject, byte budget, time, counts, and a net under
//! panics.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_nats::{Client, Message};
use bytes::Bytes;
use futures_util::FutureExt;
use http::HeaderMap;
use relay_bridge::contract::{ClientId, JobId, QueueName};
use tokio::task::unconstrained;
use tokio::time::timeout;
use tracing::field::Empty;
use tracing::{Instrument, Span, debug, error, info, info_span};

use super::answer::{Outbox, Reply, Unsent};
use super::subject::{self, Address, Endpoint};
use super::{Door, jobs, request, results};
use crate::api::{Problem, Slug, header};
use crate::ingress::headers::trace_id;
use crate::ingress::refusal::Refusal;

/// A request as its endpoint sees it.
pub(super) struct Asked {
    pub(super) client: ClientId,
    pub(super) queue: Option<QueueName>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Set when the broker is asked to change something: from then on nobody can say that nothing was done.
    pub(super) begun: OnceLock<JobId>,
}

/// What an endpoint gives back.
pub(super) type Answer = Result<Reply, Refusal>;

/// One request and what is needed to answer it.
pub(super) struct Visit {
    pub(super) door: Arc<Door>,
    pub(super) endpoint: Endpoint,
    pub(super) client: Client,
    pub(super) message: Message,
    pub(super) came: Instant,
}

impl Visit {
    /// Answers the request and counts it. Never fails and never panics.
    pub(super) async fn attend(self) {
        let id = self.door.mint_request_id();
        let span = info_span!("request", request_id = id, trace_id = Empty, subject = self.message.subject.as_str());
        self.go(&id).instrument(span).await;
    }

    /// Refuses the request without looking at it. Whether the connection took that within `patience`.
    pub(super) async fn turn_away(self, patience: Duration) -> bool {
        let detail =
            "relay has as many requests in hand as it takes; nothing was done: send it again after Retry-After";
        let id = self.door.mint_request_id();
        match self.outbox() {
            Ok(outbox) => {
                let refusal = Refusal::new(Slug::Overloaded, detail);
                self.answer_within(patience, &outbox, &id, Err(refusal)).await
            }
            Err(refusal) => {
                self.ignore(&refusal);
                true
            }
        }
    }

    async fn go(self, id: &str) {
        let outbox = match self.outbox() {
            Ok(outbox) => outbox,
            Err(refusal) => return self.ignore(&refusal),
        };
        let asked = match self.read() {
            Ok(asked) => asked,
            Err(refusal) => return self.answer(&outbox, id, Err(refusal)).await,
        };
        Span::current().record("trace_id", trace_id(&asked.headers));
        let Some(_share) = self.door.bytes.take(asked.body.len() as u64) else {
            return self.answer(&outbox, id, Err(Refusal::too_many_bytes())).await;
        };
        let work = AssertUnwindSafe(self.work(&asked, &outbox)).catch_unwind();
        let work = async { work.await.unwrap_or_else(|panic| Err(panicked(&*panic, &asked))) };
        if self.endpoint == Endpoint::Results {
            // Many messages, each as soon as it is read; the broker's and the reader's pace.
            let answer = work.await;
            return self.answer(&outbox, id, answer).await;
        }
        let mut work = std::pin::pin!(work);
        match timeout(self.door.limits.answer_within, &mut work).await {
            Ok(answer) => self.answer(&outbox, id, answer).await,
            Err(_) => {
                self.answer(&outbox, id, Err(self.late(&asked))).await;
                if asked.begun.get().is_some() {
                    // Its place and its bytes are taken until the broker has made up its mind.
                    let ended = work.await.map_err(|refusal| refusal.0.slug);
                    info!(accepted = ended.is_ok(), "the broker answered after its time");
                }
            }
        }
    }

    /// Boxed, so that a request costs what its own endpoint needs.
    async fn work(&self, asked: &Asked, outbox: &Outbox) -> Answer {
        let door = &*self.door;
        match self.endpoint {
            Endpoint::Submit => Box::pin(jobs::submit(door, asked)).await,
            Endpoint::Status => Box::pin(jobs::status(door, asked)).await,
            Endpoint::Cancel => Box::pin(jobs::cancel(door, asked)).await,
            Endpoint::Result => Box::pin(results::one(door, asked, outbox)).await,
            Endpoint::Results => Box::pin(results::all(door, asked, outbox)).await,
        }
    }

    /// Where the answer goes, if that is an inbox.
    fn outbox(&self) -> Result<Outbox, Refusal> {
        let client = Address::client(&self.message.subject).ok();
        let allowed = |reply: &str| subject::may_reply(client.as_ref(), reply);
        match self.message.reply.as_deref().map(allowed) {
            None | Some(true) => Ok(Outbox { client: self.client.clone(), to: self.message.reply.clone() }),
            Some(false) => Err(Refusal::new(Slug::Forbidden, "the reply subject is no inbox of this client")),
        }
    }

    fn read(&self) -> Result<Asked, Refusal> {
        let Address { client, queue } = Address::read(&self.message.subject)?;
        let headers = request::headers(&self.message, &self.door.limits)?;
        let body = self.message.payload.clone();
        Ok(Asked { client, queue, headers, body, begun: OnceLock::new() })
    }

    /// What can be said of a request that the broker has not answered in time.
    fn late(&self, asked: &Asked) -> Refusal {
        let Some(job) = asked.begun.get() else {
            let detail = "the broker behind relay does not answer; nothing was done: send the same request again";
            return Refusal::new(Slug::BrokerUnavailable, detail);
        };
        let detail = match self.endpoint {
            Endpoint::Cancel => {
                "the broker did not confirm in time, so it may or may not have been done: send it again"
            }
            _ => {
                "the broker did not confirm in time, so it may or may not have been done: send it again with the same \
                 Idempotency-Key; without a key it may be done twice"
            }
        };
        Problem::new(Slug::Unconfirmed, detail).with_job(*job).into()
    }

    /// Sends the answer, or its last message, and counts the request. It waits no longer than who asked.
    async fn answer(&self, outbox: &Outbox, id: &str, answer: Answer) {
        self.answer_within(self.door.limits.answer_within, outbox, id, answer).await;
    }

    /// The same; whether the connection took the answer within `patience`, zero for at once.
    async fn answer_within(&self, patience: Duration, outbox: &Outbox, id: &str, mut answer: Answer) -> bool {
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

    /// Sends the answer, or its last message. What is given back is what was wrong.
    async fn send(&self, outbox: &Outbox, id: &str, answer: Answer) -> Option<Problem> {
        let problem = match answer {
            Ok(reply) => match outbox.send(reply.with(header::REQUEST_ID, id)).await {
                Err(Unsent::TooLarge) => Some(results::too_large_to_send(outbox)),
                Ok(()) | Err(Unsent::Closed) => None,
            },
            Err(Refusal(problem)) => Some(*problem),
        };
        let mut problem = problem?;
        problem.instance = format!("urn:relay:request:{id}");
        if outbox.to.is_none() {
            info!(slug = %problem.slug, detail = problem.detail, "a request without a reply subject was refused");
        }
        outbox.send(Reply::problem(&problem).with(header::REQUEST_ID, id)).await.ok();
        if self.endpoint == Endpoint::Results {
            // Who reads until the empty message must not wait for it in vain.
            outbox.send(Reply::default().marked(&problem)).await.ok();
        }
        Some(problem)
    }

    /// A request that can't be answered where it wants to be is not done either.
    fn ignore(&self, refusal: &Refusal) {
        info!(
            subject = self.message.subject.as_str(),
            reply = self.message.reply.as_deref(),
            "a request wants its answer where clients have no inbox; nothing was done"
        );
        self.count(Some(&refusal.0));
    }

    fn count(&self, problem: Option<&Problem>) {
        let took = self.came.elapsed();
        debug!(
            endpoint = self.endpoint.name(),
            slug = problem.map(|problem| problem.slug.as_str()),
            "request answered"
        );
        if let Some(problem) = problem {
            self.door.refusals.add(problem.slug);
        }
        self.door.service.count(self.endpoint, took, problem);
    }
}

fn panicked(panic: &(dyn std::any::Any + Send), asked: &Asked) -> Refusal {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    error!(panic = text.unwrap_or("no text"), "a handler panicked");
    let detail = "relay failed, and this may or may not have been done: send it again with the same Idempotency-Key, and \
                  tell the operator of relay the request id";
    let problem = Problem::new(Slug::Internal, detail);
    match asked.begun.get() {
        Some(job) => problem.with_job(*job).into(),
        None => problem.into(),
    }
}
