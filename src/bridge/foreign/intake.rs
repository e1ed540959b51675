//! Takes messages of a foreign queue and makes jobs of them: first the job, then the end of the message.
//!
//! [`judge`] and the mapping decide the meaning of a message, without I/O; one place settles it. A message in hand is
//! held for as long as the target is away or full, and never more are in hand than there are slots.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use relay_bridge::backoff::random;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::job::{HOPS_MAX, hops};
use relay_bridge::contract::{ClientId, Failure, JobId, QueueName, Submission};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::result_log::Lookup;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::mapping::JobMapping;
use super::{ForeignQueue, Incoming};
use crate::bridge::stats::{ForeignStats, count};
use crate::bridge::target::{AWAY, Placed, TO_BE_MENDED, Target, may_pass};

/// How long a drain may take in all.
const DRAIN_MAX: Duration = Duration::from_secs(15);
/// How long one wait for a result lasts, where somebody is to be told of it.
const OUTCOME_WAIT: Duration = Duration::from_secs(20);
/// How often a settlement is tried whose confirmation does not come.
const SETTLE_TRIES: u32 = 5;
/// For how long a message stays that goes round in a circle with what is put aside.
const CIRCLES: Duration = Duration::from_secs(3_600);
/// After so many deliveries a message that the target refuses for no reason of its own is put aside.
const DELIVERIES_MAX: u64 = 10;

/// Takes messages in.
pub struct Intake {
    target: Target,
    mapping: JobMapping,
    stats: Arc<ForeignStats>,
}

/// The verdict on a message.
#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    /// It is this client's job.
    Taken(ClientId, JobId),
    /// It will never be one.
    Poison(Failure),
    /// Not now.
    GiveBack(Duration),
}

/// The consequence for a message when the target refuses it.
#[derive(Clone, Debug, PartialEq)]
enum Judged {
    /// Submit it again, not before this long.
    Again(Duration),
    Over(Verdict),
}

impl Intake {
    /// An intake that makes jobs at `target`, whose clock is `clock`.
    #[must_use]
    pub fn new(target: Broker, clock: Clock, mapping: JobMapping) -> Self {
        Self { target: Target::new(target, clock), mapping, stats: Arc::default() }
    }

    /// The intake's counters.
    #[must_use]
    pub fn stats(&self) -> Arc<ForeignStats> {
        Arc::clone(&self.stats)
    }

    /// Takes messages of `queue`, at most `slots` at a time, until `shutdown`. Then those in hand are settled, or given
    /// back if the target does not take them at once; it returns within some 15 s.
    pub async fn run<Q: ForeignQueue>(self: Arc<Self>, queue: Arc<Q>, slots: NonZeroU32, shutdown: CancellationToken) {
        let slots = usize::try_from(slots.get()).unwrap_or(usize::MAX);
        let (mut tasks, mut failures) = (JoinSet::new(), 0_u32);
        while !shutdown.is_cancelled() {
            let free = u32::try_from(slots.saturating_sub(tasks.len())).ok().and_then(NonZeroU32::new);
            let Some(free) = free else {
                tokio::select! {
                    Some(ended) = tasks.join_next() => ended_well(ended),
                    () = shutdown.cancelled() => {}
                }
                continue;
            };
            match self.pull(&queue, free, &mut tasks, &shutdown).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures = failures.saturating_add(1);
                    if failures == 1 || failures.is_multiple_of(10) {
                        tracing::warn!(failures, %error, "no messages can be taken, trying again");
                    }
                    tokio::select! {
                        () = sleep(AWAY.backoff(failures, random())) => {}
                        () = shutdown.cancelled() => {}
                    }
                }
            }
        }
        let drained = async {
            while let Some(ended) = tasks.join_next().await {
                ended_well(ended);
            }
        };
        if timeout(DRAIN_MAX, drained).await.is_err() {
            tracing::warn!(messages = tasks.len(), "not settled in time: these messages come again");
        }
    }

    /// One pull. It is seen to its end also in a drain, because what is on its way would be missed for a while otherwise.
    async fn pull<Q: ForeignQueue>(
        self: &Arc<Self>,
        queue: &Arc<Q>,
        max: NonZeroU32,
        tasks: &mut JoinSet<()>,
        shutdown: &CancellationToken,
    ) -> Result<(), BrokerError> {
        let mut pulled = queue.pull(max);
        loop {
            tokio::select! {
                biased;
                Some(ended) = tasks.join_next() => ended_well(ended),
                next = pulled.next() => match next {
                    Some(Ok(incoming)) => {
                        count(&self.stats.received);
                        tasks.spawn(Arc::clone(self).attend(Arc::clone(queue), incoming, shutdown.clone()));
                    }
                    Some(Err(error)) => return Err(error),
                    None => return Ok(()),
                },
            }
        }
    }

    /// Sees one message to its end, and holds it meanwhile.
    async fn attend<Q: ForeignQueue>(
        self: Arc<Self>,
        queue: Arc<Q>,
        incoming: Incoming<Q::Receipt>,
        shutdown: CancellationToken,
    ) {
        let held = async {
            loop {
                sleep(queue.hold_every(&incoming.receipt)).await;
                if let Err(error) = queue.hold(&incoming.receipt).await {
                    tracing::debug!(%error, "a message is not held and may come again");
                }
            }
        };
        tokio::select! {
            biased;
            () = self.see_through(&*queue, &incoming, &shutdown) => {}
            () = held => {}
        }
        count(&self.stats.ended);
    }

    async fn see_through<Q: ForeignQueue>(
        &self,
        queue: &Q,
        incoming: &Incoming<Q::Receipt>,
        shutdown: &CancellationToken,
    ) {
        let receipt = &incoming.receipt;
        let settled = match self.decide(incoming, shutdown).await {
            Verdict::Taken(client, job) if queue.replies() => match self.outcome(&client, job, shutdown).await {
                Some(Lookup::Finished(finished)) => match insist(|| queue.reply(receipt, &finished)).await {
                    Ok(()) => {
                        count(&self.stats.replied);
                        insist(|| queue.taken(receipt)).await
                    }
                    refused => refused,
                },
                Some(_) => {
                    tracing::warn!(%client, %job, "a job and its result are gone: its message ends without an answer");
                    insist(|| queue.taken(receipt)).await
                }
                None => {
                    count(&self.stats.given_back);
                    queue.give_back(receipt, Duration::ZERO).await
                }
            },
            Verdict::Taken(..) => insist(|| queue.taken(receipt)).await,
            Verdict::Poison(why) => {
                let aside = insist(|| queue.put_aside(incoming, &why)).await;
                if aside.is_ok() {
                    count(&self.stats.put_aside);
                    let (subject, place) = (&incoming.message.subject, incoming.message.place.as_deref());
                    tracing::warn!(subject, place, reason = why.reason, detail = why.detail, "message put aside");
                }
                aside
            }
            Verdict::GiveBack(after) => {
                count(&self.stats.given_back);
                queue.give_back(receipt, after).await
            }
        };
        let Err(error) = settled else { return };
        count(&self.stats.unsettled);
        if may_pass(&error).is_some() {
            tracing::debug!(%error, "a message is not settled and comes again");
        } else {
            tracing::error!(%error, "a message can't be settled and comes again, until that is mended");
            queue.give_back(receipt, TO_BE_MENDED).await.ok();
        }
    }

    /// The outcome of a job, once the job ended or its record is gone. `None` in a drain.
    async fn outcome(&self, client: &ClientId, job: JobId, shutdown: &CancellationToken) -> Option<Lookup> {
        let mut tries = 0_u32;
        loop {
            let pause = tokio::select! {
                biased;
                () = shutdown.cancelled() => return None,
                found = self.target.broker.results.wait(client, job, OUTCOME_WAIT) => match found {
                    Ok(Lookup::Open(_)) => Duration::ZERO,
                    Ok(ended) => return Some(ended),
                    Err(error) => {
                        tries = tries.saturating_add(1);
                        tracing::debug!(%job, %error, "a result can't be waited for, trying again");
                        AWAY.backoff(tries, random())
                    }
                },
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = shutdown.cancelled() => return None,
            }
        }
    }

    async fn decide<R>(&self, incoming: &Incoming<R>, shutdown: &CancellationToken) -> Verdict {
        let message = &incoming.message;
        let submission = match self.mapping.submission(message) {
            Ok(submission) => submission,
            // Messages that are put aside come back as well: this one stays, and an operator opens the circle.
            Err(why) if hops(&message.headers) > 2 * HOPS_MAX => {
                tracing::error!(
                    subject = message.subject,
                    detail = why.detail,
                    "bridge loop: the message is held back"
                );
                return Verdict::GiveBack(CIRCLES);
            }
            Err(why) => return Verdict::Poison(why),
        };
        let mut tries = 0_u32;
        while !shutdown.is_cancelled() {
            let error = match self.target.submit(submission.clone()).await {
                Ok(Placed::Created(job)) => {
                    count(&self.stats.created);
                    return Verdict::Taken(submission.client, job);
                }
                Ok(Placed::Found(job)) => {
                    count(&self.stats.found);
                    return Verdict::Taken(submission.client, job);
                }
                Ok(Placed::Conflict(first)) => return conflict(&submission, first),
                Ok(Placed::NotTaken(why)) => return Verdict::Poison(why),
                // Whose job it is, or in which queue, came from the message itself: no operator can mend that.
                Ok(Placed::Forbidden(error)) if !self.mapping.is_fixed() => {
                    return Verdict::Poison(Failure::new("forbidden", error.detail()));
                }
                Ok(Placed::Forbidden(error)) | Err(error) => error,
            };
            let fixed = self.mapping.queue.fixed().is_some();
            match judge(&error, &submission.queue, fixed, message.delivered) {
                Judged::Over(verdict) => return verdict,
                Judged::Again(floor) => {
                    count(&self.stats.refused);
                    tries = tries.saturating_add(1);
                    tokio::select! {
                        () = sleep(AWAY.backoff(tries, random()).max(floor)) => {}
                        () = shutdown.cancelled() => {}
                    }
                }
            }
        }
        Verdict::GiveBack(Duration::ZERO)
    }
}

fn conflict(submission: &Submission, first: JobId) -> Verdict {
    let key = submission.key.as_ref().map_or("", |key| key.as_str());
    Verdict::Poison(Failure::new(
        "idempotency-conflict",
        format!("another body came under the key {key} (job {first})"),
    ))
}

/// Decides about a refusal of the target. `fixed` says whether the queue stands in the configuration, or came from the
/// message itself.
fn judge(error: &BrokerError, queue: &QueueName, fixed: bool, delivered: u64) -> Judged {
    if let Some(floor) = may_pass(error) {
        return Judged::Again(floor);
    }
    Judged::Over(match error.kind() {
        BrokerErrorKind::TooLarge { .. } => Verdict::Poison(Failure::new("payload-too-large", error.to_string())),
        BrokerErrorKind::NotFound if !fixed => {
            Verdict::Poison(Failure::new("unknown-queue", format!("the target has no queue {queue}")))
        }
        BrokerErrorKind::NotFound | BrokerErrorKind::Unauthorized | BrokerErrorKind::NewerVersion { .. } => {
            tracing::error!(%error, "the target refuses the bridge; messages are given back until that is mended");
            Verdict::GiveBack(TO_BE_MENDED)
        }
        // Perhaps the message's fault, perhaps not.
        _ if delivered >= DELIVERIES_MAX => Verdict::Poison(Failure::new("refused", error.to_string())),
        _ => Verdict::GiveBack(TO_BE_MENDED),
    })
}

/// Repeats a settlement whose confirmation does not come.
async fn insist<F>(call: impl Fn() -> F) -> Result<(), BrokerError>
where
    F: Future<Output = Result<(), BrokerError>>,
{
    let mut tries = 0;
    loop {
        tries += 1;
        match call().await {
            Err(error) if may_pass(&error).is_some() && tries < SETTLE_TRIES => {
                sleep(AWAY.backoff(tries, random())).await;
            }
            ended => return ended,
        }
    }
}

fn ended_well(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a message's task ended badly; the message comes again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_of_the_target_has_one_meaning_for_the_message() {
        use BrokerErrorKind as Kind;
        let second = Duration::from_secs(1);
        let aside = |reason: &str| format!("aside {reason}");
        let table = [
            (Kind::Unavailable, true, 1, "again 0ns".to_owned()),
            (Kind::Ambiguous, true, 99, "again 0ns".to_owned()),
            (Kind::Overloaded { retry_after: second }, true, 1, "again 1s".to_owned()),
            (Kind::QuotaExceeded { actual: 1, limit: 1 }, true, 1, "again 0ns".to_owned()),
            (Kind::TooLarge { actual: 2, limit: 1 }, true, 1, aside("payload-too-large")),
            (Kind::NotFound, false, 1, aside("unknown-queue")),
            (Kind::NotFound, true, 99, "back 30s".to_owned()),
            (Kind::Unauthorized, true, 99, "back 30s".to_owned()),
            (Kind::NewerVersion { found: 2, newest: 1 }, true, 99, "back 30s".to_owned()),
            (Kind::Invalid, true, 9, "back 30s".to_owned()),
            (Kind::Invalid, true, 10, aside("refused")),
            (Kind::Corrupt, true, 10, aside("refused")),
        ];
        for (kind, fixed, delivered, expected) in table {
            let error = BrokerError::new(kind, "enqueue", "a test");
            let judged = match judge(&error, &"orders".parse().unwrap(), fixed, delivered) {
                Judged::Again(floor) => format!("again {floor:?}"),
                Judged::Over(Verdict::Poison(why)) => aside(&why.reason),
                Judged::Over(Verdict::GiveBack(after)) => format!("back {after:?}"),
                Judged::Over(Verdict::Taken(..)) => "taken".to_owned(),
            };
            assert_eq!(judged, expected, "{kind:?} {fixed} {delivered}");
        }
    }
}
