//! The reply queue of a process. Through it other processes tell this one that a run has ended for which a call waits
//! here.
//!
//! A process that waits adds its queue's name to the record, unless the run has ended. The process that ends the run
//! sends one message to each name. A message only wakes the waiter, which then reads the table. The waiter also looks
//! by itself now and then, so that a lost message costs time and nothing else.
//!
//! An item of the table says that the queue is in use; it is written before the queue is made. A process that died
//! leaves both. The sweep of any other process finds the item, which nobody renews, and removes the queue, then the
//! item.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_sqs::operation::delete_queue::DeleteQueueError;
use aws_sdk_sqs::types::{Message, QueueAttributeName};
use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::adapter::aws::connect::{Effect, failed};
use crate::adapter::aws::item::Item;
use crate::adapter::aws::queue::{BATCH_MAX, Outgoing, RECEIVE_WAIT_MAX, SqsQueue, SqsQueues};
use crate::adapter::aws::table::{Query, Table, Written};
use crate::adapter::results::waiting::Wakes;
use crate::adapter::stored::record::Record;
use crate::adapter::stored::schema;
use crate::names;
use crate::settings::Settings;
use relay_bridge::contract::{JobId, RunId};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::support::lock;

const OPERATION: &str = "reply queue";
/// The most names on one record. More processes than that seldom wait for one job, and the others look by themselves.
const NAMES_MAX: usize = 8;
/// How long SQS keeps a message, in seconds: the least that it allows. A waiter that was not told by then has looked by
/// itself.
const RETENTION: &str = "60";
/// How long a received message is hidden; it is deleted within this time.
const HIDDEN: Duration = Duration::from_secs(30);
/// After so long without a sign of life a process is dead.
const DEAD_AFTER: Duration = Duration::from_secs(300);
/// Queues of dead processes that one sweep removes.
const REMOVED_MAX: usize = 10;
/// After so long SQS knows everywhere that a queue was made.
const KNOWN_WITHIN: Duration = Duration::from_secs(60);
/// How long to wait after a call failed: at first, and at most.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_LAST: Duration = Duration::from_secs(300);
/// The most announcements on their way at once. Beyond it, waiters find out by themselves.
const ANNOUNCING_MAX: usize = 64;
/// The most queues of other processes that are remembered. Beyond it all are forgotten, and each costs a look again.
const KNOWN_MAX: usize = 1_000;

/// The outcome of asking to be told when a run ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The process that ends the run tells the queue of this name.
    Told(Arc<str>),
    /// The run has ended, or another one began: look again.
    Changed,
    /// Nobody tells: look now and then.
    Untold,
}

/// The reply queue of this process, and the known reply queues of other processes.
pub(crate) struct Replies {
    table: Table,
    queues: Arc<SqsQueues>,
    settings: Settings,
    waiting: Wakes<JobId>,
    tasks: TaskTracker,
    closing: CancellationToken,
    own: Mutex<Own>,
    others: Mutex<HashMap<String, Arc<SqsQueue>>>,
    announcing: Arc<Semaphore>,
    swept: Mutex<Option<Instant>>,
}

/// The queue of this process. It is made at the first wait.
#[derive(Default)]
struct Own {
    started: bool,
    name: Option<Arc<str>>,
}

impl Replies {
    pub(crate) fn new(
        table: Table,
        queues: Arc<SqsQueues>,
        settings: Settings,
        waiting: Wakes<JobId>,
        tasks: TaskTracker,
        closing: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            table,
            queues,
            settings,
            waiting,
            tasks,
            closing,
            own: Mutex::default(),
            others: Mutex::default(),
            announcing: Arc::new(Semaphore::new(ANNOUNCING_MAX)),
            swept: Mutex::default(),
        })
    }

    /// The name of this process's queue, if it is there. The first call has it made.
    pub(crate) fn name(self: &Arc<Self>) -> Option<Arc<str>> {
        let mut own = lock(&self.own);
        if !own.started {
            own.started = true;
            self.tasks.spawn(self.clone().serve());
        }
        own.name.clone()
    }

    /// Asks that the process that ends this run tells this process.
    pub(crate) async fn ask(self: &Arc<Self>, job: JobId, run: RunId) -> Asked {
        let Some(name) = self.name() else { return Asked::Untold };
        let values = Item::default()
            .text(":run", run.to_string())
            .text(":name", &*name)
            .with(":names", AttributeValue::Ss(vec![name.to_string()]))
            .number(":most", NAMES_MAX);
        let condition = "#run = :run AND (attribute_not_exists(#result_run) OR #result_run < :run) \
                         AND (attribute_not_exists(#waiters) OR contains(#waiters, :name) OR size(#waiters) < :most)";
        match self.table.update(&names::record(job), "ADD #waiters :names", condition, values, OPERATION).await {
            Ok(Written::Done(_)) => Asked::Told(name),
            Ok(Written::Refused(item)) => match item.map(Record::read) {
                Some(Ok(record)) if record.run == run && record.ended().is_none() => Asked::Untold,
                _ => Asked::Changed,
            },
            Err(error) => {
                tracing::debug!(job_id = %job, %error, "a waiting request is not told, and polls the table");
                Asked::Untold
            }
        }
    }

    /// Tells every process that waits for one of these jobs, in the background. Nothing is lost if that fails.
    pub(crate) fn announce(self: &Arc<Self>, jobs: Vec<JobId>) {
        let Ok(permit) = self.announcing.clone().try_acquire_owned() else { return };
        let this = self.clone();
        self.tasks.spawn(async move {
            let _permit = permit;
            if let Err(error) = this.tell(&jobs).await {
                tracing::debug!(%error, "a waiting request is not told, and polls the table");
            }
        });
    }

    async fn tell(&self, jobs: &[JobId]) -> Result<(), BrokerError> {
        let keys: Vec<_> = jobs.iter().map(|job| names::record(*job)).collect();
        let mut told = BTreeMap::<String, Vec<JobId>>::new();
        for item in self.table.get_many(&keys, OPERATION).await? {
            let Some(job) = item.get_text("pk").and_then(names::job_of_partition) else { continue };
            for name in item.get_texts("waiters") {
                told.entry(name.clone()).or_default().push(job);
            }
        }
        if let Some(own) = &lock(&self.own).name {
            // The waiters of this process were woken already.
            told.remove(&**own);
        }
        for sent in join_all(told.iter().map(|(name, jobs)| self.send(name, jobs))).await {
            sent?;
        }
        Ok(())
    }

    async fn send(&self, name: &str, jobs: &[JobId]) -> Result<(), BrokerError> {
        let known = lock(&self.others).get(name).cloned();
        let queue = match known {
            Some(queue) => queue,
            // The queue was removed: nobody waits there any more.
            None => match self.queues.find_named(&self.queue_name(name), OPERATION).await? {
                Some(url) => self.remember(name, url),
                None => return Ok(()),
            },
        };
        let body = jobs.iter().map(JobId::to_string).collect::<Vec<_>>().join("\n");
        let sent = queue
            .send(Outgoing { body, group: None, deduplication: None, delay: Duration::ZERO, attributes: Vec::new() })
            .await;
        match sent {
            Err(error) if error.kind() == BrokerErrorKind::NotFound => {
                lock(&self.others).remove(name);
                Ok(())
            }
            sent => sent,
        }
    }

    fn remember(&self, name: &str, url: String) -> Arc<SqsQueue> {
        let queue = Arc::new(self.queues.at(url, false));
        let mut others = lock(&self.others);
        if others.len() >= KNOWN_MAX {
            others.clear();
        }
        others.insert(name.to_owned(), queue.clone());
        queue
    }

    fn queue_name(&self, name: &str) -> String {
        names::reply_queue(self.queues.config(), name)
    }

    /// Keeps a reply queue until the process ends. A new one is made whenever another process took the last one for a
    /// dead process's.
    async fn serve(self: Arc<Self>) {
        let new_name = || Arc::<str>::from(&uuid::Uuid::new_v4().simple().to_string()[..12]);
        let (mut name, mut again) = (new_name(), AGAIN_FIRST);
        while !self.closing.is_cancelled() {
            let opened = self.open(&name).await;
            let was_open = opened.is_ok();
            match opened {
                Ok(queue) => {
                    again = AGAIN_FIRST;
                    lock(&self.own).name = Some(name.clone());
                    tokio::select! {
                        () = self.receive(&queue) => {}
                        () = self.live(&name) => {}
                        () = self.closing.cancelled() => {}
                    }
                    lock(&self.own).name = None;
                }
                Err(error) => tracing::warn!(
                    %error, "there is no reply queue: requests that wait for another process poll the table"
                ),
            }
            // A queue that could not be made is tried again under the same name, so that queues do not pile up.
            if was_open || self.closing.is_cancelled() {
                if let Err(error) = self.remove(&name).await {
                    tracing::debug!(%error, "a reply queue is left behind: the sweep of another process removes it");
                }
                name = new_name();
            }
            tokio::select! {
                () = tokio::time::sleep(again) => {}
                () = self.closing.cancelled() => {}
            }
            again = (again * 2).min(AGAIN_LAST);
        }
    }

    /// Makes the queue: first the item by which it is found when this process is gone.
    async fn open(&self, name: &str) -> Result<SqsQueue, BrokerError> {
        let item = Item::at(&names::reply(name)).time("beat", self.settings.clock.now());
        self.table.put(item, OPERATION).await?;
        let attributes = HashMap::from([
            (QueueAttributeName::MessageRetentionPeriod, RETENTION.to_owned()),
            (QueueAttributeName::SqsManagedSseEnabled, "true".to_owned()),
        ]);
        let call = self.queues.client().create_queue().queue_name(self.queue_name(name));
        let call = call.set_attributes(Some(attributes)).set_tags(Some(schema::queue_tags()));
        let output = call.send().await.map_err(|error| failed(OPERATION, Effect::Write, error))?;
        let none = || BrokerError::new(BrokerErrorKind::Unavailable, OPERATION, "SQS does not say where the queue is");
        Ok(self.queues.at(output.queue_url.ok_or_else(none)?, false))
    }

    /// Wakes the waiters of the jobs that messages name, until the queue is gone. In its first moments SQS may not know
    /// the queue everywhere.
    async fn receive(&self, queue: &SqsQueue) {
        let (mut again, made) = (AGAIN_FIRST, Instant::now());
        loop {
            match queue.receive(BATCH_MAX, HIDDEN, RECEIVE_WAIT_MAX).await {
                Ok(messages) => {
                    again = AGAIN_FIRST;
                    messages.iter().flat_map(jobs_in).for_each(|job| self.waiting.wake(&job));
                    let handles = messages.iter().filter_map(Message::receipt_handle);
                    for deleted in join_all(handles.map(|handle| queue.delete(handle))).await {
                        // If it is not deleted, the message comes again and wakes nobody.
                        drop(deleted);
                    }
                }
                Err(error) if error.kind() == BrokerErrorKind::NotFound && made.elapsed() > KNOWN_WITHIN => return,
                Err(error) => {
                    tracing::warn!(%error, "the reply queue is not read: waiting requests poll the table");
                    tokio::time::sleep(again).await;
                    again = (again * 2).min(AGAIN_LAST);
                }
            }
        }
    }

    /// Says again and again that the queue is in use, until another process took it for a dead process's.
    async fn live(&self, name: &str) {
        let key = names::reply(name);
        loop {
            tokio::time::sleep(self.settings.reply_beat).await;
            let values = Item::default().time(":now", self.settings.clock.now());
            let condition = "attribute_exists(#pk) AND attribute_not_exists(#gone)";
            match self.table.update(&key, "SET #beat = :now", condition, values, OPERATION).await {
                Ok(Written::Done(_)) => {}
                Ok(Written::Refused(_)) => return,
                Err(error) => tracing::warn!(%error, "no sign of life of this process's reply queue was written"),
            }
        }
    }

    /// Removes a queue, then the item by which it is found.
    async fn remove(&self, name: &str) -> Result<(), BrokerError> {
        if let Some(url) = self.queues.find_named(&self.queue_name(name), OPERATION).await? {
            match self.queues.client().delete_queue().queue_url(url).send().await {
                Ok(_) => {}
                Err(error) if matches!(error.as_service_error(), Some(DeleteQueueError::QueueDoesNotExist(_))) => {}
                Err(error) => return Err(failed(OPERATION, Effect::Write, error)),
            }
        }
        self.table.remove(&names::reply(name), OPERATION).await?;
        Ok(())
    }

    /// Removes queues of processes that gave no sign of life for long: some of them at a time, and not at every call.
    ///
    /// # Errors
    /// As AWS says; the next sweep goes on.
    pub(crate) async fn sweep(&self) -> Result<(), BrokerError> {
        let last = lock(&self.swept).replace(Instant::now());
        if last.is_some_and(|last| last.elapsed() < self.settings.reply_beat) {
            *lock(&self.swept) = last;
            return Ok(());
        }
        let (mut removed, mut after) = (0, None);
        loop {
            let query = Query { partition: ("pk", names::REPLIES), after, ..Query::default() };
            let found = self.table.query(query, OPERATION).await?;
            for item in &found.items {
                let (name, beat) = (item.need_text("sk")?, item.need_time("beat")?);
                if beat + DEAD_AFTER + self.settings.skew > self.settings.clock.now() {
                    continue;
                }
                // From here on its owner makes a new queue, if it was only standing still.
                let values = Item::default().time(":beat", beat).flag(":gone", true);
                let key = names::reply(name);
                let taken = self.table.update(&key, "SET #gone = :gone", "#beat = :beat", values, OPERATION).await?;
                if matches!(taken, Written::Done(_)) {
                    self.remove(name).await?;
                    tracing::info!(name, "the reply queue of a process that is gone was removed");
                    removed += 1;
                }
                if removed == REMOVED_MAX {
                    return Ok(());
                }
            }
            after = found.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }
}

/// The jobs that a message names; none if the message is not relay's.
fn jobs_in(message: &Message) -> Vec<JobId> {
    message.body().unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_tells_of_any_number_of_jobs_and_what_is_not_relays_of_none() {
        let (a, b) = (JobId::mint(), JobId::mint());
        let told = |body: String| jobs_in(&Message::builder().body(body).build());
        assert_eq!(told(format!("{a}\n{b}")), [a, b]);
        assert!(told("hello\n\n{}".to_owned()).is_empty());
    }
}
