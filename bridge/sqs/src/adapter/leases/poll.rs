//! Receiving. Lease calls of one process that wait at the same queue share its receives: one long poll while there is
//! nothing, more at once while there is much. A receive goes on when its callers go away, because SQS may have handed
//! out messages already: messages that no call takes go back at once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::adapter::aws::queue::{BATCH_MAX, RECEIVE_WAIT_MAX};
use crate::adapter::leases::claim::Claims;
use crate::adapter::leases::line::{Ask, BOUNDED_EVERY, BOUNDED_PAUSE, Line, Taken, in_turn};
use crate::adapter::leases::lines::Lines;
use crate::adapter::leases::received::{Claimed, Received};
use crate::adapter::leases::settle::Settling;
use crate::adapter::stored::policies::Policies;
use crate::settings::Settings;
use relay_bridge::error::BrokerError;
use relay_bridge::leasing::Delivery;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::policy_copies::AGE_MAX;

const OPERATION: &str = "lease";
/// The most receives of one queue at once, while they come back full.
const RECEIVES_MAX: usize = 4;
/// How long a message that is none of relay's is hidden: SQS allows less than 12 h from its receive on.
const STRANGE_FOR: Duration = Duration::from_secs(11 * 3_600);

/// Receives for the lease calls that wait.
pub(crate) struct Polls {
    pub(crate) closing: CancellationToken,
    pub(crate) dropping: CancellationToken,
    pub(crate) policies: Arc<Policies>,
    pub(crate) settings: Settings,
    pub(crate) tasks: TaskTracker,
    pub(crate) lines: Arc<Lines>,
    pub(crate) claims: Arc<Claims>,
    pub(crate) settling: Arc<Settling>,
}

impl Polls {
    /// Lets `ask` be answered with jobs that come at `line`; begins a receiver if there is none.
    pub(crate) fn ask(self: &Arc<Self>, line: &Arc<Line>, ask: &Arc<Ask>) {
        let mut state = line.lock();
        state.asks.push(ask.clone());
        if state.receives == 0 {
            state.receives = 1;
            self.tasks.spawn(Arc::clone(self).receive_for(line.clone()));
        }
    }

    /// Receives as long as somebody asks.
    async fn receive_for(self: Arc<Self>, line: Arc<Line>) {
        while !line.ends() {
            if self.closing.is_cancelled() {
                line.lock().receives -= 1;
                return;
            }
            if let Err(error) = self.receive_once(&line).await {
                tracing::warn!(queue = %line.name, %error, "jobs could not be received");
                line.fail(&error);
            }
        }
    }

    async fn receive_once(self: &Arc<Self>, line: &Arc<Line>) -> Result<(), BrokerError> {
        let policy = self.policies.require(&line.name, OPERATION).await?;
        let mut changed = std::pin::pin!(self.policies.changed.notified());
        changed.as_mut().enable();
        if self.policies.require(&line.name, OPERATION).await?.paused {
            let Some((_, deadline)) = line.wanted() else { return Ok(()) };
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(deadline.min(Instant::now() + AGE_MAX)) => {}
                () = self.closing.cancelled() => {}
            }
            return Ok(());
        }
        let mut freed = std::pin::pin!(line.freed.notified());
        freed.as_mut().enable();
        let Some((wanted, deadline)) = line.wanted() else { return Ok(()) };
        let deliveries = self.claim_bounded(line, &policy, wanted).await?;
        if !deliveries.is_empty() {
            self.give(line, deliveries).await;
            return Ok(());
        }
        let mut wait = deadline.saturating_duration_since(Instant::now()).min(RECEIVE_WAIT_MAX);
        if line.has_bounded_alone() || line.rests() {
            // Nothing tells when a slot becomes free in another process.
            tokio::select! {
                () = freed => return Ok(()),
                () = tokio::time::sleep(wait.min(BOUNDED_PAUSE)) => {}
            }
            if line.rests() {
                return Ok(());
            }
        }
        if !line.lock().bounded.is_empty() {
            wait = wait.min(BOUNDED_EVERY);
        }
        let asked = line.asks_for(wanted);
        let received = tokio::select! {
            received = self.receive(line, &policy, asked, wait) => received?,
            () = self.dropping.cancelled() => return Ok(()),
        };
        let full = received.len() == asked;
        line.lock().more_behind = full;
        if received.len() == BATCH_MAX && wanted > BATCH_MAX {
            self.receive_more(line);
        }
        // By now others may ask, or nobody.
        let wanted = line.wanted().filter(|_| !self.closing.is_cancelled()).map_or(0, |(wanted, _)| wanted);
        let taken = self.claim_all(line, &policy, received, wanted).await?;
        line.note(&taken, full);
        self.give(line, taken.deliveries).await;
        Ok(())
    }

    /// Begins one more receiver, while there is much.
    fn receive_more(self: &Arc<Self>, line: &Arc<Line>) {
        let mut state = line.lock();
        if state.receives < RECEIVES_MAX {
            state.receives += 1;
            self.tasks.spawn(Arc::clone(self).receive_for(line.clone()));
        }
    }

    /// Takes the jobs in line now, at most `max`, for a call that does not wait. It receives again only after a full
    /// receive that brought jobs, while the caller is there (`gone` says that it is not) and the adapter is not being
    /// closed.
    pub(crate) async fn take_now(
        &self,
        line: &Arc<Line>,
        max: usize,
        gone: impl Fn() -> bool,
    ) -> Result<Vec<Delivery>, BrokerError> {
        let policy = self.policies.require(&line.name, OPERATION).await?;
        if policy.paused {
            return Ok(Vec::new());
        }
        let mut taken = self.claim_bounded(line, &policy, max).await?;
        while taken.len() < max && !gone() && !self.closing.is_cancelled() {
            let asked = (max - taken.len()).min(BATCH_MAX);
            match self.take_once(line, &policy, asked).await {
                Ok((deliveries, full)) => {
                    let none = deliveries.is_empty();
                    taken.extend(deliveries);
                    if none || !full {
                        break;
                    }
                }
                Err(error) if taken.is_empty() => return Err(error),
                Err(error) => {
                    tracing::warn!(queue = %line.name, %error, "no more jobs could be received");
                    break;
                }
            }
        }
        Ok(taken)
    }

    /// The jobs that one receive of at most `asked` messages brings, and whether the receive was full.
    async fn take_once(
        &self,
        line: &Arc<Line>,
        policy: &Arc<QueuePolicy>,
        asked: usize,
    ) -> Result<(Vec<Delivery>, bool), BrokerError> {
        let received = tokio::select! {
            received = self.receive(line, policy, asked, Duration::ZERO) => received?,
            () = self.dropping.cancelled() => return Ok((Vec::new(), false)),
        };
        let full = received.len() == asked;
        Ok((self.claim_all(line, policy, received, asked).await?.deliveries, full))
    }

    async fn receive(
        &self,
        line: &Line,
        policy: &QueuePolicy,
        max: usize,
        wait: Duration,
    ) -> Result<Vec<Received>, BrokerError> {
        let hidden = policy.lease + self.settings.skew;
        let messages = line.queue.receive(max, hidden, wait).await?;
        let now = self.settings.clock.now();
        let mut received = Vec::with_capacity(messages.len());
        for message in messages {
            let Some(handle) = message.receipt_handle.clone() else { continue };
            match Received::read(&message, handle.clone(), hidden, now) {
                Some(read) if read.wake.queue == line.name => received.push(read),
                _ => {
                    tracing::warn!(
                        queue = %line.name, message_id = message.message_id(),
                        "a message that is none of relay's is left alone until SQS drops it"
                    );
                    let queue = line.queue.clone();
                    // In a task of its own: the messages that came with it do not wait for it.
                    self.tasks.spawn(async move {
                        if let Err(error) = queue.hide(&handle, STRANGE_FOR).await {
                            tracing::warn!(%error, "a message that is none of relay's comes again after a lease");
                        }
                    });
                }
            }
        }
        Ok(received)
    }

    /// Claims the job of a received message, unless its client was just found to run as many jobs as it may: a look at
    /// its slots costs a call.
    async fn claim_unless_full(
        &self,
        line: &Line,
        policy: &Arc<QueuePolicy>,
        received: Received,
    ) -> Result<Claimed, BrokerError> {
        if line.is_full(&received.wake.client) {
            return Ok(Claimed::Bounded(received));
        }
        let claimed = self.claims.claim(line, policy, received).await?;
        if let Claimed::Bounded(received) = &claimed {
            line.lock().full.insert(received.wake.client.clone(), Instant::now());
        }
        Ok(claimed)
    }

    /// Claims the jobs of received messages until `wanted` are delivered; the other messages go back at once.
    async fn claim_all(
        &self,
        line: &Arc<Line>,
        policy: &Arc<QueuePolicy>,
        mut received: Vec<Received>,
        wanted: usize,
    ) -> Result<Taken, BrokerError> {
        let wanted = if self.policies.require(&line.name, OPERATION).await?.paused { 0 } else { wanted };
        let (mut deliveries, mut bounded) = (Vec::new(), Vec::new());
        // Of a client with a bound, one message in the first turn, and twice as many in each further turn.
        let mut at_once = 1;
        while deliveries.len() < wanted && !received.is_empty() {
            let turn = in_turn(&mut received, policy, wanted - deliveries.len(), at_once);
            for one in join_all(turn.into_iter().map(|one| self.claim_unless_full(line, policy, one))).await {
                match one {
                    Ok(Claimed::Delivery(delivery)) => deliveries.push(*delivery),
                    Ok(Claimed::Bounded(received)) => bounded.push(received),
                    Ok(Claimed::Nothing) => {}
                    // The job's message comes again.
                    Err(error) => tracing::warn!(queue = %line.name, %error, "a job could not be leased"),
                }
            }
            at_once *= 2;
        }
        let taken = Taken { deliveries, bounded: !bounded.is_empty() };
        tokio::join!(self.lines.give_back(line, received), self.lines.keep_at_hand(line, bounded));
        Ok(taken)
    }

    /// Claims the jobs of messages at hand; a client that is refused is not tried again.
    async fn claim_bounded(
        &self,
        line: &Arc<Line>,
        policy: &Arc<QueuePolicy>,
        wanted: usize,
    ) -> Result<Vec<Delivery>, BrokerError> {
        let (mut deliveries, mut full) = (Vec::new(), Vec::new());
        for received in line.take_bounded() {
            let client = received.wake.client.clone();
            if deliveries.len() == wanted || full.contains(&client) {
                line.lock().bounded.push_back(received);
                continue;
            }
            match self.claim_unless_full(line, policy, received).await {
                Ok(Claimed::Delivery(delivery)) => deliveries.push(*delivery),
                Ok(Claimed::Bounded(received)) => {
                    full.push(client);
                    line.lock().bounded.push_back(received);
                }
                Ok(Claimed::Nothing) => {}
                Err(error) => tracing::warn!(queue = %line.name, %error, "a job could not be leased"),
            }
        }
        Ok(deliveries)
    }

    /// Gives deliveries to the calls that wait, in the order in which the calls came; deliveries that are left are
    /// handed back.
    async fn give(&self, line: &Line, mut deliveries: Vec<Delivery>) {
        while !deliveries.is_empty() {
            let ask = {
                let mut state = line.lock();
                state.asks.retain(|ask| ask.is_open());
                if state.asks.is_empty() { None } else { Some(state.asks.remove(0)) }
            };
            let Some(ask) = ask else { break };
            let rest = deliveries.split_off(ask.max.min(deliveries.len()));
            if let Err(Ok(unwanted)) = ask.answer(Ok(deliveries)) {
                deliveries = unwanted;
                deliveries.extend(rest);
            } else {
                deliveries = rest;
            }
        }
        self.settling.hand_back_all(deliveries).await;
    }
}
