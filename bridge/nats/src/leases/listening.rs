//! Hears messages about a queue in a worker process: hints of jobs that came into line, changes of its policy, cancels
//! of jobs that it holds, consumers that were made or have another leader, and other processes. Each of them may be
//! lost; rounds and heartbeats make up for it.
//!
//! Each hint goes to one of the processes that have places left, or take one job after the other: they are a queue
//! group of NATS. A process that has no places, and none soon, passes on a hint that it cannot take.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::{HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures_util::future::{Fuse, FusedFuture as _};
use futures_util::stream::SelectAll;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::leases::pulling::Pulls;
use crate::leases::rounds::RoundMaker;
use crate::line::lines::Lines;
use crate::line::queue_state::QueueState;
use crate::records::held::HeldJobs;
use crate::records::policies::Policies;
use crate::stored::control::Word;
use crate::stored::names::{self, Lane};
use crate::wire::api::Api;
use relay_bridge::contract::QueueName;
use relay_bridge::error::BrokerError;
use relay_bridge::policy::QueuePolicy;

/// The queue group of those who hear hints.
const GROUP: &str = "relay-workers";
/// How long a process without places hears hints on: it may have some again at once.
const HEARS_FOR: Duration = Duration::from_millis(100);
/// How often a hint is passed on at most.
const HOPS_MAX: u8 = 3;
/// A hint: so many jobs of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hint {
    lane: Lane,
    jobs: u32,
    /// How often it was passed on.
    hops: u8,
}

impl Hint {
    fn read(message: &Message) -> Option<Self> {
        let lane = names::lane_of_hint(&message.subject)?;
        let mut text = std::str::from_utf8(&message.payload).ok()?.split(' ');
        let jobs = text.next()?.parse().ok()?;
        let hops = text.next().map_or(Some(0), |hops| hops.parse().ok())?;
        Some(Self { lane, jobs, hops })
    }

    fn text(&self) -> Bytes {
        format!("{} {}", self.jobs, self.hops).into()
    }
}

/// Acts on the messages that a process hears.
pub(crate) struct Hearing {
    pub(crate) api: Api,
    pub(crate) closing: CancellationToken,
    pub(crate) policies: Arc<Policies>,
    pub(crate) lines: Arc<Lines>,
    pub(crate) pulls: Arc<Pulls>,
    pub(crate) rounds: Arc<RoundMaker>,
    pub(crate) held: Arc<HeldJobs>,
}

/// The subscriptions of a queue state.
pub(crate) struct Listening {
    hints: Option<Subscriber>,
    control: Subscriber,
    /// Consumers that were made, or that have another leader.
    changes: SelectAll<Subscriber>,
    /// When to stop hearing hints, unless there are places by then.
    deaf_at: Option<Instant>,
}

impl Listening {
    /// Begins to listen, and returns the policy as it is then.
    pub(crate) async fn begin(hearing: &Hearing, queue: &QueueName) -> Result<(Self, Arc<QueuePolicy>), BrokerError> {
        let subscribe = |subject: String| hearing.api.subscribe(subject, "lease");
        let stream = names::jobs_stream(queue);
        let mut changes = SelectAll::new();
        for advisory in ["CREATED", "LEADER_ELECTED"] {
            changes.push(subscribe(format!("$JS.EVENT.ADVISORY.CONSUMER.{advisory}.{stream}.*")).await?);
        }
        let control = subscribe(names::control(queue)).await?;
        // A request after them on the same connection: once it is answered, they are in place.
        let policy = hearing.policies.require(queue, "lease").await?;
        Ok((Self { hints: None, control, changes, deaf_at: None }, policy))
    }

    pub(crate) async fn run(mut self, hearing: Arc<Hearing>, line: Weak<QueueState>) {
        // While the server is asked how far the recheck mark goes, hints are heard; changes that come meanwhile are
        // asked about once.
        let (mut asking, mut changed) = (Fuse::terminated(), false);
        loop {
            let Some(here) = line.upgrade() else { return };
            let deaf_at = self.deaf_at;
            let heard = tokio::select! {
                Some(hint) = next_of(&mut self.hints) => Heard::Hint(hint),
                Some(told) = self.control.next() => Heard::Told(told.payload),
                Some(_) = self.changes.next() => Heard::Changed,
                () = &mut asking, if !asking.is_terminated() => Heard::Nothing,
                () = here.places_changed.notified() => Heard::Nothing,
                () = sleep_until(deaf_at.unwrap_or_else(Instant::now)), if deaf_at.is_some() => Heard::Nothing,
                () = hearing.closing.cancelled() => return,
            };
            match heard {
                Heard::Hint(message) => {
                    if let Some(hint) = Hint::read(&message) {
                        hearing.take_hint(&here, hint).await;
                    }
                }
                Heard::Told(text) => match Word::read(&text) {
                    Some(Word::PolicyChanged) => {
                        hearing.policies.copies().changed(&here.queue);
                        here.woken.notify_waiters();
                    }
                    Some(Word::BeganAnew) => {
                        here.recheck_all();
                        changed = true;
                    }
                    Some(Word::Ended(job)) => hearing.held.holding.hurry(job),
                    Some(Word::There(who, made)) if !here.rounds.is_me(who) => {
                        if here.rounds.heard(made) {
                            hearing.rounds.say(&here, false).await;
                        }
                    }
                    Some(Word::There(..)) | None => {}
                },
                Heard::Changed => {
                    here.recheck_all();
                    changed = true;
                }
                Heard::Nothing => {}
            }
            self.hear_hints_or_not(&hearing, &here).await;
            if changed && asking.is_terminated() {
                changed = false;
                asking = raise_recheck_mark(Arc::clone(&hearing.lines), here).boxed().fuse();
            }
        }
    }

    /// Hints are heard while there are places, and a moment longer.
    async fn hear_hints_or_not(&mut self, hearing: &Hearing, line: &Arc<QueueState>) {
        let has_places = hearing.lines.free(line) > 0 || line.is_busy();
        match (&mut self.hints, has_places) {
            (None, false) => self.deaf_at = None,
            (None, true) => {
                let group = hearing.api.subscribe_in(names::hints(&line.queue), GROUP.to_owned(), "lease");
                match group.await {
                    Ok(hints) => {
                        self.hints = Some(hints);
                        line.hears(true);
                        // The round's request comes after the subscription, so it finds jobs that were hinted at
                        // before.
                        line.rounds.soon();
                    }
                    // Rounds are made all the same.
                    Err(error) => {
                        tracing::debug!(queue = %line.queue, %error, "no hints are heard");
                        self.deaf_at = Some(Instant::now() + HEARS_FOR);
                        return;
                    }
                }
                self.deaf_at = None;
            }
            (Some(_), true) if self.deaf_at.take().is_some() => line.hears(true),
            (Some(_), true) => {}
            (Some(hints), false) => {
                let now = Instant::now();
                if *self.deaf_at.get_or_insert(now + HEARS_FOR) > now {
                    return;
                }
                self.deaf_at = None;
                line.hears(false);
                drop(hints.unsubscribe().await);
                let mut hints = self.hints.take();
                while let Some(message) = next_of(&mut hints).now_or_never().flatten() {
                    if let Some(hint) = Hint::read(&message) {
                        hearing.take_hint(line, hint).await;
                    }
                }
                // A call that came meanwhile saw that hints are heard.
                line.places_changed.notify_one();
            }
        }
    }
}

impl Hearing {
    /// Takes as many jobs as there are places for, and passes on the rest.
    async fn take_hint(&self, line: &Arc<QueueState>, hint: Hint) {
        let Hint { lane, jobs, hops } = hint;
        let is_last = hops >= HOPS_MAX || line.rounds.is_alone() || line.is_busy();
        let taken = if is_last { jobs } else { jobs.min(self.lines.free(line)) };
        if taken > 0 {
            line.turns().hint(&lane, taken, Instant::now());
            self.pulls.dispatch(line);
        }
        let rest = jobs - taken;
        if rest == 0 {
            return;
        }
        if taken > 0 {
            // There is more for later, too.
            line.more(&lane);
        }
        // In two parts, so that many processes hear of many jobs within three hops.
        let half = rest / 2;
        for jobs in [rest - half, half].into_iter().filter(|jobs| *jobs > 0) {
            let hint = Hint { lane: lane.clone(), jobs, hops: hops + 1 };
            self.api.tell(names::hint(&line.queue, &lane), HeaderMap::new(), hint.text()).await;
        }
    }
}

async fn next_of(hints: &mut Option<Subscriber>) -> Option<Message> {
    match hints {
        Some(hints) => hints.next().await,
        None => std::future::pending().await,
    }
}

async fn raise_recheck_mark(lines: Arc<Lines>, line: Arc<QueueState>) {
    if let Err(error) = lines.raise_recheck_mark(&line).await {
        tracing::debug!(queue = %line.queue, %error, "every job is looked up until the stream was asked again");
    }
}

enum Heard {
    Hint(Message),
    Told(Bytes),
    Changed,
    Nothing,
}
