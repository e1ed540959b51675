//! `GET /v1/jobs/{id}/events` as server-sent events: where the job stands, what workers do with it as far as this relay
//! sees it, and how it ended.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, StatusCode, Uri};
use relay_bridge::contract::{ClientId, Timestamp};
use relay_bridge::error::BrokerError;
use relay_bridge::result_log::Lookup;
use tokio_util::task::AbortOnDropHandle;

use super::answer::{Answer, Refusal};
use super::connection::Peer;
use super::request::{self, Parameters};
use super::sse::{self, Beat, Pulse};
use super::{Ingress, Served};
use crate::api::{JobEvent, JobEventKind, JobView, Receipt, fit, header, schema};
use crate::auth::Caller;
use crate::auth::rights::Right;
use crate::ingress::events::{Told, Watch, What};
use crate::ingress::headers::single;
use crate::ingress::jobs;

/// One who watches one job.
struct Watcher {
    served: Arc<Served>,
    client: ClientId,
    /// As it stood when watching began: its ids, its key and its meta stay.
    job: Receipt,
    /// The last attempt that is known of.
    attempt: u32,
    pulse: Pulse,
    watch: Watch,
    ready: VecDeque<Bytes>,
    /// The wait for its end: a task, because nobody polls a stream whose peer has no room, and a look-up that is not polled keeps
    /// its place at the broker.
    waiting: Option<AbortOnDropHandle<Result<Lookup, BrokerError>>>,
    ended: bool,
}

/// Watch a job
///
/// Server-sent events: `snapshot` first, then `started`, `progress` and `retrying` as far as this relay sees them, and
/// `finished`, which is certain and the last. Each is a `JobEvent`.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/events", tag = "jobs", operation_id = "watch_job",
    params(
        ("id" = schema::JobId, Path, description = "The job."),
        ("last-event-id" = Option<String>, Header, description = "The last event that was seen."),
    ),
    responses(
        (status = 200, description = "Its events.", content((schema::Events = "text/event-stream"))),
        (status = 204, description = "The last event was the end: there is nothing to come back for."),
    ),
)]
pub(super) async fn events(
    State(served): State<Arc<Served>>,
    peer: Peer,
    caller: Caller,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Answer {
    Parameters::read(&uri, &[])?;
    let id = request::job(&served, (&peer, &caller), &id, Right::Read).await?;
    let pulse = Pulse::start(&served, &peer)?;
    // Before the look-up, so that nothing falls between the two.
    let watch = served.ingress.events.watch(id);
    let Ingress { broker, policies, clock, .. } = &*served.ingress;
    let room = peer.room_to_read(&served.ingress).await?;
    let view = jobs::find(broker, policies, &caller.client, id).await?;
    drop(room);
    let job = view.receipt.clone();
    let seen = single(&headers, header::LAST_EVENT_ID)?;
    if view.outcome.is_some() && seen == Some(job.run_id.to_string().as_str()) {
        // A reader that has seen the end comes back: this answer tells it not to.
        return Ok::<Response, Refusal>(StatusCode::NO_CONTENT.into_response());
    }
    let finished = finished(&view);
    let attempt = view.attempt;
    let snapshot = JobEvent::snapshot(view, clock.now());
    let ready = VecDeque::from([pulse.opening(None), written(&snapshot)]);
    let mut watcher = Watcher {
        client: caller.client,
        job,
        attempt,
        pulse,
        watch,
        ready,
        waiting: None,
        ended: false,
        served: Arc::clone(&served),
    };
    if let Some(finished) = finished {
        watcher.finish(&finished);
    }
    Ok(sse::answer(stream::unfold(watcher, |mut watcher| async move {
        let chunk = watcher.next().await?;
        Some((chunk, watcher))
    })))
}

/// How the run ended, if it did.
fn finished(view: &JobView) -> Option<JobEvent> {
    let at = view.finished_at.unwrap_or(Timestamp::EPOCH);
    let event = JobEvent::new(JobEventKind::Finished, &view.receipt, at, view.attempt);
    view.outcome.map(|outcome| JobEvent { outcome: Some(outcome), ..event })
}

fn written(event: &JobEvent) -> Bytes {
    // Only the end has an id: a watcher that comes back before it begins with a new snapshot.
    let id = (event.kind == JobEventKind::Finished).then(|| event.run_id.to_string());
    sse::event(event.kind.as_str(), id.as_deref(), event)
}

impl Watcher {
    /// The next chunk to send.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(problem) = self.pulse.refused().filter(|_| !self.ended) {
                self.ready = VecDeque::from([problem]);
                self.ended = true;
            }
            if let Some(chunk) = self.ready.pop_front() {
                return Some(chunk);
            }
            if self.ended {
                return None;
            }
            let mut waiting = self.waiting.take().unwrap_or_else(|| self.wait());
            tokio::select! {
                found = &mut waiting => {
                    // A worker's part in the run was told before it recorded the end: it comes first, whichever of the two
                    // was looked at first.
                    while let Some(told) = self.watch.told() {
                        self.tell(told);
                    }
                    match found {
                        Ok(found) => self.found(found),
                        // Relay is being closed.
                        Err(_) => self.end(),
                    }
                }
                told = self.watch.next() => {
                    self.waiting = Some(waiting);
                    self.tell(told);
                }
                beat = self.pulse.beat() => {
                    self.waiting = Some(waiting);
                    match beat {
                        Beat::Ping => self.ready.push_back(sse::ping(None)),
                        Beat::End => self.end(),
                        // It is looked at first.
                        Beat::Refused => {}
                    }
                }
            }
        }
    }

    /// Waits for the result for as long as the stream lasts.
    fn wait(&self) -> AbortOnDropHandle<Result<Lookup, BrokerError>> {
        let results = Arc::clone(&self.served.ingress.broker.results);
        let (client, job) = (self.client.clone(), self.job.job_id);
        let wait = self.served.ingress.limits.follow_for * 2;
        AbortOnDropHandle::new(self.served.tasks.spawn(async move {
            let mut found = results.wait(&client, job, wait).await;
            if let Ok(Lookup::Finished(finished)) = &mut found {
                // An event tells how a run ended, and not with which payload.
                finished.result.payload = Bytes::new();
            }
            found
        }))
    }

    fn found(&mut self, found: Result<Lookup, BrokerError>) {
        match found {
            Ok(Lookup::Finished(finished)) => {
                let result = finished.result;
                let event = JobEvent::new(JobEventKind::Finished, &self.job, result.finished_at, result.attempt);
                let (run_id, meta) = (result.run_id, fit::meta(&result));
                self.finish(&JobEvent { run_id, meta, outcome: Some(result.outcome), ..event });
            }
            // The broker is being closed.
            Ok(Lookup::Open(_)) => self.end(),
            Ok(Lookup::Absent) => self.fail(&Refusal::no_job()),
            Err(error) => self.fail(&error.into()),
        }
    }

    fn tell(&mut self, Told { run_id, at, what }: Told) {
        if run_id != self.job.run_id {
            return;
        }
        let event = |kind, attempt| JobEvent::new(kind, &self.job, at, attempt);
        let event = match what {
            What::Started(attempt) => {
                self.attempt = attempt;
                event(JobEventKind::Started, attempt)
            }
            What::Progress(progress) => {
                JobEvent { progress: Some(progress), ..event(JobEventKind::Progress, self.attempt) }
            }
            What::Retrying(after) => {
                JobEvent { next_attempt_at: Some(at + after), ..event(JobEventKind::Retrying, self.attempt) }
            }
        };
        self.ready.push_back(written(&event));
    }

    fn finish(&mut self, event: &JobEvent) {
        self.ready.push_back(written(event));
        self.ended = true;
    }

    fn fail(&mut self, refusal: &Refusal) {
        self.ready.push_back(sse::problem(refusal));
        self.end();
    }

    fn end(&mut self) {
        self.ready.push_back(self.pulse.closing());
        self.ended = true;
    }
}

#[cfg(test)]
mod tests {
    use relay_bridge::clock::Clock;
    use relay_bridge::result_log::Finished;
    use relay_embedded::{Embedded, EmbeddedConfig};

    use std::net::IpAddr;

    use super::super::Limits;
    use super::super::connection::Connection;
    use super::*;
    use crate::api::testing;
    use crate::auth::Authenticator;
    use crate::ingress::clients::Owner;

    /// One who watches a job, and the result that the job will have.
    async fn watcher() -> (Watcher, Finished) {
        let broker = Embedded::open(EmbeddedConfig::default()).await.unwrap().broker();
        let ingress = Ingress::new(broker, Authenticator::development(), Limits::default(), Clock::system());
        let served = Served { ingress, shutdown: Default::default(), tasks: Default::default() };
        let finished = testing::finished("text/plain", Vec::new());
        let connection = Connection::new(1, IpAddr::from([127, 0, 0, 1]));
        let peer = Peer { owner: Owner::Connection(connection.id), connection, credential: Default::default() };
        let watcher = Watcher {
            client: finished.result.client.clone(),
            job: JobView::of_result(&finished.result, None, None).receipt,
            attempt: 0,
            pulse: Pulse::start(&served, &peer).unwrap(),
            watch: served.ingress.events.watch(finished.result.job_id),
            ready: VecDeque::new(),
            waiting: None,
            ended: false,
            served: Arc::new(served),
        };
        (watcher, finished)
    }

    #[tokio::test]
    async fn what_was_told_of_a_run_comes_before_its_end() {
        let (mut watcher, finished) = watcher().await;
        let (events, at) = (Arc::clone(&watcher.served.ingress.events), finished.result.finished_at);
        let (job, run_id) = (watcher.job.job_id, watcher.job.run_id);
        // Nothing was told when the watcher looked last, and by the time it learns of the end everything was.
        let tasks = watcher.served.tasks.clone();
        watcher.waiting = Some(AbortOnDropHandle::new(tasks.spawn(async move {
            events.tell(job, || Told { run_id, at, what: What::Started(1) });
            events.tell(job, || Told { run_id, at, what: What::Retrying(Default::default()) });
            events.tell(job, || Told { run_id, at, what: What::Started(2) });
            Ok(Lookup::Finished(Box::new(finished)))
        })));
        let mut events = Vec::new();
        while let Some(chunk) = watcher.next().await {
            let text = std::str::from_utf8(&chunk).unwrap().to_owned();
            events.extend(text.lines().filter_map(|line| Some(line.strip_prefix("event: ")?.to_owned())));
        }
        assert_eq!(events, ["started", "retrying", "started", "finished"]);
    }
}
