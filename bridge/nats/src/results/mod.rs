//! The capability for readers (`ResultLog`): look up a job's result, wait for it, read a client's results in order.
//!
//! *Finished* means that the result's run is the record's. Both are read at the leaders: a replica that lags behind
//! would answer a result that was erased, or a run that was started anew, as it was before.

pub(crate) mod follow;
pub(crate) mod waiting;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::closing::Alive;
use crate::records::find::Records;
use crate::results::follow::Reader;
use crate::results::waiting::Waits;
use relay_bridge::contract::{ClientId, JobId, RunId};
use relay_bridge::error::BrokerError;
use relay_bridge::result_log::{Finished, Lookup, Page, ResultFilter, ResultLog, Start};

/// Serves readers: fills `ResultLog` with the parts of this layer.
pub(crate) struct Results {
    pub(crate) records: Arc<Records>,
    pub(crate) waits: Arc<Waits>,
    pub(crate) reader: Arc<Reader>,
    pub(crate) _alive: Arc<Alive>,
}

#[async_trait]
impl ResultLog for Results {
    async fn lookup(&self, client: &ClientId, job: JobId) -> Result<Lookup, BrokerError> {
        self.records.look_up(client, job).await
    }

    async fn wait(&self, client: &ClientId, job: JobId, wait: Duration) -> Result<Lookup, BrokerError> {
        self.waits.wait_for(client, job, wait).await
    }

    async fn wait_ahead(
        &self,
        client: &ClientId,
        job: JobId,
        run: RunId,
        wait: Duration,
    ) -> Result<Option<Box<Finished>>, BrokerError> {
        self.waits.listen_for(client, job, run, wait).await
    }

    async fn page(
        &self,
        client: &ClientId,
        from: &Start,
        filter: &ResultFilter,
        limit: u32,
        wait: Duration,
    ) -> Result<Page, BrokerError> {
        self.reader.read_page(client, from, filter, limit, wait).await
    }
}
