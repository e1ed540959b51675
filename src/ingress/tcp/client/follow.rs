//! All of a client's results from a cursor on, and those to come, pushed for as long as there is credit.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use relay_bridge::contract::Cursor;
use relay_bridge::contract::wire::client::{Follow, ToClient};
use relay_bridge::result_log::{Page, ResultFilter, Start};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::answers;
use super::audited::Audited;
use super::open::{Credit, Left};
use super::requests::{self, Answer, Begun};
use super::session::{Desk, Session};
use super::writer::Outgoing;
use crate::auth::rights::Right;
use crate::ingress::budget::Share;
use crate::ingress::refusal::Refusal;
use crate::ingress::{grants, outcome};

/// Results that are read at a time, at most.
const READ_MAX: u32 = 32;
/// How long one read waits for results: then it begins again at the same place.
const READ_WAIT: Duration = Duration::from_secs(300);

/// Follows for as long as it is wanted, and says where it ended.
pub(super) async fn attend(
    desk: Desk,
    id: u64,
    wanted: Follow,
    credit: Arc<Credit>,
    stop: CancellationToken,
    begun: Begun,
) {
    let session = Arc::clone(&desk.session);
    let span = begun.span("follow");
    let Begun { request_id, place, mut audited, running: _running } = begun;
    // Boxed: little is needed while nothing comes.
    let answer = AssertUnwindSafe(follow(&desk, id, wanted, credit, stop, &mut audited)).catch_unwind();
    let answer = Box::pin(answer.instrument(span)).await;
    let answer = answer.unwrap_or_else(|panic| Err(requests::panicked(&*panic, None)));
    let (message, room) = requests::finish(&session, id, answer, audited, &request_id);
    desk.answer(id, place, Outgoing { message, room }).await;
}

async fn follow(
    desk: &Desk,
    id: u64,
    wanted: Follow,
    credit: Arc<Credit>,
    stop: CancellationToken,
    audited: &mut Audited,
) -> Answer {
    let session = &desk.session;
    let caller = &session.caller;
    session.still_stands()?;
    grants::require(caller, Right::Read)?;
    let filter = ResultFilter {
        queues: grants::queues(caller, wanted.queue.as_ref().map(|queue| queue.as_str()))?,
        key_prefix: outcome::key_prefix("field `key_prefix`", wanted.key_prefix.as_deref())?,
    };
    let start = outcome::start(&caller.client, "field `after`", wanted.after.as_deref())?;
    let mut follower = Follower { desk, id, filter, start, at: None, told: None, asks_for: READ_MAX };
    // So that a cursor that is refused is told of at once, also without credit.
    Box::pin(follower.place()).await?;
    audited.allow();
    let ended = tokio::select! {
        ended = follower.push(&credit) => Some(ended),
        () = over(session, &stop) => None,
    };
    if let Some(ended) = ended {
        ended?;
    }
    let reason = if stop.is_cancelled() { "stopped" } else { "going-away" };
    let cursor = follower.at.as_ref().map(Cursor::to_string);
    Ok((ToClient::Followed { id, cursor, reason: reason.to_owned() }, None))
}

/// When it is over whatever comes.
async fn over(session: &Session, stop: &CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = session.go.cancelled() => {}
        () = session.ended.cancelled() => {}
        () = session.caller.credential.ended() => {}
    }
}

/// A reader of the results of one client.
struct Follower<'a> {
    desk: &'a Desk,
    id: u64,
    filter: ResultFilter,
    /// Where it begins.
    start: Start,
    /// Behind what was sent or left out; `None` until something was read.
    at: Option<Cursor>,
    /// Where the client knows that it is.
    told: Option<Cursor>,
    /// Results that the next read asks for: about as many as there is room for.
    asks_for: u32,
}

impl Follower<'_> {
    fn start(&self) -> Start {
        self.at.clone().map_or_else(|| self.start.clone(), Start::After)
    }

    /// Finds whether the cursor can be followed, if there is room to look. The end of the log has no results, and must not move
    /// while credit is waited for.
    async fn place(&mut self) -> Result<(), Refusal> {
        let session = &self.desk.session;
        let ingress = &session.clients.ingress;
        let half = ingress.streamed.share_of(&session.owner) as u64 / 2;
        let room = ingress.streamed.take_now(&session.owner, ingress.policies.result_max().await?.min(half));
        if room.is_err() && self.start != Start::Now {
            return Ok(());
        }
        let page = self.page(&ingress.broker.results, 1, Duration::ZERO).await?;
        if page.entries.is_empty() && page.reset.is_none() {
            self.at = Some(page.next);
            self.tell_position().await;
        }
        Ok(())
    }

    async fn page(
        &self,
        results: &Arc<dyn relay_bridge::result_log::ResultLog>,
        limit: u32,
        wait: Duration,
    ) -> Result<Page, Refusal> {
        let client = &self.desk.session.caller.client;
        Ok(results.page(client, &self.start(), &self.filter, limit, wait).await?)
    }

    /// Sends what there is and what comes, whenever there is credit. Ends with an error, or when nothing can be written.
    async fn push(&mut self, credit: &Credit) -> Result<(), Refusal> {
        loop {
            let left = credit.some().await;
            let (page, room) = self.read(left).await?;
            // On the heap while it lasts, as all that a follower that waits does not need.
            if !Box::pin(self.send(page, room, credit)).await {
                return Ok(());
            }
        }
    }

    /// Reads on, and waits if there is nothing yet. A page that finds no room is dropped, and read again once there is.
    async fn read(&self, left: Left) -> Result<(Page, Option<Share>), Refusal> {
        let session = &self.desk.session;
        let ingress = &session.clients.ingress;
        let limit = self.asks_for.min(u32::try_from(left.results).unwrap_or(READ_MAX));
        let page = self.page(&ingress.broker.results, limit, READ_WAIT).await?;
        let bytes = size(&page);
        if bytes == 0 {
            return Ok((page, None));
        }
        if let Ok(room) = ingress.streamed.take_now(&session.owner, bytes) {
            return Ok((page, Some(room)));
        }
        drop(page);
        Box::pin(self.read_again(limit, bytes)).await
    }

    /// The same page once there is room for `bytes`.
    async fn read_again(&self, limit: u32, bytes: u64) -> Result<(Page, Option<Share>), Refusal> {
        let session = &self.desk.session;
        let ingress = &session.clients.ingress;
        let mut room = ingress.streamed.reserve(&session.owner, bytes, None).await.ok();
        let page = self.page(&ingress.broker.results, limit, Duration::ZERO).await?;
        if let Some(room) = &mut room {
            room.fit(usize::try_from(size(&page)).unwrap_or(usize::MAX));
        }
        Ok((page, room))
    }

    /// Sends what was read, as far as there is credit. Whether anything can still be written.
    async fn send(&mut self, page: Page, room: Option<Share>, credit: &Credit) -> bool {
        let (id, frame_max) = (self.id, self.desk.session.frame_max);
        if let Some(reason) = page.reset
            && !self.desk.send(Outgoing::notice(ToClient::Reset { id, reason })).await
        {
            return false;
        }
        let (mut is_all, mut room, count) = (true, room, page.entries.len());
        for (at, finished) in page.entries.into_iter().enumerate() {
            let (bytes, cursor) = (finished.result.payload.len() as u64, finished.cursor.clone());
            let result = Box::new(answers::result(finished, frame_max));
            // All of a page hold its room, which goes with the last of them.
            let is_last = at + 1 == count;
            let goes_on = credit.spend(bytes);
            let room = if is_last || !goes_on { room.take() } else { None };
            let message = ToClient::Result { id, replayed: false, result };
            if !self.desk.send(Outgoing { message, room }).await {
                return false;
            }
            self.asks_for = reads(bytes);
            self.at = Some(cursor.clone());
            self.told = Some(cursor);
            if !goes_on && !is_last {
                is_all = false;
                break;
            }
        }
        if is_all {
            self.at = Some(page.next);
            return self.tell_position().await;
        }
        true
    }

    /// Results that the client did not ask for were passed over: one that comes back need not pass them again.
    async fn tell_position(&mut self) -> bool {
        let Some(at) = self.at.as_ref().filter(|at| self.told.as_ref() != Some(*at)) else { return true };
        let message = ToClient::Position { id: self.id, cursor: at.to_string() };
        self.told = Some(at.clone());
        self.desk.send(Outgoing::notice(message)).await
    }
}

/// The bytes of a page's payloads, and of what comes with them.
fn size(page: &Page) -> u64 {
    page.entries.iter().map(|finished| finished.result.payload.len() as u64 + ENTRY_BYTES).sum()
}

/// How many results of this size are read at a time.
fn reads(bytes: u64) -> u32 {
    u32::try_from(PAGE_BYTES / bytes.max(1) + 1).map_or(READ_MAX, |results| results.min(READ_MAX))
}

/// The bytes of a result beside its payload, about.
const ENTRY_BYTES: u64 = 512;
/// The bytes of payloads that one read is to have.
const PAGE_BYTES: u64 = 64 * 1024;
