//! The one place that ends a delivery: dead letter (if any), result, settlement, in this order.
//!
//! A crash between any two repeats the step before, harmlessly. Nothing here returns early with a delivery in hand by
//! accident: every error is looked at where it happens.

use std::sync::Arc;

use relay_bridge::contract::result::End;
use relay_bridge::contract::{Failure, Job, JobResult, Outcome, Timestamp};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::{Leasing, Recorded};
use relay_bridge::settlement::Settlement;
use tokio::sync::OwnedSemaphorePermit;

use crate::decide::{Decision, RunEnd, too_large};
use crate::lease::{Lease, Standing};
use crate::retry::{Patience, Refused, persist};
use crate::room::Room;
use crate::stats::{WorkerStats, count};

/// The parts that applying a decision needs beside the decision itself.
pub(crate) struct Settler<'a> {
    pub(crate) leasing: &'a Arc<dyn Leasing>,
    pub(crate) stats: &'a WorkerStats,
    pub(crate) room: &'a Room,
    pub(crate) lease: &'a Lease,
    pub(crate) job: &'a Job,
    /// Attempts started in this run, this one included if it was.
    pub(crate) attempt: u32,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Timestamp,
}

impl Settler<'_> {
    /// Applies the decision as far as the broker lets it, and counts the outcome. `slot` is free once the run's end is
    /// recorded: anybody can repeat the steps that are left then, and nothing depends on them.
    pub(crate) async fn apply(&self, decision: Decision, slot: OwnedSemaphorePermit) {
        match decision {
            Decision::Nothing => self.lost(),
            Decision::Settle(settlement) => {
                let standing = self.lease.standing();
                if self.settle(&settlement).await {
                    match (settlement, standing) {
                        (_, Standing::Ended(_)) => count(&self.stats.ended_elsewhere),
                        (Settlement::RetryAfter(_), _) => count(&self.stats.retried),
                        (Settlement::HandBack(_), _) => count(&self.stats.handed_back),
                        _ => {}
                    }
                }
            }
            Decision::Finish { end, settlement } => self.finish(end, settlement, slot).await,
        }
    }

    async fn finish(&self, end: RunEnd, settlement: Option<Settlement>, slot: OwnedSemaphorePermit) {
        let (end, recorded) = match self.record(&end).await {
            Err(error) => match error.kind() {
                // The broker's own limit is below the queue's.
                BrokerErrorKind::TooLarge { actual, limit } if end.outcome() == Outcome::Succeeded => {
                    if settlement.is_none() {
                        return self.lost();
                    }
                    let end = too_large(actual, limit);
                    let recorded = self.record(&end).await;
                    (end, recorded)
                }
                _ => (end, Err(error)),
            },
            recorded => (end, recorded),
        };
        let outcome = end.outcome();
        drop(slot);
        match recorded {
            Ok(Recorded::First) => {
                self.count_outcome(outcome);
                self.log_end(&end);
                // An attempt before this one may have crashed between its dead letter and its result.
                if outcome == Outcome::Succeeded && self.attempt > 1 {
                    self.retract().await;
                }
            }
            Ok(Recorded::Superseded(winner)) => {
                count(&self.stats.superseded);
                tracing::info!(
                    job_id = %self.job.id, run_id = %self.job.run_id, %outcome, %winner, "result superseded"
                );
                if dead_lettered(outcome) && !dead_lettered(winner) {
                    self.retract().await;
                }
            }
            Err(error) => return self.unrecorded(&error, outcome, settlement).await,
        }
        let Some(settlement) = settlement else { return self.lost() };
        // A result too large for the broker changed the end, and with it the settlement.
        let settlement = if dead_lettered(outcome) { Settlement::DeadLetter } else { settlement };
        self.settle(&settlement).await;
    }

    fn log_end(&self, end: &RunEnd) {
        let (job_id, queue, attempt, outcome) = (self.job.id, &self.job.queue, self.attempt, end.outcome());
        match end {
            RunEnd::Failed(failure) | RunEnd::Exhausted(failure) => {
                let (client, key) = (&self.job.client, self.job.key.as_ref().map(tracing::field::display));
                let why = in_a_line(failure);
                tracing::warn!(%job_id, %queue, %client, key, attempt, %outcome, "run ended: {why}");
            }
            _ => tracing::info!(%job_id, %queue, attempt, %outcome, "run ended"),
        }
    }

    /// Dead letter if there is one, then the result.
    async fn record(&self, end: &RunEnd) -> Result<Recorded, BrokerError> {
        let at = End { attempt: self.attempt, started_at: self.started_at, finished_at: self.finished_at };
        let outcome = end.outcome();
        let result = match end {
            RunEnd::Succeeded(output) => {
                JobResult::succeeded(self.job, at, output.content_type.clone(), output.payload.clone())
            }
            RunEnd::Failed(failure)
            | RunEnd::Exhausted(failure)
            | RunEnd::Expired(failure)
            | RunEnd::Cancelled(failure) => JobResult::unsuccessful(self.job, outcome, at, failure.clone()),
        };
        // After a lost lease nothing but a success may be recorded, also if it is lost between two tries.
        let allowed = || match self.lease.standing() {
            Standing::Held => Patience::Lasting,
            _ if outcome == Outcome::Succeeded => Patience::Short,
            _ => Patience::Over,
        };
        if let RunEnd::Failed(failure) | RunEnd::Exhausted(failure) = end {
            let letter = DeadLetter {
                job: self.job.clone(),
                outcome,
                attempt: self.attempt,
                failure: failure.clone(),
                at: self.finished_at,
                extra: Default::default(),
            };
            self.guard(allowed())?;
            persist("dead letter", allowed, || self.storing(self.leasing.dead_letter(&letter)))
                .await
                .map_err(|refused| refused.error)?;
        }
        self.guard(allowed())?;
        persist("record", allowed, || self.storing(self.leasing.record(&result))).await.map_err(|refused| refused.error)
    }

    /// The answer of a call that needs room in the broker's storage, of which the log is told what matters.
    async fn storing<T>(&self, call: impl Future<Output = Result<T, BrokerError>>) -> Result<T, BrokerError> {
        let answer = call.await;
        self.room.answered(&self.job.queue, &answer);
        answer
    }

    fn guard(&self, allowed: Patience) -> Result<(), BrokerError> {
        if allowed != Patience::Over {
            return Ok(());
        }
        Err(BrokerError::new(BrokerErrorKind::LeaseLost, "record", "the lease ended before the outcome was recorded"))
    }

    /// The outcome could not be recorded: without it the delivery must not leave the line, unless it is gone anyway.
    async fn unrecorded(&self, error: &BrokerError, outcome: Outcome, settlement: Option<Settlement>) {
        match (error.kind(), self.lease.standing()) {
            (_, Standing::Ended(winner)) => {
                if dead_lettered(outcome) && !dead_lettered(winner) {
                    self.retract().await;
                }
                if self.settle(&Settlement::Complete).await {
                    count(&self.stats.ended_elsewhere);
                }
            }
            (BrokerErrorKind::NotFound, Standing::Held) if settlement.is_some() => {
                tracing::warn!(job_id = %self.job.id, %error, "relay keeps no such job, its delivery is dropped");
                self.settle(&Settlement::Complete).await;
            }
            (BrokerErrorKind::LeaseLost, _) | (_, Standing::Lost) => self.lost(),
            (_, Standing::Held) => self.unconfirmed(error),
        }
    }

    async fn retract(&self) {
        let retracted = persist(
            "retract dead letter",
            || Patience::Short,
            || self.leasing.retract_dead_letter(self.job.id, self.job.run_id, None),
        );
        if let Err(Refused { error, .. }) = retracted.await {
            tracing::warn!(
                job_id = %self.job.id, run_id = %self.job.run_id, %error, "dead letter of a finished run not removed"
            );
        }
    }

    /// Whether the settlement is certain.
    async fn settle(&self, settlement: &Settlement) -> bool {
        let ended = |standing| matches!(standing, Standing::Ended(_));
        let live = || match self.lease.standing() {
            Standing::Held => Patience::Lasting,
            Standing::Ended(_) => Patience::Short,
            Standing::Lost => Patience::Over,
        };
        if live() == Patience::Over {
            self.lost();
            return false;
        }
        let receipt = self.lease.receipt();
        // The others are an acknowledgement, which takes no room.
        let stores = matches!(settlement, Settlement::RetryAfter(_) | Settlement::HandBack(_));
        let call = async || match stores {
            true => self.storing(self.leasing.settle(receipt, settlement)).await,
            false => self.leasing.settle(receipt, settlement).await,
        };
        let settled = persist("settle", live, call);
        match settled.await {
            Ok(()) => true,
            // Its answer was lost, and it took effect.
            Err(Refused { error, unsure: true }) if error.kind() == BrokerErrorKind::LeaseLost => true,
            // The outcome is recorded, or the broker gives the job to someone else.
            Err(Refused { error, .. }) if error.kind() == BrokerErrorKind::LeaseLost => {
                if !ended(self.lease.standing()) {
                    self.lost();
                }
                false
            }
            Err(Refused { error, .. }) => {
                self.unconfirmed(&error);
                false
            }
        }
    }

    fn lost(&self) {
        count(&self.stats.leases_lost);
        tracing::warn!(job_id = %self.job.id, queue = %self.job.queue, attempt = self.attempt, "lease lost");
    }

    fn unconfirmed(&self, error: &BrokerError) {
        count(&self.stats.unconfirmed);
        if error.is_of_storage() {
            // Said for all of them at once.
            tracing::debug!(job_id = %self.job.id, %error, "delivery not settled, the job comes again when its lease ends");
            return;
        }
        tracing::warn!(job_id = %self.job.id, %error, "delivery not settled, the job comes again when its lease ends");
    }

    fn count_outcome(&self, outcome: Outcome) {
        match outcome {
            Outcome::Succeeded => count(&self.stats.succeeded),
            Outcome::Failed => count(&self.stats.failed),
            Outcome::Exhausted => count(&self.stats.exhausted),
            Outcome::Expired => count(&self.stats.expired),
            Outcome::Cancelled => count(&self.stats.cancelled),
        }
    }
}

fn dead_lettered(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Failed | Outcome::Exhausted)
}

/// The longest part of a detail in a line of the log, in bytes.
const LINE_BYTES_MAX: usize = 300;

/// A failure in one line for people: its reason and the first line of its detail.
pub(crate) fn in_a_line(failure: &Failure) -> String {
    let first = failure.detail.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let mut text = String::new();
    for c in first.chars().filter(|c| !c.is_control()) {
        if text.len() + c.len_utf8() > LINE_BYTES_MAX {
            text.push('…');
            break;
        }
        text.push(c);
    }
    if text.is_empty() { failure.reason.clone() } else { format!("{}: {text}", failure.reason) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_in_one_line_without_what_a_terminal_would_obey() {
        let said = |detail: &str| in_a_line(&Failure::new("exit-code", detail));
        assert_eq!(
            said("the command exited with 3: no\u{1b}[31m file\nmore"),
            "exit-code: the command exited with 3: no[31m file"
        );
        assert_eq!(said("\n  \n second\n"), "exit-code: second");
        assert_eq!(said(""), "exit-code");
        let long = said(&"ü".repeat(1_000));
        assert!(long.ends_with('…') && long.len() <= "exit-code: ".len() + LINE_BYTES_MAX + '…'.len_utf8());
    }
}
