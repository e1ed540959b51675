//! Waits for one result. An announcement is the result as it was stored, so it is the answer, if the run that was
//! waited for ended with it; everything else is looked up.
//!
//! A wait has no task. All waits of a process for one job share a subscription on the connection, which ends with the
//! last of them. The subscription is sent before the first look-up, on the same connection, so the look-up's answer
//! proves that the server knows of it. In a cluster other servers may learn of it later: hence the second look-up. A
//! wait for a job that is enqueued only then needs no first look-up: its subscription comes before the job on the same
//! connection.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Message;
use async_nats::header::NATS_SEQUENCE;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::records::find::{Glance, Records};
use crate::records::log::LogReader;
use crate::records::results::ResultEntries;
use crate::stored::names;
use crate::stored::result_entry::Entry;
use crate::wire::api::Api;
use crate::wire::direct_get;
use crate::wire::subscriptions::{Listener, Subscriptions};
use relay_bridge::contract::{ClientId, JobId, QueueName, RunId};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::result_log::{Finished, Lookup};

/// The most calls of one process that wait at once: more than the ingresses let in together by default, each of which
/// has bounds of its own. A wait takes some KiB, and one subscription in the server for each job.
const WAITS_MAX: usize = 120_000;
/// When a wait looks again by itself: by then every server of a cluster knows of its subscription.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// The longest wait: a caller that asks for more has long gone away. It keeps the sum of times within what a clock can
/// hold.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3_600);

/// The waits of one process, and their bounds.
pub(crate) struct Waits {
    api: Api,
    closing: CancellationToken,
    log: Arc<LogReader>,
    records: Arc<Records>,
    results: Arc<ResultEntries>,
    places: Semaphore,
    subscriptions: Subscriptions,
}

impl Waits {
    pub(crate) fn new(
        api: Api,
        closing: CancellationToken,
        log: Arc<LogReader>,
        records: Arc<Records>,
        results: Arc<ResultEntries>,
    ) -> Self {
        let (places, subscriptions) = (Semaphore::new(WAITS_MAX), Subscriptions::default());
        Self { api, closing, log, records, results, places, subscriptions }
    }

    fn begin(&self, operation: &'static str) -> Result<SemaphorePermit<'_>, BrokerError> {
        self.places.try_acquire().map_err(|_| {
            let full = BrokerErrorKind::Overloaded { retry_after: Duration::from_secs(1) };
            BrokerError::new(full, operation, format!("{WAITS_MAX} calls wait already"))
        })
    }
}

/// A call that waits for announcements.
pub(crate) struct Waiting<'a> {
    waits: &'a Waits,
    announced: Listener<'a>,
    deadline: Instant,
    /// When it looks by itself, whatever was announced.
    look_again: Option<Instant>,
    missed: watch::Receiver<u64>,
    /// The last announcement.
    announcement: Option<Box<Message>>,
    _place: SemaphorePermit<'a>,
}

/// Why a wait goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// A result was announced that has this sequence in the log; 0 if it did not say.
    Announced(u64),
    /// Something may have been missed, or it is time to look again.
    Look,
    /// Its time is over, or the adapter is being closed.
    Over,
}

impl<'a> Waiting<'a> {
    /// Listens for announcements of the results of `job` for at most `wait`. It hears all that come after the next
    /// answer of the server.
    async fn of_job(waits: &'a Waits, client: &ClientId, job: JobId, wait: Duration) -> Result<Self, BrokerError> {
        let place = waits.begin(WAIT)?;
        let missed = waits.api.missed();
        let announced = waits.subscriptions.join(&waits.api, names::reply(client, job), WAIT).await?;
        Ok(Self::new(waits, announced, wait, missed, place))
    }

    /// Listens for announcements of all of a client's results.
    pub(crate) async fn of_client(
        waits: &'a Waits,
        client: &ClientId,
        wait: Duration,
        operation: &'static str,
    ) -> Result<Self, BrokerError> {
        let place = waits.begin(operation)?;
        let missed = waits.api.missed();
        // Not shared: a reader may stay for long, and a message that is read is not kept.
        let announced = Listener::alone(&waits.api, names::client_replies(client), operation).await?;
        Ok(Self::new(waits, announced, wait, missed, place))
    }

    fn new(
        waits: &'a Waits,
        announced: Listener<'a>,
        wait: Duration,
        missed: watch::Receiver<u64>,
        place: SemaphorePermit<'a>,
    ) -> Self {
        let now = Instant::now();
        let look_again = Some(now + LOOK_AGAIN);
        let deadline = now + wait.min(WAIT_MAX);
        Self { waits, announced, deadline, look_again, missed, announcement: None, _place: place }
    }

    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline || self.waits.closing.is_cancelled()
    }

    /// Waits for a reason to look.
    pub(crate) async fn woken(&mut self) -> Woken {
        let alarm = self.look_again.map_or(self.deadline, |again| again.min(self.deadline));
        tokio::select! {
            biased;
            () = self.waits.closing.cancelled() => Woken::Over,
            announced = self.announced.next() => match announced {
                Some(message) => {
                    let headers = message.headers.as_ref();
                    let sequence = headers.and_then(|headers| crate::stored::record::number(headers, NATS_SEQUENCE)).unwrap_or(0);
                    self.announcement = Some(message);
                    Woken::Announced(sequence)
                }
                None => Woken::Over,
            },
            changed = self.missed.changed() => match changed {
                Ok(()) => {
                    // A server that this was moved to may need as long as at the beginning.
                    self.look_again = Some(Instant::now() + LOOK_AGAIN);
                    Woken::Look
                }
                // Nobody tells any more: time alone is left.
                Err(_) => {
                    Box::pin(tokio::time::sleep_until(alarm)).await;
                    self.alarm()
                }
            },
            () = tokio::time::sleep_until(alarm) => self.alarm(),
        }
    }

    /// The result that was announced, if the run that is waited for, or a later one, ended with it.
    async fn announced(&mut self, run: RunId) -> Option<Finished> {
        let stored = direct_get::read(*self.announcement.take()?, WAIT).ok()?;
        let entry = Entry::read(stored).ok().filter(|entry| entry.result.run_id >= run)?;
        Some(entry.finished(self.waits.log.id().await.ok()?))
    }

    fn alarm(&mut self) -> Woken {
        self.look_again = None;
        if self.is_over() { Woken::Over } else { Woken::Look }
    }
}

/// The operation of a call that waits for one result.
const WAIT: &str = "wait";

impl Waits {
    pub(crate) async fn wait_for(&self, client: &ClientId, job: JobId, wait: Duration) -> Result<Lookup, BrokerError> {
        if wait.is_zero() {
            return Box::pin(self.records.look_up(client, job)).await;
        }
        let mut waiting = Box::pin(Waiting::of_job(self, client, job, wait)).await?;
        let mut open: Option<(QueueName, RunId)> = None;
        loop {
            // Boxed, as everything here that is large and over soon: waits are many, and wait for something else.
            match Box::pin(self.records.glance(client, job, open.as_ref().map(|(queue, _)| queue))).await? {
                Glance::Finished(kept) => return Ok(Lookup::Finished(kept)),
                // A waiter that goes on waiting needs nothing more, so nothing more is asked for.
                Glance::Open(queue, run) if !waiting.is_over() => open = Some((queue, run)),
                Glance::Open(..) | Glance::Unclear => {
                    let found = Box::pin(self.records.look_up(client, job)).await?;
                    if !matches!(found, Lookup::Open(_)) || waiting.is_over() {
                        return Ok(found);
                    }
                }
            }
            match (waiting.woken().await, &open) {
                // A last look, which also finds a result that was announced in vain.
                (Woken::Over, _) => return Box::pin(self.records.look_up(client, job)).await,
                (Woken::Announced(_), Some((_, run))) => {
                    if let Some(finished) = Box::pin(waiting.announced(*run)).await {
                        return Ok(Lookup::Finished(Box::new(finished)));
                    }
                }
                (Woken::Announced(_) | Woken::Look, _) => {}
            }
        }
    }

    /// Listens for the result of `run`, or of a later one, and looks for it only when something may have been missed:
    /// there is no such result before this is polled first.
    pub(crate) async fn listen_for(
        &self,
        client: &ClientId,
        job: JobId,
        run: RunId,
        wait: Duration,
    ) -> Result<Option<Box<Finished>>, BrokerError> {
        let mut waiting = Box::pin(Waiting::of_job(self, client, job, wait)).await?;
        loop {
            let woken = waiting.woken().await;
            let found = match woken {
                Woken::Announced(_) => Box::pin(waiting.announced(run)).await,
                Woken::Look | Woken::Over => {
                    Box::pin(self.results.kept_result(client, job)).await?.filter(|kept| kept.result.run_id >= run)
                }
            };
            if found.is_some() || woken == Woken::Over {
                return Ok(found.map(Box::new));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, F>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    /// Ten thousand waits are to cost little, and what a wait needs for its beginning and its end is not needed in between.
    #[test]
    fn a_wait_keeps_no_room_for_what_is_over() {
        type Asked = (&'static Waits, &'static ClientId, JobId);
        let waits = size(|(waits, client, job): Asked| waits.wait_for(client, job, Duration::ZERO));
        let listens = size(|((waits, client, job), run): (Asked, RunId)| waits.listen_for(client, job, run, WAIT_MAX));
        assert!(waits <= 768 && listens <= 768, "{waits} and {listens} bytes");
    }
}
