//! A broker that fails from a seed: requests and replies are lost, calls are late, leases end early, deliveries come
//! twice. The same seed and the same calls give the same faults, so that a test that fails can be run again.
//!
//! # Layout
//!
//! - [`FaultOptions`] says how often, [`Faults`] decides; its decisions are a pure function of seed, operation and the
//!   number of the call.
//! - [`Faults::leasing`], [`Faults::jobs`] and [`Faults::broker`] decorate what a worker and an ingress use.

mod decide;
mod jobs;
mod leasing;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use decide::{Decision, Fate};

use relay_bridge::broker::Broker;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::JobQueue;
use relay_bridge::leasing::Leasing;
use relay_bridge::support::lock;

/// How often each fault happens. All percentages are of calls (or of deliveries), 0 to 100; larger ones count as 100.
/// The default fails nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultOptions {
    /// From which all decisions come.
    pub seed: u64,
    /// The request never reaches the broker: `Unavailable`, no effect.
    pub request_lost_percent: u8,
    /// The broker did it and the answer is lost: `Ambiguous`. Taken after `request_lost_percent`; together at most 100.
    pub reply_lost_percent: u8,
    /// The call is late by a random part of `delay_max`, on tokio's clock.
    pub delay_percent: u8,
    /// The longest delay.
    pub delay_max: Duration,
    /// A delivery's lease ends at once, unknown to its holder: the job is in line again and its attempt is spent.
    pub lease_cut_percent: u8,
    /// A delivery is handed out twice in the same answer, with the same receipt.
    pub duplicate_percent: u8,
}

/// Decides and counts faults; clones share both.
#[derive(Clone, Debug)]
pub struct Faults(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: FaultOptions,
    healed: AtomicBool,
    calls: Mutex<Calls>,
}

/// The decisions so far. The operations are a fixed set, so this does not grow with the calls.
#[derive(Debug, Default)]
struct Calls {
    numbers: BTreeMap<&'static str, u64>,
    counts: FaultCounts,
    digest: u64,
}

/// How many faults there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Calls that were decided about.
    pub calls: u64,
    /// Requests that never reached the broker.
    pub requests_lost: u64,
    /// Replies that never reached the caller.
    pub replies_lost: u64,
    /// Calls that were late.
    pub delays: u64,
    /// Leases that ended early.
    pub leases_cut: u64,
    /// Deliveries that came twice.
    pub duplicates: u64,
}

impl Faults {
    /// Faults as `options` says.
    #[must_use]
    pub fn new(options: FaultOptions) -> Self {
        Self(Arc::new(Inner { options, healed: AtomicBool::new(false), calls: Mutex::default() }))
    }

    /// A worker's handle that fails.
    #[must_use]
    pub fn leasing(&self, inner: Arc<dyn Leasing>) -> Arc<dyn Leasing> {
        Arc::new(leasing::Faulty { inner, faults: self.clone() })
    }

    /// A submitter's handle that fails.
    #[must_use]
    pub fn jobs(&self, inner: Arc<dyn JobQueue>) -> Arc<dyn JobQueue> {
        Arc::new(jobs::Faulty { inner, faults: self.clone() })
    }

    /// The broker with both of them; calls of readers and operators do not fail.
    #[must_use]
    pub fn broker(&self, broker: Broker) -> Broker {
        Broker { jobs: self.jobs(broker.jobs), leasing: self.leasing(broker.leasing), ..broker }
    }

    /// From now on nothing fails, so that a simulation can come to its end.
    pub fn heal(&self) {
        self.0.healed.store(true, Ordering::Relaxed);
    }

    /// How many faults there were.
    #[must_use]
    pub fn counts(&self) -> FaultCounts {
        self.calls().counts
    }

    /// A digest of every decision so far in the order in which they were taken: two runs with the same seed that made
    /// the same calls have the same one.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.calls().digest
    }

    /// The decision about call number `call` (from 0) of `operation`: a pure function of both and the seed.
    #[must_use]
    pub fn decision(&self, operation: &str, call: u64) -> Decision {
        decide::decide(&self.0.options, operation, call)
    }

    /// Decides about the next call of `operation`.
    fn next(&self, operation: &'static str) -> Decision {
        if self.0.healed.load(Ordering::Relaxed) {
            return Decision::default();
        }
        let calls = &mut *self.calls();
        let number = calls.numbers.entry(operation).or_insert(0);
        let decision = self.decision(operation, *number);
        *number += 1;
        calls.digest = decide::mix(calls.digest ^ decide::mix(*number) ^ decision.bits());
        let counts = &mut calls.counts;
        counts.calls += 1;
        counts.requests_lost += u64::from(decision.fate == Fate::RequestLost);
        counts.replies_lost += u64::from(decision.fate == Fate::ReplyLost);
        counts.delays += u64::from(!decision.delay.is_zero());
        counts.leases_cut += u64::from(decision.lease_cut);
        counts.duplicates += u64::from(decision.duplicate);
        decision
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, Calls> {
        lock(&self.0.calls)
    }

    /// Makes `call` as the next decision about `operation` says.
    async fn make<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, BrokerError>>,
    ) -> Result<T, BrokerError> {
        let decision = self.next(operation);
        if !decision.delay.is_zero() {
            tokio::time::sleep(decision.delay).await;
        }
        match decision.fate {
            Fate::Done => call.await,
            Fate::RequestLost => {
                Err(BrokerError::new(BrokerErrorKind::Unavailable, operation, "the request was lost (injected)"))
            }
            Fate::ReplyLost => {
                // The broker's answer is dropped: the caller learns only that it does not know the effect.
                drop(call.await);
                Err(BrokerError::new(BrokerErrorKind::Ambiguous, operation, "the reply was lost (injected)"))
            }
        }
    }
}
