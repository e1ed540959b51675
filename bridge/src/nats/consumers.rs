//! The consumers of a queue: one durable for each client. Made before a client's first job is published, changed when
//! the policy is another one, made again when somebody deleted it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::{Nats, names};
use crate::contract::{ClientId, QueueName};
use crate::error::BrokerError;
use crate::policy::QueuePolicy;

/// The most jobs of a client that are leased at once where its policy sets no limit of its own. The server keeps a list
/// of them, which it writes again and again: a hundred thousand slow nothing down, a million do.
const RUNNING_MAX: u32 = 50_000;
/// The most consumers whose settings are remembered.
const KNOWN_MAX: usize = 65_536;
/// The most consumers that are listed of one queue.
const LISTED_MAX: usize = 20_000;

/// The settings with which this process last made, or found, each consumer.
#[derive(Debug, Default)]
pub(super) struct Consumers(Mutex<HashMap<(QueueName, ClientId), Made>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Made {
    lease: Duration,
    running_max: u32,
}

impl Made {
    fn by(policy: &QueuePolicy, client: &ClientId) -> Self {
        Self { lease: policy.lease, running_max: policy.client(client).max_running.clamp(1, RUNNING_MAX) }
    }
}

/// What the server says of one consumer.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ConsumerInfo {
    pub(super) name: String,
    #[serde(default)]
    pub(super) num_pending: u64,
    #[serde(default)]
    pub(super) num_ack_pending: u64,
    #[serde(default)]
    pub(super) ack_floor: Floor,
    #[serde(default)]
    config: ConsumerConfig,
}

/// Up to where everything was settled.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Floor {
    #[serde(default)]
    pub(super) stream_seq: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct ConsumerConfig {
    #[serde(default)]
    ack_wait: u64,
    #[serde(default)]
    max_ack_pending: i64,
}

impl ConsumerInfo {
    /// Whose line it is; `None` if relay did not make it.
    pub(super) fn client(&self) -> Option<ClientId> {
        self.name.parse().ok()
    }

    /// Whether its client may have one more job leased.
    pub(super) fn has_room(&self) -> bool {
        u64::try_from(self.config.max_ack_pending).is_ok_and(|max| self.num_ack_pending < max)
    }

    fn made(&self) -> Made {
        Made {
            lease: Duration::from_nanos(self.config.ack_wait),
            running_max: u32::try_from(self.config.max_ack_pending).unwrap_or(u32::MAX),
        }
    }
}

impl Consumers {
    fn change<T>(&self, change: impl FnOnce(&mut HashMap<(QueueName, ClientId), Made>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn remember(&self, queue: &QueueName, client: &ClientId, made: Made) {
        self.change(|known| {
            if known.len() >= KNOWN_MAX {
                known.clear();
            }
            known.insert((queue.clone(), client.clone()), made);
        });
    }

    /// The consumer is gone: the next one who needs it makes it.
    pub(super) fn forget(&self, queue: &QueueName, client: &ClientId) {
        self.change(|known| known.remove(&(queue.clone(), client.clone())));
    }

    fn knows(&self, queue: &QueueName, client: &ClientId) -> bool {
        self.change(|known| known.contains_key(&(queue.clone(), client.clone())))
    }
}

impl Nats {
    /// Makes sure that the client has its consumer, without asking the server again for one that was seen.
    pub(super) async fn ensure_consumer(
        &self,
        queue: &QueueName,
        client: &ClientId,
        policy: &QueuePolicy,
    ) -> Result<(), BrokerError> {
        if self.consumers().knows(queue, client) {
            return Ok(());
        }
        self.make_consumer(queue, client, policy).await
    }

    /// Makes the client's consumer, or changes it to what the policy says.
    pub(super) async fn make_consumer(
        &self,
        queue: &QueueName,
        client: &ClientId,
        policy: &QueuePolicy,
    ) -> Result<(), BrokerError> {
        let (stream, name, line) =
            (names::jobs_stream(queue), names::consumer(client), names::client_line(queue, client));
        let made = Made::by(policy, client);
        let body = json!({
            "stream_name": stream,
            "config": {
                "durable_name": name,
                "name": name,
                "filter_subject": line,
                "deliver_policy": "all",
                "ack_policy": "explicit",
                "ack_wait": u64::try_from(made.lease.as_nanos()).unwrap_or(u64::MAX),
                "max_deliver": -1,
                "max_ack_pending": made.running_max,
                "replay_policy": "instant",
            },
        });
        let created: ConsumerInfo =
            self.api().call(format!("CONSUMER.CREATE.{stream}.{name}.{line}"), &body, "create consumer").await?;
        self.consumers().remember(queue, client, created.made());
        Ok(())
    }

    /// The consumers of a queue, as their leaders see them. Those whose settings are not what the policy says are changed.
    pub(super) async fn list_consumers(
        &self,
        queue: &QueueName,
        policy: &QueuePolicy,
    ) -> Result<Vec<ConsumerInfo>, BrokerError> {
        let listed = self.consumer_infos(queue).await?;
        for (info, client) in listed.iter().filter_map(|info| Some((info, info.client()?))) {
            if info.made() == Made::by(policy, &client) {
                self.consumers().remember(queue, &client, info.made());
            } else {
                self.make_consumer(queue, &client, policy).await?;
            }
        }
        Ok(listed)
    }

    /// The consumers of a queue, as their leaders see them.
    pub(super) async fn consumer_infos(&self, queue: &QueueName) -> Result<Vec<ConsumerInfo>, BrokerError> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            total: usize,
            #[serde(default)]
            consumers: Option<Vec<ConsumerInfo>>,
        }
        let stream = names::jobs_stream(queue);
        let mut listed = Vec::new();
        while listed.len() < LISTED_MAX {
            let body = json!({ "offset": listed.len() });
            let page: Page = self.api().call(format!("CONSUMER.LIST.{stream}"), &body, "list consumers").await?;
            let more = page.consumers.unwrap_or_default();
            let (ended, total) = (more.is_empty(), page.total);
            listed.extend(more);
            if ended || listed.len() >= total {
                break;
            }
        }
        Ok(listed)
    }

    /// What the server says of the client's consumer, or `None` if there is none.
    pub(super) async fn consumer_info(
        &self,
        queue: &QueueName,
        client: &ClientId,
    ) -> Result<Option<ConsumerInfo>, BrokerError> {
        let (stream, name) = (names::jobs_stream(queue), names::consumer(client));
        let body = json!({});
        let info = self.api().call(format!("CONSUMER.INFO.{stream}.{name}"), &body, "read consumer");
        match info.await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.kind() == crate::error::BrokerErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
