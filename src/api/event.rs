//! The events of a job, as its client is told of them while it watches.

use std::collections::BTreeMap;

use relay_bridge::contract::{IdempotencyKey, JobId, Outcome, RunId, Timestamp};
use relay_bridge::leasing::Progress;
use serde::{Deserialize, Serialize};

#[cfg(feature = "server")]
use super::schema;
use super::{JobView, Receipt};

/// Something that happened to a job. Fields that do not apply are left out of the JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct JobEvent {
    /// The job.
    #[cfg_attr(feature = "server", schema(value_type = schema::JobId))]
    pub job_id: JobId,
    /// The run that it happened in.
    #[cfg_attr(feature = "server", schema(value_type = schema::RunId))]
    pub run_id: RunId,
    /// The job's idempotency key, if the client gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Key>))]
    pub key: Option<IdempotencyKey>,
    /// The job's `Relay-Meta-*` headers, without the prefix, in lower case; none once it is erased.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    /// What it was; the name of the event, too.
    #[serde(rename = "type")]
    pub kind: JobEventKind,
    /// When it happened.
    #[cfg_attr(feature = "server", schema(value_type = schema::Time))]
    pub at: Timestamp,
    /// Attempts started in the run by then.
    pub attempt: u32,
    /// How far the handler is, with `progress`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::ProgressView>))]
    pub progress: Option<Progress>,
    /// When the next attempt may start, with `retrying`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Time>))]
    pub next_attempt_at: Option<Timestamp>,
    /// How the run ended, with `finished`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<schema::Outcome>))]
    pub outcome: Option<Outcome>,
    /// The job as it stood, with `snapshot`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Box<JobView>>,
}

/// What happened. `snapshot` and `finished` are certain; the others are told if this relay sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum JobEventKind {
    /// Where the job stood when watching began: always the first event.
    Snapshot,
    /// A worker took it.
    Started,
    /// Its handler said how far it is.
    Progress,
    /// An attempt failed, and another one follows.
    Retrying,
    /// The run ended: always the last event.
    Finished,
}

impl JobEventKind {
    /// The word that the API uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Started => "started",
            Self::Progress => "progress",
            Self::Retrying => "retrying",
            Self::Finished => "finished",
        }
    }
}

impl JobEvent {
    /// An event of `job` with nothing but what every event has.
    #[must_use]
    pub fn new(kind: JobEventKind, job: &Receipt, at: Timestamp, attempt: u32) -> Self {
        Self {
            job_id: job.job_id,
            run_id: job.run_id,
            key: job.key.clone(),
            meta: job.meta.clone(),
            kind,
            at,
            attempt,
            progress: None,
            next_attempt_at: None,
            outcome: None,
            job: None,
        }
    }

    /// Where the job stands at `now`.
    #[must_use]
    pub fn snapshot(job: JobView, now: Timestamp) -> Self {
        let event = Self::new(JobEventKind::Snapshot, &job.receipt, now, job.attempt);
        Self { job: Some(Box::new(job)), ..event }
    }
}
