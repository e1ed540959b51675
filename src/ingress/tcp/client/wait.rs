//! A wait for a result. It costs no polling, and ends early in a drain.

use std::time::Duration;

use relay_bridge::contract::JobId;
use relay_bridge::contract::wire::client::ToClient;
use relay_bridge::contract::wire::client::answer::Body;
use relay_bridge::result_log::{Finished, Lookup};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::answers;
use super::requests::{Answer, is_theirs};
use super::session::Session;
use crate::api::{Problem, Slug};
use crate::auth::rights::Right;
use crate::ingress::budget::Share;
use crate::ingress::refusal::Refusal;
use crate::ingress::{jobs, outcome};

/// The result of a job, if it comes in time, else the job.
pub(super) async fn of_job(
    session: &Session,
    id: u64,
    job: JobId,
    wait_for: Duration,
    stop: &CancellationToken,
) -> Answer {
    is_theirs(session, job, Right::Read).await?;
    let ingress = &session.clients.ingress;
    let (found, room) = wait(session, job, wait_for.min(ingress.limits.wait_max), stop).await?;
    match found {
        Lookup::Finished(finished) => Ok((result(session, id, *finished, false)?, Some(room))),
        Lookup::Open(status) => {
            let view = jobs::view(&ingress.policies, &status).await;
            Ok((ToClient::Job { id, document: answers::document(&view)? }, None))
        }
        Lookup::Absent => Err(Refusal::no_job()),
    }
}

/// Where the job stands after at most `wait`, or at the beginning of a drain, and the room that the result takes.
///
/// A wait holds no room. One that ends has its result in hand, as all have that wait for the same job; if there is no room for it,
/// it is read again once there is.
///
/// # Errors
/// `unauthenticated` if the credential ends before; `overloaded` or `rate-limited` if there is no room.
pub(super) async fn wait(
    session: &Session,
    job: JobId,
    wait: Duration,
    stop: &CancellationToken,
) -> Result<(Lookup, Share), Refusal> {
    let until = Instant::now() + wait;
    let (results, client) = (&session.clients.ingress.broker.results, &session.caller.client);
    // Many that wait take turns for this: none of them is refused for it before its own time is up.
    let room = match unless_over(session, stop, session.room_to_read_within(wait)).await {
        Some(room) => room?,
        None => session.room_to_read().await?,
    };
    session.still_stands()?;
    let (found, room) = look(session, room, job).await?;
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() || !matches!(found, Lookup::Open(_)) {
        return Ok((found, room));
    }
    drop(room);
    let found = unless_over(session, stop, results.wait(client, job, left)).await.transpose()?;
    session.still_stands()?;
    if let Some(found) = found
        && let Some(room) = session.room_now(size(&found))
    {
        return Ok((found, room));
    }
    look(session, session.room_to_read().await?, job).await
}

/// Where the job stands now, and what its result takes of `room`.
async fn look(session: &Session, mut room: Share, job: JobId) -> Result<(Lookup, Share), Refusal> {
    let found = session.clients.ingress.broker.results.lookup(&session.caller.client, job).await?;
    room.shrink_to(usize::try_from(size(&found)).unwrap_or(usize::MAX));
    Ok((found, room))
}

/// The outcome of `waiting`, unless nobody wants it any more, the process stops, or the credential ends.
pub(super) async fn unless_over<T>(
    session: &Session,
    stop: &CancellationToken,
    waiting: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        () = session.caller.credential.ended() => None,
        come = waiting => Some(come),
        () = session.stop.shutdown.cancelled() => None,
        () = session.ended.cancelled() => None,
        () = stop.cancelled() => None,
    }
}

fn size(found: &Lookup) -> u64 {
    match found {
        Lookup::Finished(finished) => finished.result.payload.len() as u64,
        _ => 0,
    }
}

/// A result that was asked for.
///
/// # Errors
/// `result-expired` if it was erased; `payload-too-large` if no frame of this connection holds it.
pub(super) fn result(session: &Session, id: u64, finished: Finished, replayed: bool) -> Result<ToClient, Refusal> {
    if finished.erased {
        outcome::readable(finished)?;
        return Err(Refusal::no_job());
    }
    let result = answers::result(finished, session.frame_max);
    if let Body::TooLarge(size) = result.payload {
        let detail = "the result is there and is larger than a frame of this connection: say a larger `frame_max` in the hello, \
                      or fetch it over HTTP, GET /v1/jobs/JOB_ID/result";
        let problem = Problem::new(Slug::PayloadTooLarge, detail).with_limit(u64::from(session.frame_max), size);
        return Err(problem.with_job(result.job).into());
    }
    Ok(ToClient::Result { id, replayed, result: Box::new(result) })
}
