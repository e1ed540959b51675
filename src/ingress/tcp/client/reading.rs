//! The frames of one connection: reads them one after the other, begins their requests, keeps the connection alive, and drains.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use relay_bridge::contract::wire::client::{Entry, FromClient, Request, Submit, ToClient};
use relay_bridge::contract::wire::{Problem as FieldProblem, WireError};
use relay_bridge::error::BrokerErrorKind as Kind;
use relay_remote::stream::{BEGUN_BYTES, FrameReader, ReadError};
use tokio::io::AsyncRead;
use tokio::time::{self, Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::open::{Asking, Credit, Untaken};
use super::requests::{self, Begun};
use super::session::Desk;
use super::writer::Outgoing;
use super::{answers, follow};
use crate::api::{Problem, Slug};
use crate::ingress::budget::{Full, Share};
use crate::ingress::http::body;
use crate::ingress::leaving;
use crate::ingress::refusal::{Refusal, scarce};

/// Why reading stopped.
pub(super) struct End {
    pub(super) why: String,
    /// The error that the client is told.
    pub(super) error: Option<WireError>,
    /// Nobody reads any more.
    pub(super) abrupt: bool,
}

impl End {
    fn gone(why: impl Into<String>) -> Self {
        Self { why: why.into(), error: None, abrupt: true }
    }

    pub(super) fn refused(error: WireError) -> Self {
        Self { why: error.detail.clone(), error: Some(error), abrupt: false }
    }

    fn malformed(detail: impl Into<String>) -> Self {
        Self::refused(WireError::new(Kind::Invalid, detail))
    }
}

/// How far the next frame is.
enum Coming {
    Nothing,
    /// Its length is known; its bytes are waited for until then.
    Begun {
        length: usize,
        until: Instant,
    },
    /// It is read.
    Small,
    /// It has its bytes since then, and is read.
    Granted {
        share: Share,
        since: Instant,
    },
}

pub(super) struct Reading<'a> {
    pub(super) desk: &'a Desk,
    pub(super) tasks: &'a TaskTracker,
}

impl Reading<'_> {
    pub(super) async fn run<R: AsyncRead + Unpin>(&self, from: &mut FrameReader<R>) -> End {
        let session = &self.desk.session;
        let ping = session.clients.limits.ping.max(Duration::from_millis(1));
        let mut pings = time::interval_at(Instant::now() + ping, ping);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut number, mut unheard, mut going_away, mut stopping) = (0, 0, false, false);
        let mut old = Box::pin(time::sleep(leaving::age(session.clients.ingress.limits.max_age)));
        let (mut coming, mut seen) = (Coming::Nothing, 0);
        loop {
            tokio::select! {
                frame = self.next(from, &mut coming) => {
                    unheard = 0;
                    let end = match frame {
                        Ok(Some((frame, share))) => self.message(&frame, share).await,
                        // Its sending half alone, maybe: it is answered what it asked for. One that is gone takes no bytes.
                        Ok(None) => Some(End { why: "the client closed it".to_owned(), error: None, abrupt: false }),
                        Err(end) => Some(end),
                    };
                    if let Some(end) = end {
                        return end;
                    }
                }
                _ = pings.tick() => {
                    // Also a part of a large frame is a word of the client.
                    if seen != from.here() {
                        (seen, unheard) = (from.here(), 0);
                    }
                    if unheard == PINGS_UNHEARD_MAX {
                        return End::gone("nothing came for three pings");
                    }
                    unheard += 1;
                    number += 1;
                    self.desk.try_send(Outgoing::notice(ToClient::Ping(number)));
                }
                () = old.as_mut(), if !session.is_old() => {
                    session.old.store(true, Ordering::Relaxed);
                    session.connection.ages();
                }
                () = session.go.cancelled(), if !going_away => {
                    going_away = true;
                    let reason = if session.is_old() { "old" } else { "draining" }.to_owned();
                    let notice = ToClient::GoAway { reason, within: session.stop.within };
                    if !self.desk.send(Outgoing::notice(notice)).await {
                        return End::gone("nothing can be written");
                    }
                }
                () = session.stop.shutdown.cancelled(), if !stopping => {
                    stopping = true;
                    session.connection.ages();
                }
                () = session.connection.is_to_end() => {
                    return End { why: "others need its place".to_owned(), error: None, abrupt: false };
                }
                () = session.answered.notified(), if session.takes_no_more() => {}
                () = session.caller.credential.ended() => return End::gone("its key does not stand any more"),
                () = session.ended.cancelled() => return End::gone("nothing can be written, or time is up"),
            }
            if session.takes_no_more() && going_away && session.open.is_empty() {
                return End { why: "drained".to_owned(), error: None, abrupt: false };
            }
        }
    }

    /// The next frame: of a large one no more than its beginning is read before it has its bytes. Dropping the future loses
    /// nothing: `coming` knows how far it is.
    async fn next<R: AsyncRead + Unpin>(
        &self,
        from: &mut FrameReader<R>,
        coming: &mut Coming,
    ) -> Result<Option<(Bytes, Option<Share>)>, End> {
        let session = &self.desk.session;
        let broken = |error| match error {
            ReadError::Broken(error) => End::gone(error.to_string()),
            ReadError::Frame(error) => End::malformed(error.to_string()),
        };
        if let Coming::Nothing = coming {
            let Some(length) = from.begun().await.map_err(broken)? else { return Ok(None) };
            *coming = match length {
                0..=BEGUN_BYTES => Coming::Small,
                length => Coming::Begun { length, until: Instant::now() + session.clients.limits.room_timeout },
            };
        }
        if let Coming::Begun { length, until } = *coming {
            let share = self.bytes_by(length, until).await;
            let share = share.map_err(|full| refused(&Refusal::full(full, scarce::BODIES)))?;
            *coming = Coming::Granted { share, since: Instant::now() };
        }
        let frame = match coming {
            Coming::Granted { since, .. } => self.in_time(from, *since).await?,
            _ => from.next().await,
        };
        let frame = frame.map_err(broken)?;
        let share = match std::mem::replace(coming, Coming::Nothing) {
            Coming::Granted { share, .. } => Some(share),
            _ => None,
        };
        Ok(frame.map(|frame| (frame, share)))
    }

    /// The bytes of a large frame. It looks for them again and again and has no place in the line: others that need few bytes
    /// would be refused while a large one waits at its front.
    async fn bytes_by(&self, length: usize, until: Instant) -> Result<Share, Full> {
        let session = &self.desk.session;
        let bodies = &session.clients.ingress.body_bytes;
        let length = length.min(bodies.max()) as u64;
        while Instant::now() < until {
            if let Ok(share) = bodies.take_now(&session.owner, length) {
                return Ok(share);
            }
            time::sleep_until(until.min(Instant::now() + LOOK_AGAIN)).await;
        }
        bodies.take(&session.owner, length)
    }

    /// The frame that has its bytes since then, if it comes no slower than a body over HTTP may.
    async fn in_time<R: AsyncRead + Unpin>(
        &self,
        from: &mut FrameReader<R>,
        since: Instant,
    ) -> Result<Result<Option<Bytes>, ReadError>, End> {
        let limits = &self.desk.session.clients.ingress.limits;
        loop {
            let due = body::due(limits, since, from.here());
            match time::timeout_at(due, from.next()).await {
                Ok(frame) => return Ok(frame),
                Err(_) if body::due(limits, since, from.here()) > due => {}
                Err(_) => return Err(refused(&body::too_slow(limits, "frame", since))),
            }
        }
    }

    /// Acts on one message. `Some` ends the connection.
    async fn message(&self, frame: &Bytes, share: Option<Share>) -> Option<End> {
        let session = &self.desk.session;
        match FromClient::decode(frame) {
            Ok(FromClient::Request { id, request: Request::Submit(submit) }) => {
                let share = self.bytes_of(frame, share);
                self.submit(id, Ok(submit), share.map(Arc::new)).await
            }
            Ok(FromClient::Request { id, request }) => self.request(id, request, None).await,
            Ok(FromClient::SubmitMany(entries)) => {
                // All of them hold the frame.
                let share = self.bytes_of(frame, share).map(Arc::new);
                for Entry { id, submit } in entries {
                    if let Some(end) = self.submit(id, submit, share.clone()).await {
                        return Some(end);
                    }
                }
                None
            }
            Ok(FromClient::Credit { id, results, bytes }) => {
                session.open.credit(id, results, bytes);
                None
            }
            Ok(FromClient::Stop { id }) => {
                session.open.stop(id);
                None
            }
            Ok(FromClient::Ping(number)) => self.tell(ToClient::Pong(number)).await,
            Ok(FromClient::Pong(_)) => None,
            Ok(FromClient::Hello(_)) => Some(End::malformed("a second hello")),
            Err(error) => match error.id.filter(|id| !session.open.has(*id)) {
                Some(id) => self.refuse(id, Refusal::malformed(error.to_string())).await,
                // An answer would be taken for that of another request.
                None => Some(End::malformed(error.to_string())),
            },
        }
    }

    /// The bytes of a frame with submissions, out of the budget that bodies have over HTTP.
    fn bytes_of(&self, frame: &Bytes, share: Option<Share>) -> Result<Share, Refusal> {
        let session = &self.desk.session;
        let taken = match share {
            Some(share) => Ok(share),
            None => session.clients.ingress.body_bytes.take(&session.owner, frame.len() as u64),
        };
        taken.map_err(|full| Refusal::full(full, scarce::BODIES))
    }

    async fn submit(
        &self,
        id: u64,
        submit: Result<Box<Submit>, FieldProblem>,
        share: Result<Arc<Share>, Refusal>,
    ) -> Option<End> {
        let refusal = match (submit, share) {
            (Ok(submit), Ok(share)) => return self.request(id, Request::Submit(submit), Some(share)).await,
            (Err(problem), _) => Refusal::malformed(problem.to_string()),
            (_, Err(refusal)) => refusal,
        };
        if self.desk.session.open.has(id) {
            return Some(same_id(id));
        }
        self.refuse(id, refusal).await
    }

    async fn request(&self, id: u64, request: Request, share: Option<Arc<Share>>) -> Option<End> {
        let session = &self.desk.session;
        let stop = CancellationToken::new();
        let asking = match &request {
            Request::Wait { .. } => Asking::Waits(stop.clone()),
            Request::Submit(submit) if submit.wait.is_some() => Asking::Waits(stop.clone()),
            Request::Follow(follow) => Asking::Follows(stop.clone(), Credit::new(follow.results, follow.bytes)),
            _ => Asking::Plain,
        };
        let credit = match &asking {
            Asking::Follows(_, credit) => Some(Arc::clone(credit)),
            _ => None,
        };
        match session.open.begin(id, asking, session.requests_max) {
            Ok(()) => {}
            Err(Untaken::SameId) => return Some(same_id(id)),
            Err(Untaken::TooMany) => return self.refuse(id, too_many(session.requests_max)).await,
        }
        // Before the task, so that a message that follows at once finds what it is about.
        let begun = match Begun::new(session, &request) {
            Ok(begun) => begun,
            Err(refusal) => {
                session.open.end(id);
                return self.refuse(id, refusal).await;
            }
        };
        let desk = self.desk.clone();
        match (request, credit) {
            (Request::Follow(wanted), Some(credit)) => {
                self.tasks.spawn(follow::attend(desk, id, wanted, credit, stop, begun));
            }
            (request, _) => {
                self.tasks.spawn(requests::attend(desk, id, request, stop, begun, share));
            }
        }
        None
    }

    /// Refuses a request that was not begun. While the queue is full nothing more is read from the client.
    async fn refuse(&self, id: u64, refusal: Refusal) -> Option<End> {
        let clients = &self.desk.session.clients;
        let mut problem = *refusal.0;
        problem.instance = requests::instance(&crate::ingress::request_id::mint());
        clients.refusals.add(problem.slug);
        self.tell(answers::problem(id, problem)).await
    }

    async fn tell(&self, message: ToClient) -> Option<End> {
        let sent = self.desk.send(Outgoing::notice(message)).await;
        (!sent).then(|| End::gone("nothing can be written"))
    }
}

fn refused(refusal: &Refusal) -> End {
    End::refused(answers::error(&refusal.0))
}

fn same_id(id: u64) -> End {
    let detail = format!(
        "request {id} is unanswered, and another one came under its id: give it one that is free, and connect again"
    );
    End::malformed(detail)
}

fn too_many(max: usize) -> Refusal {
    let detail = format!(
        "{max} requests of this connection are unanswered, as many as `requests_max` in the welcome; nothing was done: let \
         some of them end, then send it again"
    );
    let mut problem = Problem::new(Slug::RateLimited, detail);
    problem.limit = Some(max as u64);
    problem.into()
}

/// How often it is looked whether the bytes of a large frame are free.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// After so many pings without any message the peer counts as gone.
const PINGS_UNHEARD_MAX: u32 = 3;
