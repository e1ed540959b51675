//! Hints: what says to the workers of a queue which lanes have jobs, so that they need not ask about all.
//!
//! Whoever puts a job in line says so beside the write, at most one message per lane in [`EVERY`], with the
//! number of jobs since the last one. A worker process listens to the hints of its queues, to changes of their policies, to
//! cancels of what it holds, and to consumers that were made or have another leader. All of it may be lost; full rounds and
//! heartbeats make up for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::future::{Fuse, FusedFuture as _};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::api::Api;
use super::dispatch::Line;
use super::names::Lane;
use super::{Inner, Nats, names, policy};
use crate::contract::{JobId, QueueName};
use crate::error::BrokerError;

/// How often the jobs of one lane are hinted at. The first one after a pause is told at once.
const EVERY: Duration = Duration::from_millis(2);
/// The most lanes that are hinted at in [`EVERY`]; a full round finds the others.
const LATELY_MAX: usize = 4_096;
/// What a hint says of jobs on timers, instead of a number of jobs in line.
const TIMER: &str = "timer";
/// Before the job in what a control subject says of one.
const ENDED: &str = "ended ";
/// Said on a control subject when a consumer of the queue is not where it was.
pub(super) const BEGAN_ANEW: &str = "anew";

/// What a write means to workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hint {
    /// One more job in line.
    InLine,
    /// One that a timer will put in line.
    OnTimer,
}

/// What this process tells workers.
#[derive(Debug, Default)]
pub(super) struct Hints {
    /// Told lately; what comes within [`EVERY`] is told together.
    lately: Mutex<HashMap<(QueueName, Lane), Lately>>,
    /// There is something to be told later.
    woken: Notify,
}

#[derive(Debug)]
struct Lately {
    told_at: Instant,
    untold: Untold,
}

impl Lately {
    fn is_quiet(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.told_at) >= EVERY
    }

    fn is_needed(&self, now: Instant) -> bool {
        !self.untold.is_nothing() || !self.is_quiet(now)
    }
}

/// What is still to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Untold {
    in_line: u32,
    on_timer: bool,
}

impl Untold {
    fn add(&mut self, hint: Hint) {
        match hint {
            Hint::InLine => self.in_line = self.in_line.saturating_add(1),
            Hint::OnTimer => self.on_timer = true,
        }
    }

    fn is_nothing(self) -> bool {
        self == Self::default()
    }

    /// The hints' texts.
    fn texts(self) -> impl Iterator<Item = Bytes> {
        let in_line = (self.in_line > 0).then(|| Bytes::from(self.in_line.to_string()));
        in_line.into_iter().chain(self.on_timer.then_some(Bytes::from_static(TIMER.as_bytes())))
    }
}

impl Hints {
    /// Takes note of a write. What it returns is to be told at once; what it keeps, [`Self::due`] gives.
    fn note(&self, queue: &QueueName, lane: &Lane, hint: Hint, now: Instant) -> Option<Untold> {
        let mut told = Untold::default();
        told.add(hint);
        let mut lately = self.lately();
        let key = (queue.clone(), lane.clone());
        if let Some(lately) = lately.get_mut(&key) {
            if lately.untold.is_nothing() {
                if lately.is_quiet(now) {
                    lately.told_at = now;
                    return Some(told);
                }
                self.woken.notify_one();
            }
            lately.untold.add(hint);
            return None;
        }
        if lately.len() == LATELY_MAX {
            lately.retain(|_, lately| lately.is_needed(now));
        }
        if lately.len() < LATELY_MAX {
            lately.insert(key, Lately { told_at: now, untold: Untold::default() });
        }
        Some(told)
    }

    /// What came together meanwhile.
    fn due(&self, now: Instant) -> Vec<((QueueName, Lane), Untold)> {
        let mut lately = self.lately();
        lately.retain(|_, lately| lately.is_needed(now));
        let untold = lately.iter_mut().filter(|(_, lately)| !lately.untold.is_nothing());
        untold
            .map(|(whose, lately)| {
                lately.told_at = now;
                (whose.clone(), std::mem::take(&mut lately.untold))
            })
            .collect()
    }

    fn lately(&self) -> MutexGuard<'_, HashMap<(QueueName, Lane), Lately>> {
        self.lately.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Api {
    /// Says that a job is being put in line, or on a timer. The write itself may still fail: a hint is never the truth.
    pub(super) async fn hint(&self, queue: &QueueName, lane: &Lane, hint: Hint) {
        if let Some(told) = self.hints().note(queue, lane, hint, Instant::now()) {
            // Boxed: few calls get here, and the future of all that write would be the larger by it.
            Box::pin(self.tell_hints(queue, lane, told)).await;
        }
    }

    async fn tell_hints(&self, queue: &QueueName, lane: &Lane, told: Untold) {
        for text in told.texts() {
            self.tell(names::hint(queue, lane), HeaderMap::new(), text).await;
        }
    }
}

/// Tells what came together, until the adapter is closed.
pub(super) async fn keep_hinting(api: Api, closing: CancellationToken) {
    loop {
        tokio::select! {
            () = api.hints().woken.notified() => {}
            () = closing.cancelled() => return,
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = closing.cancelled() => return,
            }
            let due = api.hints().due(Instant::now());
            if due.is_empty() {
                break;
            }
            for ((queue, lane), told) in due {
                api.tell_hints(&queue, &lane, told).await;
            }
        }
    }
}

/// What says on a queue's control subject that a run of `job` ended.
pub(super) fn ended(job: JobId) -> Bytes {
    format!("{ENDED}{job}").into()
}

fn job_that_ended(told: &[u8]) -> Option<JobId> {
    std::str::from_utf8(told).ok()?.strip_prefix(ENDED)?.parse().ok()
}

/// What a line listens to.
pub(super) struct Listening {
    hints: async_nats::Subscriber,
    control: async_nats::Subscriber,
    /// Consumers that were made, or that have another leader.
    changes: futures_util::stream::SelectAll<async_nats::Subscriber>,
}

impl Listening {
    pub(super) async fn begin(nats: &Nats, queue: &QueueName) -> Result<Self, BrokerError> {
        let subscribe = |subject: String| nats.api().subscribe(subject, "lease");
        let stream = names::jobs_stream(queue);
        let advisories = ["CREATED", "LEADER_ELECTED"];
        let mut changes = futures_util::stream::SelectAll::new();
        for advisory in advisories {
            changes.push(subscribe(format!("$JS.EVENT.ADVISORY.CONSUMER.{advisory}.{stream}.*")).await?);
        }
        let listening = Self {
            hints: subscribe(names::hints(queue)).await?,
            control: subscribe(names::control(queue)).await?,
            changes,
        };
        // A request after them on the same connection: once it is answered, they are in place.
        nats.policies().require(queue, "lease").await?;
        Ok(listening)
    }

    pub(super) async fn run(mut self, inner: Weak<Inner>, line: Weak<Line>) {
        let Some(closing) = inner.upgrade().map(|inner| inner.closing.clone()) else { return };
        // While the server is asked how far the mark goes, hints are heard; what changes meanwhile is asked about once.
        let (mut asking, mut changed) = (Fuse::terminated(), false);
        loop {
            let heard = tokio::select! {
                Some(hint) = self.hints.next() => Heard::read(&hint.subject, &hint.payload),
                Some(told) = self.control.next() => match told.payload {
                    anew if *anew == *BEGAN_ANEW.as_bytes() => Heard::Changed,
                    told => Heard::Told(told),
                },
                Some(_) = self.changes.next() => Heard::Changed,
                () = &mut asking, if !asking.is_terminated() => Heard::Asked,
                () = closing.cancelled() => return,
                else => return,
            };
            let (Some(inner), Some(line)) = (inner.upgrade(), line.upgrade()) else { return };
            match heard {
                Heard::InLine(lane, jobs) => line.hint(&lane, jobs),
                Heard::OnTimer => line.timer(),
                Heard::Changed => {
                    line.suspect();
                    changed = true;
                }
                Heard::Asked => {}
                Heard::Told(what) if *what == *policy::CHANGED.as_bytes() => {
                    inner.policies.forget(&line.queue);
                    line.woken.notify_waiters();
                }
                Heard::Told(what) => {
                    if let Some(job) = job_that_ended(&what) {
                        inner.line.holding.hurry(job);
                    }
                }
            }
            if changed && asking.is_terminated() {
                changed = false;
                asking = raise_mark(Nats(inner), line).boxed().fuse();
            }
        }
    }
}

async fn raise_mark(nats: Nats, line: Arc<Line>) {
    if let Err(error) = nats.raise_mark(&line).await {
        tracing::debug!(queue = %line.queue, %error, "every job is looked up until the stream was asked again");
    }
}

enum Heard {
    /// So many of the lane's jobs.
    InLine(Lane, u32),
    OnTimer,
    Told(Bytes),
    Changed,
    /// The mark is known again, or will be asked for by the next round.
    Asked,
}

impl Heard {
    /// What a hint says.
    fn read(subject: &str, text: &[u8]) -> Self {
        let jobs = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        match (names::lane_of_hint(subject), jobs) {
            (Some(lane), Some(jobs)) => Self::InLine(lane, jobs),
            _ => Self::OnTimer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_job_is_told_at_once_and_what_follows_it_together() {
        let (hints, queue) = (Hints::default(), "mail".parse().unwrap());
        let [me, you] = ["me", "you"].map(|name| name.parse::<Lane>().unwrap());
        let in_line = |in_line| Untold { in_line, on_timer: false };
        let start = Instant::now();
        assert_eq!(hints.note(&queue, &me, Hint::InLine, start), Some(in_line(1)));
        assert_eq!(hints.note(&queue, &me, Hint::InLine, start), None);
        assert_eq!(hints.note(&queue, &me, Hint::OnTimer, start), None);
        assert_eq!(hints.note(&queue, &you, Hint::InLine, start), Some(in_line(1)));
        assert_eq!(hints.note(&queue, &me, Hint::InLine, start + EVERY), None, "some are untold");
        let later = start + EVERY;
        assert_eq!(hints.due(later), [((queue.clone(), me.clone()), Untold { in_line: 2, on_timer: true })]);
        assert_eq!(hints.due(later), [], "it was told");
        assert_eq!(hints.note(&queue, &me, Hint::InLine, later), None, "it was told just now");
        let later = later + EVERY;
        assert_eq!(hints.due(later), [((queue.clone(), me.clone()), in_line(1))]);
        assert_eq!(hints.note(&queue, &me, Hint::InLine, later + EVERY), Some(in_line(1)), "at once, after a pause");
    }

    #[test]
    fn one_job_after_another_is_told_at_once_and_wakes_nobody_to_tell_more() {
        let (hints, queue, me) = (Hints::default(), "mail".parse().unwrap(), "me".parse::<Lane>().unwrap());
        let start = Instant::now();
        for number in 0..3 {
            assert!(hints.note(&queue, &me, Hint::InLine, start + number * EVERY).is_some());
        }
        assert!(hints.woken.notified().now_or_never().is_none());
        assert_eq!(hints.note(&queue, &me, Hint::InLine, start + 2 * EVERY), None);
        assert!(hints.woken.notified().now_or_never().is_some(), "this one is still to be told");
    }

    #[test]
    fn more_lanes_than_are_remembered_are_told_of_at_once() {
        let (hints, queue) = (Hints::default(), "mail".parse().unwrap());
        let start = Instant::now();
        let lane = |number: usize| format!("client-{number}").parse::<Lane>().unwrap();
        for number in 0..=LATELY_MAX {
            assert!(hints.note(&queue, &lane(number), Hint::InLine, start).is_some());
        }
        assert_eq!(hints.note(&queue, &lane(0), Hint::InLine, start), None, "it is remembered");
        assert!(hints.note(&queue, &lane(LATELY_MAX), Hint::InLine, start).is_some(), "it is not");
        assert!(hints.note(&queue, &lane(LATELY_MAX), Hint::InLine, start + EVERY).is_some());
        assert_eq!(hints.note(&queue, &lane(LATELY_MAX), Hint::InLine, start + EVERY), None, "now it is");
    }

    #[test]
    fn a_worker_reads_of_a_hint_whose_jobs_came_and_how_many() {
        let (queue, lane) = ("mail".parse().unwrap(), "me".parse::<Lane>().unwrap());
        let told = |untold: Untold| {
            let heard = |text: Bytes| Heard::read(&names::hint(&queue, &lane), &text);
            untold.texts().map(heard).collect::<Vec<_>>()
        };
        assert!(matches!(&told(Untold { in_line: 3, on_timer: false })[..], [Heard::InLine(of, 3)] if *of == lane));
        assert!(matches!(&told(Untold { in_line: 0, on_timer: true })[..], [Heard::OnTimer]));
    }
}
