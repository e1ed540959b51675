//! Restores the consumers of lanes that have jobs in line and no consumer: it was deleted by hand, not restored with
//! the rest, or lost with a server's disk. Nobody pulls from a consumer that is not there, and none is listed, so such
//! jobs would be neither given out, nor counted, nor ended in time. The sweep looks for them: the stream's subjects say
//! which lanes there are.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::line::lanes::Lanes;
use crate::stored::names::{self, Address, Lane};
use crate::wire::api::Api;
use crate::wire::stream_calls;
use relay_bridge::contract::QueueName;
use relay_bridge::error::BrokerError;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::support::lock;

const OPERATION: &str = "look for lost consumers";
/// How often a queue is looked through; also at the start, and when the connection was made again.
const EVERY: Duration = Duration::from_secs(300);
/// The least pause after a look, as a multiple of the time that the look took: the server has many subjects to go
/// through.
const RARELY: u32 = 200;
/// How long after a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// The most answers of the server that are read, of 100,000 subjects each.
const PAGES_MAX: usize = 20;
/// The most consumers that are made in one step of the sweep.
const MADE_MAX: usize = 100;

/// When each queue is to be looked through next, and how often the connection had been made when it was last.
#[derive(Debug, Default)]
pub(crate) struct LanesChecked(Mutex<HashMap<QueueName, (u64, Instant)>>);

impl LanesChecked {
    fn is_due(&self, queue: &QueueName, connections: u64) -> bool {
        let next = lock(&self.0).get(queue).copied();
        next.is_none_or(|(made, next)| made != connections || next <= Instant::now())
    }

    fn next(&self, queue: &QueueName, connections: u64, after: Duration) {
        let mut queues = lock(&self.0);
        queues.insert(queue.clone(), (connections, Instant::now() + after));
    }

    /// Forgets queues that are gone.
    pub(crate) fn retain(&self, queues: &[QueueName]) {
        lock(&self.0).retain(|queue, _| queues.contains(queue));
    }
}

/// Makes the consumers that lanes with jobs have lost.
pub(crate) struct LostLanes {
    pub(crate) api: Api,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) checked: LanesChecked,
}

impl LostLanes {
    /// Makes the consumers of lanes that have records in line and lost theirs, if it is time to look. The jobs that
    /// these consumers deliver are looked up first, as after any consumer was made again.
    pub(crate) async fn restore_lost_lanes(&self, queue: &QueueName, policy: &QueuePolicy) {
        let (checked, connections) = (&self.checked, self.api.connections());
        if !checked.is_due(queue, connections) {
            return;
        }
        let began = Instant::now();
        let after = match self.restored(queue, policy).await {
            Ok(true) => EVERY.max(began.elapsed() * RARELY),
            Ok(false) => Duration::ZERO,
            Err(error) => {
                tracing::debug!(%queue, %error, "whether a consumer is missing is looked for again soon");
                AGAIN
            }
        };
        checked.next(queue, connections, after);
    }

    /// Whether no consumer is missing any more.
    async fn restored(&self, queue: &QueueName, policy: &QueuePolicy) -> Result<bool, BrokerError> {
        // In this order: a consumer is there before the first record of its lane.
        let lanes = self.lanes_in_line(queue).await?;
        let there: BTreeSet<_> =
            self.lanes.consumer_infos(queue).await?.iter().filter_map(|info| info.lane()).collect();
        let lost: Vec<_> = lanes.difference(&there).collect();
        for lane in lost.iter().take(MADE_MAX) {
            tracing::warn!(%queue, consumer = %lane, "a consumer was gone and its lane has records: made again");
            self.lanes.consumers.forget(queue, lane);
            self.lanes.make_consumer(queue, lane, policy).await?;
        }
        Ok(lost.len() <= MADE_MAX)
    }

    /// The lanes with a record in line, of a job that waits, is leased, or has ended and is kept.
    async fn lanes_in_line(&self, queue: &QueueName) -> Result<BTreeSet<Lane>, BrokerError> {
        let (stream, filter) = (names::jobs_stream(queue), names::records(queue));
        let (mut lanes, mut seen) = (BTreeSet::new(), 0);
        for _ in 0..PAGES_MAX {
            let (subjects, total) = stream_calls::subjects(&self.api, &stream, &filter, seen, OPERATION).await?;
            seen += subjects.len();
            let parsed = subjects.iter().filter_map(|subject| Address::parse(subject));
            lanes.extend(parsed.filter_map(|(place, address)| address.lane(place)));
            if subjects.is_empty() || seen >= total {
                break;
            }
        }
        Ok(lanes)
    }
}
