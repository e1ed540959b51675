//! The worker's half: each call on the record, which decides; the message follows.

pub(crate) mod claim;
pub(crate) mod held;
pub(crate) mod line;
pub(crate) mod poll;
pub(crate) mod running_limit;
pub(crate) mod settle;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::Sqs;
use crate::leases::line::{Ask, Line};
use crate::stored::receipt::Token;
use relay_bridge::contract::{JobId, JobResult, QueueName, RunId};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::{Delivery, Held, LeaseRequest, Leasing, Progress, Receipt, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::rules;
use relay_bridge::settlement::Settlement;

const OPERATION: &str = "lease";

#[async_trait]
impl Leasing for Sqs {
    async fn lease(&self, request: &LeaseRequest) -> Result<Vec<Delivery>, BrokerError> {
        let request = rules::lease_request(request)?;
        let max = usize::try_from(request.max.get()).unwrap_or(1);
        let deadline = Instant::now() + request.wait;
        let mut lines = Vec::with_capacity(request.queues.len());
        for queue in &request.queues {
            self.policies().require(queue, OPERATION).await?;
            lines.push(self.line(queue, OPERATION).await?);
        }
        // In their order first; then, if there is time, of all of them whatever comes.
        if request.wait.is_zero() || lines.len() > 1 {
            let taken = self.take_apart(lines.clone(), max).await?;
            if !taken.is_empty() || request.wait.is_zero() {
                return Ok(taken);
            }
        }
        let (give, mut given) = oneshot::channel();
        let ask = Arc::new(Ask::new(max, deadline, give));
        for line in &lines {
            self.ask(line, &ask);
        }
        tokio::select! {
            answer = &mut given => answer.unwrap_or_else(|_| Err(closed())),
            () = tokio::time::sleep_until(deadline) => match ask.close() {
                // Something is on its way.
                false => given.await.unwrap_or_else(|_| Err(closed())),
                true => Ok(Vec::new()),
            },
            () = self.0.closing.cancelled() => Err(closed()),
        }
    }

    async fn extend(&self, receipt: &Receipt) -> Result<Held, BrokerError> {
        self.extend_lease(receipt).await
    }

    async fn hurried(&self, _: &Receipt) {
        // An end elsewhere is found at the next heartbeat.
        std::future::pending().await
    }

    async fn progress(&self, receipt: &Receipt, _progress: &Progress) -> Result<(), BrokerError> {
        // Nobody can watch on SQS, and a write for each would be paid for.
        Token::read(receipt, "progress").map(drop)
    }

    async fn dead_letter(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        self.keep_letter(letter).await
    }

    async fn retract_dead_letter(&self, job: JobId, run: RunId) -> Result<(), BrokerError> {
        self.retract_letter(job, run).await
    }

    async fn record(&self, result: &JobResult) -> Result<Recorded, BrokerError> {
        self.record_result(result).await
    }

    async fn settle(&self, receipt: &Receipt, settlement: &Settlement) -> Result<(), BrokerError> {
        self.settle_delivery(receipt, settlement).await
    }

    async fn queue_policy(&self, queue: &QueueName) -> Result<QueuePolicy, BrokerError> {
        Ok(self.policies().require(queue, "read policy").await?.as_ref().clone())
    }
}

impl Sqs {
    /// Takes what is in line now, in a task of its own: a caller that goes away while AWS answers leaves deliveries, which
    /// go back.
    async fn take_apart(&self, lines: Vec<Arc<Line>>, max: usize) -> Result<Vec<Delivery>, BrokerError> {
        let (give, given) = oneshot::channel();
        let sqs = self.clone();
        self.0.tasks.spawn(async move {
            let taken = sqs.take_in_order(&lines, max, || give.is_closed()).await;
            if let Err(Ok(unwanted)) = give.send(taken) {
                sqs.hand_back_all(unwanted).await;
            }
        });
        given.await.map_err(|_| closed())?
    }

    async fn take_in_order(
        &self,
        lines: &[Arc<Line>],
        max: usize,
        gone: impl Fn() -> bool,
    ) -> Result<Vec<Delivery>, BrokerError> {
        for line in lines {
            let taken = self.take_now(line, max, &gone).await?;
            if !taken.is_empty() {
                return Ok(taken);
            }
        }
        Ok(Vec::new())
    }

    /// Deliveries that nobody took go back, and have spent no attempt.
    pub(crate) async fn hand_back_all(&self, deliveries: Vec<Delivery>) {
        for delivery in deliveries {
            let back = Settlement::HandBack(Duration::ZERO);
            if let Err(error) = self.settle_delivery(&delivery.receipt, &back).await {
                tracing::warn!(job_id = %delivery.job.id, %error, "a lease nobody took was not handed back: it ends by itself");
            }
        }
    }
}

fn closed() -> BrokerError {
    BrokerError::new(BrokerErrorKind::Unavailable, OPERATION, "the adapter is being closed")
}
