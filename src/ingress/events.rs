//! The workers' actions on a job, told to its watchers in this process. Best effort: a watcher that is slow misses
//! older events, and events at another process are not seen. How a run ends is for the result log alone to say.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{JobId, JobResult, QueueName, RunId, Timestamp};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::BrokerError;
use relay_bridge::leasing::{Delivery, Held, LeaseRequest, Leasing, Progress, Receipt, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::settlement::Settlement;
use relay_bridge::support::lock;
use tokio::sync::broadcast;

/// Events of one job that wait for its watchers; older ones make room.
const WAITING_MAX: usize = 16;

/// A worker's action on a job.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) run_id: RunId,
    pub(super) at: Timestamp,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    /// It took it, for this attempt.
    Started(u32),
    /// Its handler is this far.
    Progress(Progress),
    /// It gave it back, and the next attempt is not before so long.
    Retrying(Duration),
}

/// The watchers of each job.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// How many jobs are watched: most of the time none, and then nothing is looked up.
    watched: AtomicUsize,
    jobs: Mutex<HashMap<JobId, broadcast::Sender<Told>>>,
}

impl Events {
    /// Watches `job` from now on.
    pub(super) fn watch(self: &Arc<Self>, job: JobId) -> Watch {
        let mut jobs = self.jobs();
        let heard = match jobs.entry(job) {
            Entry::Occupied(entry) => entry.get().subscribe(),
            Entry::Vacant(entry) => {
                self.watched.fetch_add(1, Ordering::SeqCst);
                entry.insert(broadcast::Sender::new(WAITING_MAX)).subscribe()
            }
        };
        drop(jobs);
        Watch { events: Arc::clone(self), job, heard: Some(heard) }
    }

    /// Tells whoever watches `job`.
    pub(super) fn tell(&self, job: JobId, event: impl FnOnce() -> Told) {
        if self.watched.load(Ordering::SeqCst) > 0
            && let Some(watchers) = self.jobs().get(&job)
        {
            // Nobody is there any more: then nobody misses it.
            drop(watchers.send(event()));
        }
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<JobId, broadcast::Sender<Told>>> {
        lock(&self.jobs)
    }
}

/// One watcher of one job.
pub(super) struct Watch {
    events: Arc<Events>,
    job: JobId,
    /// `None` only while it is dropped.
    heard: Option<broadcast::Receiver<Told>>,
}

impl Watch {
    /// The next event. Missed events are left out; the wait never ends by itself.
    pub(super) async fn next(&mut self) -> Told {
        loop {
            let Some(heard) = &mut self.heard else { return std::future::pending().await };
            match heard.recv().await {
                Ok(event) => return event,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => self.heard = None,
            }
        }
    }

    /// The next event, if it was told already.
    pub(super) fn told(&mut self) -> Option<Told> {
        loop {
            match self.heard.as_mut()?.try_recv() {
                Ok(event) => return Some(event),
                Err(broadcast::error::TryRecvError::Lagged(_)) => {}
                Err(_) => return None,
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.heard = None;
        let mut jobs = self.events.jobs();
        if jobs.get(&self.job).is_some_and(|watchers| watchers.receiver_count() == 0) {
            jobs.remove(&self.job);
            self.events.watched.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Leasing that tells watchers what workers do with it.
pub(super) struct Watched {
    pub(super) leasing: Arc<dyn Leasing>,
    pub(super) events: Arc<Events>,
    pub(super) clock: Clock,
}

impl Watched {
    fn tell(&self, receipt: &Receipt, what: impl FnOnce() -> What) {
        self.events.tell(receipt.job_id, || Told { run_id: receipt.run_id, at: self.clock.now(), what: what() });
    }
}

#[async_trait]
impl Leasing for Watched {
    async fn lease(&self, request: &LeaseRequest) -> Result<Vec<Delivery>, BrokerError> {
        let deliveries = self.leasing.lease(request).await?;
        for delivery in &deliveries {
            self.tell(&delivery.receipt, || What::Started(delivery.attempt));
        }
        Ok(deliveries)
    }

    async fn extend(&self, receipt: &Receipt) -> Result<Held, BrokerError> {
        self.leasing.extend(receipt).await
    }

    async fn ended_early(&self, receipt: &Receipt) {
        self.leasing.ended_early(receipt).await;
    }

    async fn progress(&self, receipt: &Receipt, progress: &Progress) -> Result<(), BrokerError> {
        self.leasing.progress(receipt, progress).await?;
        self.tell(receipt, || What::Progress(progress.clone()));
        Ok(())
    }

    async fn dead_letter(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        self.leasing.dead_letter(letter).await
    }

    async fn retract_dead_letter(
        &self,
        job: JobId,
        run: RunId,
        within: Option<&[QueueName]>,
    ) -> Result<(), BrokerError> {
        self.leasing.retract_dead_letter(job, run, within).await
    }

    async fn record(&self, result: &JobResult) -> Result<Recorded, BrokerError> {
        self.leasing.record(result).await
    }

    async fn settle(&self, receipt: &Receipt, settlement: &Settlement) -> Result<(), BrokerError> {
        self.leasing.settle(receipt, settlement).await?;
        if let Settlement::RetryAfter(after) = settlement {
            self.tell(receipt, || What::Retrying(*after));
        }
        Ok(())
    }

    async fn queue_policy(&self, queue: &QueueName) -> Result<QueuePolicy, BrokerError> {
        self.leasing.queue_policy(queue).await
    }
}
