//! The deliveries that this process holds, and its reports of them to other processes. JetStream can't be asked for the
//! lease and the attempt of a message, so workers report them in a stream of its own: once a run has lasted a second,
//! and at each heartbeat.
//!
//! A lease is judged by the holder's monotonic clock: it ends one lease after the pull, or the heartbeat, was sent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_nats::HeaderMap;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::policies::Policies;
use crate::stored::names::{self, Lane};
use crate::stored::receipt::Key;
use crate::wire::api::Api;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, Job, JobId, Outcome, RunId, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::support::lock;

/// How often the held deliveries are looked over.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a run lasts before others are told of it.
pub(crate) const TELL_AFTER: Duration = Duration::from_secs(1);
/// How much longer than a lease others believe in it: clocks of two hosts differ.
const ALLOWANCE: Duration = Duration::from_secs(5);

/// A delivery that this process gave out, or took over: its own knowledge of the delivery, whatever a receipt says.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) run: RunId,
    pub(crate) attempt: u32,
    /// When the lease ends, unless it is extended.
    pub(crate) until: Instant,
    /// When this process took it, or took it over.
    pub(crate) started: Instant,
    /// How long another process had it before; `None` if this one gave it out.
    pub(crate) held_before: Option<Duration>,
    pub(crate) leased_at: Timestamp,
    /// The job without its payload, for judging its result without reading the record.
    pub(crate) job: Arc<Job>,
    /// The subject on which the server takes answers to it.
    pub(crate) reply: String,
    /// The lane from which it came.
    pub(crate) lane: Lane,
    /// How the run ended, if this process knows that it did.
    pub(crate) ended: Option<Outcome>,
    /// Whether others were told.
    pub(crate) told: bool,
    /// Whether the run has no letter and gets none: its result was recorded, and its letter looked for since then.
    pub(crate) letterless: bool,
    /// How often this process had connected by then: a message that came while it was away is lost.
    pub(crate) connections: u64,
    /// Cancelled when its holder has a reason to ask how it stands.
    pub(crate) hurry: CancellationToken,
}

/// Everything this process holds. Bounded by what its workers asked for: an entry goes when it is settled, or a while
/// after its lease ended.
#[derive(Debug, Default)]
pub(crate) struct Holding(Mutex<BTreeMap<Key, Arc<Held>>>);

/// A worker's report of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) run: RunId,
    pub(crate) attempt: u32,
    /// When this attempt started.
    pub(crate) started_at: Timestamp,
    /// Until when it is held, unless the worker reports it again; the past if it is not held any more.
    pub(crate) until: Timestamp,
}

impl Holding {
    pub(crate) fn insert(&self, key: Key, held: Arc<Held>) {
        self.all().insert(key, held);
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Held>> {
        self.all().get(key).cloned()
    }

    pub(crate) fn remove(&self, key: &Key) -> Option<Arc<Held>> {
        self.all().remove(key)
    }

    pub(crate) fn change(&self, key: &Key, change: impl FnOnce(&mut Held)) {
        if let Some(held) = self.all().get_mut(key) {
            change(Arc::make_mut(held));
        }
    }

    /// Notes that the run ended: a worker of this process that holds the job is told at its next heartbeat, without
    /// asking the broker.
    pub(crate) fn ended(&self, job: JobId, run: RunId, outcome: Outcome) {
        let mut all = self.all();
        for (_, held) in all.range_mut((job, 0, 0)..=(job, u64::MAX, u64::MAX)) {
            if held.run == run {
                Arc::make_mut(held).ended = Some(outcome);
                held.hurry.cancel();
            }
        }
    }

    /// Notes that the run, which has its result, has no letter: one that is written later takes itself back.
    pub(crate) fn letterless(&self, job: JobId, run: RunId) {
        for (_, held) in self.all().range_mut((job, 0, 0)..=(job, u64::MAX, u64::MAX)) {
            if held.run == run {
                Arc::make_mut(held).letterless = true;
            }
        }
    }

    /// Another process says that a run of `job` ended: a worker of this process that holds it asks the broker.
    pub(crate) fn hurry(&self, job: JobId) {
        for (_, held) in self.all().range((job, 0, 0)..=(job, u64::MAX, u64::MAX)) {
            held.hurry.cancel();
        }
    }

    /// The newest delivery of `job` whose lease has not ended.
    pub(crate) fn of(&self, job: JobId) -> Option<Arc<Held>> {
        let now = Instant::now();
        let all = self.all();
        let mut held = all.range((job, 0, 0)..=(job, u64::MAX, u64::MAX)).rev().map(|(_, held)| held);
        held.find(|held| held.until > now).cloned()
    }

    /// Forgets deliveries that ended long ago, and returns those that others are to be told of.
    fn look_over(&self) -> Vec<(Key, Arc<Held>)> {
        let now = Instant::now();
        let mut all = self.all();
        all.retain(|_, held| held.until + ALLOWANCE > now);
        let due = |held: &Held| !held.told && held.ended.is_none() && held.until > now;
        let untold = all.iter_mut().filter(|(_, held)| due(held) && now - held.started >= TELL_AFTER);
        untold
            .map(|(key, held)| {
                Arc::make_mut(held).told = true;
                (*key, held.clone())
            })
            .collect()
    }

    /// Has every delivery that others were told of be told again.
    fn tell_again(&self) {
        self.all().values_mut().filter(|held| held.told).for_each(|held| Arc::make_mut(held).told = false);
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Held>>> {
        lock(&self.0)
    }
}

/// The deliveries that this process holds, and the reports of other processes.
pub(crate) struct HeldJobs {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
    pub(crate) policies: Arc<Policies>,
    pub(crate) holding: Holding,
}

impl HeldJobs {
    /// Reports, without waiting, that the job runs, or that it does not any more.
    pub(crate) async fn tell_state(&self, job: JobId, held: &Held, runs: bool) {
        let now = self.clock.now();
        let until = if runs { now + held.until.saturating_duration_since(Instant::now()) } else { Timestamp::EPOCH };
        let running = Running { run: held.run, attempt: held.attempt, started_at: held.leased_at, until };
        let body = serde_json::to_vec(&running).unwrap_or_default();
        self.api.tell(names::state(&held.job.client, job), HeaderMap::new(), body.into()).await;
    }

    /// Makes the stream of states, if it is not there.
    async fn ensure_states(&self) -> Result<(), BrokerError> {
        let wanted = self.policies.settings().states();
        self.policies.ensure(&wanted, crate::stored::streams::Mend::Needed).await
    }

    /// The state of a run that has not ended: as this process knows it, or else as workers reported it.
    pub(crate) async fn running(
        &self,
        client: &ClientId,
        job: JobId,
        run: RunId,
    ) -> Result<Option<Running>, BrokerError> {
        if let Some(here) = self.running_here(job, run) {
            return Ok(Some(here));
        }
        let said = self.said(client, job).await?;
        Ok(said.filter(|said| said.run == run))
    }

    /// The state of a run that has not ended and is held by this process.
    pub(crate) fn running_here(&self, job: JobId, run: RunId) -> Option<Running> {
        let held = self.holding.of(job).filter(|held| held.run == run && held.ended.is_none())?;
        let until = self.clock.now() + held.until.saturating_duration_since(Instant::now());
        Some(Running { run, attempt: held.attempt, started_at: held.leased_at, until })
    }

    /// The workers' last report of a job.
    pub(crate) async fn said(&self, client: &ClientId, job: JobId) -> Result<Option<Running>, BrokerError> {
        let said = self.api.last_if_any(names::STATE_STREAM, names::state(client, job), "read state").await;
        let said = match said {
            // Without the stream nothing is known of what runs; everything else holds.
            Err(error) if error.kind() == BrokerErrorKind::NotFound => None,
            said => said?,
        };
        Ok(said.and_then(|said| serde_json::from_slice(&said.payload).ok()))
    }
}

impl Running {
    /// Whether this is the report of a later delivery of `run` than attempt number `attempt`. That this attempt was
    /// settled proves nothing: a job that was handed back is given out as the same attempt again.
    pub(crate) fn is_later(&self, run: RunId, attempt: u32) -> bool {
        self.run == run && self.attempt > attempt
    }

    /// Since when attempt number `attempt` of `run` is held, unless it was settled.
    pub(crate) fn since(&self, run: RunId, attempt: u32) -> Option<Timestamp> {
        let is_it = self.run == run && self.attempt == attempt && self.until > Timestamp::EPOCH;
        is_it.then_some(self.started_at)
    }

    /// Whether a worker holds the job, as far as is known.
    pub(crate) fn is_held(&self, now: Timestamp) -> bool {
        self.until > now
    }
}

/// Reports held deliveries to others until the adapter is closed.
pub(crate) async fn keep_telling(held: Arc<HeldJobs>, closing: CancellationToken) {
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut connections = held.api.connections();
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = closing.cancelled() => return,
        }
        let connections_now = held.api.connections();
        if connections_now != connections {
            // A server that was started again may have lost the stream, if it is in memory, and with it the reports.
            if let Err(failure) = held.ensure_states().await {
                tracing::debug!(error = %failure, "nobody can be told what runs");
            }
            held.holding.tell_again();
            connections = connections_now;
        }
        for ((job, ..), one) in held.holding.look_over() {
            held.tell_state(job, &one, true).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_later_attempt_of_the_same_run_is_somebody_elses() {
        let at = Timestamp::from_millis(1_763_865_086_007);
        let run = RunId::mint(at, None);
        for (attempt, later) in [(1, false), (2, false), (3, true)] {
            // How far `until` is past says nothing: clocks of two hosts differ, and the last word may be a heartbeat old.
            for until in [at, Timestamp::from_millis(0)] {
                let said = Running { run, attempt, started_at: at, until };
                assert_eq!(said.is_later(run, 2), later, "attempt {attempt}");
                assert!(!said.is_later(RunId::mint(at, Some(run)), 2), "of another run");
            }
        }
    }
}
