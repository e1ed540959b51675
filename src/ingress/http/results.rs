//! Results: of one job, or all of a client's after a cursor. A wait costs no polling, and ends early in a drain.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use http::{HeaderMap, StatusCode, Uri};
use relay_bridge::contract::{ClientId, JobId};
use relay_bridge::result_log::{Lookup, PAGE_BYTES_MAX, PAGE_ENTRIES_MAX, Page, Reset, ResultFilter, Start};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::answer::{self, Answer, Refusal};
use super::connection::Peer;
use super::page::Entries;
use super::request::{self, Parameters};
use super::room::Room;
use super::{Ingress, Served, follow, sse};
use crate::api::problem::PROBLEM_CONTENT_TYPE;
use crate::api::{JobView, Problem, ResultView, ResultsPage, header, schema};
use crate::auth::Caller;
use crate::auth::rights::Right;
use crate::ingress::headers::single;
use crate::ingress::{jobs, outcome};

/// Pages read for one request that waits, while results come that it did not ask for.
const PAGES_MAX: u32 = 20;

/// Fetch a job's result
///
/// The handler's output as it is, with its own content type. An outcome is always 200: a job that failed is no error of
/// HTTP. What has no output has `application/vnd.relay.failure+json` `{reason, detail}`.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/result", tag = "results", operation_id = "get_result",
    params(
        ("id" = schema::JobId, Path, description = "The job."),
        ("wait" = Option<schema::Span>, Query, description = "Wait up to so long for it, within `wait_max` of whoami."),
    ),
    responses(
        (status = 200, description = "The result.", content((schema::Bytes = "*/*")), headers(
            ("relay-outcome" = schema::Outcome, description = "How the run ended."),
            ("relay-attempt" = u32, description = "The attempt that ended it; 0 if no handler ever started."),
            ("relay-run-id" = schema::RunId, description = "The run: deduplicate on it."),
            ("relay-job-id" = schema::JobId, description = "The job."),
            ("relay-cursor" = schema::Cursor, description = "Where it is in the client's results."),
            ("traceparent" = Option<String>, description = "The W3C trace context that the job carries, if it has one."),
            ("idempotency-key" = Option<schema::Key>, description = "The key that the job was submitted under, if it has one; \
                its `Relay-Meta-*` headers come with it as they were submitted."),
        )),
        (status = 202, description = "The run is not finished yet.", body = JobView),
        (status = 410, description = "The outcome is known, the payload is gone.",
            body = Problem, content_type = PROBLEM_CONTENT_TYPE),
    ),
)]
pub(super) async fn of_job(
    State(served): State<Arc<Served>>,
    peer: Peer,
    caller: Caller,
    Path(id): Path<String>,
    uri: Uri,
) -> Answer {
    let wait_for = Parameters::read(&uri, &["wait"])?.wait(served.ingress.limits.wait_max)?;
    let id = request::job(&served, (&peer, &caller), &id, Right::Read).await?;
    let (found, room) = wait(&served, &peer, &caller.client, id, wait_for).await?;
    match found {
        Lookup::Finished(finished) => Ok(answer::within(answer::result(*finished)?, room)),
        Lookup::Open(status) => {
            answer::json(StatusCode::ACCEPTED, &jobs::view(&served.ingress.policies, &status).await)
        }
        Lookup::Absent => Err(Refusal::no_job()),
    }
}

/// Where the job stands after at most `wait`, or at the beginning of a drain, and the room that the result takes.
///
/// It is looked up in the caller's turn first, so that only what has not ended is waited for. A wait holds no room. One that ends
/// has its result in hand, as all have that wait for the same job; if there is no room for it, it is read again once there is.
///
/// # Errors
/// `unauthenticated` if the credential ends before; `overloaded` or `rate-limited` if there is no room.
pub(super) async fn wait(
    served: &Served,
    peer: &Peer,
    client: &ClientId,
    job: JobId,
    wait: Duration,
) -> Result<(Lookup, Room), Refusal> {
    let until = Instant::now() + wait;
    let ingress = &served.ingress;
    // Many that wait on one connection take turns for this: none of them is refused for it before its own time is up.
    let room = tokio::select! {
        biased;
        () = peer.credential.ended() => return Err(request::credential_ended()),
        room = peer.room_to_read_within(ingress, wait) => room?,
        () = served.shutdown.cancelled() => peer.room_to_read(ingress).await?,
    };
    let (found, room) = look(ingress, room, client, job).await?;
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() || !matches!(found, Lookup::Open(_)) || served.shutdown.is_cancelled() {
        return Ok((found, room));
    }
    drop(room);
    wait_for_new(served, peer, client, job, left).await
}

/// The same for a job that was begun just now, so that it need not be looked up first.
///
/// # Errors
/// As [`wait`].
pub(super) async fn wait_for_new(
    served: &Served,
    peer: &Peer,
    client: &ClientId,
    job: JobId,
    wait: Duration,
) -> Result<(Lookup, Room), Refusal> {
    let ingress = &served.ingress;
    if !wait.is_zero() {
        let found = tokio::select! {
            biased;
            () = peer.credential.ended() => return Err(request::credential_ended()),
            found = ingress.broker.results.wait(client, job, wait) => Some(found?),
            () = served.shutdown.cancelled() => None,
        };
        if let Some(found) = found
            && let Some(room) = peer.room_now(ingress, size(&found))
        {
            return Ok((found, room));
        }
    }
    look(ingress, peer.room_to_read(ingress).await?, client, job).await
}

/// Where the job stands now, and what the result takes of `room`.
async fn look(ingress: &Ingress, room: Room, client: &ClientId, job: JobId) -> Result<(Lookup, Room), Refusal> {
    let found = ingress.broker.results.lookup(client, job).await?;
    let room = room.fitted(usize::try_from(size(&found)).unwrap_or(usize::MAX));
    Ok((found, room))
}

fn size(found: &Lookup) -> u64 {
    match found {
        Lookup::Finished(finished) => finished.result.payload.len() as u64,
        _ => 0,
    }
}

/// Read results
///
/// All of the caller's, oldest first, behind a cursor: a page, or for `Accept: text/event-stream` a stream that goes on with
/// what comes. A page ends after 100 results or about 1 MiB. The stream has events `result`, whose id is its cursor, `reset`
/// if the cursor could not be continued, and `problem` before it breaks off; it ends on purpose after some minutes. Reading
/// consumes nothing. With `queue` or `key_prefix` a page may be short, or empty, and `next` has moved on: it looks at a bounded
/// number of results.
#[utoipa::path(
    get, path = "/v1/results", tag = "results", operation_id = "list_results",
    params(
        ("after" = Option<schema::Cursor>, Query,
            description = "`next` of the page before, a result's cursor, or `now`; the oldest that is kept if it is not there."),
        ("queue" = Option<schema::QueueName>, Query, description = "Only of this queue."),
        ("key_prefix" = Option<schema::Key>, Query, description = "Only of jobs whose key begins so."),
        ("wait" = Option<schema::Span>, Query, description = "Pages: wait up to so long for one if there are none."),
        ("limit" = Option<u32>, Query, description = "Pages: at most so many; 100 if it is not there.", minimum = 1, maximum = 100),
        ("last-event-id" = Option<String>, Header, description = "Streams: the last event that was seen; it counts for more than `after`."),
    ),
    responses((status = 200, description = "Results.", content(
        (ResultsPage = "application/json"),
        (schema::Events = "text/event-stream"),
    ))),
)]
pub(super) async fn list(
    State(served): State<Arc<Served>>,
    peer: Peer,
    caller: Caller,
    uri: Uri,
    headers: HeaderMap,
) -> Answer {
    let streamed = sse::is_wanted(&headers);
    let allowed = ["after", "queue", "key_prefix", "wait", "limit"];
    let parameters = Parameters::read(&uri, if streamed { &allowed[..3] } else { &allowed })?;
    request::require(&caller, Right::Read)?;
    let filter = ResultFilter {
        queues: request::queues(&caller, parameters.get("queue"))?,
        key_prefix: outcome::key_prefix("parameter `key_prefix`", parameters.get("key_prefix"))?,
    };
    let after = ("parameter `after`", parameters.get("after"));
    if streamed {
        // A reader that comes back repeats the address it began with, so its last event counts for more.
        let seen = single(&headers, header::LAST_EVENT_ID)?.filter(|id| !id.is_empty());
        let (name, after) = seen.map_or(after, |id| ("header Last-Event-ID", Some(id)));
        let start = outcome::start(&caller.client, name, after)?;
        return follow::follow(served, peer, caller.client, filter, start).await;
    }
    let start = outcome::start(&caller.client, after.0, after.1)?;
    let wait = parameters.wait(served.ingress.limits.wait_max)?;
    let limit = parameters.limit(PAGE_ENTRIES_MAX, PAGE_ENTRIES_MAX)?;
    let (page, room) = tokio::select! {
        biased;
        () = peer.credential.ended() => return Err(request::credential_ended()),
        read = read(&served, &peer, &caller.client, (start, wait), &filter, limit) => read?,
    };
    let (mut entries, mut next) = (Entries::default(), page.next);
    let mut before = None;
    for finished in &page.entries {
        if !entries.add(&ResultView::new(finished))? {
            // The page is full: the next one begins with this result.
            next = before.unwrap_or(next);
            break;
        }
        before = Some(finished.cursor.clone());
    }
    let (entries, next) = (entries.into_written(), next.to_string());
    let answer = answer::json(StatusCode::OK, &WrittenPage { reset: page.reset, entries, next })?;
    Ok(answer::within(answer, room))
}

/// A [`ResultsPage`] whose entries are JSON already.
#[derive(Serialize)]
struct WrittenPage {
    reset: Option<Reset>,
    entries: Vec<Box<RawValue>>,
    next: String,
}

/// One page of the results that `filter` wants, and the room that it takes. It may be short, or empty with a `next` that has
/// moved on. Like [`wait`], it looks in the caller's turn first, and holds no room while it waits.
async fn read(
    served: &Served,
    peer: &Peer,
    client: &ClientId,
    (mut start, wait): (Start, Duration),
    filter: &ResultFilter,
    limit: u32,
) -> Result<(Page, Room), Refusal> {
    let (ingress, results) = (&served.ingress, &served.ingress.broker.results);
    let until = Instant::now() + wait;
    // The payloads, or one that is larger, and the page as it is sent.
    let most = (PAGE_BYTES_MAX as u64).max(peer.largest(ingress).await?) + PAGE_BYTES_MAX as u64;
    // Not before all that there is was looked at.
    let mut waits = false;
    for round in 1.. {
        let left = until.saturating_duration_since(Instant::now());
        let news = tokio::select! {
            news = results.page(client, &start, filter, limit, left), if waits && !left.is_zero() => Some(news?),
            () = served.shutdown.cancelled(), if waits && !left.is_zero() => None,
            else => None,
        };
        let (page, room) = match news.and_then(|page| Some((page, peer.room_now(ingress, most)?))) {
            Some(read) => read,
            None => {
                // Of the time that is left now. In a drain it stands in line no longer than others.
                let left = until.saturating_duration_since(Instant::now());
                let room = match served.shutdown.run_until_cancelled(peer.room_within(ingress, most, left)).await {
                    Some(room) => room?,
                    None => peer.room(ingress, most).await?,
                };
                (results.page(client, &start, filter, limit, Duration::ZERO).await?, room)
            }
        };
        // A wait also ends with a result that the filter leaves out: then there may be time left to wait for another.
        let has_passed = !filter.wants_all() && start != Start::After(page.next.clone());
        let is_over = left.is_zero() || served.shutdown.is_cancelled() || round >= PAGES_MAX;
        if !page.entries.is_empty() || page.reset.is_some() || (waits && !has_passed) || is_over {
            return Ok((page, room));
        }
        waits = !has_passed;
        start = Start::After(page.next);
    }
    unreachable!("the loop ends by its own count")
}
