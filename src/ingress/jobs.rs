//! The requests of a client about its jobs, whichever protocol it speaks: enqueue, look up, cancel.

use std::sync::Arc;

use relay_bridge::broker::Broker;
use relay_bridge::contract::{ClientId, Job, JobId, JobStatus, QueueName, media};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Enqueued;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::policy_cache::PolicyCache;
use relay_bridge::result_log::Lookup;

use super::rates::Rates;
use super::refusal::Refusal;
use crate::api::{JobView, Problem, Retry, Slug};

/// The policy of `queue`.
///
/// # Errors
/// `not-found` if there is no such queue.
pub(super) async fn policy(policies: &PolicyCache, queue: &QueueName) -> Result<Arc<QueuePolicy>, Refusal> {
    policies.get(queue).await?.ok_or_else(|| {
        let detail = format!("there is no queue {queue}: check its name, or ask the operator to create it");
        Refusal::new(Slug::NotFound, detail)
    })
}

/// Whether `client` may submit to `queue`.
///
/// # Errors
/// `forbidden`
pub(super) fn check_client(policy: &QueuePolicy, client: &ClientId, queue: &QueueName) -> Result<(), Refusal> {
    if policy.allows(client) {
        return Ok(());
    }
    let detail = format!(
        "client {client} may not submit to queue {queue}; nothing was done: use another queue, or ask the operator to \
         add it to the queue's `allowed_clients`"
    );
    Err(Refusal::new(Slug::Forbidden, detail))
}

/// Whether `queue` takes payloads of this content type.
///
/// # Errors
/// `unsupported-media-type`, which names those that are taken.
pub(super) fn check_content_type(policy: &QueuePolicy, queue: &QueueName, content_type: &str) -> Result<(), Refusal> {
    if policy.takes(content_type) {
        return Ok(());
    }
    let taken: Vec<_> = policy.content_types.iter().map(ToString::to_string).collect();
    let detail = format!(
        "queue {queue} takes {}, and not `{}`; nothing was done: send one of them",
        taken.join(", "),
        media::essence(content_type)
    );
    Err(Refusal::new(Slug::UnsupportedMediaType, detail))
}

/// Whether a submission of `client` with this content type is let into `queue` now, by everything but its size. It counts
/// for the client's rate.
///
/// # Errors
/// `forbidden`, `unsupported-media-type`, `rate-limited`
pub(super) fn admit(
    (policy, rates): (&QueuePolicy, &Rates),
    client: &ClientId,
    queue: &QueueName,
    content_type: &str,
) -> Result<(), Refusal> {
    check_client(policy, client, queue)?;
    check_content_type(policy, queue, content_type)?;
    rates.take(client, queue, policy.client(client))
}

/// The refusal of a body of `actual` bytes where `max` are taken.
pub(super) fn too_large(max: u64, actual: u64) -> Refusal {
    let detail = format!("there are {actual} bytes or more, {max} are taken: send less, or a link to the data");
    Problem::new(Slug::PayloadTooLarge, detail).with_limit(max, actual).into()
}

/// Makes `job` durable. The status, and whether an earlier submission did the work.
///
/// # Errors
/// `idempotency-conflict` if the key was used for another body; whatever the broker refuses.
pub(super) async fn enqueue(broker: &Broker, job: Job) -> Result<(JobStatus, bool), Refusal> {
    let (id, body) = (job.id, job.body());
    match broker.jobs.enqueue(job).await.map_err(|error| unconfirmed(error, id))? {
        Enqueued::Created(status) => Ok((status, false)),
        Enqueued::Known(status) if body.is_of(status.fingerprint) => Ok((status, true)),
        Enqueued::Known(status) => Err(conflict(&status)),
    }
}

/// The refusal of a write, which names the job if the broker may have done it.
fn unconfirmed(error: BrokerError, job: JobId) -> Refusal {
    let ambiguous = error.kind() == BrokerErrorKind::Ambiguous;
    let mut refusal = Refusal::from(error);
    if ambiguous {
        refusal.0.job_id = Some(job);
    }
    refusal
}

/// The refusal of a call about a job that may be sent again as it is, whatever became of it.
pub(super) fn repeatable(error: BrokerError, job: JobId) -> Refusal {
    match error.kind() {
        BrokerErrorKind::NotFound => Refusal::no_job(),
        BrokerErrorKind::Ambiguous => {
            let detail = "the broker did not confirm, so it may or may not have been done: send the same request again, \
                          which does it once";
            Problem { retry: Retry::Safe, ..Problem::new(Slug::Unconfirmed, detail) }.with_job(job).into()
        }
        _ => error.into(),
    }
}

fn conflict(first: &JobStatus) -> Refusal {
    let detail = format!(
        "this key was used at {} for another body (job {}), which is untouched: use a new key for new work, or send \
         the first body again",
        first.accepted_at, first.job_id
    );
    let mut problem = Problem::new(Slug::IdempotencyConflict, detail).with_job(first.job_id);
    problem.first_at = Some(first.accepted_at);
    problem.into()
}

/// The job: results are asked first, because what is finished is decided there and nowhere else.
///
/// # Errors
/// `not-found` if the client has no such job.
pub(super) async fn find(
    broker: &Broker,
    policies: &PolicyCache,
    client: &ClientId,
    id: JobId,
) -> Result<JobView, Refusal> {
    match broker.results.lookup(client, id).await? {
        Lookup::Open(status) => Ok(view(policies, &status).await),
        Lookup::Absent => Err(Refusal::no_job()),
        Lookup::Finished(finished) => {
            let status = broker.jobs.status(client, id).await?;
            let attempts = max_attempts(policies, &finished.result.queue).await;
            Ok(JobView::of_result(&finished.result, status.as_ref(), attempts))
        }
    }
}

/// Starts the run after generation `from`: a submission, to which applies what applies to submissions. A run that was started
/// before is answered whatever applies now.
///
/// # Errors
/// `not-found`, `state-conflict`, `forbidden`, `rate-limited`, `quota-exceeded`, `unconfirmed`
pub(super) async fn rerun(
    (broker, policies, rates): (&Broker, &PolicyCache, &Rates),
    client: &ClientId,
    id: JobId,
    from: u32,
) -> Result<Enqueued, Refusal> {
    let jobs = &broker.jobs;
    if let Some(status) = jobs.status(client, id).await?
        && Some(status.generation) != from.checked_add(1)
    {
        let policy = policy(policies, &status.queue).await?;
        check_client(&policy, client, &status.queue)?;
        rates.take(client, &status.queue, policy.client(client))?;
    }
    jobs.rerun(client, id, from).await.map_err(|error| repeatable(error, id))
}

/// Ends the job as `cancelled`, unless it ended before.
///
/// # Errors
/// `not-found` if the client has no such job.
pub(super) async fn cancel(
    broker: &Broker,
    policies: &PolicyCache,
    client: &ClientId,
    id: JobId,
) -> Result<JobView, Refusal> {
    match broker.jobs.cancel(client, id).await {
        Ok(status) => Ok(view(policies, &status).await),
        // Of a job without a key only the result is left: it is finished, and that is the answer.
        Err(error) if error.kind() == BrokerErrorKind::NotFound => find(broker, policies, client, id).await,
        Err(error) => Err(repeatable(error, id)),
    }
}

/// The job as its record says.
pub(super) async fn view(policies: &PolicyCache, status: &JobStatus) -> JobView {
    JobView::of_status(status, max_attempts(policies, &status.queue).await)
}

/// The attempts that the queue allows now. The number adorns an answer, so its absence is no reason to refuse one.
async fn max_attempts(policies: &PolicyCache, queue: &QueueName) -> Option<u32> {
    policies.get(queue).await.ok().flatten().map(|policy| policy.max_attempts)
}
