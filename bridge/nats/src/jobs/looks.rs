//! A look at a queue's work for those who scale its workers: one listing of its consumers, however much waits. The server
//! counts what each of them has handed out, so that attempts need no record of their own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_nats::HeaderMap;
use bytes::Bytes;

use crate::jobs::room::Room;
use crate::line::lanes::{ConsumerInfo, Lanes};
use crate::records::policies::Policies;
use crate::stored::names::{self, STATE_STREAM};
use crate::stored::record::Outgoing;
use crate::wire::api::Api;
use relay_bridge::contract::QueueName;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::load::{KeptPace, Load};
use relay_bridge::support::lock;

const OPERATION: &str = "look at queue";
/// The most queues whose attempts are counted.
const QUEUES_MAX: usize = 10_000;

/// Looks at queues.
pub(crate) struct Looks {
    pub(crate) api: Api,
    pub(crate) policies: Arc<Policies>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) room: Arc<Room>,
    pub(crate) ended: Ended,
}

impl Looks {
    pub(crate) async fn look(&self, queue: &QueueName) -> Result<Load, BrokerError> {
        let policy = self.policies.require(queue, OPERATION).await?;
        let timers = self.room.count(queue, names::timers(queue), 1);
        let (infos, parked) = tokio::try_join!(self.lanes.consumer_infos(queue), timers)?;
        let mut load = Load { parked, ended: self.ended.note(queue, &infos), ..Load::default() };
        for info in &infos {
            load.in_line += info.num_pending;
            load.leased += info.num_ack_pending;
            load.startable += if policy.paused { 0 } else { info.num_pending.min(info.room()) };
        }
        Ok(load)
    }

    /// The pace that was kept last; none if that was an hour ago, as states go then.
    pub(crate) async fn kept_pace(&self, queue: &QueueName) -> Result<Option<KeptPace>, BrokerError> {
        let kept = self.api.last_if_any(STATE_STREAM, names::pace(queue), OPERATION).await?;
        Ok(kept.and_then(|kept| serde_json::from_slice(&kept.payload).ok()))
    }

    pub(crate) async fn keep_pace(&self, queue: &QueueName, pace: &KeptPace) -> Result<(), BrokerError> {
        self.policies.require(queue, OPERATION).await?;
        let pace = serde_json::to_vec(pace);
        let pace = pace.map_err(|e| BrokerError::new(BrokerErrorKind::Invalid, OPERATION, e.to_string()))?;
        let subject = names::pace(queue);
        let message = Outgoing { subject, headers: HeaderMap::new(), payload: Bytes::from(pace), hint: None };
        self.api.publish(message, OPERATION).await.map(drop)
    }
}

/// Counts attempts that ended by what consumers say of themselves.
#[derive(Debug, Default)]
pub(crate) struct Ended(Mutex<HashMap<QueueName, Counted>>);

#[derive(Debug, Default)]
struct Counted {
    total: u64,
    /// The numbers of messages that each consumer had handed out and got back at the last look.
    consumers: HashMap<String, u64>,
}

impl Ended {
    /// How many attempts have ended since the first look of this process. Jobs that were handed back are among them.
    fn note(&self, queue: &QueueName, infos: &[ConsumerInfo]) -> u64 {
        let mut queues = lock(&self.0);
        if queues.len() >= QUEUES_MAX && !queues.contains_key(queue) {
            queues.clear();
        }
        let consumers = infos.iter().map(|info| {
            let ended = info.delivered.consumer_seq.saturating_sub(info.num_ack_pending);
            (info.name.clone(), ended)
        });
        let consumers: HashMap<_, _> = consumers.collect();
        let Some(counted) = queues.get_mut(queue) else {
            queues.insert(queue.clone(), Counted { total: 0, consumers });
            return 0;
        };
        // A consumer that was made since began with none; one that was made again has fewer.
        let more = consumers.iter().map(|(name, now)| now.saturating_sub(*counted.consumers.get(name).unwrap_or(&0)));
        counted.total += more.sum::<u64>();
        counted.consumers = consumers;
        counted.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, delivered: u64, held: u64) -> ConsumerInfo {
        let text = serde_json::json!({
            "name": name, "num_ack_pending": held, "delivered": { "consumer_seq": delivered, "stream_seq": 0 },
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn attempts_are_counted_from_the_first_look_on_whichever_consumers_come_and_go() {
        let (ended, queue) = (Ended::default(), "mail".parse().unwrap());
        assert_eq!(ended.note(&queue, &[info("a", 1_000, 10)]), 0);
        assert_eq!(ended.note(&queue, &[info("a", 1_005, 10)]), 5);
        assert_eq!(ended.note(&queue, &[info("a", 1_005, 5), info("b", 3, 1)]), 12);
        assert_eq!(ended.note(&queue, &[info("b", 3, 0)]), 13);
        assert_eq!(ended.note(&queue, &[info("b", 1, 0)]), 13, "it was made again");
        assert_eq!(ended.note(&queue, &[info("b", 3, 0)]), 15);
    }
}
