//! One connection, as its requests, the pool that it is in, and its guards see it: when something happened on it, so that one
//! on which nothing happens can be dropped.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use http::Version;
use relay_bridge::support::lock;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::held::Held;
use crate::auth::Presented;
use crate::auth::credential::Credential;
use crate::auth::presented::Certificate;
use crate::ingress::budget::Share;
use crate::ingress::clients::Owner;
use crate::ingress::proxy::Source;
use crate::ingress::proxy::header::EndpointId;

/// The unit in which unread bytes of answers are counted.
pub(super) const UNREAD_UNIT: usize = 16 * 1024;
/// Units of answers that one connection may leave unread, 4 MiB, or one answer that is larger.
pub(super) const UNREAD_UNITS: usize = 256;
/// The answers 401 in a row after which a connection is closed.
const STRANGER_MAX: u32 = 5;
/// How soon a connection is idle after its last answer, and after it came.
const IDLE_FROM: Duration = Duration::from_secs(1);
/// How long a stalled answer may take to go away before its connection is closed.
const RESET_WITHIN: Duration = Duration::from_secs(1);

/// A peer's connection.
pub(in crate::ingress) struct Connection {
    pub(in crate::ingress) id: u64,
    /// The address of the other end of its socket: a balancer's, where there is one in front.
    pub(in crate::ingress) peer: IpAddr,
    /// Its peer as the balancer in front names it; nothing without a PROXY header.
    pub(in crate::ingress) source: OnceLock<Source>,
    /// The certificate of its peer; nothing without one.
    pub(super) certificate: OnceLock<Certificate>,
    /// The same once it is good no more.
    pub(super) withdrawn: OnceLock<Certificate>,
    start: Instant,
    /// Requests whose answers are not ready.
    running: AtomicU64,
    /// When the last answer was ready, or a part of one was taken, in milliseconds after `start`.
    answered_at: AtomicU64,
    /// When the first byte of a head came that is not complete, in milliseconds after `start`, and one more; 0: there is none.
    head_since: AtomicU64,
    /// Answers of which bytes are left. Over HTTP/2 a peer may read one of them and not another.
    answers: Mutex<Vec<Weak<Held>>>,
    /// Room for unread answers, in units of [`UNREAD_UNIT`].
    pub(super) unread: Arc<Semaphore>,
    strangers: AtomicU32,
    proven: AtomicBool,
    /// Its place among its client's connections.
    place: Mutex<Option<Share>>,
    /// Whether its peer speaks HTTP/2, as its first request said.
    h2: AtomicBool,
    /// Requests that came on it.
    requests: AtomicU32,
    /// Whether its peer is to go elsewhere, and hears of it with the next answer.
    parting: AtomicBool,
    /// Whether the process stops, and a request that is on its way is still answered.
    lingering: AtomicBool,
    /// Ends the streams of events on it.
    parts: OnceLock<CancellationToken>,
    /// The [`Asked`] that it was last asked for. No token: its task looks at each turn, and tokens have locks.
    asked: AtomicU8,
    task: AtomicWaker,
}

/// A request of the process to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// To go on.
    Nothing,
    /// To finish what it has, and end.
    Leave,
    /// To end at once.
    End,
}

impl Connection {
    pub(super) fn new(id: u64, peer: IpAddr) -> Arc<Self> {
        Arc::new(Self {
            id,
            peer,
            source: OnceLock::new(),
            certificate: OnceLock::new(),
            withdrawn: OnceLock::new(),
            start: Instant::now(),
            running: AtomicU64::new(0),
            answered_at: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
            answers: Mutex::default(),
            unread: Arc::new(Semaphore::new(UNREAD_UNITS)),
            strangers: AtomicU32::new(0),
            proven: AtomicBool::new(false),
            place: Mutex::default(),
            h2: AtomicBool::new(false),
            requests: AtomicU32::new(0),
            parting: AtomicBool::new(false),
            lingering: AtomicBool::new(false),
            parts: OnceLock::new(),
            asked: AtomicU8::new(Asked::Nothing as u8),
            task: AtomicWaker::new(),
        })
    }

    /// Counts a request as running until the guard is dropped.
    pub(in crate::ingress) fn begin(self: &Arc<Self>) -> Running {
        self.head_since.store(0, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(Arc::clone(self))
    }

    /// Notes that bytes came. Where no request runs, they are of a head.
    pub(super) fn has_read(&self) {
        if self.running.load(Ordering::Relaxed) == 0 && self.head_since.load(Ordering::Relaxed) == 0 {
            self.head_since.store(self.now() + 1, Ordering::Relaxed);
        }
    }

    /// Everything that its peer has shown before its first word.
    pub(in crate::ingress) fn presented(&self) -> Presented<'_> {
        let source = self.source.get();
        Presented {
            certificate: self.withdrawn.get().or_else(|| self.certificate.get()),
            endpoint: source.and_then(|source| source.endpoint.as_ref()).map(EndpointId::as_str),
            address: Some(source.map_or(self.peer, |source| source.address)),
            ..Presented::default()
        }
    }

    /// Notes that nobody vouches for its certificate any more: its further requests are nobody's, and it is asked to leave.
    pub(super) fn withdraws(&self) {
        if let Some(certificate) = self.certificate.get() {
            let name = Err("it was revoked, has expired, or its authority is trusted no more".to_owned());
            self.withdrawn.set(Certificate { name, ..certificate.clone() }).ok();
        }
        self.ask(Asked::Leave);
    }

    /// Whether somebody was authenticated on it.
    pub(super) fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// Notes that a caller was authenticated, whose place this is. Whether it is the first one on this connection.
    pub(in crate::ingress) fn prove(&self, place: impl FnOnce() -> Option<Share>) -> bool {
        let mut held = lock(&self.place);
        if self.is_proven() {
            return false;
        }
        *held = place();
        let is_let_in = held.is_some();
        self.proven.store(is_let_in, Ordering::Relaxed);
        is_let_in
    }

    /// Notes a caller that is known: one wrong key among many right ones is a proxy's, and no stranger's.
    pub(super) fn is_known(&self) {
        self.strangers.store(0, Ordering::Relaxed);
    }

    /// Counts an answer 401 to a caller that is not known. Whether it is one too many: the connection is about to end.
    pub(super) fn is_strangers(&self) -> bool {
        let many = self.strangers.fetch_add(1, Ordering::Relaxed) + 1 >= STRANGER_MAX;
        if many {
            self.ask(Asked::Leave);
        }
        many
    }

    /// Counts a request, which came in this version.
    pub(super) fn counts(&self, version: Version) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if version == Version::HTTP_2 {
            self.h2.store(true, Ordering::Relaxed);
        }
    }

    /// How many requests came on it.
    pub(super) fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Whether its peer speaks HTTP/2.
    pub(super) fn is_h2(&self) -> bool {
        self.h2.load(Ordering::Relaxed)
    }

    /// Has its peer go elsewhere without losing anything: over HTTP/2 it is told at once, over HTTP/1.1 with the next answer,
    /// because it may be writing a request. Streams of events end, each with its cursor.
    pub(super) fn part(&self) {
        self.ages();
        if self.is_h2() {
            self.ask(Asked::Leave);
        }
    }

    /// Notes that its peer is to connect anew, and has all the time for what is under way.
    pub(in crate::ingress) fn ages(&self) {
        self.parting.store(true, Ordering::SeqCst);
        if let Some(parts) = self.parts.get() {
            parts.cancel();
        }
    }

    /// Has the one request that may be on its way answered as if the process did not stop, and with it the peer told to go.
    pub(super) fn linger(&self) {
        self.lingering.store(true, Ordering::Relaxed);
        self.part();
    }

    /// Whether a request that was on its way when the process stopped is answered on it.
    pub(super) fn is_lingering(&self) -> bool {
        self.lingering.load(Ordering::Relaxed)
    }

    /// Whether its peer is to go elsewhere.
    pub(super) fn is_parting(&self) -> bool {
        self.parting.load(Ordering::Relaxed)
    }

    /// Cancelled once its peer is to go elsewhere: for what lasts, streams and sessions of the TCP protocol.
    pub(in crate::ingress) fn parts(&self) -> CancellationToken {
        let parts = self.parts.get_or_init(CancellationToken::new);
        // It was not there to be cancelled.
        if self.parting.load(Ordering::SeqCst) {
            parts.cancel();
        }
        parts.clone()
    }

    /// Whether it came after `from`, and not after `until`.
    pub(super) fn came_between(&self, from: Instant, until: Instant) -> bool {
        from < self.start && self.start <= until
    }

    /// Whether a request is being answered.
    pub(super) fn is_busy(&self) -> bool {
        self.running.load(Ordering::Acquire) > 0
    }

    /// Whether a request runs, or bytes of an answer to one have not left.
    pub(super) fn is_answering(&self) -> bool {
        self.is_busy() || !self.answers().is_empty()
    }

    /// When it came.
    pub(in crate::ingress) fn came(&self) -> Instant {
        self.start
    }

    /// Asks it to leave, or to end.
    pub(super) fn ask(&self, what: Asked) {
        self.asked.fetch_max(what as u8, Ordering::SeqCst);
        self.task.wake();
    }

    /// The last request to it.
    pub(super) fn asked(&self) -> Asked {
        match self.asked.load(Ordering::SeqCst) {
            0 => Asked::Nothing,
            1 => Asked::Leave,
            _ => Asked::End,
        }
    }

    /// The same, and has its task woken by the next [`ask`](Self::ask).
    pub(super) fn asked_with(&self, context: &Context<'_>) -> Asked {
        self.task.register(context.waker());
        self.asked()
    }

    /// Waits until it is to end. For a connection without a guard of HTTP: only one task may wait.
    pub(in crate::ingress) async fn is_to_end(&self) {
        std::future::poll_fn(|context| match self.asked_with(context) {
            Asked::End => Poll::Ready(()),
            Asked::Nothing | Asked::Leave => Poll::Pending,
        })
        .await;
    }

    /// Since when it is there; `None` if for less than a second.
    pub(super) fn old_since(&self) -> Option<Instant> {
        (self.start.elapsed() >= IDLE_FROM).then_some(self.start)
    }

    /// Gives its place among its client's connections back.
    pub(in crate::ingress) fn gives_its_place_back(&self) {
        drop(lock(&self.place).take());
    }

    /// Since when there is no request, no wait and no unread answer; `None` if there is one, or for less than a second.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let is_quiet = self.running.load(Ordering::Acquire) == 0 && self.answers().is_empty();
        let since = self.at(self.answered_at.load(Ordering::Relaxed));
        (is_quiet && since.elapsed() >= IDLE_FROM).then_some(since)
    }

    /// When to look again whether it is to be dropped; `None`: now. A peer has `first` from its beginning until it is proven,
    /// and as long for each head; `idle` between requests, and for taking a part of an answer. A stalled answer whose stream
    /// can be ended alone is: the connection goes on if it is gone soon after.
    pub(super) fn silent_until(&self, first: Duration, idle: Duration) -> Option<Instant> {
        let now = Instant::now();
        let mut until = now + idle;
        if !self.is_proven() {
            until = until.min(self.start + first);
        }
        if let Some(since) = self.head_since.load(Ordering::Relaxed).checked_sub(1) {
            until = until.min(self.at(since) + first);
        }
        if self.running.load(Ordering::Acquire) == 0 && self.answers().is_empty() {
            until = until.min(self.at(self.answered_at.load(Ordering::Relaxed)) + idle);
        }
        let open: Vec<_> = self.answers().iter().filter_map(Weak::upgrade).collect();
        for answer in open {
            let stalled_at = self.at(answer.taken_at.load(Ordering::Relaxed)) + idle;
            until = until.min(match &answer.task {
                Some(task) if stalled_at <= now => {
                    task.cancel();
                    let ended_at = answer.ended_at.get_or_init(|| now);
                    *ended_at + RESET_WITHIN
                }
                _ => stalled_at,
            });
        }
        (until > now).then_some(until)
    }

    /// The state of the head that comes: changes when [`silent_until`](Self::silent_until) may have come closer.
    pub(super) fn head(&self) -> u64 {
        self.head_since.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, answer: &Arc<Held>) {
        self.answers().push(Arc::downgrade(answer));
    }

    /// Forgets answers that are gone.
    pub(super) fn forget(&self) {
        self.answered();
        self.answers().retain(|answer| answer.strong_count() > 0);
    }

    pub(super) fn answered(&self) {
        self.answered_at.store(self.now(), Ordering::Relaxed);
    }

    /// Milliseconds after its beginning.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    fn answers(&self) -> MutexGuard<'_, Vec<Weak<Held>>> {
        lock(&self.answers)
    }
}

/// A request that is being answered.
pub(in crate::ingress) struct Running(Arc<Connection>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.answered();
        self.0.running.fetch_sub(1, Ordering::Release);
    }
}

/// A caller: whose share of each budget it takes, and on which connection.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) owner: Owner,
    pub(super) connection: Arc<Connection>,
    /// Ends what was begun with it.
    pub(super) credential: Credential,
}
