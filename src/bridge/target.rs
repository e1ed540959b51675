//! The broker that jobs go to, as a bridge uses it: a queue's policy remembered for a second, one way to submit, and what
//! a refusal means.

use std::collections::BTreeMap;
use std::time::Duration;

use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{Failure, JobId, Submission};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Enqueued;
use relay_bridge::policy::RetryPolicy;
use relay_bridge::policy_cache::PolicyCache;

/// How long to wait for a target that is away or full: 100 ms at first, 5 s at most.
pub(super) const AWAY: RetryPolicy =
    RetryPolicy { base: Duration::from_millis(100), factor: 2.0, cap: Duration::from_secs(5), newer: BTreeMap::new() };
/// When what the target refuses until somebody mends it is offered again.
pub(super) const TO_BE_MENDED: Duration = Duration::from_secs(30);

/// A broker to submit to.
pub(super) struct Target {
    pub(super) broker: Broker,
    /// The broker's clock.
    clock: Clock,
    policies: PolicyCache,
}

/// The outcome of a submission.
pub(super) enum Placed {
    /// It is a new job.
    Created(JobId),
    /// It was there: an attempt before this one submitted it.
    Found(JobId),
    /// There is another body under its key.
    Conflict(JobId),
    /// The queue does not take this content type.
    NotTaken(Failure),
    /// The queue is not for this client: `Unauthorized`.
    Forbidden(BrokerError),
}

impl Target {
    pub(super) fn new(broker: Broker, clock: Clock) -> Self {
        let policies = PolicyCache::new(&broker, clock.clone());
        Self { broker, clock, policies }
    }

    /// Makes a job of `submission`, which has a key, so that repeating it is harmless.
    ///
    /// # Errors
    /// The broker's; also `NotFound` without such a queue, and `TooLarge` above the queue's own limit.
    pub(super) async fn submit(&self, submission: Submission) -> Result<Placed, BrokerError> {
        const OPERATION: &str = "submit to the target";
        let queue = submission.queue.clone();
        let policy = self.policies.get(&queue).await?.ok_or_else(|| {
            let detail = format!("there is no queue {queue}: create it there, or map to another");
            BrokerError::new(BrokerErrorKind::NotFound, OPERATION, detail)
        })?;
        if !policy.allows(&submission.client) {
            let detail = format!("client {} is none of the `allowed_clients` of queue {queue}", submission.client);
            return Ok(Placed::Forbidden(BrokerError::new(BrokerErrorKind::Unauthorized, OPERATION, detail)));
        }
        if !policy.takes(&submission.content_type) {
            let detail = format!("queue {queue} does not take `{}`", submission.content_type);
            return Ok(Placed::NotTaken(Failure::new("unsupported-media-type", detail)));
        }
        let limit = policy.payload_max;
        let actual = u64::try_from(submission.payload.len()).unwrap_or(u64::MAX);
        if actual > limit {
            let detail = format!("the payload has {actual} bytes, queue {queue} takes {limit}");
            return Err(BrokerError::new(BrokerErrorKind::TooLarge { actual, limit }, OPERATION, detail));
        }
        let job = submission.accept(&policy, self.clock.now());
        let body = job.body();
        match self.broker.jobs.enqueue(job).await? {
            Enqueued::Created(status) => Ok(Placed::Created(status.job_id)),
            Enqueued::Known(status) if body.is_of(status.fingerprint) => Ok(Placed::Found(status.job_id)),
            Enqueued::Known(status) => Ok(Placed::Conflict(status.job_id)),
        }
    }
}

/// How long to wait at least for a target that may take the same call later; `None` if waiting does not help.
pub(super) fn may_pass(error: &BrokerError) -> Option<Duration> {
    match error.kind() {
        BrokerErrorKind::Overloaded { retry_after } => Some(retry_after),
        BrokerErrorKind::QuotaExceeded { .. } | BrokerErrorKind::Unavailable | BrokerErrorKind::Ambiguous => {
            Some(Duration::ZERO)
        }
        _ => None,
    }
}
