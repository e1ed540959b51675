//! `relay.submit`, `relay.status`, `relay.cancel`.

use super::Ingress;
use super::answer::Reply;
use super::gate::{Answer, Asked, Step};
use super::wait::{self, Wait};
use super::{request, results};
use crate::api::Slug;
use crate::ingress::headers::JobHeaders;
use crate::ingress::jobs;
use crate::ingress::refusal::Refusal;

/// A job comes in. Accepted means that the broker has confirmed it; where no place is free for its wait, that is all.
pub(super) async fn submit(ingress: &Ingress, asked: &Asked) -> Result<Step, Refusal> {
    let queue = asked.queue.clone().ok_or_else(|| Refusal::new(Slug::Internal, "the subject has no queue"))?;
    let headers = JobHeaders::read(&asked.headers)?;
    let policy = jobs::policy(&ingress.policies, &queue).await?;
    jobs::admit((&policy, &ingress.rates), &asked.client, &queue, headers.content_type())?;
    let (max, actual) = (policy.payload_max, asked.body.len() as u64);
    if actual > max {
        return Err(jobs::too_large(max, actual));
    }
    let submission = headers.submission(asked.client.clone(), queue, asked.body.clone());
    let job = submission.accept(&policy, ingress.clock.now());
    asked.begun.get_or_init(|| job.id);
    let place = asked.wait.and_then(|span| Some((span, ingress.waits.take(&asked.client)?)));
    if let Some((span, place)) = place {
        return Wait::submit(ingress, job, span, place).await;
    }
    let (status, replayed) = jobs::enqueue(&ingress.broker, job).await?;
    let reply = match asked.wait {
        Some(_) => wait::receipt(&status, replayed),
        None => Reply::accepted(&status, replayed),
    };
    Ok(Step::Answered(reply))
}

/// Where a job stands.
pub(super) async fn status(ingress: &Ingress, asked: &Asked) -> Answer {
    let id = request::job_id(&asked.body)?;
    // A look-up may read the result.
    let _room = results::room_to_read(ingress, &asked.client).await?;
    Reply::json(&jobs::find(&ingress.broker, &ingress.policies, &asked.client, id).await?)
}

/// The end of a job, unless it ended before.
pub(super) async fn cancel(ingress: &Ingress, asked: &Asked) -> Answer {
    let id = request::job_id(&asked.body)?;
    let _room = results::room_to_read(ingress, &asked.client).await?;
    asked.begun.get_or_init(|| id);
    Reply::json(&jobs::cancel(&ingress.broker, &ingress.policies, &asked.client, id).await?)
}
