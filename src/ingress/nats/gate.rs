//! The stages that every request passes first: reply subject, byte budget, time, and a net under panics.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_nats::{Client, Message};
use bytes::Bytes;
use futures_util::FutureExt;
use http::HeaderMap;
use relay_bridge::contract::{ClientId, JobId, QueueName};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument, Span, error, info, info_span};

use super::answer::{Outbox, Reply};
use super::desk::Desk;
use super::subject::{self, Address, Endpoint};
use super::wait::{self, Wait, Waiting};
use super::{jobs, request, results};
use crate::api::{Problem, Slug, header};
use crate::audit::record::header_key_hash;
use crate::ingress::budget::{Full, Share};
use crate::ingress::clients::Owner;
use crate::ingress::headers::{check_relay_headers, trace_id};
use crate::ingress::refusal::{Refusal, scarce};
use crate::ingress::request_id;

/// A request as its endpoint sees it.
pub(super) struct Asked {
    pub(super) client: ClientId,
    pub(super) queue: Option<QueueName>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// For how long it wants to wait for a result, if it does and can.
    pub(super) wait: Option<wait::Span>,
    /// Set when the broker is asked to change something: from then on nobody can say that nothing was done.
    pub(super) begun: OnceLock<JobId>,
}

/// The answer to a request, or its refusal.
pub(super) type Answer = Result<Reply, Refusal>;

/// The first that an endpoint gives back.
pub(super) enum Step {
    /// The answer.
    Answered(Reply),
    /// There will be one.
    Waits(Wait),
}

/// One request and what is needed to answer it.
pub(super) struct Visit {
    pub(super) desk: Desk,
    pub(super) client: Arc<Client>,
    pub(super) message: Message,
    /// Cancelled at the beginning of a drain.
    pub(super) drain: CancellationToken,
}

impl Visit {
    /// Answers the request and counts it, or gives back what does both after a wait. Never fails and never panics.
    pub(super) async fn attend(self) -> Option<Box<Waiting>> {
        let id = request_id::mint();
        let span = info_span!("request", request_id = id, trace_id = Empty, subject = self.message.subject.as_str());
        self.go(id).instrument(span).await
    }

    /// Refuses the request without looking at it. Whether the connection took that within `patience`.
    pub(super) async fn turn_away(self, full: Full, patience: Duration) -> bool {
        let id = request_id::mint();
        match self.outbox() {
            Ok(outbox) => {
                let refusal = Refusal::full(full, scarce::REQUESTS);
                self.desk.answer_within(patience, &outbox, &id, Err(refusal)).await
            }
            Err(refusal) => {
                self.ignore(&refusal);
                true
            }
        }
    }

    async fn go(self, id: String) -> Option<Box<Waiting>> {
        let outbox = match self.outbox() {
            Ok(outbox) => outbox,
            Err(refusal) => {
                self.ignore(&refusal);
                return None;
            }
        };
        let mut share = None;
        match self.step(&outbox, &id, &mut share).await {
            Ok(Step::Waits(wait)) => {
                let Self { desk, drain, .. } = self;
                let desk = Desk { until_wait: Some(desk.came.elapsed()), ..desk };
                let counted = desk.ingress.waiting.take(&Owner::Anybody, 1).ok();
                return Some(Box::new(Waiting { desk, outbox, id, wait, drain, counted }));
            }
            Ok(Step::Answered(reply)) => self.desk.answer(&outbox, &id, Ok(reply)).await,
            Err(Some(refusal)) => self.desk.answer(&outbox, &id, Err(refusal)).await,
            Err(None) => {}
        }
        None
    }

    /// Has the endpoint do its work, in its time. `None` in place of a refusal if it was answered already. `share` is what the
    /// body takes of the byte budget for as long as it is here.
    async fn step(&self, outbox: &Outbox, id: &str, share: &mut Option<Share>) -> Result<Step, Option<Refusal>> {
        let asked = self.read()?;
        Span::current().record("trace_id", trace_id(&asked.headers));
        self.desk.begin(id, &asked.client, |record| {
            record.queue.clone_from(&asked.queue);
            record.key_hash = asked.headers.get(header::IDEMPOTENCY_KEY).map(|key| header_key_hash(key.as_bytes()));
            if self.desk.endpoint != Endpoint::Submit {
                record.job = request::job_id(&asked.body).ok();
            }
        })?;
        let owner = self.desk.ingress.owner(&asked.client);
        let taken = self.desk.ingress.bytes.take(&owner, asked.body.len() as u64);
        *share = Some(taken.map_err(|full| Refusal::full(full, scarce::BODIES))?);
        let work = AssertUnwindSafe(self.work(&asked, outbox)).catch_unwind();
        let work = async {
            let done = work.await.unwrap_or_else(|panic| Err(panicked(&*panic, asked.begun.get().copied())));
            self.desk.note(|record| record.job = record.job.or(asked.begun.get().copied()));
            done
        };
        if self.desk.endpoint == Endpoint::Results {
            // Many messages, each as soon as it is read; the broker's and the reader's pace.
            return Ok(work.await?);
        }
        let mut work = std::pin::pin!(work);
        if let Ok(step) = timeout(self.desk.ingress.limits.answer_within, &mut work).await {
            return Ok(step?);
        }
        self.desk.answer(outbox, id, Err(self.late(&asked))).await;
        if asked.begun.get().is_some() {
            // Its place and its bytes are taken until the broker has made up its mind.
            let ended = work.await.map_err(|refusal| refusal.0.slug);
            info!(accepted = ended.is_ok(), "the broker answered after its time");
        }
        Err(None)
    }

    /// Boxed, so that a request costs what its own endpoint needs.
    async fn work(&self, asked: &Asked, outbox: &Outbox) -> Result<Step, Refusal> {
        let ingress = &*self.desk.ingress;
        match self.desk.endpoint {
            Endpoint::Submit => Box::pin(jobs::submit(ingress, asked)).await,
            Endpoint::Status => Box::pin(jobs::status(ingress, asked)).await.map(Step::Answered),
            Endpoint::Cancel => Box::pin(jobs::cancel(ingress, asked)).await.map(Step::Answered),
            Endpoint::Result => Box::pin(results::one(ingress, asked, outbox)).await,
            Endpoint::Results => Box::pin(results::all(ingress, asked, outbox)).await.map(Step::Answered),
        }
    }

    /// Where the answer goes, if that is an inbox.
    fn outbox(&self) -> Result<Outbox, Refusal> {
        let client = Address::client(&self.message.subject).ok();
        let allowed = |reply: &str| subject::may_reply(client.as_ref(), reply);
        match self.message.reply.as_deref().map(allowed) {
            None | Some(true) => Ok(Outbox { client: Arc::clone(&self.client), to: self.message.reply.clone() }),
            Some(false) => Err(Refusal::new(Slug::Forbidden, "the reply subject is no inbox of this client")),
        }
    }

    fn read(&self) -> Result<Asked, Refusal> {
        let (ingress, message) = (&self.desk.ingress, &self.message);
        let Address { client, queue } = Address::read(&message.subject)?;
        ingress.admit(&client)?;
        let mut headers = request::headers(message, &ingress.limits)?;
        match self.desk.endpoint {
            // A submission's are judged where they are read.
            Endpoint::Submit => {}
            Endpoint::Result => check_relay_headers(&headers, &[header::WAIT])?,
            Endpoint::Results => check_relay_headers(&headers, &[header::AFTER, header::LIMIT])?,
            Endpoint::Status | Endpoint::Cancel => check_relay_headers(&headers, &[])?,
        }
        let wait = match self.desk.endpoint {
            Endpoint::Submit | Endpoint::Result if message.reply.is_some() => {
                let asked = request::take_wait(&mut headers, ingress.limits.wait_max)?;
                asked.map(|asked| wait::Span { asked, until: (self.desk.came + asked).into() })
            }
            Endpoint::Submit | Endpoint::Result => {
                // Nobody hears of the result.
                headers.remove(header::WAIT);
                None
            }
            Endpoint::Status | Endpoint::Results | Endpoint::Cancel => None,
        };
        Ok(Asked { client, queue, headers, body: message.payload.clone(), wait, begun: OnceLock::new() })
    }

    /// The refusal of a request that the broker has not answered in time.
    fn late(&self, asked: &Asked) -> Refusal {
        let Some(job) = asked.begun.get() else {
            let detail = "the broker behind relay does not answer; nothing was done: send the same request again";
            return Refusal::new(Slug::BrokerUnavailable, detail);
        };
        let detail = match self.desk.endpoint {
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

    /// A request that can't be answered where it wants to be is not done either.
    fn ignore(&self, refusal: &Refusal) {
        info!(
            subject = self.message.subject.as_str(),
            reply = self.message.reply.as_deref(),
            "a request wants its answer where clients have no inbox; nothing was done"
        );
        self.desk.count(Some(&refusal.0));
    }
}

/// The refusal of a request that relay failed at; `job` is what it is about, if that is known.
pub(super) fn panicked(panic: &(dyn std::any::Any + Send), job: Option<JobId>) -> Refusal {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    error!(panic = text.unwrap_or("no text"), "a handler panicked");
    let detail = "relay failed, and this may or may not have been done: send it again with the same Idempotency-Key, and \
                  tell the operator of relay the request id";
    let problem = Problem::new(Slug::Internal, detail);
    match job {
        Some(job) => problem.with_job(job).into(),
        None => problem.into(),
    }
}
