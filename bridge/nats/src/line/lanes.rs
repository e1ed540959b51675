//! The consumers of a queue: one durable consumer for each lane. A client has a lane of its own; beyond the first 500
//! clients, a client shares one; in a queue without turns, all clients share the same. A lane's consumer is made before
//! the first job is published there, changed when the policy changes, and made again when somebody deleted it.
//!
//! The lane of a job is part of its subject, and each subject is seen by one consumer. So processes that put a client's
//! jobs in different lanes, because one of them knows a newer policy, lose and double nothing.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use crate::stored::names::{self, Lane, SHARED_LANES};
use crate::wire::api::Api;
use crate::wire::single_flight::SingleFlight;
use crate::wire::stream_calls;
use relay_bridge::contract::{ClientId, QueueName};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::policy::QueuePolicy;
use relay_bridge::policy_copies::AGE_MAX;
use relay_bridge::support::lock;

/// How many consumers a queue has when new clients begin to share lanes. Clients that the policy names have a lane of
/// their own all the same.
const OWN_MAX: usize = 500;
/// The most jobs of a lane that are leased at once where the policy sets no limit of its own. The server keeps a list
/// of them, which it writes again and again: a hundred thousand slow nothing down, a million do.
const RUNNING_MAX: u32 = 50_000;
/// How long after a change of a policy some process may still go by the one before.
const POLICY_AGE_MAX: Duration = Duration::from_secs(2 * AGE_MAX.as_secs());
/// How often the log is told of a consumer that somebody has to see to.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// The most consumers whose settings are remembered.
const KNOWN_MAX: usize = 65_536;

/// The state of consumers, as this process knows it.
#[derive(Debug, Default)]
pub(crate) struct Consumers {
    /// The settings with which this process last made, or found, each consumer.
    made: Mutex<HashMap<(QueueName, Lane), Made>>,
    /// Consumers whose lease must be shortened, and since when this is known.
    lowering: Mutex<HashMap<(QueueName, Lane), Instant>>,
    /// The clients that share a lane because other clients were there before them.
    sharing: Mutex<HashSet<(QueueName, ClientId)>>,
    /// A single flight for each queue: new consumers are made one at a time, so that they can be counted.
    making: Mutex<HashMap<QueueName, Arc<SingleFlight>>>,
    /// When the log was last told of a consumer from which jobs do not come.
    told: Mutex<HashMap<(QueueName, Lane), Instant>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Made {
    lease: Duration,
    running_max: u32,
}

impl Made {
    /// Clients that share a lane may together run as many jobs as one of them may: then none runs more.
    fn by(policy: &QueuePolicy, lane: &Lane) -> Self {
        Self { lease: policy.lease, running_max: lane.policy(policy).max_running.clamp(1, RUNNING_MAX) }
    }
}

/// The server's description of one consumer.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ConsumerInfo {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) num_pending: u64,
    #[serde(default)]
    pub(crate) num_ack_pending: u64,
    #[serde(default)]
    pub(crate) ack_floor: Floor,
    #[serde(default)]
    paused: bool,
    /// The position up to which everything was delivered once.
    #[serde(default)]
    pub(crate) delivered: Floor,
    #[serde(default)]
    config: ConsumerConfig,
}

/// A position up to which everything was settled, or delivered.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(crate) struct Floor {
    /// The consumer's own number, by which it counts its deliveries.
    #[serde(default)]
    pub(crate) consumer_seq: u64,
    #[serde(default)]
    pub(crate) stream_seq: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct ConsumerConfig {
    #[serde(default)]
    filter_subject: String,
    #[serde(default)]
    ack_wait: u64,
    #[serde(default)]
    max_ack_pending: i64,
    /// The rest is not set by relay. Somebody else may have set it.
    #[serde(default)]
    headers_only: bool,
    #[serde(default)]
    max_deliver: i64,
    #[serde(default)]
    max_batch: i64,
    #[serde(default)]
    max_bytes: i64,
    #[serde(default)]
    max_expires: i64,
    #[serde(default)]
    backoff: Option<Vec<i64>>,
    #[serde(default)]
    ack_policy: String,
    #[serde(default)]
    deliver_subject: String,
    #[serde(default)]
    priority_groups: Option<Vec<String>>,
}

impl ConsumerConfig {
    /// The setting with which jobs would not come, or not come again, or come without what is in them.
    fn harmful(&self) -> Option<&'static str> {
        let bounds = [
            ("max_deliver", self.max_deliver),
            ("max_batch", self.max_batch),
            ("max_bytes", self.max_bytes),
            ("max_expires", self.max_expires),
        ];
        let bound = bounds.into_iter().find_map(|(name, bound)| (bound > 0).then_some(name));
        let others = [
            ("headers_only", self.headers_only),
            ("backoff", self.backoff.as_ref().is_some_and(|waits| !waits.is_empty())),
        ];
        bound.or_else(|| others.into_iter().find_map(|(name, is_set)| is_set.then_some(name)))
    }

    /// The setting with which it leases no jobs, and which the server lets nobody change: somebody else made it.
    fn unfit(&self) -> Option<&'static str> {
        [
            ("ack_policy", self.ack_policy != "explicit"),
            ("deliver_subject", !self.deliver_subject.is_empty()),
            ("priority_groups", self.priority_groups.as_ref().is_some_and(|groups| !groups.is_empty())),
        ]
        .into_iter()
        .find_map(|(name, is_set)| is_set.then_some(name))
    }
}

impl ConsumerInfo {
    /// The lane that it belongs to; `None` if relay did not make it.
    pub(crate) fn lane(&self) -> Option<Lane> {
        self.name.parse().ok()
    }

    /// Whether one more of its jobs may be leased.
    pub(crate) fn has_room(&self) -> bool {
        u64::try_from(self.config.max_ack_pending).is_ok_and(|max| self.num_ack_pending < max)
    }

    /// How many more of its jobs may be leased.
    pub(crate) fn room(&self) -> u64 {
        u64::try_from(self.config.max_ack_pending).map_or(u64::MAX, |max| max.saturating_sub(self.num_ack_pending))
    }

    fn made(&self) -> Made {
        Made {
            lease: Duration::from_nanos(self.config.ack_wait),
            running_max: u32::try_from(self.config.max_ack_pending).unwrap_or(u32::MAX),
        }
    }
}

impl Consumers {
    fn change<T>(&self, change: impl FnOnce(&mut HashMap<(QueueName, Lane), Made>) -> T) -> T {
        change(&mut lock(&self.made))
    }

    fn sharing(&self) -> MutexGuard<'_, HashSet<(QueueName, ClientId)>> {
        lock(&self.sharing)
    }

    fn remember(&self, queue: &QueueName, lane: &Lane, made: Made) {
        self.change(|known| {
            if known.len() >= KNOWN_MAX {
                known.clear();
            }
            known.insert((queue.clone(), lane.clone()), made);
        });
    }

    fn shares(&self, queue: &QueueName, client: &ClientId) {
        let mut sharing = self.sharing();
        if sharing.len() >= KNOWN_MAX {
            sharing.clear();
        }
        sharing.insert((queue.clone(), client.clone()));
    }

    /// Tells the log, now and then, of a consumer from which jobs do not come as they should until an operator acts.
    fn tell_of(&self, queue: &QueueName, lane: &Lane, info: &ConsumerInfo) {
        let unfit = info.config.unfit();
        if unfit.is_none() && !info.paused {
            return;
        }
        let mut told = lock(&self.told);
        if told.len() >= KNOWN_MAX {
            told.clear();
        }
        let (key, now) = ((queue.clone(), lane.clone()), Instant::now());
        if told.get(&key).is_some_and(|at| now - *at < TELL_EVERY) {
            return;
        }
        told.insert(key, now);
        match unfit {
            Some(setting) => tracing::error!(%queue, consumer = %lane, setting, "{}", remedy(queue, lane)),
            None => tracing::warn!(
                %queue,
                consumer = %lane,
                "a consumer is paused at the NATS server, and its jobs wait: `nats consumer resume {} {lane}` ends that; \
                 `relay queues pause` is for queues",
                names::jobs_stream(queue),
            ),
        }
    }

    /// The single flight in which consumers of the queue are made.
    fn making(&self, queue: &QueueName) -> Arc<SingleFlight> {
        let mut making = lock(&self.making);
        making.entry(queue.clone()).or_default().clone()
    }

    /// Forgets a consumer that is gone: the next caller that needs it makes it.
    pub(crate) fn forget(&self, queue: &QueueName, lane: &Lane) {
        self.change(|known| known.remove(&(queue.clone(), lane.clone())));
    }

    /// For how long a job of the lane is leased. The server goes by its consumer, and a holder that believed in a
    /// longer lease would share the job with the next holder.
    pub(crate) fn lease(&self, queue: &QueueName, lane: &Lane, policy: &QueuePolicy) -> Duration {
        let made = self.change(|known| known.get(&(queue.clone(), lane.clone())).copied());
        made.map_or(policy.lease, |made| made.lease.min(policy.lease))
    }

    /// The lease that the consumer may have now. The server applies a new lease to jobs that are leased already, so a
    /// shorter one has to wait until nobody can hold a job under the longer one.
    fn lease_now(&self, queue: &QueueName, lane: &Lane, info: &ConsumerInfo, wanted: Duration) -> Duration {
        let mut lowering = lock(&self.lowering);
        let (key, found) = ((queue.clone(), lane.clone()), info.made().lease);
        if wanted >= found {
            lowering.remove(&key);
            return wanted;
        }
        if lowering.len() >= KNOWN_MAX {
            lowering.clear();
        }
        let since = *lowering.entry(key).or_insert_with(Instant::now);
        let held = if info.num_ack_pending > 0 { found } else { Duration::ZERO };
        if since.elapsed() < held + POLICY_AGE_MAX { found } else { wanted }
    }

    /// Notes the server's description of the lane's consumer.
    pub(crate) fn saw(&self, queue: &QueueName, lane: &Lane, info: &ConsumerInfo) {
        self.remember(queue, lane, info.made());
    }

    pub(crate) fn knows(&self, queue: &QueueName, lane: &Lane) -> bool {
        self.change(|known| known.contains_key(&(queue.clone(), lane.clone())))
    }
}

/// Makes, changes and describes consumers, one for each lane.
pub(crate) struct Lanes {
    pub(crate) api: Api,
    pub(crate) consumers: Consumers,
}

impl Lanes {
    /// The lane of the client's next job; its consumer exists then. The server is not asked again about a consumer that
    /// was seen.
    pub(crate) async fn lane_for(
        &self,
        queue: &QueueName,
        client: &ClientId,
        policy: &QueuePolicy,
    ) -> Result<Lane, BrokerError> {
        let own = Lane::Own(client.clone());
        if policy.fair && self.consumers.knows(queue, &own) {
            return Ok(own);
        }
        let known = self.known_lane(queue, client, policy).filter(|lane| self.consumers.knows(queue, lane));
        if let Some(lane) = known {
            return Ok(lane);
        }
        Box::pin(self.lane_with_consumer(queue, client, policy)).await
    }

    async fn lane_with_consumer(
        &self,
        queue: &QueueName,
        client: &ClientId,
        policy: &QueuePolicy,
    ) -> Result<Lane, BrokerError> {
        let own = Lane::Own(client.clone());
        let known = || self.known_lane(queue, client, policy).filter(|lane| self.consumers.knows(queue, lane));
        let make = async {
            let lane = match self.known_lane(queue, client, policy) {
                Some(lane) => lane,
                None => self.choose_lane(queue, client).await?,
            };
            match self.make_consumer(queue, &lane, policy).await {
                // No room for one more consumer, or its name is taken: a client needs none unless the policy gives it a share
                // of its own.
                Err(error)
                    if (is_full(&error) || error.kind() == BrokerErrorKind::StateConflict)
                        && lane == own
                        && !policy.clients.contains_key(client) =>
                {
                    let lane = Lane::shared_by(client);
                    self.make_consumer(queue, &lane, policy).await?;
                    self.consumers.shares(queue, client);
                    Ok(lane)
                }
                made => made.map(|()| lane),
            }
        };
        // One after the other: many new clients at once would each see that there is room.
        self.consumers.making(queue).run(known, make).await
    }

    /// The lane of the client's next job, as far as that is known without asking.
    fn known_lane(&self, queue: &QueueName, client: &ClientId, policy: &QueuePolicy) -> Option<Lane> {
        let own = Lane::Own(client.clone());
        match () {
            () if !policy.fair => Some(Lane::ALL),
            () if policy.clients.contains_key(client) || self.consumers.knows(queue, &own) => Some(own),
            () if self.consumers.sharing().contains(&(queue.clone(), client.clone())) => Some(Lane::shared_by(client)),
            () => None,
        }
    }

    /// The lane of the client's next job with the server's description of its consumer, or `None` if it has none yet.
    /// It makes none.
    pub(crate) async fn lane_info(
        &self,
        queue: &QueueName,
        client: &ClientId,
        policy: &QueuePolicy,
    ) -> Result<Option<(Lane, ConsumerInfo)>, BrokerError> {
        let lanes = match self.known_lane(queue, client, policy) {
            Some(lane) => vec![lane],
            None => vec![Lane::Own(client.clone()), Lane::shared_by(client)],
        };
        for lane in lanes {
            if let Some(info) = self.consumer_info(queue, &lane).await? {
                return Ok(Some((lane, info)));
            }
        }
        Ok(None)
    }

    async fn choose_lane(&self, queue: &QueueName, client: &ClientId) -> Result<Lane, BrokerError> {
        let own = Lane::Own(client.clone());
        let stream = stream_calls::get(&self.api, &names::jobs_stream(queue), "create consumer").await?;
        // If the stream may have few consumers, those of shared lanes come first.
        let may_have = usize::try_from(stream.info.config.max_consumers).ok().filter(|most| *most > 0);
        let own_max = may_have.map_or(OWN_MAX, |most| OWN_MAX.min(most.saturating_sub(usize::from(SHARED_LANES))));
        if stream.info.state.consumer_count < own_max || self.consumer_info(queue, &own).await?.is_some() {
            return Ok(own);
        }
        self.consumers.shares(queue, client);
        Ok(Lane::shared_by(client))
    }

    /// Makes the lane's consumer, unless it is there. One that differs from what the policy says is changed by a round, and one
    /// that sees other jobs at once.
    ///
    /// # Errors
    /// `StateConflict`: one of this name is there that can't lease jobs, and is not relay's to remove. And those of the broker.
    pub(crate) async fn make_consumer(
        &self,
        queue: &QueueName,
        lane: &Lane,
        policy: &QueuePolicy,
    ) -> Result<(), BrokerError> {
        if let Some(info) = self.consumer_info(queue, lane).await? {
            if info.config.unfit().is_some() {
                self.consumers.tell_of(queue, lane, &info);
                let why = remedy(queue, lane);
                return Err(BrokerError::new(BrokerErrorKind::StateConflict, "create consumer", why));
            }
            if info.config.filter_subject == lane.filter(queue) {
                self.consumers.remember(queue, lane, info.made());
                return Ok(());
            }
            let setting = "filter_subject";
            tracing::warn!(%queue, consumer = %lane, setting, "somebody changed a consumer so that jobs would not come: changed back");
        }
        self.make_as(queue, lane, Made::by(policy, lane)).await
    }

    async fn make_as(&self, queue: &QueueName, lane: &Lane, made: Made) -> Result<(), BrokerError> {
        let (stream, name, filter) = (names::jobs_stream(queue), lane.to_string(), lane.filter(queue));
        let body = json!({
            "stream_name": stream,
            "config": {
                "durable_name": name,
                "name": name,
                "filter_subject": filter,
                "deliver_policy": "all",
                "ack_policy": "explicit",
                "ack_wait": u64::try_from(made.lease.as_nanos()).unwrap_or(u64::MAX),
                "max_deliver": -1,
                "max_ack_pending": made.running_max,
                "replay_policy": "instant",
            },
        });
        let created: ConsumerInfo =
            self.api.call(format!("CONSUMER.CREATE.{stream}.{name}.{filter}"), &body, "create consumer").await?;
        self.consumers.remember(queue, lane, created.made());
        Ok(())
    }

    /// The consumers of a queue whose leaders answer, as these see them: a worker gets nothing from the others.
    /// Consumers whose settings are not as the policy says are changed.
    pub(crate) async fn list_consumers(
        &self,
        queue: &QueueName,
        policy: &QueuePolicy,
    ) -> Result<Vec<ConsumerInfo>, BrokerError> {
        let (listed, _) = self.answering_consumers(queue).await?;
        for (info, lane) in listed.iter().filter_map(|info| Some((info, info.lane()?))) {
            let wanted = Made::by(policy, &lane);
            let wanted = Made { lease: self.consumers.lease_now(queue, &lane, info, wanted.lease), ..wanted };
            self.consumers.remember(queue, &lane, info.made());
            self.consumers.tell_of(queue, &lane, info);
            let harmful = info.config.harmful();
            if let Some(setting) = harmful {
                tracing::warn!(%queue, consumer = %lane, setting, "somebody changed a consumer so that jobs would not come as they are: changed back");
            }
            if info.config.unfit().is_none() && (info.made() != wanted || harmful.is_some()) {
                match self.make_as(queue, &lane, wanted).await {
                    // It keeps its old settings, and must not stop the other lanes.
                    Err(error) if error.kind() == BrokerErrorKind::Invalid => {
                        tracing::warn!(%queue, consumer = %lane, %error, "a consumer can't be changed to what the policy says");
                    }
                    made => made?,
                }
            }
        }
        Ok(listed)
    }

    /// The consumers of a queue, as their leaders see them.
    ///
    /// # Errors
    /// `Unavailable` if a consumer has no leader that answers: the list would not be complete.
    pub(crate) async fn consumer_infos(&self, queue: &QueueName) -> Result<Vec<ConsumerInfo>, BrokerError> {
        let (listed, silent) = self.answering_consumers(queue).await?;
        stream_calls::whole(listed, &silent, "list consumers")
    }

    /// The consumers of a queue whose leaders answer, and the names of the others. Consumers of no lane are left out:
    /// others may look on with consumers of their own, whose names may read like a client's.
    pub(crate) async fn answering_consumers(
        &self,
        queue: &QueueName,
    ) -> Result<(Vec<ConsumerInfo>, Vec<String>), BrokerError> {
        let call = format!("CONSUMER.LIST.{}", names::jobs_stream(queue));
        let (mut listed, silent) =
            stream_calls::pages::<ConsumerInfo>(&self.api, &call, json!({}), "list consumers").await?;
        listed.retain(|info| {
            let of_lane = info.lane().is_some_and(|lane| info.config.filter_subject == lane.filter(queue));
            of_lane && !silent.contains(&info.name)
        });
        Ok((listed, silent))
    }

    /// The server's description of the lane's consumer, or `None` if there is none.
    pub(crate) async fn consumer_info(
        &self,
        queue: &QueueName,
        lane: &Lane,
    ) -> Result<Option<ConsumerInfo>, BrokerError> {
        let stream = names::jobs_stream(queue);
        let body = json!({});
        let info = self.api.call(format!("CONSUMER.INFO.{stream}.{lane}"), &body, "read consumer");
        match info.await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.kind() == BrokerErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The words about a consumer that somebody else made under a lane's name.
fn remedy(queue: &QueueName, lane: &Lane) -> String {
    let stream = names::jobs_stream(queue);
    format!(
        "somebody else made the consumer `{lane}` of the stream `{stream}`, and it leases no jobs: remove it with \
         `nats consumer rm {stream} {lane}`, and relay makes its own"
    )
}

fn is_full(error: &BrokerError) -> bool {
    matches!(error.kind(), BrokerErrorKind::Overloaded { .. })
}
