//! The part that extends and ends deliveries. Its methods are in `settle` and `adopt`.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use super::acks::Acks;
use crate::line::lanes::Lanes;
use crate::line::lines::Lines;
use crate::records::find::Records;
use crate::records::held::HeldJobs;
use crate::records::policies::Policies;
use crate::records::results::ResultEntries;
use crate::records::timers::Timers;
use crate::wire::api::Api;
use relay_bridge::clock::Clock;

/// Ends and extends deliveries, those of other processes included.
pub(crate) struct Settling {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
    pub(crate) policies: Arc<Policies>,
    /// The runtime on which leases that nobody took are handed back, wherever they are dropped.
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) tasks: TaskTracker,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) lines: Arc<Lines>,
    pub(crate) records: Arc<Records>,
    pub(crate) results: Arc<ResultEntries>,
    pub(crate) held: Arc<HeldJobs>,
    pub(crate) timers: Arc<Timers>,
    pub(crate) acks: Arc<Acks>,
}
