//! The part that pulls jobs. Its methods are in `dispatch`, `offered` and `pulls`.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::deliver::Deliveries;
use super::settling::Settling;
use crate::line::lines::Lines;
use crate::wire::api::Api;

/// Makes pulls, and offers the jobs that they bring.
pub(crate) struct Pulls {
    pub(crate) api: Api,
    pub(crate) closing: CancellationToken,
    pub(crate) tasks: TaskTracker,
    pub(crate) lines: Arc<Lines>,
    pub(crate) deliveries: Arc<Deliveries>,
    pub(crate) settling: Arc<Settling>,
}
