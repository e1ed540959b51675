//! The jobs that came in and went out, by queue and client. Queues are the operator's and few; clients are counted one
//! by one up to a limit and together beyond it, so that nobody who may call can grow the process.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use relay_bridge::contract::{ClientId, Outcome, QueueName};

/// Pairs of queue and client that are counted by themselves.
const FLOWS_MAX: usize = 10_000;

/// The counters of every queue and client that a job came from or went to.
#[derive(Debug, Default)]
pub struct Flows {
    known: RwLock<Known>,
    /// Of all pairs beyond [`FLOWS_MAX`], by queue.
    rest: RwLock<HashMap<QueueName, Arc<Flow>>>,
}

#[derive(Debug, Default)]
struct Known {
    queues: HashMap<QueueName, HashMap<ClientId, Arc<Flow>>>,
    pairs: usize,
}

/// The counters of one client in one queue.
#[derive(Debug, Default)]
pub struct Flow {
    submitted: AtomicU64,
    replayed: AtomicU64,
    settled: [AtomicU64; Outcome::ALL.len()],
}

impl Flow {
    /// A job was accepted, or an earlier submission of it was found.
    pub fn came(&self, replayed: bool) {
        let counter = if replayed { &self.replayed } else { &self.submitted };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A run ended.
    pub fn ended(&self, outcome: Outcome) {
        self.settled[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn add_to(&self, counts: &mut Counts) {
        counts.submitted += self.submitted.load(Ordering::Relaxed);
        counts.replayed += self.replayed.load(Ordering::Relaxed);
        for (to, from) in counts.settled.iter_mut().zip(&self.settled) {
            *to += from.load(Ordering::Relaxed);
        }
    }
}

/// Counters as they were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Jobs accepted.
    pub submitted: u64,
    /// Submissions that found their job there already.
    pub replayed: u64,
    /// Runs that ended, in the order of [`Outcome::ALL`].
    pub settled: [u64; Outcome::ALL.len()],
}

impl Flows {
    /// The counters of `client` in `queue`. The queue must exist: names that are only asked for are not counted.
    #[must_use]
    pub fn of(&self, queue: &QueueName, client: &ClientId) -> Arc<Flow> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(flow) = known.queues.get(queue).and_then(|clients| clients.get(client)) {
            return Arc::clone(flow);
        }
        drop(known);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.pairs >= FLOWS_MAX && known.queues.get(queue).is_none_or(|clients| !clients.contains_key(client)) {
            drop(known);
            let mut rest = self.rest.write().unwrap_or_else(PoisonError::into_inner);
            return Arc::clone(rest.entry(queue.clone()).or_default());
        }
        let clients = known.queues.entry(queue.clone()).or_default();
        let before = clients.len();
        let flow = Arc::clone(clients.entry(client.clone()).or_default());
        let more = clients.len() - before;
        known.pairs += more;
        flow
    }

    /// The counts of each queue over all clients, in the order of names.
    #[must_use]
    pub fn by_queue(&self) -> BTreeMap<QueueName, Counts> {
        let mut all: BTreeMap<QueueName, Counts> = BTreeMap::new();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        for (queue, clients) in &known.queues {
            let counts = all.entry(queue.clone()).or_default();
            clients.values().for_each(|flow| flow.add_to(counts));
        }
        drop(known);
        for (queue, flow) in self.rest.read().unwrap_or_else(PoisonError::into_inner).iter() {
            flow.add_to(all.entry(queue.clone()).or_default());
        }
        all
    }

    /// The counts of each client over all queues, in the order of names; without those beyond the limit.
    #[must_use]
    pub fn by_client(&self) -> BTreeMap<ClientId, Counts> {
        let mut all: BTreeMap<ClientId, Counts> = BTreeMap::new();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        for (client, flow) in known.queues.values().flatten() {
            flow.add_to(all.entry(client.clone()).or_default());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_beyond_the_limit_are_counted_together_and_none_is_lost() {
        let flows = Flows::default();
        let queue: QueueName = "mail".parse().unwrap();
        let clients = (0..FLOWS_MAX + 10).map(|at| format!("c{at}").parse::<ClientId>().unwrap());
        for client in clients {
            flows.of(&queue, &client).came(false);
            flows.of(&queue, &client).ended(Outcome::Failed);
        }
        let counts = flows.by_queue()[&queue];
        assert_eq!((counts.submitted, counts.settled[1]), (FLOWS_MAX as u64 + 10, FLOWS_MAX as u64 + 10));
        assert_eq!(flows.by_client().len(), FLOWS_MAX);
    }
}
