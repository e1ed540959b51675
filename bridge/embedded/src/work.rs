//! The worker's half: lease, extend, progress, dead letters on their way in, record, settle.
//!
//! Recording a result also ends the job's wait, in one transaction; settling afterwards only lets go of the lease.

use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{OptionalExtension as _, params};
use tokio::sync::oneshot;

use super::dispatch::PENDING_MAX;
use super::grant::{GiveBack, Pending};
use super::lease::read_token;
use super::row::JobRow;
use super::sql::unavailable;
use super::writer::{Beat, Writer, closed};
use super::{Embedded, PAYLOAD_MAX};
use relay_bridge::contract::job::DELAY_MAX;
use relay_bridge::contract::{JobId, JobResult, Outcome, QueueName, RunId};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::{Delivery, Held, LeaseRequest, Leasing, Progress, Receipt, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::rules::refusal::{may_touch, no_job};
use relay_bridge::rules::{self, Known, Verdict};
use relay_bridge::settlement::Settlement;

#[async_trait]
impl Leasing for Embedded {
    async fn lease(&self, request: &LeaseRequest) -> Result<Vec<Delivery>, BrokerError> {
        let request = rules::lease_request(request)?;
        let (reply, answer) = oneshot::channel();
        let pending = Pending {
            queues: request.queues,
            max: request.max,
            deadline: self.clock().monotonic() + request.wait,
            is_here: self.is_here,
            reply,
            give_back: GiveBack { shared: self.shared(), nudge: self.nudge()? },
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
        let (reply, answer) = oneshot::channel();
        let beat = Beat { receipt: receipt.clone(), reply };
        let work = move |writer: &mut Writer| {
            writer.beats.push(beat);
            None
        };
        self.inbox()?.send(Box::new(work)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    async fn ended_early(&self, _: &Receipt) {
        // An end elsewhere is found at the next heartbeat.
        std::future::pending().await
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

    async fn retract_dead_letter(
        &self,
        job: JobId,
        run: RunId,
        within: Option<&[QueueName]>,
    ) -> Result<(), BrokerError> {
        let within = within.map(<[QueueName]>::to_vec);
        self.call(move |writer| writer.retract_dead_letter(job, run, within.as_deref())).await
    }

    async fn record(&self, result: &JobResult) -> Result<Recorded, BrokerError> {
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
    /// Holds a lease for longer. Nothing is written: where the process ends, the lease begins anew with the next one.
    pub(super) fn extend(&mut self, receipt: &Receipt) -> Result<Held, BrokerError> {
        let lost = || BrokerError::new(BrokerErrorKind::LeaseLost, "extend", "the lease ended before");
        let seq = match self.state.leased_seq(receipt) {
            Ok(seq) => seq,
            Err(lost) => return self.end_of_run(receipt)?.map(Held::Ended).ok_or(lost),
        };
        let lease = self.state.leases.get(&seq).ok_or_else(lost)?;
        if let Some(outcome) = lease.ended {
            return Ok(Held::Ended(outcome));
        }
        let policy = self.state.queues.get(&lease.line.0).map(|queue| &queue.policy).ok_or_else(lost)?;
        let now = self.clock.monotonic();
        let until = lease.extended(now, policy);
        if until <= now {
            return Err(BrokerError::new(BrokerErrorKind::LeaseLost, "extend", "the job was held for `lease_max`"));
        }
        self.state.extend_lease(seq, until);
        Ok(Held::Until(until - now))
    }

    /// How the run ended that was under this receipt's lease, if it was the last one: its lease may be forgotten, because
    /// the store was opened since or because it was settled.
    fn end_of_run(&self, receipt: &Receipt) -> Result<Option<Outcome>, BrokerError> {
        let Some((number, seq)) = read_token(receipt) else { return Ok(None) };
        let Ok((queue, _)) = self.state.queue(&receipt.queue) else { return Ok(None) };
        let outcome: Option<Option<String>> = self
            .conn
            .prepare_cached(
                "SELECT outcome FROM jobs WHERE seq = ?1 AND id = ?2 AND run = ?3 AND queue = ?4 AND lease = ?5
                 AND state = 3",
            )
            .and_then(|mut query| {
                let of = params![seq, receipt.job_id.as_bytes(), receipt.run_id.as_bytes(), queue, number];
                query.query_row(of, |row| row.get(0)).optional()
            })
            .map_err(|e| unavailable(e, "find lease"))?;
        Ok(outcome.flatten().and_then(|outcome| outcome.parse().ok()))
    }

    fn dead_letter(&mut self, letter: &DeadLetter) -> Result<(), BrokerError> {
        let row = self.find(letter.job.id)?.filter(|row| !row.is_past_keeping(self.clock.now()));
        let known = match &row {
            Some(row) => Some(self.known(row, row.job(&self.conn)?)?),
            None => None,
        };
        match rules::keep_letter(known.as_ref(), letter, self.clock.now()) {
            Verdict::Do(kept) => {
                if let Some(lease) = row.and_then(|row| self.state.leases.get_mut(&row.seq)) {
                    lease.has_letter = true;
                }
                self.keep_letter(&kept)
            }
            Verdict::Already(()) => Ok(()),
            Verdict::Refuse(error) => Err(error),
        }
    }

    fn retract_dead_letter(&mut self, job: JobId, run: RunId, within: Option<&[QueueName]>) -> Result<(), BrokerError> {
        let Some(row) = self.find(job)? else { return Ok(()) };
        if let Some(queue) = self.state.queues.get(&row.queue) {
            may_touch("retract dead letter", &queue.name, within)?;
        }
        let known = Known { record: None, ended: self.ended(&row)? };
        if rules::retract_letter(Some(&known), run) && self.remove_dead_letter(job, run)? {
            self.done.letters_retracted += 1;
        }
        Ok(())
    }

    fn record(&mut self, sent: &JobResult) -> Result<Recorded, BrokerError> {
        let now = self.clock.now();
        let row = self.find(sent.job_id)?.filter(|row| !row.is_past_keeping(now));
        let (_, queue) = self.state.queue(&sent.queue)?;
        let result_max = queue.policy.result_max.min(PAYLOAD_MAX);
        let known = match &row {
            Some(row) => Some(self.known_to_record(row, sent)?),
            None => None,
        };
        let ending = match rules::record(known.as_ref(), sent, result_max, now).refused()? {
            Ok(ending) => ending,
            Err(recorded) => {
                if let Recorded::Superseded(outcome) = &recorded {
                    let attempt = sent.attempt;
                    tracing::info!(job_id = %sent.job_id, run_id = %sent.run_id, attempt, %outcome, "result superseded");
                }
                self.done.judged.push(Verdict::Already(recorded.clone()));
                return Ok(recorded);
            }
        };
        let Some(row) = row else { return Err(no_job("record", sent.job_id)) };
        if ending.keeps_letter
            && let Some(letter) = rules::letters::own_letter(&row.job(&self.conn)?, &ending.result)
        {
            self.keep_letter(&letter)?;
        }
        // Of a first attempt that succeeds there is none, unless this attempt's worker sent it.
        let lease = self.state.leases.get(&row.seq).filter(|lease| lease.run == row.run);
        let takes_letter = ending.takes_letter || lease.is_none_or(|lease| lease.known.is_none() || lease.has_letter);
        self.finish(&row, &ending.result, takes_letter && !ending.keeps_letter)?;
        self.done.judged.push(Verdict::Do(ending));
        Ok(Recorded::First)
    }

    /// The facts that [`rules::record`] needs, with no more reads than it needs: the job of a lease is in memory, and
    /// only a job that has ended, or is in another run, can have a result.
    fn known_to_record(&self, row: &JobRow, sent: &JobResult) -> Result<Known, BrokerError> {
        let leased = self.state.leases.get(&row.seq).filter(|lease| lease.run == row.run);
        let job = match leased.and_then(|lease| lease.known.clone()) {
            Some(job) => job,
            None => row.job(&self.conn)?.into(),
        };
        let known = self.known(row, job)?;
        if row.run == sent.run_id && !row.is_finished() {
            return Ok(known);
        }
        Ok(Known { ended: self.ended(row)?, ..known })
    }

    fn settle(&mut self, receipt: &Receipt, settlement: &Settlement) -> Result<(), BrokerError> {
        let seq = match self.state.leased_seq(receipt) {
            Ok(seq) => seq,
            // Out of line already.
            Err(lost) => return self.end_of_run(receipt)?.map(|_| ()).ok_or(lost),
        };
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
