//! The sweep, which does the work whose time has come: it sends messages that were never sent or were lost, puts parked
//! jobs in line when they are due, and ends runs at their deadlines. The index by time finds the records, and each
//! record decides. Any number of processes may sweep at once: a message too many is harmless.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::future::{join_all, try_join_all};
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::adapter::aws::item::Item;
use crate::adapter::aws::queue::SqsQueues;
use crate::adapter::aws::table::{Query, Table};
use crate::adapter::jobs::sending::Sender;
use crate::adapter::jobs::spares::Spares;
use crate::adapter::results::recording::Recording;
use crate::adapter::results::replies::Replies;
use crate::adapter::stored::policies::Policies;
use crate::adapter::stored::record::{LOOK_LATEST, Record, SEND_AGAIN, later_look, next_look};
use crate::adapter::stored::records::Records;
use crate::adapter::stored::schema::BY_TIME;
use crate::adapter::stored::wake_up::Sending;
use crate::names;
use crate::settings::Settings;
use relay_bridge::contract::{JobResult, QueueName, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Swept;
use relay_bridge::support::lock;

const OPERATION: &str = "sweep";
/// When to look again at a record that can't be swept, if its deadline is not before: a newer release may read it, or AWS
/// answer again.
const LEFT_FOR: Duration = Duration::from_secs(30);
/// How long a look waits for a message to be sent; then the look goes on, and the next look sends another message.
const SEND_MAX: Duration = Duration::from_secs(5);
/// The shortest time between two looks at a job that is leased: each look costs three writes.
const HELD_FOR: Duration = Duration::from_secs(60);
/// With so many messages or more, the records are not counted: workers have enough to receive.
const FEW: u64 = 2_000;

/// The facts that the counts of SQS show about a queue. SQS is asked at most once in a step, and only for jobs that
/// wait for longer than half a minute. Its counts lag by up to a minute; a message too many costs a receive.
struct Shown {
    /// Workers that ask receive nothing.
    none_to_receive: bool,
    /// There are clearly fewer messages than records that should have one.
    too_few: bool,
}

/// The facts known of a queue while it is swept once.
#[derive(Default)]
struct Step {
    shown: OnceCell<Shown>,
    /// SQS did not answer when a message was sent.
    hangs: AtomicBool,
}

/// When this process last swept each queue, and which queue it swept last.
#[derive(Default)]
pub(crate) struct Sweeping {
    queues: Mutex<HashMap<QueueName, Instant>>,
    last: Mutex<Option<QueueName>>,
}

/// Sweeps the queues.
pub(crate) struct Sweep {
    pub(crate) policies: Arc<Policies>,
    pub(crate) queues: Arc<SqsQueues>,
    pub(crate) replies: Arc<Replies>,
    pub(crate) settings: Settings,
    pub(crate) spares: Arc<Spares>,
    pub(crate) sweeping: Sweeping,
    pub(crate) table: Table,
    pub(crate) tasks: TaskTracker,
    pub(crate) records: Arc<Records>,
    pub(crate) recording: Arc<Recording>,
    pub(crate) sender: Arc<Sender>,
    pub(crate) sending: Arc<Semaphore>,
}

impl Sweep {
    pub(crate) async fn sweep_step(&self, limit: u32) -> Result<Swept, BrokerError> {
        if let Err(error) = self.replies.sweep().await {
            tracing::warn!(%error, "reply queues of processes that are gone are left for a while");
        }
        let mut swept = Swept::default();
        let mut left = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut queues = self.policies.names(OPERATION).await?;
        self.swept().retain(|queue, _| queues.contains(queue));
        // The step begins behind the queue at which the last step ended, so that a queue that always has more to do
        // keeps no other waiting.
        if let Some(last) = &*self.last_swept() {
            let behind = queues.partition_point(|queue| queue <= last);
            queues.rotate_left(behind);
        }
        for queue in queues {
            let now = Instant::now();
            let last = self.swept().get(&queue).copied();
            if last.is_some_and(|last| now.duration_since(last) < self.settings.sweep_every) {
                continue;
            }
            *self.last_swept() = Some(queue.clone());
            let more = match self.sweep_queue(&queue, &mut left, &mut swept).await {
                Ok(more) => more,
                // The other queues are swept now, and this one when its time comes again.
                Err(error) => {
                    tracing::warn!(%queue, %error, "a queue could not be swept, and is tried again");
                    false
                }
            };
            swept.more |= more;
            if !more {
                self.swept().insert(queue, now);
            }
            if left == 0 {
                swept.more = true;
                break;
            }
        }
        Ok(swept)
    }

    /// Sweeps a queue, at most `left` records of it; returns whether there is more to do at once.
    async fn sweep_queue(&self, queue: &QueueName, left: &mut usize, swept: &mut Swept) -> Result<bool, BrokerError> {
        let (due, mut more) = self.due(queue, *left).await?;
        *left -= due.len().min(*left);
        let step = Step::default();
        for chunk in due.chunks(100) {
            let looked = join_all(chunk.iter().map(|(record, look)| self.look_at(record, look, &step))).await;
            for ended in looked {
                match ended {
                    Ok(ended) => swept.expired.extend(ended),
                    // The record's place in the index is as it was: at once it would be the first again.
                    Err(error) => {
                        tracing::warn!(%queue, %error, "a record could not be swept, and is tried again");
                        more = false;
                    }
                }
            }
        }
        Ok(more)
    }

    fn swept(&self) -> MutexGuard<'_, HashMap<QueueName, Instant>> {
        lock(&self.sweeping.queues)
    }

    fn last_swept(&self) -> MutexGuard<'_, Option<QueueName>> {
        lock(&self.sweeping.last)
    }

    /// Records of a queue that are to be looked at by now, at most `limit`, each with the time of that look; and
    /// whether there are more.
    async fn due(&self, queue: &QueueName, limit: usize) -> Result<(Vec<(Item, String)>, bool), BrokerError> {
        let now = names::moment(self.settings.clock.now());
        let shards: Vec<_> = (0..names::SHARDS).map(|shard| names::open_shard(queue, shard)).collect();
        let asked = i32::try_from(limit.clamp(1, 1_000)).unwrap_or(1);
        let queries = shards.iter().map(|shard| {
            let query = Query {
                index: Some(BY_TIME),
                partition: ("ix", shard),
                places: Some(("ix_at", "0", &now)),
                limit: Some(asked),
                ..Query::default()
            };
            self.table.query(query, OPERATION)
        });
        let found = try_join_all(queries).await?;
        let mut more = found.iter().any(|found| found.next.is_some());
        let mut due: Vec<_> = found.into_iter().flat_map(|found| found.items).collect();
        due.sort_by(|a, b| a.get_text("ix_at").cmp(&b.get_text("ix_at")));
        more |= due.len() > limit;
        due.truncate(limit);
        let looks: HashMap<_, _> =
            due.iter().filter_map(|item| Some((item.get_text("pk")?, item.get_text("ix_at")?.to_owned()))).collect();
        let jobs = due.iter().filter_map(|item| names::job_of_partition(item.get_text("pk")?));
        let keys: Vec<_> = jobs.map(names::record).collect();
        let items = self.table.get_many(&keys, OPERATION).await?;
        let look = |item: &Item| looks.get(item.get_text("pk")?).cloned();
        Ok((items.into_iter().filter_map(|item| look(&item).map(|look| (item, look))).collect(), more))
    }

    /// Sweeps one record; returns the result if that ended the record's run.
    async fn look_at(&self, item: &Item, look: &str, step: &Step) -> Result<Option<JobResult>, BrokerError> {
        let now = self.settings.clock.now();
        // The index is late: another process has looked at the record meanwhile, or its run has ended.
        if item.get_text("ix_at") != Some(look) {
            return Ok(None);
        }
        match self.demanded(item, look, step, now).await {
            Err(error) => {
                tracing::warn!(%error, key = item.get_text("pk"), "a record can't be swept: it is left for a while");
                let deadline = item.get_time("deadline").filter(|deadline| *deadline > now);
                let next = now + LEFT_FOR;
                let unsent = Record::read(item.clone()).is_ok_and(|record| may_be_unsent(&record, look));
                self.look_again(item, look, deadline.map_or(next, |deadline| next.min(deadline)), unsent).await?;
                Ok(None)
            }
            ended => ended,
        }
    }

    async fn demanded(
        &self,
        item: &Item,
        look: &str,
        step: &Step,
        now: Timestamp,
    ) -> Result<Option<JobResult>, BrokerError> {
        if item.is_past(now) {
            // Nobody swept for as long as the record was kept. It goes by its TTL.
            self.look_again(item, look, now + LEFT_FOR, false).await?;
            return Ok(None);
        }
        let record = Record::read(item.clone())?;
        if record.ended().is_some() {
            return Ok(None);
        }
        if record.deadline <= now {
            let ended = self.recording.expire(&record).await?;
            if ended.is_some() {
                self.recording.leave_message(&record).await;
            }
            return Ok(ended);
        }
        let since = if record.is_leased() { record.lease_end() + self.settings.skew } else { record.due };
        let next = match (since > now, record.is_leased()) {
            (true, true) => since.max(now + HELD_FOR).min(record.deadline),
            (true, false) => next_look(record.due, record.deadline, now, self.queues.config().fifo),
            (false, _) => {
                if let Some(sending) = self.missing(&record, look, &step.shown).await?
                    && !self.send_again(&record, now, sending, step).await?
                {
                    let unsent = may_be_unsent(&record, look);
                    self.look_again(item, look, (now + LEFT_FOR).min(record.deadline), unsent).await?;
                    return Ok(None);
                }
                later_look(since, record.deadline, now)
            }
        };
        self.look_again(item, look, next, false).await?;
        Ok(None)
    }

    /// The kind of message to send for a record that could be taken and was not; `None` if it has a message in line, as
    /// far as is known.
    async fn missing(
        &self,
        record: &Record,
        look: &str,
        shown: &OnceCell<Shown>,
    ) -> Result<Option<Sending>, BrokerError> {
        if may_be_unsent(record, look) {
            return Ok(Some(if is_unsent(record, look) { Sending::Again } else { Sending::Beside }));
        }
        Ok(self.is_lost(record, shown).await?.then_some(Sending::Again))
    }

    /// Sends the message of a record, if a place among the sends is free and SQS has answered all sends of this step;
    /// returns whether it was sent. A send that is not answered goes on in the background and keeps its place, so that
    /// repeated tries never have more sends on their way than there are places.
    async fn send_again(
        &self,
        record: &Record,
        now: Timestamp,
        sending: Sending,
        step: &Step,
    ) -> Result<bool, BrokerError> {
        if step.hangs.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let Ok(place) = self.sending.clone().try_acquire_owned() else { return Ok(false) };
        let (sender, job) = (Arc::clone(&self.sender), self.records.whole_job(record, None, OPERATION).await?);
        let sent = self.tasks.spawn(async move {
            let _place = place;
            sender.wake(&job, now, sending).await
        });
        let failed = |_| BrokerError::new(BrokerErrorKind::Ambiguous, OPERATION, "the send was given up");
        match timeout(SEND_MAX, sent).await {
            Ok(sent) => sent.map_err(failed)?.map(|()| true),
            Err(_) => {
                if !step.hangs.swap(true, Ordering::Relaxed) {
                    tracing::warn!(queue = %record.queue, "SQS does not answer: due jobs are sent by a later sweep");
                }
                Ok(false)
            }
        }
    }

    /// Whether the message of a record that could be taken, and was not, seems to be lost.
    async fn is_lost(&self, record: &Record, shown: &OnceCell<Shown>) -> Result<bool, BrokerError> {
        let shown = shown.get_or_try_init(|| self.shown(&record.queue)).await?;
        let policy = self.policies.require(&record.queue, OPERATION).await?;
        // Messages of a client that runs as many jobs as it may stay at hand in the processes that received them.
        let at_hand = policy.client(&record.client).max_running != u32::MAX;
        Ok(shown.too_few || shown.none_to_receive && !at_hand)
    }

    /// Compares the counts that SQS shows of a queue with its open records.
    async fn shown(&self, queue: &QueueName) -> Result<Shown, BrokerError> {
        let [visible, hidden, delayed] = self.queues.of(queue, OPERATION).await?.counts(OPERATION).await?;
        let messages = visible + hidden + delayed;
        let too_few = messages < FEW && self.has_open(queue, messages + messages / 4 + 1).await?;
        if too_few {
            self.spares.forget(queue).await?;
        }
        Ok(Shown { none_to_receive: visible == 0, too_few })
    }

    /// Whether at least `wanted` records of a queue are open and have their next look within half an hour. Each of them
    /// should have a message, except for parked jobs whose message is left to the sweep.
    async fn has_open(&self, queue: &QueueName, wanted: u64) -> Result<bool, BrokerError> {
        let until = names::moment(self.settings.clock.now() + LOOK_LATEST);
        let mut left = usize::try_from(wanted).unwrap_or(usize::MAX);
        for shard in 0..names::SHARDS {
            let query = Query {
                index: Some(BY_TIME),
                partition: ("ix", &names::open_shard(queue, shard)),
                places: Some(("ix_at", "0", &until)),
                limit: Some(i32::try_from(left).unwrap_or(i32::MAX)),
                ..Query::default()
            };
            left = left.saturating_sub(self.table.query(query, OPERATION).await?.items.len());
            if left == 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sets when the sweep looks at a record next, and whether it is still `unsent`, unless another process has done
    /// so.
    async fn look_again(&self, item: &Item, look: &str, at: Timestamp, unsent: bool) -> Result<(), BrokerError> {
        let key = names::Key { pk: item.need_text("pk")?.to_owned(), sk: item.need_text("sk")?.to_owned() };
        let values = Item::default().text(":look", look).text(":next", names::moment(at));
        let (change, values) = match (unsent, item.is_set("unsent")) {
            (true, false) => ("SET #ix_at = :next, #unsent = :unsent", values.flag(":unsent", true)),
            (false, true) => ("SET #ix_at = :next REMOVE #unsent", values),
            _ => ("SET #ix_at = :next", values),
        };
        self.table.update(&key, change, "#ix_at = :look", values, OPERATION).await?;
        Ok(())
    }
}

/// Whether a record that could be taken at `look` may never have had a message. Either its message was left to the
/// sweep, which could not send it before; or the process that wrote the record should have sent it, and no attempt
/// shows that it did. The first look at such a record is half a minute after it was written, some time after the job
/// could be taken; the second look is a whole minute after that.
fn may_be_unsent(record: &Record, look: &str) -> bool {
    let first = record.attempt == 0 && look < names::moment(record.due + SEND_AGAIN * 2).as_str();
    !record.is_leased() && (first || is_unsent(record, look))
}

/// Whether a record has had no message: the message was left to the sweep, which could not send it before.
fn is_unsent(record: &Record, look: &str) -> bool {
    look <= names::moment(record.due).as_str() || record.item.is_set("unsent")
}
