//! `relay.result`: the raw result of one job. `relay.results`: all of a client's after a cursor, a message each.

use relay_bridge::contract::job::meta;
use relay_bridge::contract::{ClientId, JobId, JobResult, JobStatus};
use relay_bridge::result_log::{Finished, Lookup, PAGE_BYTES_MAX, PAGE_ENTRIES_MAX, Reset, ResultFilter, Start};
use std::time::Duration;

use super::Ingress;
use super::answer::{CONTENT_TYPE, Outbox, Reply, Unsent};
use super::gate::{Answer, Asked, Step};
use super::request;
use super::wait::Wait;
use crate::api::{Problem, ResultView, Slug, fit, header};
use crate::ingress::budget::Share;
use crate::ingress::headers::single;
use crate::ingress::outcome;
use crate::ingress::refusal::{Refusal, scarce};

/// The content type of a result's entry: the JSON that lists of results have.
const ENTRY_CONTENT_TYPE: &str = "application/vnd.relay.result+json";
/// Results for one request, if it does not say.
const LIMIT_DEFAULT: u32 = 100;
/// Results for one request at most.
const LIMIT_MAX: u32 = 1_000;
/// How long an answer waits for its room.
const ROOM_WITHIN: Duration = Duration::from_secs(2);
/// Bytes of bodies after which an answer ends. NATS hangs up on a reader of which more than `max_pending`, 64 MiB unless
/// configured, wait to be read.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// The raw result, or the status in headers and no body yet; where that is asked for, and a place is free, after a wait.
pub(super) async fn one(ingress: &Ingress, asked: &Asked, outbox: &Outbox) -> Result<Step, Refusal> {
    let id = request::job_id(&asked.body)?;
    if let Some(span) = asked.wait.filter(|span| !span.asked.is_zero())
        && let Some(place) = ingress.waits.take(&asked.client)
    {
        return Ok(Wait::of_result(asked.client.clone(), id, span, place));
    }
    let seen = look(ingress, &asked.client, id, Duration::ZERO).await?;
    told(ingress, outbox, &asked.client, seen).map(Step::Answered)
}

/// Where a job stands.
pub(super) struct Seen {
    pub(super) found: Lookup,
    /// The room that was taken before it was read; `None` if it came without a look-up.
    pub(super) room: Option<Share>,
}

/// Where the job stands now, looked up in the client's turn, for which a request may stand in line as long as it would `wait`.
///
/// # Errors
/// As [`room_to_read`].
pub(super) async fn look(ingress: &Ingress, client: &ClientId, job: JobId, wait: Duration) -> Result<Seen, Refusal> {
    let room = room(ingress, client, largest(ingress, client).await?, wait.max(ROOM_WITHIN)).await?;
    let found = ingress.broker.results.lookup(client, job).await?;
    Ok(Seen { found, room: Some(room) })
}

/// Room to read one result of any queue, as over HTTP: no more than half of the client's share. Look-ups of one client are as
/// many at a time as its share has room for, so that they do not hold up the broker for others.
///
/// # Errors
/// `overloaded`, `rate-limited`, and the broker's.
pub(super) async fn room_to_read(ingress: &Ingress, client: &ClientId) -> Result<Share, Refusal> {
    room(ingress, client, largest(ingress, client).await?, ROOM_WITHIN).await
}

/// The most that is reserved for one result.
async fn largest(ingress: &Ingress, client: &ClientId) -> Result<u64, Refusal> {
    let half = ingress.answers.share_of(&ingress.owner(client)) as u64 / 2;
    Ok(ingress.policies.result_max().await?.min(half))
}

/// Room for an answer of `bytes` to `client`, if it comes `within` this time.
///
/// # Errors
/// `overloaded`, `rate-limited`
async fn room(ingress: &Ingress, client: &ClientId, bytes: u64, within: Duration) -> Result<Share, Refusal> {
    let room = ingress.answers.reserve(&ingress.owner(client), bytes, Some(within)).await;
    room.map_err(|full| Refusal::full(full, scarce::ANSWERS))
}

/// The answer about a job that stands so.
pub(super) fn told(ingress: &Ingress, outbox: &Outbox, client: &ClientId, seen: Seen) -> Answer {
    match seen.found {
        Lookup::Finished(finished) => self::finished(ingress, outbox, client, (*finished, seen.room)),
        Lookup::Open(status) => Ok(open(&status)),
        Lookup::Absent => Err(Refusal::no_job()),
    }
}

/// The raw result, which holds the room that it was read in, or takes as much.
///
/// # Errors
/// `result-expired`, `payload-too-large`; `overloaded` or `rate-limited` if there is no room for it.
pub(super) fn finished(
    ingress: &Ingress,
    outbox: &Outbox,
    client: &ClientId,
    (finished, room): (Finished, Option<Share>),
) -> Answer {
    let taken = || ingress.answers.take(&ingress.owner(client), finished.result.payload.len() as u64);
    let room = room.map_or_else(taken, Ok).map_err(|full| Refusal::full(full, scarce::ANSWERS))?;
    within(outbox, finished, room)
}

fn within(outbox: &Outbox, finished: Finished, mut room: Share) -> Answer {
    let reply = with_facts(Reply::default(), &finished);
    let result = outcome::readable(finished)?;
    let (job, bytes) = (Some(result.job_id), result.payload.len());
    if bytes as u64 > outbox.message_max() {
        return Err(too_large_to_send(outbox, job).into());
    }
    room.shrink_to(bytes);
    Ok(Reply { room: Some(room), job, ..raw(reply, result) })
}

/// A message per result, oldest first. The return value is the end: an empty one that says how many there were, by
/// which a reader knows that none was lost, and where to read on.
pub(super) async fn all(ingress: &Ingress, asked: &Asked, outbox: &Outbox) -> Answer {
    let after = single(&asked.headers, header::AFTER)?.map(str::trim);
    let mut start = outcome::start(&asked.client, "header Relay-After", after)?;
    let limit = request::number(&asked.headers, header::LIMIT, LIMIT_DEFAULT, LIMIT_MAX)?;
    if outbox.to.is_none() {
        return Err(Refusal::malformed("results go to a reply subject: send it as a request"));
    }
    let _reading = ingress.readers.enter(&asked.client, ingress.limits.answer_within).await?;
    let most = (PAGE_BYTES_MAX as u64).max(largest(ingress, &asked.client).await?);
    let _room = room(ingress, &asked.client, most, ROOM_WITHIN).await?;
    let connection = outbox.connects();
    let (mut sent, mut bytes, mut unflushed, mut reset) = (0, 0, 0, None);
    loop {
        let wanted = (limit - sent).min(PAGE_ENTRIES_MAX);
        let page =
            ingress.broker.results.page(&asked.client, &start, &ResultFilter::ALL, wanted, Duration::ZERO).await?;
        reset = page.reset.or(reset);
        let (before, mut next) = (sent, page.next);
        for finished in page.entries {
            let cursor = finished.cursor.clone();
            let body = entry(outbox, finished, reset.take()).await?;
            (sent, bytes, unflushed) = (sent + 1, bytes + body, unflushed + body);
            // A reader has no more than a page in the connection's buffers.
            if unflushed >= PAGE_BYTES_MAX {
                outbox.flush().await.map_err(|_| gone())?;
                unflushed = 0;
            }
            if bytes >= ANSWER_BYTES {
                next = cursor;
                break;
            }
        }
        outbox.flush().await.map_err(|_| gone())?;
        unflushed = 0;
        if outbox.connects() != connection {
            return Err(interrupted());
        }
        if sent == before || sent >= limit || bytes >= ANSWER_BYTES {
            let end = with_reset(Reply::default(), reset).with(header::CURSOR, &next.to_string());
            return Ok(end.with(header::COUNT, &sent.to_string()));
        }
        start = Start::After(next);
    }
}

/// Sends one result. Its payload is the body; where that can't be, because it is empty, which would read as the end, or
/// erased, or larger than a message, the body is the entry as JSON. How many bytes the body had.
async fn entry(outbox: &Outbox, finished: Finished, reset: Option<Reset>) -> Result<usize, Refusal> {
    let (view, job) = (ResultView::new(&finished), finished.result.job_id);
    let reply = with_reset(with_facts(Reply::default(), &finished), reset);
    let headers = reply.headers.clone();
    if !finished.erased && !finished.result.payload.is_empty() {
        let bytes = finished.result.payload.len();
        match outbox.send(raw(reply, finished.result)).await {
            Ok(()) => return Ok(bytes),
            Err(Unsent::Closed) => return Err(gone()),
            Err(Unsent::TooLarge) => {}
        }
    }
    let view = ResultView { payload_base64: None, ..view };
    let reply = Reply { headers, ..Reply::json(&view)? }.with(CONTENT_TYPE, ENTRY_CONTENT_TYPE);
    let bytes = reply.body.len();
    match outbox.send(reply).await {
        Ok(()) => Ok(bytes),
        Err(Unsent::TooLarge) => Err(too_large_to_send(outbox, Some(job)).into()),
        Err(Unsent::Closed) => Err(gone()),
    }
}

/// Of an answer of which a part was in the buffers of a connection that broke.
fn interrupted() -> Refusal {
    let detail = "the connection to NATS was lost during the answer, and some of these results may be: send the same \
                  request again; results are recognised by Relay-Run-Id";
    Refusal::new(Slug::BrokerUnavailable, detail)
}

fn gone() -> Refusal {
    Refusal::new(Slug::Draining, "the connection to NATS is closed: ask again")
}

/// The refusal to send what NATS can't carry in one message: of this job, if it is one job's.
pub(super) fn too_large_to_send(outbox: &Outbox, job: Option<JobId>) -> Problem {
    let limit = outbox.message_max();
    let detail = format!(
        "the result is there and is larger than the {limit} bytes that this NATS server carries in one message: fetch it \
         over HTTP, GET /v1/jobs/JOB_ID/result, or have the operator raise max_payload"
    );
    let mut problem = Problem::new(Slug::PayloadTooLarge, detail);
    problem.limit = Some(limit);
    problem.job_id = job;
    problem
}

fn raw(reply: Reply, result: JobResult) -> Reply {
    let reply = reply.with(CONTENT_TYPE, fit::content_type(&result));
    Reply { body: result.payload, ..reply }
}

fn open(status: &JobStatus) -> Reply {
    let meta = meta(&status.headers);
    let own = outcome::own(status.key.as_ref(), &meta);
    own.fold(Reply::default(), |reply, (name, value)| reply.with(&name, &value))
        .with(header::STATE, status.state.as_str())
        .with(header::JOB_ID, &status.job_id.to_string())
        .with(header::RUN_ID, &status.run_id.to_string())
        .with(header::ATTEMPT, &status.attempt.to_string())
}

fn with_facts(reply: Reply, finished: &Finished) -> Reply {
    outcome::facts(finished).fold(reply, |reply, (name, value)| reply.with(&name, &value))
}

fn with_reset(reply: Reply, reset: Option<Reset>) -> Reply {
    match reset {
        None => reply,
        Some(Reset::LogReplaced) => reply.with(header::RESET, "log-replaced"),
        Some(Reset::OlderThanRetention) => reply.with(header::RESET, "older-than-retention"),
    }
}
