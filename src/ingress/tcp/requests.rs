//! The effect of each request of a worker: the queue grant first, then one call of the broker.

use std::time::Duration;

use bytes::Bytes;
use relay_bridge::contract::envelope::{self, EnvelopeError};
use relay_bridge::contract::wire::{FromServer, Request, Response, WireDelivery, WireError};
use relay_bridge::contract::{QueueName, RunId};
use relay_bridge::error::{BrokerError, BrokerErrorKind as Kind};
use relay_bridge::leasing::{Delivery, Held, LEASE_WAIT_MAX, LeaseRequest, Receipt};
use relay_bridge::settlement::Settlement;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::memory::Share;
use super::session::Session;
use super::writer::Outgoing;
use relay_bridge::support::lock;

impl Session {
    /// Leases, until there is something, the wait passed, the worker cancelled, the drain began or the connection
    /// ended. Leased jobs are written or handed back.
    pub(super) async fn lease(
        &self,
        id: u64,
        mut request: LeaseRequest,
        cancel: CancellationToken,
        queue: mpsc::Sender<Outgoing>,
        permit: OwnedSemaphorePermit,
    ) {
        request.wait = request.wait.min(LEASE_WAIT_MAX);
        // The frame may have any name.
        request.worker = self.worker.clone();
        let leased = match self.may_lease(&request).and_then(|()| self.place_to_wait()) {
            Err(refusal) => Err(refusal),
            Ok(_place) => tokio::select! {
                biased;
                leased = self.lease_once_there_is_room(&request) => leased.map_err(|error| WireError::of(&error)),
                () = cancel.cancelled() => Ok(Vec::new()),
                () = self.stop.drain.cancelled() => Ok(Vec::new()),
                () = self.ended.cancelled() => Ok(Vec::new()),
            },
        };
        lock(&self.leases).remove(&id);
        let answers = match leased {
            Err(error) => vec![(FromServer::Error { id: Some(id), error }, Vec::new())],
            Ok(deliveries) => self.divide(id, deliveries).await,
        };
        let last = answers.len() - 1;
        let (mut permit, mut unwritten) = (Some(permit), Vec::new());
        for (index, (message, held)) in answers.into_iter().enumerate() {
            let permit = if index == last { permit.take() } else { None };
            let outgoing = Outgoing { message, permit, held };
            if !unwritten.is_empty() {
                unwritten.extend(outgoing.receipts());
            } else if let Err(mpsc::error::SendError(outgoing)) = queue.send(outgoing).await {
                unwritten.extend(outgoing.receipts());
            }
        }
        self.hand_back(unwritten, Duration::ZERO).await;
    }

    /// Jobs are not taken for a worker whose connections hold what they may, unless they have for a while: small ones fit.
    async fn lease_once_there_is_room(&self, request: &LeaseRequest) -> Result<Vec<Delivery>, BrokerError> {
        drop(self.memory.take(PART_BYTES, request.wait.min(ROOM_WAIT_MAX)).await);
        self.server.leasing.lease(request).await
    }

    /// A place for one more lease. Those of one key leave half of them to others.
    fn place_to_wait(&self) -> Result<Share, WireError> {
        self.waits.try_take(1).ok_or_else(|| {
            let detail = "too many leases of this key wait already: name all queues in one, with a `max` for all jobs that \
                          are wanted, and try again later";
            WireError::new(Kind::Overloaded { retry_after: Duration::from_secs(1) }, detail)
        })
    }

    fn may_lease(&self, request: &LeaseRequest) -> Result<(), WireError> {
        if request.queues.is_empty() {
            return Err(WireError::new(Kind::Invalid, "a lease names 1 to 64 queues"));
        }
        request.queues.iter().try_for_each(|queue| self.may_touch(queue))
    }

    fn may_touch(&self, queue: &QueueName) -> Result<(), WireError> {
        if self.grant.allows(queue) {
            return Ok(());
        }
        Err(WireError::new(Kind::Unauthorized, format!("this worker's key does not grant the queue `{queue}`")))
    }

    /// The answers to one lease: as many messages as it takes to keep each one short, with their bytes. At least one. Jobs for
    /// which there is no memory go back in line.
    async fn divide(&self, id: u64, deliveries: Vec<Delivery>) -> Vec<(FromServer, Vec<Share>)> {
        let frame_max = usize::try_from(self.frame_max).unwrap_or(usize::MAX);
        let mut parts = vec![(Vec::new(), Vec::new())];
        let (mut bytes, mut unfit, mut foreign, mut crowded) = (0, Vec::new(), Vec::new(), Vec::new());
        for delivery in deliveries {
            if !self.grant.allows(&delivery.job.queue) {
                // The worker could not settle it, and may not see it.
                let (job_id, queue) = (delivery.job.id, &delivery.job.queue);
                tracing::error!(%job_id, %queue, "a job of a queue that the worker's key does not grant is handed back");
                foreign.push(delivery.receipt);
                continue;
            }
            let delivery = WireDelivery {
                job: Bytes::from(envelope::encode_job(&delivery.job, self.envelope)),
                receipt: delivery.receipt,
                attempt: delivery.attempt,
                leased_at: delivery.leased_at,
                lease: delivery.lease,
            };
            let size = delivery.bytes_max();
            if size + HEAD_BYTES > frame_max {
                let job_id = delivery.receipt.job_id;
                tracing::error!(%job_id, size, frame_max, "a job is too large for the worker's frames and is handed back");
                unfit.push(delivery.receipt);
                continue;
            }
            let Some(share) = self.memory.try_take(size) else {
                crowded.push(delivery.receipt);
                continue;
            };
            self.writes_a_lease(&delivery.receipt);
            if bytes > 0 && bytes + size > PART_BYTES.min(frame_max - HEAD_BYTES) {
                parts.push((Vec::new(), Vec::new()));
                bytes = 0;
            }
            bytes += size;
            self.hold(delivery.receipt.run_id, delivery.lease);
            if let Some((part, held)) = parts.last_mut() {
                part.push(delivery);
                held.push(share);
            }
        }
        // As with an envelope that can't be read: another worker may take it.
        self.hand_back(unfit, UNFIT_AFTER).await;
        self.hand_back(foreign, Duration::ZERO).await;
        if !crowded.is_empty() && bytes == 0 {
            let kind = Kind::Overloaded { retry_after: Duration::from_secs(1) };
            let detail = "what was sent to workers of this key and is not read yet takes all memory: read it first";
            self.hand_back(crowded, Duration::ZERO).await;
            return vec![(FromServer::Error { id: Some(id), error: WireError::new(kind, detail) }, Vec::new())];
        }
        self.hand_back(crowded, Duration::ZERO).await;
        let last = parts.len() - 1;
        let answer = |(index, (deliveries, held))| {
            let response = Response::Deliveries { deliveries, more: index < last };
            (FromServer::Response { id, response }, held)
        };
        parts.into_iter().enumerate().map(answer).collect()
    }

    /// Performs a request other than a lease and queues its answer. It is finished also when the connection ends, but
    /// not when the drain's time is up.
    pub(super) async fn perform(
        &self,
        id: u64,
        request: Request,
        queue: mpsc::Sender<Outgoing>,
        permit: OwnedSemaphorePermit,
    ) {
        let answer = tokio::select! {
            answer = self.answer(request) => answer,
            () = self.stop.now.cancelled() => return,
        };
        let message = match answer {
            Ok(response) => FromServer::Response { id, response },
            Err(error) => FromServer::Error { id: Some(id), error },
        };
        if queue.send(Outgoing { message, permit: Some(permit), held: Vec::new() }).await.is_err() {
            tracing::debug!(worker = %self.worker, id, "an answer found nobody");
        }
    }

    async fn answer(&self, request: Request) -> Result<Response, WireError> {
        let leasing = &self.server.leasing;
        let broker = |error| WireError::of(&error);
        match request {
            Request::Extend(receipt) => {
                self.may_touch(&receipt.queue)?;
                let held = leasing.extend(&receipt).await.map_err(broker)?;
                if let Held::Until(lease) = held {
                    self.hold(receipt.run_id, lease);
                }
                Ok(Response::Held(held))
            }
            Request::Progress(receipt, progress) => {
                self.may_touch(&receipt.queue)?;
                leasing.progress(&receipt, &progress).await.map_err(broker)?;
                Ok(Response::Done)
            }
            Request::DeadLetter(letter) => {
                let letter = envelope::decode_dead_letter(&letter).map_err(unreadable)?;
                self.may_touch(&letter.job.queue)?;
                leasing.dead_letter(&letter).await.map_err(broker)?;
                Ok(Response::Done)
            }
            // The frame names no queue: the broker knows the job's.
            Request::RetractDeadLetter(job, run) => {
                leasing.retract_dead_letter(job, run, self.grant.queues.as_deref()).await.map_err(broker)?;
                Ok(Response::Done)
            }
            Request::Record(result) => {
                let result = envelope::decode_result(&result).map_err(unreadable)?;
                self.may_touch(&result.queue)?;
                leasing.record(&result).await.map(Response::Recorded).map_err(broker)
            }
            Request::Settle(receipt, settlement) => {
                self.may_touch(&receipt.queue)?;
                let settled = leasing.settle(&receipt, &settlement).await;
                if settled.as_ref().map_or_else(|error| error.kind() == Kind::LeaseLost, |()| true) {
                    lock(&self.held).remove(&receipt.run_id);
                }
                settled.map(|()| Response::Done).map_err(broker)
            }
            Request::QueuePolicy(queue) => {
                self.may_touch(&queue)?;
                leasing.queue_policy(&queue).await.map(|policy| Response::Policy(Box::new(policy))).map_err(broker)
            }
            Request::Lease(_) => Err(WireError::new(Kind::Invalid, "a lease is answered elsewhere")),
        }
    }

    /// Hands deliveries that the worker never saw back, without spending an attempt. Those for which there is no time
    /// go back when their leases end.
    pub(super) async fn hand_back(&self, receipts: Vec<Receipt>, after: Duration) {
        let deadline = Instant::now() + HAND_BACK_TIMEOUT;
        for receipt in receipts {
            lock(&self.held).remove(&receipt.run_id);
            let settlement = Settlement::HandBack(after);
            match time::timeout_at(deadline, self.server.leasing.settle(&receipt, &settlement)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) if error.kind() == Kind::LeaseLost => {}
                Ok(Err(error)) => {
                    tracing::warn!(job_id = %receipt.job_id, %error, "a delivery goes back when its lease ends");
                }
                Err(_) => return tracing::warn!("there was no time to hand back; deliveries go back when leases end"),
            }
        }
    }

    fn hold(&self, run: RunId, lease: Duration) {
        let now = Instant::now();
        let mut held = lock(&self.held);
        if held.len() >= HELD_MAX {
            held.retain(|_, until| *until > now);
        }
        if held.len() < HELD_MAX {
            held.insert(run, now + lease.min(HELD_AT_MOST));
        }
    }

    /// Whether the worker holds jobs that it got here.
    pub(super) fn holds(&self) -> bool {
        let now = Instant::now();
        lock(&self.held).values().any(|until| *until > now)
    }

    /// When the last lease ends that began here.
    pub(super) fn held_until(&self) -> Instant {
        let held = lock(&self.held);
        held.values().max().copied().unwrap_or_else(Instant::now)
    }
}

fn unreadable(error: EnvelopeError) -> WireError {
    let kind = match error {
        EnvelopeError::Newer { found } => Kind::NewerVersion { found, newest: envelope::NEWEST },
        EnvelopeError::Malformed(_) => Kind::Invalid,
    };
    WireError::new(kind, error.to_string())
}

/// The bytes that a message of deliveries has beside them, at most.
const HEAD_BYTES: usize = 256;
/// Larger answers are divided, so that a heartbeat's answer need not wait behind them.
const PART_BYTES: usize = 256 * 1024;
/// How long a lease waits at most until its worker's connections hold less.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long a job that is too large for one worker's frames waits for another.
const UNFIT_AFTER: Duration = Duration::from_secs(30);
/// How long handing back may take when a connection ends.
const HAND_BACK_TIMEOUT: Duration = Duration::from_secs(5);
/// The most runs that a drain remembers for one connection. Past it a drain does not wait for the others.
const HELD_MAX: usize = 8 * 1_024;
/// A drain never waits longer than this for a lease, whatever the policy says.
const HELD_AT_MOST: Duration = Duration::from_secs(3_600);
