//! Taking a job: its payload if it is large, its record if there is none, its message. The answer comes after the record,
//! which is what makes the job durable; sending is relay's duty from then on.

use crate::Sqs;
use crate::aws::item::Item;
use crate::aws::table::Written;
use crate::stored::record::{INLINE_MAX, Record, check_size, left_to_sweep, new_record, payload_item};
use crate::stored::wake_up::Sending;
use relay_bridge::contract::{Job, JobState, RunId, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Enqueued;

const OPERATION: &str = "enqueue";
/// A replay sends a job again that nobody took in so long. Its first message may still be on its way before.
const UNTAKEN: std::time::Duration = std::time::Duration::from_secs(5);
/// How long an answer waits for SQS, and how many messages may be on their way to it meanwhile: up to 22 KiB each.
const SEND_MAX: std::time::Duration = std::time::Duration::from_millis(500);
pub(crate) const SENDING_MAX: usize = 1_000;
/// How often a key is tried whose record changes under the write.
const TRIES: u32 = 3;

impl Sqs {
    /// Makes `job` durable, or finds the one that has its id.
    pub(crate) async fn take_job(&self, job: Job) -> Result<Enqueued, BrokerError> {
        let policy = self.policies().require(&job.queue, OPERATION).await?;
        let refusal = match check_size(job.payload.len(), policy.payload_max, OPERATION) {
            Err(too_large) => Some(too_large),
            Ok(()) => {
                let limit = policy.client(&job.client).max_queued;
                self.take_place(&job.queue, &job.client, limit, OPERATION).await?
            }
        };
        if let Some(refusal) = refusal {
            // A known job is answered where a new one would be refused.
            return match self.owned(&job.client, job.id, OPERATION).await? {
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
            self.leave_line(&queue, &client, OPERATION).await;
        }
        put
    }

    /// The same for a job that has its place in line.
    async fn put_job(&self, mut job: Job) -> Result<Enqueued, BrokerError> {
        if job.key.is_some()
            && job.payload.len() > INLINE_MAX
            && let Some(record) = self.owned(&job.client, job.id, OPERATION).await?
        {
            // A look is cheaper than a payload that is written for nothing.
            return self.known(&record).await;
        }
        let call = uuid::Uuid::new_v4().simple().to_string()[..12].to_owned();
        for _ in 0..TRIES {
            let now = self.clock().now();
            if job.payload.len() > INLINE_MAX {
                self.table().put(payload_item(&job), OPERATION).await?;
            }
            let item = new_record(&job, self.wire(), now, self.is_fifo()).text("call", &call);
            // A record past its keeping counts as absent; the job starts anew under a greater run.
            let condition = "attribute_not_exists(#pk) OR (#keep <= :now AND #run < :run)";
            let values = Item::default().time(":now", now).text(":run", job.run_id.to_string());
            let found = match self.table().put_if(item, condition, values, OPERATION).await? {
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
                // The SDK repeated a write whose answer was lost, and met it.
                return self.created(job, now).await;
            }
            return self.known(&record).await;
        }
        let why = "the job's record keeps changing: enqueue again with the same key";
        Err(BrokerError::new(BrokerErrorKind::Ambiguous, OPERATION, why))
    }

    async fn created(&self, job: Job, now: Timestamp) -> Result<Enqueued, BrokerError> {
        self.counted(&job.queue, &job.client);
        self.send_quietly(&job).await;
        let record = Record::read(new_record(&job, self.wire(), now, self.is_fifo()))?;
        Ok(Enqueued::Created(record.status(now)?))
    }

    /// Sends the job's message if it is not the sweep's. What fails is left to the sweep: the job was accepted.
    pub(crate) async fn send_quietly(&self, job: &Job) {
        let now = self.clock().now();
        let due = job.due(now);
        if left_to_sweep(due, now, self.is_fifo()) {
            return;
        }
        self.send_for_a_moment(job, due, Sending::First).await;
    }

    /// Sends the job's message and waits for a moment at most; then the send goes on by itself, unless too many do.
    async fn send_for_a_moment(&self, job: &Job, due: Timestamp, sending: Sending) {
        let send = async {
            let place = self.0.sending.clone().acquire_owned().await;
            let (sqs, job) = (self.clone(), job.clone());
            let sent = self.0.tasks.spawn(async move {
                let _place = place;
                if let Err(error) = sqs.wake(&job, due, sending).await {
                    tracing::warn!(job_id = %job.id, %error, "a job was accepted and not sent: the sweep sends it");
                }
            });
            // Its end is all that is waited for.
            drop(sent.await);
        };
        if tokio::time::timeout(SEND_MAX, send).await.is_err() {
            tracing::warn!(job_id = %job.id, "a job was accepted and SQS does not answer: if need be the sweep sends it");
        }
    }

    /// The answer to a replay. A job that nobody took is sent again: its first message may never have been.
    async fn known(&self, record: &Record) -> Result<Enqueued, BrokerError> {
        let now = self.clock().now();
        let status = record.status(now)?;
        let untaken = status.state == JobState::Queued && record.attempt == 0 && record.due + UNTAKEN <= now;
        if untaken && record.deadline > now {
            let job = self.whole_job(record, None, OPERATION).await?;
            self.send_for_a_moment(&job, now, Sending::Beside).await;
        }
        Ok(Enqueued::Known(status))
    }
}
