//! Taking a job. Its payload is written first if it is large, then its record if there is none, and then its message is
//! sent. The record makes the job durable, so the answer comes after it; sending the message is relay's duty from then
//! on.

use std::sync::Arc;

use crate::adapter::aws::item::Item;
use crate::adapter::aws::queue::SqsQueues;
use crate::adapter::aws::table::{Table, Written};
use crate::adapter::jobs::quota::Places;
use crate::adapter::jobs::sending::Sender;
use crate::adapter::stored::policies::Policies;
use crate::adapter::stored::record::{INLINE_MAX, Record, check_size, new_record, payload_item};
use crate::adapter::stored::records::Records;
use crate::adapter::stored::wake_up::Sending;
use crate::settings::Settings;
use relay_bridge::contract::{Job, JobState, RunId, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Enqueued;

const OPERATION: &str = "enqueue";
/// How long nobody has taken a job before a replay sends it again. Earlier, its first message may still be on its way.
const UNTAKEN: std::time::Duration = std::time::Duration::from_secs(5);
/// How often a job is tried while its record changes under the write.
const TRIES: u32 = 3;

/// Takes jobs.
pub(crate) struct Submissions {
    pub(crate) policies: Arc<Policies>,
    pub(crate) queues: Arc<SqsQueues>,
    pub(crate) settings: Settings,
    pub(crate) table: Table,
    pub(crate) records: Arc<Records>,
    pub(crate) places: Arc<Places>,
    pub(crate) sender: Arc<Sender>,
}

impl Submissions {
    /// Makes `job` durable, or finds the one that has its id.
    pub(crate) async fn take_job(&self, job: Job) -> Result<Enqueued, BrokerError> {
        let policy = self.policies.require(&job.queue, OPERATION).await?;
        let refusal = match check_size(job.payload.len(), policy.payload_max, OPERATION) {
            Err(too_large) => Some(too_large),
            Ok(()) => {
                let limit = policy.client(&job.client).max_queued;
                self.places.take_place(&job.queue, &job.client, limit, OPERATION).await?
            }
        };
        if let Some(refusal) = refusal {
            // A known job is answered where a new one would be refused.
            return match self.records.owned(&job.client, job.id, OPERATION).await? {
                Some(record) => self.known(&record).await,
                None => Err(refusal),
            };
        }
        let (queue, client) = (job.queue.clone(), job.client.clone());
        let put = self.put_job(job).await;
        let has_place = match &put {
            Ok(Enqueued::Created(_)) => true,
            Ok(Enqueued::Known(_)) => false,
            // It may be in line.
            Err(error) => !error.had_no_effect(),
        };
        if !has_place {
            self.places.leave_line(&queue, &client, OPERATION).await;
        }
        put
    }

    /// The same for a job that has its place in line already.
    async fn put_job(&self, mut job: Job) -> Result<Enqueued, BrokerError> {
        if job.key.is_some()
            && job.payload.len() > INLINE_MAX
            && let Some(record) = self.records.owned(&job.client, job.id, OPERATION).await?
        {
            // A look is cheaper than a payload that is written for nothing.
            return self.known(&record).await;
        }
        let call = uuid::Uuid::new_v4().simple().to_string()[..12].to_owned();
        for _ in 0..TRIES {
            let now = self.settings.clock.now();
            if job.payload.len() > INLINE_MAX {
                self.table.put(payload_item(&job), OPERATION).await?;
            }
            let item = new_record(&job, self.settings.wire_version, now, self.queues.config().fifo).text("call", &call);
            // A record past its keeping counts as absent; the job starts anew under a greater run.
            let condition = "attribute_not_exists(#pk) OR (#keep <= :now AND #run < :run)";
            let values = Item::default().time(":now", now).text(":run", job.run_id.to_string());
            let found = match self.table.put_if(item, condition, values, OPERATION).await? {
                Written::Done(_) => return self.created(job, now).await,
                Written::Refused(found) => found,
            };
            // Removed between the condition and the answer: again.
            let Some(found) = found else { continue };
            let past = found.is_past(now);
            let record = Record::read(found)?;
            if past {
                job.run_id = RunId::mint(now, Some(record.run));
                continue;
            }
            if record.item.get_text("call") == Some(&call) {
                // The SDK repeated a write whose answer was lost, and found its own record.
                return self.created(job, now).await;
            }
            return self.known(&record).await;
        }
        let why = "the job's record keeps changing: enqueue again with the same key";
        Err(BrokerError::new(BrokerErrorKind::Ambiguous, OPERATION, why))
    }

    async fn created(&self, job: Job, now: Timestamp) -> Result<Enqueued, BrokerError> {
        self.places.counted(&job.queue, &job.client);
        self.sender.send_quietly(&job).await;
        let record = Record::read(new_record(&job, self.settings.wire_version, now, self.queues.config().fifo))?;
        Ok(Enqueued::Created(record.status(now)?))
    }

    /// The answer to a replay. A job that nobody took is sent again: its first message may never have been sent.
    async fn known(&self, record: &Record) -> Result<Enqueued, BrokerError> {
        let now = self.settings.clock.now();
        let status = record.status(now)?;
        let untaken = status.state == JobState::Queued && record.attempt == 0 && record.due + UNTAKEN <= now;
        if untaken && record.deadline > now {
            let job = self.records.whole_job(record, None, OPERATION).await?;
            self.sender.send_for_a_moment(&job, now, Sending::Beside).await;
        }
        Ok(Enqueued::Known(status))
    }
}
