//! Reading jobs' records, and the payloads that belong to them.

use bytes::Bytes;

use crate::adapter::aws::table::Table;
use crate::adapter::stored::record::Record;
use crate::names;
use crate::settings::Settings;
use relay_bridge::contract::{ClientId, Job, JobId};
use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// Reads records.
pub(crate) struct Records {
    pub(crate) settings: Settings,
    pub(crate) table: Table,
}

impl Records {
    /// The record of `job` as it is now, unless it is past its keeping.
    pub(crate) async fn record_of(&self, job: JobId, operation: &'static str) -> Result<Option<Record>, BrokerError> {
        let item = self.table.get(&names::record(job), operation).await?;
        Record::read_kept(item, self.settings.clock.now())
    }

    /// The record of `job`, if the job is the client's.
    pub(crate) async fn owned(
        &self,
        client: &ClientId,
        job: JobId,
        operation: &'static str,
    ) -> Result<Option<Record>, BrokerError> {
        Ok(self.record_of(job, operation).await?.filter(|record| record.client == *client))
    }

    /// The job of a record with its payload: `came`, which came with the message, if it is the job's payload, else the
    /// stored one.
    pub(crate) async fn whole_job(
        &self,
        record: &Record,
        came: Option<Bytes>,
        operation: &'static str,
    ) -> Result<Job, BrokerError> {
        let job = record.job()?;
        let Some(run) = record.payload_run() else { return Ok(job) };
        let is_it =
            |payload: &Bytes| job.fingerprint.is_of(&job.content_type, job.content_encoding.as_deref(), payload);
        if let Some(payload) = came.filter(is_it) {
            return Ok(Job { payload, ..job });
        }
        let item = self.table.get(&names::payload(job.id, run), operation).await?;
        let gone = || {
            let why = format!("the payload of job {} is gone from the table", job.id);
            BrokerError::new(BrokerErrorKind::Corrupt, operation, why)
        };
        let payload = item.ok_or_else(gone)?.need_binary("payload")?;
        Ok(Job { payload, ..job })
    }
}
