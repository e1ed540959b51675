//! The worker's half of the broker. The job's record decides about each call, and the message follows.

pub(crate) mod claim;
pub(crate) mod held;
pub(crate) mod line;
pub(crate) mod lines;
pub(crate) mod poll;
pub(crate) mod received;
pub(crate) mod running_limit;
pub(crate) mod settle;

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::adapter::leases::line::{Ask, Line};
use crate::adapter::leases::lines::Lines;
use crate::adapter::leases::poll::Polls;
use crate::adapter::leases::settle::Settling;
use crate::adapter::results::recording::Recording;
use crate::adapter::stored::letters::LetterStore;
use crate::adapter::stored::policies::Policies;
use crate::limits::PAYLOAD_MAX;
use relay_bridge::contract::{JobId, JobResult, QueueName, RunId};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::{Delivery, Held, LEASE_BYTES_MAX, LeaseRequest, Leasing, Progress, Receipt, Recorded};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::rules;
use relay_bridge::settlement::Settlement;

const OPERATION: &str = "lease";
/// The most jobs that one call is given: whatever their sizes, they stay within [`LEASE_BYTES_MAX`].
const JOBS_MAX: usize = 46;
const _: () = assert!(JOBS_MAX as u64 * PAYLOAD_MAX <= LEASE_BYTES_MAX);

/// The worker's half: hands each call to the part that makes it.
pub(crate) struct Leases {
    pub(crate) closing: CancellationToken,
    pub(crate) policies: Arc<Policies>,
    pub(crate) tasks: TaskTracker,
    pub(crate) lines: Arc<Lines>,
    pub(crate) polls: Arc<Polls>,
    pub(crate) settling: Arc<Settling>,
    pub(crate) letters: Arc<LetterStore>,
    pub(crate) recording: Arc<Recording>,
    pub(crate) _alive: Arc<DropGuard>,
}

#[async_trait]
impl Leasing for Leases {
    async fn lease(&self, request: &LeaseRequest) -> Result<Vec<Delivery>, BrokerError> {
        let request = rules::lease_request(request)?;
        let max = usize::try_from(request.max.get()).unwrap_or(1).min(JOBS_MAX);
        let deadline = Instant::now() + request.wait;
        let mut lines = Vec::with_capacity(request.queues.len());
        for queue in &request.queues {
            self.policies.require(queue, OPERATION).await?;
            lines.push(self.lines.line(queue, OPERATION).await?);
        }
        // First from the queues in their order; then, if there is time, from all of them at once.
        if request.wait.is_zero() || lines.len() > 1 {
            let taken = self.take_apart(lines.clone(), max).await?;
            if !taken.is_empty() || request.wait.is_zero() {
                return Ok(taken);
            }
        }
        let (give, mut given) = oneshot::channel();
        let ask = Arc::new(Ask::new(max, deadline, give));
        for line in &lines {
            self.polls.ask(line, &ask);
        }
        tokio::select! {
            answer = &mut given => answer.unwrap_or_else(|_| Err(closed())),
            () = tokio::time::sleep_until(deadline) => match ask.close() {
                // An answer is on its way.
                false => given.await.unwrap_or_else(|_| Err(closed())),
                true => Ok(Vec::new()),
            },
            () = self.closing.cancelled() => Err(closed()),
        }
    }

    async fn extend(&self, receipt: &Receipt) -> Result<Held, BrokerError> {
        self.settling.extend_lease(receipt).await
    }

    async fn ended_early(&self, _: &Receipt) {
        // An end elsewhere is found at the next heartbeat.
        std::future::pending().await
    }

    async fn progress(&self, receipt: &Receipt, _progress: &Progress) -> Result<(), BrokerError> {
        // Nobody can watch progress on SQS, and each report would cost a write. This process's watchers are told of it.
        self.settling.require_lease(receipt, "progress").await
    }

    async fn dead_letter(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        self.letters.keep_letter(letter).await
    }

    async fn retract_dead_letter(
        &self,
        job: JobId,
        run: RunId,
        within: Option<&[QueueName]>,
    ) -> Result<(), BrokerError> {
        self.letters.retract_letter(job, run, within).await
    }

    async fn record(&self, result: &JobResult) -> Result<Recorded, BrokerError> {
        self.recording.record_result(result).await
    }

    async fn settle(&self, receipt: &Receipt, settlement: &Settlement) -> Result<(), BrokerError> {
        self.settling.settle_delivery(receipt, settlement).await
    }

    async fn queue_policy(&self, queue: &QueueName) -> Result<QueuePolicy, BrokerError> {
        Ok(self.policies.require(queue, "read policy").await?.as_ref().clone())
    }
}

impl Leases {
    /// Takes the jobs that are in line now, in a task of its own: if the caller goes away while AWS answers, the
    /// deliveries are handed back.
    async fn take_apart(&self, lines: Vec<Arc<Line>>, max: usize) -> Result<Vec<Delivery>, BrokerError> {
        let (give, given) = oneshot::channel();
        let (polls, settling) = (Arc::clone(&self.polls), Arc::clone(&self.settling));
        self.tasks.spawn(async move {
            let taken = take_in_order(&polls, &lines, max, || give.is_closed()).await;
            if let Err(Ok(unwanted)) = give.send(taken) {
                settling.hand_back_all(unwanted).await;
            }
        });
        given.await.map_err(|_| closed())?
    }
}

fn closed() -> BrokerError {
    BrokerError::new(BrokerErrorKind::Unavailable, OPERATION, "the adapter is being closed")
}

async fn take_in_order(
    polls: &Polls,
    lines: &[Arc<Line>],
    max: usize,
    gone: impl Fn() -> bool,
) -> Result<Vec<Delivery>, BrokerError> {
    for line in lines {
        let taken = polls.take_now(line, max, &gone).await?;
        if !taken.is_empty() {
            return Ok(taken);
        }
    }
    Ok(Vec::new())
}
