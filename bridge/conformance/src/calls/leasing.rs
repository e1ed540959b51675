//! A worker's handle whose calls are repeated.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::{Calls, token};
use relay_bridge::contract::{JobId, JobResult, QueueName, RunId};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::{Delivery, Held, LeaseRequest, Leasing, Progress, Receipt, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::{Lookup, ResultLog};
use relay_bridge::settlement::Settlement;

/// Brokers count in milliseconds.
const RESOLUTION: Duration = Duration::from_millis(2);

pub(super) struct Repeating {
    pub(super) inner: Arc<dyn Leasing>,
    pub(super) results: Arc<dyn ResultLog>,
    pub(super) calls: Calls,
}

impl Repeating {
    /// Whether `result` is the run's result.
    async fn is_recorded(&self, result: &JobResult) -> Result<bool, BrokerError> {
        let lookup = || self.results.lookup(&result.client, result.job_id);
        Ok(match self.calls.call("lookup", lookup).await.answer? {
            Lookup::Finished(kept) => {
                let kept = &kept.result;
                (kept.run_id, kept.attempt, kept.outcome) == (result.run_id, result.attempt, result.outcome)
                    && kept.payload == result.payload
            }
            Lookup::Open(_) | Lookup::Absent => false,
        })
    }
}

#[async_trait]
impl Leasing for Repeating {
    async fn lease(&self, request: &LeaseRequest) -> Result<Vec<Delivery>, BrokerError> {
        let deadline = Instant::now().checked_add(request.wait);
        let mut asked = Instant::now();
        let answered = self
            .calls
            .repeat("lease", || {
                asked = Instant::now();
                let left = deadline.map_or(request.wait, |deadline| deadline.saturating_duration_since(asked));
                let request = LeaseRequest { wait: left, ..request.clone() };
                async move { self.inner.lease(&request).await }
            })
            .await;
        let deliveries = answered.answer?;
        for delivery in &deliveries {
            self.calls.leased(delivery, asked);
        }
        Ok(deliveries)
    }

    async fn extend(&self, receipt: &Receipt) -> Result<Held, BrokerError> {
        let mut asked = Instant::now();
        let extend = || {
            asked = Instant::now();
            self.inner.extend(receipt)
        };
        let held = self.calls.call("extend", extend).await.answer?;
        if let Held::Until(left) = held {
            let mut state = self.calls.state();
            state.held.insert(token(receipt), asked + left);
            state.back.insert(receipt.run_id, asked + left);
        }
        Ok(held)
    }

    async fn ended_early(&self, receipt: &Receipt) {
        self.inner.ended_early(receipt).await;
    }

    async fn progress(&self, receipt: &Receipt, progress: &Progress) -> Result<(), BrokerError> {
        self.calls.call("progress", || self.inner.progress(receipt, progress)).await.answer
    }

    async fn dead_letter(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        self.calls.call("dead-letter", || self.inner.dead_letter(letter)).await.answer
    }

    async fn retract_dead_letter(
        &self,
        job: JobId,
        run: RunId,
        within: Option<&[QueueName]>,
    ) -> Result<(), BrokerError> {
        self.calls.call("retract dead letter", || self.inner.retract_dead_letter(job, run, within)).await.answer
    }

    async fn record(&self, result: &JobResult) -> Result<Recorded, BrokerError> {
        let answered = self.calls.call("record", || self.inner.record(result)).await;
        match answered.answer? {
            Recorded::Superseded(outcome)
                if answered.in_doubt && outcome == result.outcome && self.is_recorded(result).await? =>
            {
                Ok(Recorded::First)
            }
            recorded => Ok(recorded),
        }
    }

    async fn settle(&self, receipt: &Receipt, settlement: &Settlement) -> Result<(), BrokerError> {
        let asked = Instant::now();
        let was_held = self.calls.state().held.get(&token(receipt)).is_some_and(|until| asked < *until);
        let answered = self.calls.call("settle", || self.inner.settle(receipt, settlement)).await;
        match answered.answer {
            // The first call settled it.
            Err(error) if answered.in_doubt && was_held && error.kind() == BrokerErrorKind::LeaseLost => {}
            answer => answer?,
        }
        if was_held {
            match settlement {
                Settlement::RetryAfter(delay) | Settlement::HandBack(delay) => {
                    self.calls.comes_back(receipt.run_id, asked, *delay);
                }
                Settlement::Complete | Settlement::DeadLetter => drop(self.calls.state().back.remove(&receipt.run_id)),
            }
        }
        Ok(())
    }

    async fn queue_policy(&self, queue: &QueueName) -> Result<QueuePolicy, BrokerError> {
        self.calls.call("queue policy", || self.inner.queue_policy(queue)).await.answer
    }
}

impl Calls {
    /// Notes until when a delivery is held and from when on its run may come again, from a call that was made at `asked`.
    fn leased(&self, delivery: &Delivery, asked: Instant) {
        let (until, token) = (asked + delivery.lease, token(&delivery.receipt));
        let mut state = self.state();
        state.held.insert(token.clone(), until);
        let was_due = state.back.insert(delivery.job.run_id, until).is_some_and(|at| at <= Instant::now() + RESOLUTION);
        if was_due {
            state.due.insert(token);
        }
    }

    /// Notes that a run is in line again `delay` after `asked`.
    pub(super) fn comes_back(&self, run: RunId, asked: Instant, delay: Duration) {
        if let Some(at) = asked.checked_add(delay) {
            self.state().back.insert(run, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_bridge::contract::{Job, Submission, Timestamp};

    const LEASE: Duration = Duration::from_secs(5);

    fn job() -> Job {
        let submission = Submission {
            client: "acme".parse().unwrap(),
            queue: "work".parse().unwrap(),
            key: None,
            content_type: "text/plain".to_owned(),
            content_encoding: None,
            headers: Default::default(),
            payload: "payload".into(),
            delay: Duration::ZERO,
            expires_in: None,
        };
        submission.accept(&QueuePolicy::default(), Timestamp::from_millis(1_763_865_086_007))
    }

    fn delivery(job: &Job, attempt: u32) -> Delivery {
        let receipt = Receipt {
            job_id: job.id,
            run_id: job.run_id,
            client: job.client.clone(),
            queue: job.queue.clone(),
            token: vec![u8::try_from(attempt).unwrap()],
        };
        Delivery { job: job.clone(), receipt, attempt, leased_at: job.accepted_at, lease: LEASE }
    }

    #[test]
    fn a_job_that_comes_after_its_lease_was_due_and_one_that_comes_before_was_not() {
        let now = Instant::now();
        for (asked, due) in [(now - LEASE, true), (now, false)] {
            let (calls, job) = (Calls::new(1), job());
            calls.leased(&delivery(&job, 1), asked);
            assert!(!calls.was_due(&delivery(&job, 1)), "it was never away");
            calls.leased(&delivery(&job, 2), now);
            assert_eq!(calls.was_due(&delivery(&job, 2)), due);
        }
    }

    #[test]
    fn a_job_that_comes_before_its_delay_was_not_due() {
        let (calls, job, now) = (Calls::new(1), job(), Instant::now());
        calls.comes_back(job.run_id, now, LEASE);
        calls.leased(&delivery(&job, 1), now);
        assert!(!calls.was_due(&delivery(&job, 1)));
    }
}
