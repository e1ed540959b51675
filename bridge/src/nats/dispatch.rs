//! A queue's lanes as one worker process sees them: hints say which have work, pulls that hardly wait fetch it in
//! turns, and a full round over all consumers finds what no hint told of: leases that ended, hints that were lost.
//!
//! A pull asks for no more than there are free slots, so nothing is leased that nobody runs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{HeaderMap, Message, StatusCode};
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::api::taken;
use super::consumers::ConsumerInfo;
use super::hints::{self, Listening};
use super::names::Lane;
use super::order::{Delivered, Order, Orders};
use super::standing::Standing;
use super::turns::{Told, Turns, Wanted};
use super::{Nats, names, stream_api};
use crate::contract::QueueName;
use crate::error::{BrokerError, BrokerErrorKind};
use crate::policy::QueuePolicy;

/// How often a full round is made while workers wait, nobody holds a job and none is on a timer.
const ROUND_IDLE: Duration = Duration::from_secs(5);
/// The same while somebody holds one, whose lease may end, or a timer may put one in line: of neither there is a hint.
const ROUND_LIVELY: Duration = Duration::from_millis(400);
/// When the second round is made: a consumer may not know yet of what was stored just before the first one.
const ROUND_SECOND: Duration = Duration::from_millis(100);
/// How long a pull waits for what a hint told of: a consumer learns of a message a little later than the subscribers of
/// the hint.
const HINTED_WAIT: Duration = Duration::from_millis(60);
/// How long any other pull waits. Not zero: where a lane has as many jobs leased as it may, the server answers a pull
/// that does not wait never, and keeps it (measured on 2.15.1).
const PULL_WAIT: Duration = Duration::from_millis(5);
/// By how much a pull waits longer for each one before that brought nothing although the lane has jobs, up to 1.28 s. A
/// server that looks at the first job of a long line may need longer than a pull waits, gives up, and begins anew with
/// the next one: 25 ms for 40,000 jobs of a client on 2.15.1.
const WAIT_FACTOR: u32 = 4;
/// How long after a pull that ran out of its time its lane is asked about: a busy server may have left a pull alone
/// although there was something.
const DOUBT_AFTER: Duration = Duration::from_millis(50);
/// The most lanes that are in doubt at once; a full round finds the others.
const DOUBTS_MAX: usize = 1_024;
/// How long the server may take to answer a pull.
const PULL_WITHIN: Duration = Duration::from_secs(5);

/// One queue of which this process leases.
pub(super) struct Line {
    pub(super) queue: QueueName,
    turns: Mutex<Turns>,
    pub(super) standing: Standing,
    orders: Mutex<Orders>,
    /// Lanes whose last pull ran out of its time, and when to ask about them.
    doubts: Mutex<HashMap<Lane, Instant>>,
    /// Woken once for each thing that may be there to take.
    pub(super) woken: Notify,
    /// Jobs up to this sequence may have been settled although their consumer says otherwise.
    mark: AtomicU64,
    /// How often the mark was raised: who asked where to for an earlier one leaves it alone.
    raised: AtomicU64,
    /// Whether somebody holds a job, or one is on a timer: it may come into line without a hint.
    lively: AtomicBool,
    /// How often the connection had been made when the mark was set.
    connections: AtomicU64,
    round: tokio::sync::Mutex<Round>,
}

#[derive(Debug, Default)]
struct Round {
    at: Option<Instant>,
    /// How often the connection had been made by then: what came while it was away had its hint lost.
    connections: u64,
    made: u64,
}

/// A lane's share of the slots. Clients that share a lane have the share of one together.
fn weight(policy: &QueuePolicy, lane: &Lane) -> u32 {
    match lane {
        Lane::Own(client) => policy.client(client).weight,
        Lane::Shared(_) => policy.client_defaults.weight,
    }
}

/// How long a pull waits. What it brings is leased from when it was asked for, so patience takes a quarter of a lease at
/// most.
fn patience(wanted: &Wanted, lease: Duration) -> Duration {
    let least = if wanted.hinted { HINTED_WAIT } else { PULL_WAIT };
    (PULL_WAIT * WAIT_FACTOR.pow(wanted.misses)).min(lease / 4).max(least)
}

/// What a pull brought.
pub(super) struct Pulled {
    pub(super) messages: Vec<Message>,
    end: End,
}

/// How a pull ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With everything that was asked for, or everything there was.
    Answered,
    /// When its time was over.
    OutOfTime,
    /// The consumer is gone.
    Gone,
}

impl Line {
    fn new(queue: QueueName) -> Self {
        Self {
            queue,
            turns: Mutex::default(),
            standing: Standing::default(),
            orders: Mutex::default(),
            doubts: Mutex::default(),
            woken: Notify::new(),
            mark: AtomicU64::new(u64::MAX),
            raised: AtomicU64::new(0),
            lively: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            round: tokio::sync::Mutex::default(),
        }
    }

    /// Whether the result is to be looked for before the job with this sequence is given out.
    pub(super) fn is_below_mark(&self, seq: u64) -> bool {
        seq <= self.mark.load(Ordering::Acquire)
    }

    /// From here on every job is looked up first, until the mark is known again: which time of asking is meant.
    pub(super) fn suspect(&self) -> u64 {
        let raised = self.raised.fetch_add(1, Ordering::AcqRel) + 1;
        self.mark.store(u64::MAX, Ordering::Release);
        raised
    }

    /// Whether the lane's consumer goes on where it was.
    pub(super) fn saw(&self, lane: &Lane, delivered: Delivered) -> Order {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).saw(lane, delivered, Instant::now())
    }

    /// The lane may give one more, or has more than was hinted.
    pub(super) fn more(&self, lane: &Lane) {
        self.turns().more(lane);
        self.woken.notify_one();
    }

    pub(super) fn hint(&self, lane: &Lane, jobs: u32) {
        match self.turns().hint(lane, jobs) {
            Told::Work => self.woken.notify_one(),
            Told::Nothing => {}
            Told::Doubt => {
                self.doubt(lane);
                self.woken.notify_one();
            }
        }
    }

    /// A pull for one job of the lane stands at the server.
    pub(super) fn stands(&self, lane: &Lane) {
        self.turns().stands(lane);
    }

    /// It stands no more, and brought a job or none.
    pub(super) fn stood(&self, lane: &Lane, brought: bool) {
        if self.turns().stood(lane, brought) {
            self.doubt(lane);
        }
        self.woken.notify_one();
    }

    /// Whether there is somebody's job to fetch.
    pub(super) fn has_work(&self) -> bool {
        self.turns().any()
    }

    /// A job was put on a timer: nobody will hint at it when it comes into line.
    pub(super) fn timer(&self) {
        if !self.lively.swap(true, Ordering::AcqRel) {
            self.woken.notify_waiters();
        }
    }

    fn doubt(&self, lane: &Lane) {
        let mut doubts = self.doubts();
        if doubts.len() < DOUBTS_MAX {
            doubts.entry(lane.clone()).or_insert_with(|| Instant::now() + DOUBT_AFTER);
        }
    }

    /// The lanes that are to be asked about now.
    fn doubtful(&self) -> Vec<Lane> {
        let now = Instant::now();
        let mut doubts = self.doubts();
        let due: Vec<_> = doubts.iter().filter(|(_, at)| **at <= now).map(|(lane, _)| lane.clone()).collect();
        doubts.retain(|_, at| *at > now);
        due
    }

    /// How long after the last round the next one is due.
    fn every(&self, round: &Round) -> Duration {
        match self.lively.load(Ordering::Acquire) {
            _ if round.made == 1 => ROUND_SECOND,
            true => ROUND_LIVELY,
            false => ROUND_IDLE,
        }
    }

    fn doubts(&self) -> MutexGuard<'_, HashMap<Lane, Instant>> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Nats {
    /// The queue's line; begins to listen for hints when it is asked for first.
    pub(super) async fn line(&self, queue: &QueueName) -> Result<Arc<Line>, BrokerError> {
        let mut lines = self.0.line.lines.lock().await;
        if let Some(line) = lines.get(queue) {
            return Ok(line.clone());
        }
        let line = Arc::new(Line::new(queue.clone()));
        let listening = Listening::begin(self, queue).await?;
        self.0.tasks.spawn(listening.run(Arc::downgrade(&self.0), Arc::downgrade(&line)));
        lines.insert(queue.clone(), line.clone());
        Ok(line)
    }

    /// The queue's line, if this process leases from it.
    pub(super) async fn known_line(&self, queue: &QueueName) -> Option<Arc<Line>> {
        self.0.line.lines.lock().await.get(queue).cloned()
    }

    /// Looks over all consumers of the queue: whoever has something in line, or leased, may have something to take. Made
    /// when it is due, or if the last one was before `since`.
    pub(super) async fn full_round(
        &self,
        line: &Line,
        policy: &QueuePolicy,
        since: Option<Instant>,
    ) -> Result<(), BrokerError> {
        self.raise_mark_if_reconnected(line).await?;
        let mut round = line.round.lock().await;
        let (asked, connections) = (Instant::now(), self.connections());
        let due = match (round.at, since) {
            (None, _) => true,
            (Some(at), Some(since)) => at < since,
            (Some(at), None) => at.elapsed() >= line.every(&round),
        };
        if !due && round.connections == connections {
            return Ok(());
        }
        let timers = self.count(&line.queue, names::timers(&line.queue), 1);
        let (listed, timers) = tokio::try_join!(self.list_consumers(&line.queue, policy), timers)?;
        line.lively.store(timers > 0 || listed.iter().any(|info| info.num_ack_pending > 0), Ordering::Release);
        (round.at, round.connections) = (Some(asked), connections);
        round.made += 1;
        let begins_anew = |(lane, info): &(Lane, &ConsumerInfo)| {
            let last = Delivered { delivery: info.delivered.consumer_seq, stored: None, asked_at: asked };
            line.saw(lane, last) == Order::BeginsAnew
        };
        let lanes = listed.iter().filter_map(|info| Some((info.lane()?, info)));
        let anew: Vec<_> = lanes.filter(begins_anew).collect();
        drop(round);
        // The mark is the queue's: once for all lanes of a stream that was restored, and nobody who leases waits for it.
        if let Some((lane, _)) = anew.first() {
            self.begins_anew(line, lane).await;
        }
        let mut turns = line.turns();
        for info in listed.iter().filter(|info| info.num_pending + info.num_ack_pending > 0) {
            if let Some(lane) = info.lane() {
                match info.num_pending {
                    0 => turns.maybe(&lane),
                    _ => turns.more(&lane),
                }
            }
        }
        Ok(())
    }

    /// Raises the mark if the connection was made again since it was set.
    pub(super) async fn raise_mark_if_reconnected(&self, line: &Line) -> Result<(), BrokerError> {
        let connections = self.connections();
        if line.connections.swap(connections, Ordering::AcqRel) != connections {
            self.raise_mark(line).await?;
        }
        Ok(())
    }

    /// From here on every job that is stored already is looked up first: its consumer was made again, or has another
    /// leader, or the connection was lost meanwhile. Until the server said how far that goes, it is all of them.
    pub(super) async fn raise_mark(&self, line: &Line) -> Result<(), BrokerError> {
        let raised = line.suspect();
        let stream =
            stream_api::get(self.api(), &names::jobs_stream(&line.queue), "lease").await.inspect_err(|_| {
                // As after a reconnect: the next round asks again.
                line.connections.store(u64::MAX, Ordering::Release);
            })?;
        if line.raised.load(Ordering::Acquire) == raised {
            line.mark.store(stream.info.state.last_sequence, Ordering::Release);
        }
        Ok(())
    }

    /// The lane's consumer was reset, or somebody made another of its name: here and in the other processes every job that is
    /// stored is looked up from now on.
    pub(super) async fn begins_anew(&self, line: &Line, lane: &Lane) {
        tracing::warn!(queue = %line.queue, consumer = %lane, "a consumer began anew: what it delivers is looked up first");
        let told = self.api().tell(names::control(&line.queue), HeaderMap::new(), hints::BEGAN_ANEW.into());
        // If it fails, every job is looked up until the stream was asked again.
        drop(tokio::join!(self.raise_mark(line), told));
    }

    /// Asks about the lanes that are in doubt.
    pub(super) async fn clear_doubts(&self, line: &Line) -> Result<(), BrokerError> {
        let mut lanes = line.doubtful().into_iter();
        while let Some(lane) = lanes.next() {
            let info = self.consumer_info(&line.queue, &lane).await.inspect_err(|_| {
                line.doubt(&lane);
                lanes.by_ref().for_each(|lane| line.doubt(&lane));
            });
            match info? {
                None => line.turns().more(&lane),
                Some(info) if info.num_pending > 0 && info.has_room() => line.turns().missed(&lane),
                Some(_) => line.turns().nothing_missed(&lane),
            }
        }
        Ok(())
    }

    /// Whether there is nothing to look at now.
    pub(super) async fn is_quiet(&self, line: &Line) -> bool {
        let connected = line.connections.load(Ordering::Acquire) == self.connections();
        connected && !line.has_work() && self.next_look(line).await > Instant::now()
    }

    /// When there is something to look at without having been woken: a full round, or a doubt.
    pub(super) async fn next_look(&self, line: &Line) -> Instant {
        let round = line.round.lock().await;
        let round = match round.at {
            Some(at) if round.connections == self.connections() => at + line.every(&round),
            _ => Instant::now(),
        };
        line.doubts().values().min().map_or(round, |doubt| round.min(*doubt))
    }

    /// Fetches up to `max` messages of the queue, the lanes that have work in turns.
    pub(super) async fn fetch(&self, line: &Line, policy: &QueuePolicy, max: u32) -> Result<Vec<Message>, BrokerError> {
        let mut fetched = Vec::new();
        // Each pass either fills what is asked for or finds a lane that has nothing left.
        loop {
            let left = max.saturating_sub(u32::try_from(fetched.len()).unwrap_or(u32::MAX));
            let plan = line.turns().plan(left, |lane| weight(policy, lane));
            if plan.is_empty() {
                break;
            }
            let pulls = plan.iter().map(|wanted| self.pull(line, wanted, patience(wanted, policy.lease)));
            let pulled = futures_util::future::join_all(pulls).await;
            let mut failed = None;
            for (wanted, pulled) in plan.iter().zip(pulled) {
                let pulled = match pulled {
                    Ok(pulled) => pulled,
                    Err(failure) => {
                        line.turns().pulled(wanted, 0);
                        // What it was told of is still there.
                        line.doubt(&wanted.lane);
                        failed = Some(failure);
                        continue;
                    }
                };
                let got = u32::try_from(pulled.messages.len()).unwrap_or(u32::MAX);
                line.turns().pulled(wanted, got);
                fetched.extend(pulled.messages);
                match pulled.end {
                    // Part of what was hinted: the consumer may not have known of the rest.
                    End::Answered if wanted.hinted && got < wanted.count => line.doubt(&wanted.lane),
                    End::Answered => {}
                    End::OutOfTime => line.doubt(&wanted.lane),
                    // What others brought is given out all the same.
                    End::Gone => failed = self.restore_consumer(line, policy, &wanted.lane).await.err().or(failed),
                }
            }
            match failed {
                Some(failure) if fetched.is_empty() => return Err(failure),
                Some(_) => break,
                None => {}
            }
        }
        if line.turns().any() {
            line.woken.notify_one();
        }
        Ok(fetched)
    }

    /// Makes a consumer that somebody deleted. It delivers everything again, so everything is looked up.
    async fn restore_consumer(&self, line: &Line, policy: &QueuePolicy, lane: &Lane) -> Result<(), BrokerError> {
        tracing::warn!(queue = %line.queue, consumer = %lane, "a consumer was gone: made again");
        self.raise_mark(line).await?;
        self.consumers().forget(&line.queue, lane);
        self.make_consumer(&line.queue, lane, policy).await?;
        line.turns().more(lane);
        Ok(())
    }

    /// One pull, which waits for so long if there is nothing.
    pub(super) async fn pull(&self, line: &Line, wanted: &Wanted, wait: Duration) -> Result<Pulled, BrokerError> {
        let failed = |what: &str| BrokerError::new(BrokerErrorKind::Unavailable, "lease", what);
        let inbox = self.api().client().new_inbox();
        let mut answers = self.api().subscribe(inbox.clone(), "lease").await?;
        // With the last message that is asked for it ends by itself, and nothing is to be sent between that and the job.
        taken(answers.unsubscribe_after(u64::from(wanted.count)), "lease").await?;
        let expires = u64::try_from(wait.as_nanos()).unwrap_or(0);
        // What there is, at once; if there is nothing, what comes within `expires`.
        let body = json!({ "batch": wanted.count, "no_wait": true, "expires": expires }).to_string();
        let subject = format!("CONSUMER.MSG.NEXT.{}.{}", names::jobs_stream(&line.queue), wanted.lane);
        self.api().send(subject, inbox, body.into(), "lease").await?;
        let mut pulled = Pulled { messages: Vec::new(), end: End::Answered };
        while pulled.messages.len() < wanted.count as usize {
            // For each: a large batch over a slow network takes longer, and what is not waited for is leased to nobody.
            let message = match tokio::time::timeout(PULL_WITHIN, answers.next()).await {
                Ok(Some(message)) => message,
                Ok(None) | Err(_) if pulled.messages.is_empty() => return Err(failed("NATS did not answer a pull")),
                Ok(None) | Err(_) => {
                    pulled.end = End::OutOfTime;
                    break;
                }
            };
            match message.status {
                None => pulled.messages.push(message),
                Some(status) => {
                    let deleted = message.description.as_deref().is_some_and(|text| text.contains("Deleted"));
                    pulled.end = match status {
                        StatusCode::NO_RESPONDERS => End::Gone,
                        _ if deleted => End::Gone,
                        StatusCode::NOT_FOUND => End::Answered,
                        _ => End::OutOfTime,
                    };
                    break;
                }
            }
        }
        Ok(pulled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_with_each_miss_and_takes_a_quarter_of_a_lease_at_most() {
        let millis = |hinted, misses, lease| {
            let mut wanted = Wanted::one("a".parse().unwrap());
            (wanted.hinted, wanted.misses) = (hinted, misses);
            patience(&wanted, Duration::from_millis(lease)).as_millis()
        };
        assert_eq!([0, 1, 2, 3, 4].map(|misses| millis(false, misses, 30_000)), [5, 20, 80, 320, 1_280]);
        assert_eq!([0, 1, 2, 3, 4].map(|misses| millis(true, misses, 30_000)), [60, 60, 80, 320, 1_280]);
        assert_eq!([0, 1, 2, 3, 4].map(|misses| millis(false, misses, 1_000)), [5, 20, 80, 250, 250]);
    }
}
