//! Rounds over all consumers of a queue. They find what no hint told of: leases that ended, timers of a process that is gone,
//! hints that were lost. The processes that wait share them: whoever made one says so, and the others put theirs off.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_nats::HeaderMap;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::Inner;
use crate::Nats;
use crate::leases::listening;
use crate::line::lanes::ConsumerInfo;
use crate::line::line::{Line, lock};
use crate::line::order::{Delivered, Order};
use crate::stored::names;
use crate::wire::api::jitter;
use relay_bridge::error::BrokerError;
use relay_bridge::policy::QueuePolicy;

/// How often somebody makes a round while somebody waits.
const EVERY: Duration = Duration::from_millis(700);
/// How often each process makes one of its own, whatever others say.
const OWN_EVERY: Duration = Duration::from_secs(5);
/// How soon after one the next is made at the earliest, except for whoever does not wait.
const APART: Duration = Duration::from_millis(50);
/// When one is made again that was made because hints were missed: a consumer may not know yet of what was stored just before.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// For how long another process is taken to be there after its last word.
const THERE_FOR: Duration = Duration::from_secs(15);
/// How often a process that makes no rounds says that it is there.
const HERE_EVERY: Duration = Duration::from_secs(4);
/// The most lanes that others are told of after a round, of those that this process has no places for.
const TOLD_MAX: usize = 64;

/// When this process makes rounds, and what it knows of others.
#[derive(Debug)]
pub(crate) struct Rounds {
    /// Names this process to others.
    me: u64,
    due: Mutex<Due>,
    /// Whether one is due and waits until somebody waits for jobs.
    is_late: AtomicBool,
    /// Whether somebody did since.
    is_wanted: AtomicBool,
    woken: Notify,
    /// Held while one is made: several that look at once make one.
    making: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Due {
    next: Instant,
    /// The last round of this process, and how often it had connected by then: what came while it was away had its hint lost.
    made: Option<(Instant, u64)>,
    /// When it is tried again, if the last one could not be made.
    again_at: Option<Instant>,
    /// Up to when hints may have been missed.
    missed: Instant,
    /// Whether the next one is to be made twice.
    twice: bool,
    /// When another process said something.
    heard: Option<Instant>,
    /// When this one did.
    said: Option<Instant>,
}

impl Default for Rounds {
    fn default() -> Self {
        let now = Instant::now();
        let due = Due { next: now, made: None, again_at: None, missed: now, twice: true, heard: None, said: None };
        let me = jitter(u64::from(u32::MAX));
        Self {
            me,
            due: Mutex::new(due),
            is_late: AtomicBool::default(),
            is_wanted: AtomicBool::default(),
            woken: Notify::new(),
            making: tokio::sync::Mutex::default(),
        }
    }
}

impl Rounds {
    /// Hints may have been missed: one is due now, and another soon after.
    pub(crate) fn soon(&self) {
        let (mut due, now) = (lock(&self.due), Instant::now());
        let earliest = due.made.map_or(now, |(made, _)| made + APART);
        (due.next, due.twice, due.missed) = (due.next.min(earliest.max(now)), true, now);
        drop(due);
        self.woken.notify_one();
    }

    /// Somebody waits for jobs.
    pub(crate) fn wanted(&self) {
        if self.is_late.load(Ordering::Acquire) && self.is_late.swap(false, Ordering::AcqRel) {
            self.is_wanted.store(true, Ordering::Release);
            self.woken.notify_one();
        }
    }

    /// Another process is there, and made a round if `made`. Whether to say that this one is there too.
    pub(crate) fn heard(&self, made: bool) -> bool {
        let (mut due, now) = (lock(&self.due), Instant::now());
        due.heard = Some(now);
        if made && !due.twice {
            // A little later than its maker's next: if that one is gone, the first of the others makes it.
            let next = now + EVERY + Duration::from_millis(50 + jitter(150));
            due.next = due.made.map_or(next, |(made, _)| next.min(made + OWN_EVERY));
        }
        let is_due = due.said.is_none_or(|said| now >= said + HERE_EVERY);
        if is_due {
            due.said = Some(now);
        }
        is_due
    }

    /// Whether no other process was heard lately.
    pub(crate) fn is_alone(&self) -> bool {
        lock(&self.due).heard.is_none_or(|heard| heard.elapsed() >= THERE_FOR)
    }

    /// Whether this process made none yet.
    pub(crate) fn is_first(&self) -> bool {
        lock(&self.due).made.is_none()
    }

    /// Up to when hints may have been missed: a round that began later tells of everything.
    pub(crate) fn missed(&self) -> Instant {
        lock(&self.due).missed
    }

    /// Whether the last one of this process began after `since` on the connection that there is now.
    fn is_fresh(&self, since: Instant, connections: u64) -> bool {
        lock(&self.due).made.is_some_and(|(made, on)| made >= since && on == connections)
    }

    pub(crate) fn next(&self, connections: u64) -> Instant {
        let due = lock(&self.due);
        match due.made {
            Some((_, on)) if on == connections => due.next,
            _ => due.again_at.unwrap_or_else(Instant::now),
        }
    }

    fn made(&self, began: Instant, connections: u64) {
        let mut due = lock(&self.due);
        let after = if std::mem::take(&mut due.twice) { AGAIN_AFTER } else { EVERY };
        (due.made, due.said, due.next) = (Some((began, connections)), Some(began), Instant::now() + after);
        due.again_at = None;
    }

    /// It can't be made now.
    fn put_off(&self) {
        let (mut due, at) = (lock(&self.due), Instant::now() + EVERY);
        (due.next, due.again_at) = (at, Some(at));
    }

    /// The word on the control subject.
    pub(crate) fn word(&self, made: bool) -> String {
        format!("{} {}", if made { listening::ROUND } else { listening::HERE }, self.me)
    }

    /// Whether a word is this process's own.
    pub(crate) fn is_me(&self, who: u64) -> bool {
        who == self.me
    }
}

impl Nats {
    /// Looks over all consumers of the queue: whichever has something in line, or leased, may have something to take.
    async fn make_round(&self, line: &Arc<Line>, policy: &QueuePolicy) -> Result<(), BrokerError> {
        self.raise_mark_if_reconnected(line).await?;
        let (began, connections) = (Instant::now(), self.connections());
        let listed = self.list_consumers(&line.queue, policy).await?;
        let lanes: Vec<_> = listed.iter().filter_map(|info| Some((info.lane()?, info))).collect();
        let begins_anew = |(lane, info): &&(_, &ConsumerInfo)| {
            let last = Delivered { delivery: info.delivered.consumer_seq, stored: None, asked_at: began };
            line.saw(lane, last) == Order::BeginsAnew
        };
        // The mark is the queue's: once for all lanes of a stream that was restored.
        if let Some((lane, _)) = lanes.iter().find(begins_anew) {
            self.begins_anew(line, lane).await;
        }
        {
            let mut turns = line.turns();
            for (lane, info) in &lanes {
                match (info.num_pending, info.num_ack_pending) {
                    (0, 0) => {}
                    (0, _) => turns.maybe(lane),
                    // Each that is settled makes room for one.
                    _ if !info.has_room() => turns.maybe(lane),
                    _ => turns.waiting(lane),
                }
            }
        }
        // After that: whoever sees that one was made knows of what it found.
        line.rounds.made(began, connections);
        line.woken.notify_one();
        if !line.rounds.is_alone() && self.free(line) == 0 {
            let waiting = lanes.iter().filter(|(_, info)| info.num_pending > 0 && info.has_room());
            for (lane, info) in waiting.take(TOLD_MAX) {
                let jobs = u32::try_from(info.num_pending).unwrap_or(u32::MAX);
                self.api().tell(names::hint(&line.queue, lane), HeaderMap::new(), jobs.to_string().into()).await;
            }
        }
        self.say(line, true).await;
        Ok(())
    }

    /// Makes a round unless one began after `since`.
    pub(crate) async fn round_since(
        &self,
        line: &Arc<Line>,
        policy: &QueuePolicy,
        since: Instant,
    ) -> Result<(), BrokerError> {
        if line.rounds.is_fresh(since, self.connections()) {
            return Ok(());
        }
        let _making = line.rounds.making.lock().await;
        match line.rounds.is_fresh(since, self.connections()) {
            true => Ok(()),
            false => self.make_round(line, policy).await,
        }
    }

    /// Tells the other processes that this one is there.
    pub(crate) async fn say(&self, line: &Line, made: bool) {
        self.api().tell(names::control(&line.queue), HeaderMap::new(), line.rounds.word(made).into()).await;
    }
}

/// Makes rounds while somebody waits for jobs of the line, until the adapter is closed or gone.
pub(crate) async fn keep(inner: Weak<Inner>, line: Weak<Line>, closing: CancellationToken) {
    loop {
        let (Some(nats), Some(here)) = (inner.upgrade().map(Nats), line.upgrade()) else { return };
        let next = here.rounds.next(nats.connections());
        let is_due = next <= Instant::now();
        if is_due {
            // Said before it is looked whether somebody waits: whoever comes after that is heard.
            let was_wanted = here.rounds.is_wanted.swap(false, Ordering::AcqRel);
            here.rounds.is_late.store(true, Ordering::Release);
            if was_wanted || nats.free(&here) > 0 {
                here.rounds.is_late.store(false, Ordering::Release);
                if let Err(error) = go_round(&nats, &here).await {
                    tracing::debug!(queue = %here.queue, %error, "a round over the consumers failed, and is made again");
                    here.rounds.put_off();
                }
                continue;
            }
        }
        let mut missed = nats.missed();
        drop(nats);
        tokio::select! {
            () = sleep_until(next), if !is_due => {}
            () = here.rounds.woken.notified() => {}
            _ = missed.changed() => {}
            () = closing.cancelled() => return,
        }
    }
}

async fn go_round(nats: &Nats, line: &Arc<Line>) -> Result<(), BrokerError> {
    let policy = nats.policies().require(&line.queue, "lease").await?;
    line.goes_by(&policy);
    if policy.paused {
        line.rounds.put_off();
        return Ok(());
    }
    let _making = line.rounds.making.lock().await;
    // Whoever looked meanwhile made it.
    match line.rounds.next(nats.connections()) > Instant::now() {
        true => Ok(()),
        false => nats.make_round(line, &policy).await,
    }
}
