//! The operators' work at the admin port: look at queues, pause and resume them, and see to jobs that ended badly. It
//! covers all clients: a caller that may ask here may see everything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use relay_bridge::broker::Broker;
use relay_bridge::contract::ids::InvalidId;
use relay_bridge::contract::{JobId, QueueName, RunId};
use relay_bridge::dead_letters::{DeadLetter, LetterHead, LetterPlace, Letters};
use relay_bridge::error::BrokerError;
use relay_bridge::job_queue::{Enqueued, Exact};
use serde::Deserialize;

use super::Admin;
use super::jobs;
use super::routes::{json, problem};
use super::sampler::QueueSample;
use crate::api::operator::{
    DeadLetterView, DeadLettersPage, LETTERS_MAX, PAYLOAD_BYTES_MAX, PausedView, QueueView, QueuesView, ScaleView,
};
use crate::api::{Problem, Receipt, Slug, fit};
use crate::scaler::{ANSWER_MAX, Trigger};

/// Letters of a page if the request does not say.
const LETTERS_DEFAULT: u32 = 50;

/// How old a figure may be, if the broker answers in time.
const SCALE_AGE: Duration = Duration::from_secs(1);

pub(super) type Answer = Result<Response, Refused>;

/// The paths of operators.
pub(super) fn router() -> Router<Arc<Admin>> {
    Router::new()
        .route("/v1/queues", get(queues))
        .route("/v1/queues/{queue}", get(queue))
        .route("/v1/queues/{queue}/scale", get(scale))
        .route("/v1/queues/{queue}/pause", post(pause))
        .route("/v1/queues/{queue}/resume", post(resume))
        .route("/v1/dead", get(letters))
        .route("/v1/dead/{job}", get(letter))
        .route("/v1/dead/{job}/{run}", axum::routing::delete(purge))
        .route("/v1/dead/{job}/{run}/redrive", post(redrive))
}

/// A refused action, with the reason.
pub(super) struct Refused(Box<Problem>);

impl Refused {
    pub(super) fn new(slug: Slug, detail: impl Into<String>) -> Self {
        Self(Box::new(Problem::new(slug, detail)))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        problem(&self.0)
    }
}

impl From<BrokerError> for Refused {
    fn from(error: BrokerError) -> Self {
        tracing::warn!(%error, "an operator's request failed");
        Self(Box::new(Problem::from(&error)))
    }
}

impl From<InvalidId> for Refused {
    fn from(error: InvalidId) -> Self {
        Self(Box::new(error.into()))
    }
}

impl QueueView {
    fn of(sample: &QueueSample) -> Self {
        Self {
            name: sample.name.clone(),
            waiting: sample.depth.waiting,
            parked: sample.depth.parked,
            leased: sample.depth.leased,
            oldest_seconds: sample.oldest.map(|oldest| oldest.as_secs_f64()),
            submitted_rate: sample.submitted_rate,
            settled_rate: sample.settled_rate,
            history: sample.history.iter().copied().collect(),
            policy: sample.policy.clone(),
        }
    }
}

impl DeadLetterView {
    /// A letter with the beginning of its payload.
    fn whole(letter: DeadLetter) -> Self {
        let shown = &letter.job.payload[..letter.job.payload.len().min(PAYLOAD_BYTES_MAX)];
        let payload_base64 = Some(STANDARD.encode(shown));
        Self { payload_base64, ..Self::of(&LetterHead::of(letter)) }
    }

    fn of(LetterHead { letter, size }: &LetterHead) -> Self {
        let job = &letter.job;
        Self {
            job_id: job.id,
            run_id: job.run_id,
            generation: job.generation,
            client: job.client.clone(),
            queue: job.queue.clone(),
            key: job.key.clone(),
            meta: job.meta(),
            outcome: letter.outcome,
            attempt: letter.attempt,
            failure: fit::within_lengths(&letter.failure),
            at: letter.at,
            content_type: job.content_type.clone(),
            size: *size,
            payload_base64: None,
        }
    }
}

pub(super) fn broker(admin: &Admin) -> Result<&Broker, Refused> {
    admin.broker().ok_or_else(not_here)
}

fn not_here() -> Refused {
    let detail = "this process has no broker of its own, or has not reached it yet: ask a server, or ask again";
    Refused::new(Slug::BrokerUnavailable, detail)
}

/// The queues as the last look found them: asking often costs the broker nothing.
async fn queues(State(admin): State<Arc<Admin>>) -> Response {
    let sample = admin.samples().borrow().clone();
    let queues = sample.queues.iter().map(QueueView::of).collect();
    json(StatusCode::OK, &QueuesView { queues, trouble: sample.trouble.clone() })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Look {
    #[serde(default)]
    exact: bool,
}

/// One queue as the last look found it; with `exact=true` its jobs are counted one by one now.
async fn queue(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    look: Result<Query<Look>, QueryRejection>,
) -> Answer {
    let Query(Look { exact }) =
        look.map_err(|error| Refused::new(Slug::MalformedRequest, format!("{error}: write exact=true, or nothing")))?;
    let name: QueueName = name.parse()?;
    let sample = admin.samples().borrow().clone();
    let found = sample.queues.iter().find(|queue| queue.name == name);
    let mut view = QueueView::of(found.ok_or_else(|| no_queue(&name))?);
    if exact {
        let Exact { depth, oldest } = broker(&admin)?.jobs.count(&name).await?;
        (view.waiting, view.parked, view.leased) = (depth.waiting, depth.parked, depth.leased);
        view.oldest_seconds = oldest.map(|oldest| admin.telemetry.clock().now().since(oldest).as_secs_f64());
    }
    Ok(json(StatusCode::OK, &view))
}

/// The slots that the queue's workers should have: the query is a trigger's metadata without the queue.
async fn scale(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    keys: Result<Query<BTreeMap<String, String>>, QueryRejection>,
) -> Answer {
    let malformed = |why: String| Refused::new(Slug::MalformedRequest, why);
    let Query(keys) = keys.map_err(|error| malformed(error.to_string()))?;
    let name: QueueName = name.parse()?;
    let own = std::iter::once(("queue", name.as_str()));
    let keys = keys.iter().map(|(key, value)| (key.as_str(), value.as_str())).filter(|(key, _)| *key != "queue");
    let trigger = Trigger::read(own.chain(keys)).map_err(|error| malformed(error.to_string()))?;
    let looks = admin.looks.get().ok_or_else(not_here)?;
    let looked = looks.answer(&name, trigger.lead, SCALE_AGE).await?.ok_or_else(|| {
        Refused::new(Slug::BrokerUnavailable, format!("the broker did not say within {ANSWER_MAX:?} what waits"))
    })?;
    let slots_wanted = trigger.wanted(&looked);
    let view = ScaleView {
        queue: name,
        slots_wanted,
        workers_wanted: slots_wanted / f64::from(trigger.targets.slots_per_worker.get()),
        waiting: looked.load.startable,
        leased: looked.load.leased,
        service_seconds: looked.pace.service,
        arrivals_per_second: looked.pace.arrivals,
    };
    Ok(json(StatusCode::OK, &view))
}

async fn pause(state: State<Arc<Admin>>, name: Path<String>) -> Answer {
    set_paused(state, name, true).await
}

async fn resume(state: State<Arc<Admin>>, name: Path<String>) -> Answer {
    set_paused(state, name, false).await
}

async fn set_paused(State(admin): State<Arc<Admin>>, Path(name): Path<String>, paused: bool) -> Answer {
    let queue: QueueName = name.parse()?;
    broker(&admin)?.policies.set_paused(&queue, paused).await?;
    tracing::info!(%queue, paused, "an operator changed whether jobs are given out");
    admin.look_soon();
    Ok(json(StatusCode::OK, &PausedView { queue, paused }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    queue: Option<String>,
    key_prefix: Option<String>,
    before: Option<String>,
    limit: Option<u32>,
}

async fn letters(State(admin): State<Arc<Admin>>, which: Result<Query<Which>, QueryRejection>) -> Answer {
    let Query(Which { queue, key_prefix, before, limit }) = which.map_err(|error| {
        Refused::new(Slug::MalformedRequest, format!("{error}: write queue=, key_prefix=, before= and limit="))
    })?;
    let queue: Option<QueueName> = queue.map(|queue| queue.parse()).transpose()?;
    let before: Option<LetterPlace> = before.map(|before| before.parse()).transpose()?;
    let limit = limit.unwrap_or(LETTERS_DEFAULT).clamp(1, LETTERS_MAX);
    let key_prefix = key_prefix.map(|prefix| jobs::key_prefix(&prefix)).transpose()?;
    let letters = &broker(&admin)?.dead_letters;
    let Letters { letters, next } = letters.list(queue.as_ref(), key_prefix.as_deref(), before.as_ref(), limit).await?;
    let letters = letters.iter().map(DeadLetterView::of).collect();
    Ok(json(StatusCode::OK, &DeadLettersPage { letters, next }))
}

async fn letter(State(admin): State<Arc<Admin>>, Path(job): Path<String>) -> Answer {
    let job: JobId = job.parse()?;
    let found = broker(&admin)?.dead_letters.get(job).await?;
    let letter = found.ok_or_else(|| no_letter(job))?;
    Ok(json(StatusCode::OK, &DeadLetterView::whole(letter)))
}

async fn redrive(State(admin): State<Arc<Admin>>, Path((job, run)): Path<(String, String)>) -> Answer {
    let (job, run): (JobId, RunId) = (job.parse()?, run.parse()?);
    let enqueued = broker(&admin)?.dead_letters.redrive(job, run).await?;
    tracing::info!(job_id = %job, run_id = %run, "an operator redrove a dead letter");
    let replayed = matches!(enqueued, Enqueued::Known(_));
    Ok(json(StatusCode::ACCEPTED, &Receipt::new(enqueued.status(), replayed)))
}

async fn purge(State(admin): State<Arc<Admin>>, Path((job, run)): Path<(String, String)>) -> Answer {
    let (job, run): (JobId, RunId) = (job.parse()?, run.parse()?);
    if !broker(&admin)?.dead_letters.purge(job, run).await? {
        return Err(no_letter(job));
    }
    tracing::info!(job_id = %job, run_id = %run, "an operator removed a dead letter");
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn no_queue(name: &QueueName) -> Refused {
    let detail =
        format!("there is no queue {name}, or it was made in the last seconds: /v1/queues has those there are");
    Refused::new(Slug::NotFound, detail)
}

fn no_letter(job: JobId) -> Refused {
    let detail = format!("there is no dead letter of job {job}: it was redriven, purged, or kept its time");
    Refused::new(Slug::NotFound, detail)
}
