//! Makes rounds over all consumers of a queue. A round finds jobs that no hint told of: leases that ended, timers of a
//! process that is gone, hints that were lost. The processes that wait share rounds: a process that made one says so,
//! and the others put theirs off.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use async_nats::HeaderMap;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::line::lanes::{ConsumerInfo, Lanes};
use crate::line::lines::Lines;
use crate::line::order::{Delivered, Order};
use crate::line::queue_state::QueueState;
use crate::records::policies::Policies;
use crate::stored::names;
use crate::wire::api::Api;
use relay_bridge::error::BrokerError;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::support::lock;

/// The most lanes that others are told of after a round, of those that this process has no places for.
const TOLD_MAX: usize = 64;

/// Makes rounds over the consumers of queues.
pub(crate) struct RoundMaker {
    pub(crate) api: Api,
    pub(crate) policies: Arc<Policies>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) lines: Arc<Lines>,
}

impl RoundMaker {
    /// Looks over all consumers of the queue: each one that has a job in line, or leased, may have something to take.
    async fn make_round(&self, line: &Arc<QueueState>, policy: &QueuePolicy) -> Result<(), BrokerError> {
        self.lines.recheck_if_reconnected(line).await?;
        let (began, connections) = (Instant::now(), self.api.connections());
        let listed = self.lanes.list_consumers(&line.queue, policy).await?;
        let lanes: Vec<_> = listed.iter().filter_map(|info| Some((info.lane()?, info))).collect();
        let begins_anew = |(lane, info): &&(_, &ConsumerInfo)| {
            let last = Delivered { delivery: info.delivered.consumer_seq, stored: None, asked_at: began };
            line.saw(lane, last) == Order::BeginsAnew
        };
        // The mark is the queue's: once for all lanes of a stream that was restored.
        if let Some((lane, _)) = lanes.iter().find(begins_anew) {
            self.lines.begins_anew(line, lane).await;
        }
        {
            let mut unleased = lock(&line.unleased);
            let leased = lanes.iter().map(|(lane, info)| (lane.clone(), info.num_ack_pending > 0));
            unleased.saw(leased, began, connections);
            let may_have_ended = |lane| {
                let lease = self.lanes.consumers.lease(&line.queue, lane, policy);
                unleased.may_have_ended(lane, lease, began)
            };
            let mut turns = line.turns();
            for (lane, info) in &lanes {
                match (info.num_pending, info.num_ack_pending) {
                    (0, 0) => {}
                    // Nothing of it comes again yet.
                    (0, _) if !may_have_ended(lane) => {}
                    (0, _) => turns.maybe(lane),
                    // Each that is settled makes room for one.
                    _ if !info.has_room() => turns.maybe(lane),
                    _ => turns.waiting(lane),
                }
            }
        }
        // After that, so that a task which sees that a round was made knows what it found.
        line.rounds.made(began, connections);
        line.woken.notify_one();
        if !line.rounds.is_alone() && self.lines.free(line) == 0 {
            let waiting = lanes.iter().filter(|(_, info)| info.num_pending > 0 && info.has_room());
            for (lane, info) in waiting.take(TOLD_MAX) {
                let jobs = u32::try_from(info.num_pending).unwrap_or(u32::MAX);
                self.api.tell(names::hint(&line.queue, lane), HeaderMap::new(), jobs.to_string().into()).await;
            }
        }
        self.say(line, true).await;
        Ok(())
    }

    /// Makes a round unless one began after `since`.
    pub(crate) async fn round_since(
        &self,
        line: &Arc<QueueState>,
        policy: &QueuePolicy,
        since: Instant,
    ) -> Result<(), BrokerError> {
        if line.rounds.is_fresh(since, self.api.connections()) {
            return Ok(());
        }
        let _making = line.rounds.making.lock().await;
        match line.rounds.is_fresh(since, self.api.connections()) {
            true => Ok(()),
            false => self.make_round(line, policy).await,
        }
    }

    /// Tells the other processes that this one is there.
    pub(crate) async fn say(&self, line: &QueueState, made: bool) {
        self.api.tell(names::control(&line.queue), HeaderMap::new(), line.rounds.word(made).into()).await;
    }

    async fn go_round(&self, line: &Arc<QueueState>) -> Result<(), BrokerError> {
        let policy = self.policies.require(&line.queue, "lease").await?;
        line.goes_by(&policy);
        if policy.paused {
            line.rounds.put_off();
            return Ok(());
        }
        let _making = line.rounds.making.lock().await;
        // Another task made the round meanwhile.
        match line.rounds.next(self.api.connections()) > Instant::now() {
            true => Ok(()),
            false => self.make_round(line, &policy).await,
        }
    }
}

/// Makes rounds while somebody waits for jobs of the line, until the adapter is closed or gone.
pub(crate) async fn keep(rounds: Arc<RoundMaker>, line: Weak<QueueState>, closing: CancellationToken) {
    loop {
        let Some(here) = line.upgrade() else { return };
        let next = here.rounds.next(rounds.api.connections());
        let is_due = next <= Instant::now();
        if is_due {
            // Set before the check whether somebody waits, so that a call that comes after the check is noticed.
            let was_wanted = here.rounds.is_wanted.swap(false, Ordering::AcqRel);
            here.rounds.is_late.store(true, Ordering::Release);
            if was_wanted || rounds.lines.free(&here) > 0 {
                here.rounds.is_late.store(false, Ordering::Release);
                if let Err(error) = rounds.go_round(&here).await {
                    tracing::debug!(queue = %here.queue, %error, "a round over the consumers failed, and is made again");
                    here.rounds.put_off();
                }
                continue;
            }
        }
        let mut missed = rounds.api.missed();
        tokio::select! {
            () = sleep_until(next), if !is_due => {}
            () = here.rounds.woken.notified() => {}
            _ = missed.changed() => {}
            () = closing.cancelled() => return,
        }
    }
}
