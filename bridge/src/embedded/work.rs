//! The worker's half: lease, extend, progress, dead letters on their way in, record, settle.
//!
//! Recording a result also ends the job's wait, in one transaction; settling afterwards only lets go of the lease.

use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{OptionalExtension as _, params};
use tokio::sync::oneshot;

use super::dispatch::{GiveBack, PENDING_MAX, Pending};
use super::jobs::too_large;
use super::row::JobRow;
use super::schema::unavailable;
use super::writer::{Writer, closed};
use super::{Embedded, PAYLOAD_MAX};
use crate::contract::envelope::encode_dead_letter;
use crate::contract::job::DELAY_MAX;
use crate::contract::{ClientId, JobId, JobResult, Outcome, QueueName, RunId};
use crate::dead_letters::DeadLetter;
use crate::error::{BrokerError, BrokerErrorKind};
use crate::leasing::{
    Delivery, Held, LEASE_BATCH_MAX, LEASE_QUEUES_MAX, LEASE_WAIT_MAX, LeaseRequest, Leasing, Progress, Receipt,
    Recorded,
};
use crate::policy::QueuePolicy;
use crate::settlement::Settlement;

#[async_trait]
impl Leasing for Embedded {
    async fn lease(&self, request: &LeaseRequest) -> Result<Vec<Delivery>, BrokerError> {
        if request.queues.is_empty() || request.queues.len() > LEASE_QUEUES_MAX {
            let why = format!("{} queues were named, allowed are 1 to {LEASE_QUEUES_MAX}", request.queues.len());
            return Err(BrokerError::new(BrokerErrorKind::Invalid, "lease", why));
        }
        let (reply, answer) = oneshot::channel();
        let pending = Pending {
            queues: request.queues.clone(),
            max: request.max.min(std::num::NonZeroU32::new(LEASE_BATCH_MAX).unwrap_or(request.max)),
            deadline: self.clock().monotonic() + request.wait.min(LEASE_WAIT_MAX),
            reply,
            give_back: GiveBack { shared: self.shared(), inbox: self.inbox()?.downgrade() },
        };
        let work = move |writer: &mut Writer| {
            if writer.pending.len() >= PENDING_MAX {
                let full = BrokerErrorKind::Overloaded { retry_after: Duration::from_secs(1) };
                pending.refuse(&BrokerError::new(full, "lease", "too many workers wait at once"));
            } else {
                writer.pending.push_back(pending);
            }
            None
        };
        self.inbox()?.send(Box::new(work)).await.map_err(|_| closed())?;
        Ok(answer.await.map_err(|_| closed())??.take())
    }

    async fn extend(&self, receipt: &Receipt) -> Result<Held, BrokerError> {
        let receipt = receipt.clone();
        self.call(move |writer| writer.extend(&receipt)).await
    }

    async fn progress(&self, receipt: &Receipt, progress: &Progress) -> Result<(), BrokerError> {
        let (receipt, progress) = (receipt.clone(), progress.clone());
        self.call(move |writer| {
            writer.state.leased_seq(&receipt)?;
            tracing::debug!(job_id = %receipt.job_id, percent = progress.percent, "progress");
            Ok(())
        })
        .await
    }

    async fn dead_letter(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        let letter = letter.clone();
        self.call(move |writer| writer.dead_letter(&letter)).await
    }

    async fn retract_dead_letter(&self, job: JobId, run: RunId) -> Result<(), BrokerError> {
        self.call(move |writer| writer.retract_dead_letter(job, run)).await
    }

    async fn record(&self, result: &JobResult) -> Result<Recorded, BrokerError> {
        let actual = result.payload.len() as u64;
        if actual > PAYLOAD_MAX {
            return Err(too_large("record", actual, PAYLOAD_MAX));
        }
        let result = result.clone();
        self.call(move |writer| writer.record(&result)).await
    }

    async fn settle(&self, receipt: &Receipt, settlement: &Settlement) -> Result<(), BrokerError> {
        let (receipt, settlement) = (receipt.clone(), settlement.clone());
        self.call(move |writer| writer.settle(&receipt, &settlement)).await
    }

    async fn queue_policy(&self, queue: &QueueName) -> Result<QueuePolicy, BrokerError> {
        let queue = queue.clone();
        self.call(move |writer| writer.state.queue(&queue).map(|(_, queue)| queue.policy.clone())).await
    }
}

impl Writer {
    fn extend(&mut self, receipt: &Receipt) -> Result<Held, BrokerError> {
        let lost = || BrokerError::new(BrokerErrorKind::LeaseLost, "extend", "the lease ended before");
        let seq = self.state.leased_seq(receipt)?;
        let lease = self.state.leases.get(&seq).ok_or_else(lost)?;
        if let Some(outcome) = lease.ended {
            return Ok(Held::Ended(outcome));
        }
        let policy = self.state.queues.get(&lease.line.0).map(|queue| &queue.policy).ok_or_else(lost)?;
        let now = self.clock.monotonic();
        let until = (now + policy.lease).min(lease.started + policy.lease_max);
        if until <= now {
            return Err(BrokerError::new(BrokerErrorKind::LeaseLost, "extend", "the job was held for `lease_max`"));
        }
        self.state.extend_lease(seq, until);
        Ok(Held::Until(until - now))
    }

    fn dead_letter(&mut self, letter: &DeadLetter) -> Result<(), BrokerError> {
        let (queue, found) = self.state.queue(&letter.job.queue)?;
        let remove_at = self.clock.now() + found.policy.dead_retention;
        let row = self.find(letter.job.id)?.filter(|row| self.belongs(row, &letter.job.client, &letter.job.queue));
        let row = row.ok_or_else(|| {
            BrokerError::new(BrokerErrorKind::NotFound, "dead-letter", format!("there is no job {}", letter.job.id))
        })?;
        if row.run > letter.job.run_id {
            // The job is in a later run: this one needs no letter any more.
            return Ok(());
        }
        if (row.run, row.generation) != (letter.job.run_id, letter.job.generation) {
            let why = "the letter names a run that no relay gave out";
            return Err(BrokerError::new(BrokerErrorKind::Invalid, "dead-letter", why));
        }
        self.begin()?;
        self.conn
            .prepare_cached(
                "INSERT INTO dead_letters(job, run, queue, remove_at, envelope) VALUES(?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO NOTHING",
            )
            .and_then(|mut insert| {
                insert.execute(params![
                    letter.job.id.as_bytes(),
                    letter.job.run_id.as_bytes(),
                    queue,
                    remove_at.as_millis(),
                    encode_dead_letter(letter, self.wire),
                ])
            })
            .map_err(|e| unavailable(e, "dead-letter"))?;
        Ok(())
    }

    /// Only a run that ended well, or by the client's or the clock's hand, needs no dead letter.
    fn retract_dead_letter(&mut self, job: JobId, run: RunId) -> Result<(), BrokerError> {
        let row = self.find(job)?.filter(|row| row.run == run);
        match row.and_then(|row| row.outcome) {
            Some(Outcome::Succeeded | Outcome::Cancelled | Outcome::Expired) => {
                self.remove_dead_letter(job, run).map(|_| ())
            }
            Some(Outcome::Failed | Outcome::Exhausted) | None => Ok(()),
        }
    }

    pub(super) fn remove_dead_letter(&mut self, job: JobId, run: RunId) -> Result<bool, BrokerError> {
        self.begin()?;
        self.conn
            .prepare_cached("DELETE FROM dead_letters WHERE job = ?1 AND run = ?2")
            .and_then(|mut delete| delete.execute(params![job.as_bytes(), run.as_bytes()]))
            .map(|removed| removed > 0)
            .map_err(|e| unavailable(e, "remove dead letter"))
    }

    fn record(&mut self, result: &JobResult) -> Result<Recorded, BrokerError> {
        let not_found =
            || BrokerError::new(BrokerErrorKind::NotFound, "record", format!("there is no job {}", result.job_id));
        let row = self.find(result.job_id)?.ok_or_else(not_found)?;
        let now = self.clock.now();
        let owner = self.belongs(&row, &result.client, &result.queue);
        if row.is_past_keeping(now) || !owner {
            return Err(not_found());
        }
        if row.run < result.run_id {
            let why = "the run is greater than the job's: no relay gave it out";
            return Err(BrokerError::new(BrokerErrorKind::Invalid, "record", why));
        }
        if row.run == result.run_id && !row.is_finished() {
            self.finish(&row, result)?;
            return Ok(Recorded::First);
        }
        let outcome = match row.outcome {
            Some(outcome) => outcome,
            None => self.outcome_before(&row)?.unwrap_or(result.outcome),
        };
        tracing::info!(job_id = %row.id, run_id = %result.run_id, attempt = result.attempt, %outcome, "result superseded");
        Ok(Recorded::Superseded(outcome))
    }

    /// Whether the job is this client's and in this queue: a worker of one queue ends no job of another.
    fn belongs(&self, row: &JobRow, client: &ClientId, queue: &QueueName) -> bool {
        self.state.clients.get(&row.client) == Some(client)
            && self.state.queues.get(&row.queue).is_some_and(|found| found.name == *queue)
    }

    /// The outcome of the run before an open one.
    fn outcome_before(&self, row: &JobRow) -> Result<Option<Outcome>, BrokerError> {
        let outcome: Option<String> = self
            .conn
            .query_row("SELECT outcome FROM results WHERE seq = ?1", [row.seq], |row| row.get(0))
            .optional()
            .map_err(|e| unavailable(e, "record"))?;
        Ok(outcome.and_then(|outcome| outcome.parse().ok()))
    }

    fn settle(&mut self, receipt: &Receipt, settlement: &Settlement) -> Result<(), BrokerError> {
        let seq = self.state.leased_seq(receipt)?;
        match settlement {
            Settlement::Complete | Settlement::DeadLetter => {
                if self.state.leases.get(&seq).is_some_and(|lease| lease.ended.is_none()) {
                    let why = "the run has no result yet: record it first";
                    return Err(BrokerError::new(BrokerErrorKind::Invalid, "settle", why));
                }
                self.put_back(seq, Duration::ZERO, false)
            }
            Settlement::RetryAfter(after) => {
                self.put_back(seq, (*after).clamp(Duration::from_millis(1), DELAY_MAX), false)
            }
            Settlement::HandBack(after) => self.put_back(seq, (*after).min(DELAY_MAX), true),
        }
    }
}
