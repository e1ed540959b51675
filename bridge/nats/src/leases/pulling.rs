//! The part that brings jobs, as the files beside it fill it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::deliver::Deliveries;
use super::settling::Settling;
use crate::line::lines::Lines;
use crate::wire::api::Api;

/// Pulls, and offers what they bring.
pub(crate) struct Pulls {
    pub(crate) api: Api,
    pub(crate) closing: CancellationToken,
    pub(crate) tasks: TaskTracker,
    pub(crate) lines: Arc<Lines>,
    pub(crate) deliveries: Arc<Deliveries>,
    pub(crate) settling: Arc<Settling>,
}
