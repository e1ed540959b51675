//! A job comes in. Accepted means that the broker has confirmed it.

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::FusedFuture as _;
use relay_bridge::contract::wire::client::{Submit, ToClient};
use relay_bridge::contract::{Job, JobId, JobStatus};
use relay_bridge::error::BrokerError;
use relay_bridge::result_log::{Finished, Lookup};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::requests::Answer;
use super::session::Session;
use super::{answers, wait};
use crate::api::Slug;
use crate::auth::rights::Right;
use crate::ingress::budget::Share;
use crate::ingress::headers::JobHeaders;
use crate::ingress::refusal::Refusal;
use crate::ingress::{grants, jobs};

/// Takes a submission; `share` is what its bytes take of their budget until the broker has them.
pub(super) async fn submit(
    session: &Session,
    id: u64,
    submit: Submit,
    stop: &CancellationToken,
    share: Option<Arc<Share>>,
    begun: &OnceLock<JobId>,
) -> Answer {
    let (ingress, caller) = (&session.clients.ingress, &session.caller);
    grants::require(caller, Right::Submit)?;
    let queue = grants::queue(caller, &submit.queue)?;
    let headers = JobHeaders::of_fields(&submit)?;
    // Such a caller has receipts only, so there is nothing to wait for.
    let wait = submit.wait.filter(|_| caller.may(Right::Read)).map(|wait| wait.min(ingress.limits.wait_max));
    let policy = jobs::policy(&ingress.policies, &queue).await?;
    jobs::admit((&policy, &ingress.rates), &caller.client, &queue, headers.content_type())?;
    let (max, actual) = (policy.payload_max.min(ingress.limits.body_bytes as u64), submit.payload.len() as u64);
    if actual > max {
        return Err(jobs::too_large(max, actual));
    }
    let submission = headers.submission(caller.client.clone(), queue, submit.payload);
    let job = submission.accept(&policy, ingress.clock.now());
    begun.get_or_init(|| job.id);
    let Some(wait) = wait else {
        let (status, replayed) = jobs::enqueue(&ingress.broker, job).await?;
        return Ok((answers::receipt(id, &status, replayed), None));
    };
    run(session, id, job, wait, stop, share).await
}

/// The result, if it comes in time, else the receipt.
async fn run(
    session: &Session,
    id: u64,
    job: Job,
    wait: Duration,
    stop: &CancellationToken,
    share: Option<Arc<Share>>,
) -> Answer {
    let broker = &session.clients.ingress.broker;
    let (job_id, run) = (job.id, job.run_id);
    let ahead = async {
        match wait.is_zero() {
            true => Ok(None),
            false => broker.results.wait_ahead(&session.caller.client, job_id, run, wait).await,
        }
    };
    let mut ahead = pin!(ahead.fuse());
    let mut early = None;
    let (status, replayed) = {
        let mut enqueued = pin!(jobs::enqueue(broker, job));
        loop {
            tokio::select! {
                // First, so that it listens before there is anything to hear.
                biased;
                heard = &mut ahead, if !ahead.is_terminated() => early = Some(heard),
                enqueued = &mut enqueued => break enqueued?,
            }
        }
    };
    // The broker has the bytes; a wait that follows must not hold their share of the budget.
    drop(share);
    let begun = Instant::now();
    let heard = async {
        match early {
            _ if replayed => Ok(None),
            Some(heard) => heard,
            None => ahead.await,
        }
    };
    let heard =
        wait::unless_over(session, stop, heard).await.and_then(|heard: Result<_, BrokerError>| heard.ok().flatten());
    let left = wait.saturating_sub(begun.elapsed());
    Ok(answer(session, id, (&status, replayed), heard, (wait, left), stop).await)
}

/// From here on the job is accepted: nothing that goes wrong may look as if it were not.
async fn answer(
    session: &Session,
    id: u64,
    (status, replayed): (&JobStatus, bool),
    heard: Option<Box<Finished>>,
    (wait, left): (Duration, Duration),
    stop: &CancellationToken,
) -> (ToClient, Option<Share>) {
    let receipt = |status: &JobStatus| (answers::receipt(id, status, replayed), None);
    if session.still_stands().is_err() {
        return receipt(status);
    }
    let heard = heard.filter(|heard| heard.result.run_id >= status.run_id).and_then(|heard| {
        let room = session.room_now(heard.result.payload.len() as u64)?;
        Some((Lookup::Finished(heard), room))
    });
    let found = match heard {
        Some(found) => Ok(found),
        None => wait::wait(session, status.job_id, left, stop).await,
    };
    match found {
        // One who did not wait for it gets the receipt: a retry does not look like a failure.
        Ok((Lookup::Finished(finished), room)) if !finished.erased || !wait.is_zero() => {
            match wait::result(session, id, *finished, replayed) {
                Ok(message) => (message, Some(room)),
                // As the answer to a submission it would say that nothing was done.
                Err(Refusal(problem)) if problem.slug == Slug::PayloadTooLarge => receipt(status),
                Err(Refusal(problem)) => (answers::problem(id, *problem), None),
            }
        }
        Ok((Lookup::Open(now), _)) => receipt(&now),
        Ok(_) => receipt(status),
        Err(Refusal(problem)) => {
            let (job_id, why) = (status.job_id, &problem.detail);
            tracing::warn!(%job_id, why, "waiting for a result failed; answered with the receipt");
            receipt(status)
        }
    }
}
