//! Turns a message that was pulled into a delivery, whose attempt is counted. A message that must not run is settled
//! here: a run that ended, a cancelled one, a record that is out of date, an envelope of a newer relay.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, Subject, jetstream};
use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::leases::settling::Settling;
use crate::line::lanes::Lanes;
use crate::line::lines::Lines;
use crate::line::order::{Delivered, Order};
use crate::line::queue_state::QueueState;
use crate::records::end_run::Runs;
use crate::records::find::Records;
use crate::records::held::{Held, HeldJobs};
use crate::records::letters::{LetterStore, letter_may_stay};
use crate::records::results::ResultEntries;
use crate::records::timers::{Timers, UNREADABLE_FOR};
use crate::stored::names::Lane;
use crate::stored::receipt::Token;
use crate::stored::record::{Record, Stored, doubtful};
use crate::wire::api::{self, Api};
use relay_bridge::clock::Clock;
use relay_bridge::contract::Job;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::{Delivery, Receipt};
use relay_bridge::newer_jobs::NewerJobs;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::rules;

/// How long a job is set aside while it can't be found out whether its run has ended.
const IN_DOUBT_FOR: Duration = Duration::from_secs(2);

/// A queue's state, and the policy that holds while a lease call is served.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) line: Arc<QueueState>,
    pub(crate) policy: Arc<QueuePolicy>,
}

/// The server's header on a message that it sends without what is in it.
const SIZE: &str = "Nats-Msg-Size";

/// A message that was pulled, with the facts that its subject for answers holds.
pub(crate) struct Pulled {
    record: Record,
    /// The lane from which it came.
    lane: Lane,
    reply: String,
    /// How often the server delivered this message, this time included.
    delivered: u64,
    /// The consumer's number of this delivery.
    number: u64,
    /// How many more the consumer had in line behind it.
    pub(crate) behind: u64,
}

/// A message that is no job's record, and the subject on which it is answered.
pub(crate) struct Unread {
    failure: BrokerError,
    reply: Option<Subject>,
}

/// Turns messages into deliveries.
pub(crate) struct Deliveries {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
    pub(crate) newer_jobs: Arc<NewerJobs>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) lines: Arc<Lines>,
    pub(crate) records: Arc<Records>,
    pub(crate) results: Arc<ResultEntries>,
    pub(crate) letters: Arc<LetterStore>,
    pub(crate) runs: Arc<Runs>,
    pub(crate) held: Arc<HeldJobs>,
    pub(crate) timers: Arc<Timers>,
    pub(crate) settling: Arc<Settling>,
}

impl Deliveries {
    /// The delivery, or `None` if the message was nothing to run.
    pub(crate) async fn deliver(
        &self,
        line: &QueueState,
        policy: &QueuePolicy,
        pulled: Result<Pulled, Unread>,
        asked_at: Instant,
    ) -> Option<Delivery> {
        let pulled = match pulled {
            Ok(pulled) => pulled,
            Err(Unread { failure, reply }) => {
                tracing::warn!(queue = %line.queue, error = %failure, "a message that is no job's record is taken out of line");
                // This answer frees the place that the message takes among its client's jobs. If the answer is lost,
                // the message comes again when its lease ends.
                if let Some(reply) = reply {
                    drop(self.api.answer(&reply, "+TERM", "lease").await);
                }
                return None;
            }
        };
        if pulled.delivered > 1 {
            // No hint told of it, so it took the place of a job that a hint told of.
            line.more(&pulled.lane);
        }
        let stored = (pulled.delivered == 1).then_some(pulled.record.seq);
        let order = line.saw(&pulled.lane, Delivered { delivery: pulled.number, stored, asked_at });
        if order == Order::BeginsAnew {
            self.lines.begins_anew(line, &pulled.lane).await;
        }
        let pulled = match self.whole(pulled).await {
            Ok(Some(pulled)) => pulled,
            // A later record, or none, has taken its place.
            Ok(None) => return None,
            Err(failure) => {
                tracing::warn!(queue = %line.queue, error = %failure, "a job came without what is in it, and could not be read");
                return None;
            }
        };
        match self.examine(line, &pulled, order == Order::Unclear).await {
            Ok(Some(job)) => {
                line.served(&pulled.lane);
                let again = pulled.delivered > 1;
                let delivery = self.give_out(policy, pulled, job, asked_at);
                if again && let Some(held) = self.held.holding.of(delivery.job.id) {
                    // At once, so that a process that asks on behalf of its last holder learns that it is somebody
                    // else's.
                    self.held.tell_state(delivery.job.id, &held, true).await;
                }
                Some(delivery)
            }
            Ok(None) => None,
            Err(failure) => {
                // It stays leased until its time is over; then it comes again.
                tracing::warn!(job_id = %pulled.record.address.job, error = %failure, "a job was taken and could not be looked up");
                None
            }
        }
    }

    /// The message with what is in it. A consumer that somebody changed sends headers alone, until a round has changed it
    /// back: the record is read then, and never written as it came.
    async fn whole(&self, pulled: Pulled) -> Result<Option<Pulled>, BrokerError> {
        if pulled.record.headers.get(SIZE).is_none() {
            return Ok(Some(pulled));
        }
        let Pulled { record: Record { address, seq, .. }, .. } = &pulled;
        let found = self.records.record_at(address, "lease").await?;
        let Some(record) = found.filter(|record| record.seq == *seq) else {
            self.api.delete(&address.stream(), *seq, "lease").await?;
            return Ok(None);
        };
        Ok(Some(Pulled { record, ..pulled }))
    }

    /// The job, if it is to be given out; else its delivery is settled here.
    async fn examine(&self, line: &QueueState, pulled: &Pulled, is_unclear: bool) -> Result<Option<Job>, BrokerError> {
        let record = &pulled.record;
        let in_doubt = is_unclear
            || pulled.delivered > 1
            || record.charged() > 0
            || record.is_doubtful()
            || line.is_below_recheck_mark(record.seq);
        let replaced = match pulled.delivered > 1 {
            true => self.is_replaced(record).await,
            false => Ok(false),
        };
        if let (Err(failure), Ok(job)) = (&replaced, record.job()) {
            self.set_aside_in_doubt(pulled, &job, failure).await?;
            return Ok(None);
        }
        if replaced? {
            // A timer or a later record stands for the job: this one is what a crash left of a step before.
            self.api.delete(&record.address.stream(), record.seq, "lease").await?;
            return Ok(None);
        }
        let job = match record.job() {
            Ok(job) => job,
            Err(unreadable) => {
                self.set_aside(pulled, &unreadable).await?;
                return Ok(None);
            }
        };
        if record.is_cancelled() {
            self.runs.finish_cancel(record, &job).await?;
            return Ok(None);
        }
        if in_doubt {
            let kept = match self.results.kept_result(&job.client, job.id).await {
                Ok(kept) => kept,
                Err(failure) => {
                    self.set_aside_in_doubt(pulled, &job, &failure).await?;
                    return Ok(None);
                }
            };
            if let Some(kept) = kept.filter(|kept| kept.result.run_id >= job.run_id) {
                // For every attempt: a later one may have left its letter.
                if !rules::leaves_letter(kept.result.outcome) {
                    let dropped = self.letters.drop_letter(&job.client, job.id, kept.result.run_id).await;
                    dropped.unwrap_or_else(|error| letter_may_stay(job.id, kept.result.run_id, &error));
                }
                self.settling
                    .end_delivery(&pulled.reply, &pulled.lane, &record.address, record.seq, job.keep_record)
                    .await?;
                return Ok(None);
            }
        }
        if job.keep_until() <= self.clock.now() {
            self.api.delete(&record.address.stream(), record.seq, "lease").await?;
            return Ok(None);
        }
        Ok(Some(job))
    }

    async fn is_replaced(&self, record: &Record) -> Result<bool, BrokerError> {
        let last = self.records.record_at(&record.address, "lease").await?;
        Ok(last.is_some_and(|last| last.seq > record.seq))
    }

    /// A job that this build can't read spends no attempt and is never dead-lettered: a newer relay may read it.
    async fn set_aside(&self, pulled: &Pulled, unreadable: &BrokerError) -> Result<(), BrokerError> {
        let job_id = pulled.record.address.job;
        if matches!(unreadable.kind(), BrokerErrorKind::NewerVersion { .. }) {
            tracing::warn!(%job_id, error = %unreadable, "job of a newer relay set aside");
            self.newer_jobs.add();
        } else {
            tracing::error!(%job_id, error = %unreadable, "damaged job set aside: look at it with `nats stream get`");
        }
        let spent = attempt(pulled).saturating_sub(1);
        self.timers.park(&pulled.record, spent, self.clock.now() + UNREADABLE_FOR, None).await.map(drop)
    }

    /// A run that may have ended is not given out before that is known: a finished job would run again. It comes back
    /// soon, in the same doubt, and has spent no attempt.
    async fn set_aside_in_doubt(&self, pulled: &Pulled, job: &Job, failure: &BrokerError) -> Result<(), BrokerError> {
        tracing::warn!(job_id = %job.id, error = %failure, "a job was set aside: whether its run has ended can't be looked up");
        let (spent, at) = (attempt(pulled).saturating_sub(1), self.clock.now() + IN_DOUBT_FOR);
        let record = Record { headers: doubtful(&pulled.record.headers), ..pulled.record.clone() };
        self.timers.park(&record, spent, at, Some(job)).await.map(drop)
    }

    fn give_out(&self, policy: &QueuePolicy, pulled: Pulled, job: Job, asked_at: Instant) -> Delivery {
        let (attempt, leased_at) = (attempt(&pulled), self.clock.now());
        let Pulled { record, lane, reply, delivered, .. } = pulled;
        let lease = self.lanes.consumers.lease(&job.queue, &lane, policy);
        let token = Token { seq: record.seq, delivered, attempt, leased_at, reply, lane };
        let receipt = Receipt {
            job_id: job.id,
            run_id: job.run_id,
            client: job.client.clone(),
            queue: job.queue.clone(),
            token: token.write(),
        };
        let key = token.key(&receipt);
        let held = Held {
            run: job.run_id,
            attempt,
            until: asked_at + lease,
            started: asked_at,
            held_before: None,
            leased_at,
            job: Arc::new(Job { payload: Bytes::new(), ..job.clone() }),
            reply: token.reply,
            lane: token.lane,
            ended: None,
            told: delivered > 1,
            letterless: false,
            connections: self.api.connections(),
            hurry: CancellationToken::new(),
        };
        self.held.holding.insert(key, held.into());
        Delivery { job, receipt, attempt, leased_at, lease }
    }
}

/// The number of this attempt: attempts spent before the message, and one for each of its deliveries.
fn attempt(pulled: &Pulled) -> u32 {
    pulled.record.charged().saturating_add(u32::try_from(pulled.delivered).unwrap_or(u32::MAX))
}

/// Reads a message that was pulled.
pub(crate) fn read(message: Message, context: jetstream::Context) -> Result<Pulled, Unread> {
    let reply = message.reply.clone();
    read_as_job(message, context).map_err(|failure| Unread { failure, reply })
}

fn read_as_job(message: Message, context: jetstream::Context) -> Result<Pulled, BrokerError> {
    let corrupt = |what: &str| BrokerError::new(BrokerErrorKind::Corrupt, "lease", what);
    let reply = message.reply.clone().ok_or_else(|| corrupt("a message without a subject for answers"))?;
    let message = jetstream::Message { message, context };
    let info = message.info().map_err(|e| corrupt("a subject for answers that no server wrote").with_source(e))?;
    let (seq, at) = (info.stream_sequence, api::millis(info.published.unix_timestamp_nanos()));
    let (delivered, number) = (u64::try_from(info.delivered).unwrap_or(1), info.consumer_sequence);
    let behind = info.pending;
    let Message { subject, headers, payload, .. } = message.message;
    let subject = subject.into_string();
    let record = Record::read(Stored { subject, seq, headers: headers.unwrap_or_default(), payload, at })?;
    let lane = record.address.lane(record.place).ok_or_else(|| corrupt("a record that is in no line"))?;
    Ok(Pulled { record, lane, reply: reply.into_string(), delivered, number, behind })
}
