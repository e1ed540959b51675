//! A broker is a struct of capabilities. A capability that an adapter lacks is missing in its type, not refused at run
//! time; differences within a capability are data.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::dead_letters::DeadLetters;
use crate::job_queue::JobQueue;
use crate::leasing::Leasing;
use crate::policy::PolicyStore;
use crate::provision::Provision;
use crate::result_log::ResultLog;
use crate::rules::Counts;

/// Everything that ingress and operators need. A worker needs [`Leasing`] alone, which also `remote` gives.
#[derive(Clone)]
pub struct Broker {
    /// The abilities and limits of the adapter, as data.
    pub capabilities: Capabilities,
    /// For submitters.
    pub jobs: Arc<dyn JobQueue>,
    /// For workers.
    pub leasing: Arc<dyn Leasing>,
    /// For readers.
    pub results: Arc<dyn ResultLog>,
    /// For operators: runs that ended badly.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// For all: the policies of queues.
    pub policies: Arc<dyn PolicyStore>,
    /// For operators: creating what the broker needs.
    pub provision: Arc<dyn Provision>,
    /// How often the adapter corrected or refused what a worker said.
    pub counts: Arc<Counts>,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("capabilities", &self.capabilities).finish_non_exhaustive()
    }
}

/// How adapters differ where the contract (`docs/contract.md`) lets them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The adapter: `embedded`, `nats`, `sqs`.
    pub adapter: &'static str,
    /// The largest payload or result in bytes, whatever a queue's policy says.
    pub payload_max: u64,
    /// The failure that an accepted job survives.
    pub durability: Durability,
    /// Whether a lost lease is noticed by the broker (`true`), or judged by the holder's own clock (`false`).
    pub lease_lost_certain: bool,
    /// Whether clients share a queue's workers by weight.
    pub fair: bool,
    /// Whether a queue may have one line for all clients instead (`QueuePolicy::fair = false`), for scalers that read one.
    pub one_line: bool,
    /// Whether the bytes that each client keeps in a queue are counted (`ClientPolicy::max_stored`).
    pub counts_stored: bool,
    /// How exact a look at a queue's work is (`JobQueue::load`).
    pub load: LoadSight,
}

/// How exact a look at a queue's work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadSight {
    /// Whether parked jobs that are due soon are among those that could start, to the second; else they are counted once they are due.
    pub foresees: bool,
    /// Whether jobs beyond their client's running limit are left out of those that could start.
    pub knows_limits: bool,
    /// Whether it says how long slots were busy; else a reader has to measure it by how many jobs are held.
    pub times_attempts: bool,
    /// How old the counts may be that it is made of: the least time between two looks that is of use.
    pub age: Duration,
}

/// The failure that an accepted job survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Loss of power: it was flushed to stable storage before the answer.
    PowerLoss,
    /// Loss of a machine: a majority of replicas has it.
    Replicated,
    /// A crash of the broker's process: the operating system has it.
    ProcessCrash,
    /// Nothing: it lives in this process's memory, for tests and trials.
    None,
}

impl Durability {
    /// The word that whoami, logs and docs use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PowerLoss => "power-loss",
            Self::Replicated => "replicated",
            Self::ProcessCrash => "process-crash",
            Self::None => "none",
        }
    }
}
