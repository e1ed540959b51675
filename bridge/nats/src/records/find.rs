//! Finds a job's record, in whichever queue it is, and what its owner may know of the job. Everything here is read at
//! the leaders: an answer "not yet" or "unknown" of a replica would have to be confirmed there anyway.

use relay_bridge::contract::job::META_PREFIX;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::Instant;

use crate::records::held::{HeldJobs, TELL_AFTER};
use crate::records::lately::{Lately, Put};
use crate::records::results::ResultEntries;
use crate::stored::names::{self, Address, Place};
use crate::stored::record::Record;
use crate::stored::streams;
use crate::wire::api::Api;
use crate::wire::stream_calls;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, Fingerprint, Job, JobId, JobResult, JobState, JobStatus, QueueName, RunId};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::result_log::{Finished, Lookup};
use relay_bridge::rules::{self, Ended, Known, Payload};
use relay_bridge::support::lock;

/// How long the names of the queues are used before they are asked for again.
const QUEUES_AGE: Duration = Duration::from_secs(5);
/// How many queues are asked at once for a job of which only the id is known.
const AT_ONCE: usize = 32;

/// The queues there are, asked for again after a while, or when something was not found in them.
#[derive(Debug, Default)]
pub(crate) struct Queues(Mutex<Option<(Instant, Vec<QueueName>)>>);

/// The record and the result that were found of a job.
pub(crate) struct Found {
    /// Its record and what is in it, unless it is past its keeping.
    pub(crate) record: Option<(Record, Job)>,
    /// Its result, of any run.
    pub(crate) kept: Option<Finished>,
}

impl Found {
    /// The result of the record's run.
    pub(crate) fn ended(&self) -> Option<&JobResult> {
        let result = self.kept.as_ref().map(|kept| &kept.result)?;
        let open = self.record.as_ref().is_some_and(|(_, job)| job.run_id > result.run_id);
        (!open).then_some(result)
    }

    /// Whether the client had the payload removed: the record says so, or, of a job that has none any more, its result.
    pub(crate) fn is_erased(&self) -> bool {
        match (&self.record, &self.kept) {
            (Some((record, _)), _) => record.is_erased(),
            (None, kept) => kept.as_ref().is_some_and(|kept| kept.erased),
        }
    }

    /// The facts for the rules; `None` if there is nothing.
    pub(crate) fn known(&self) -> Option<Known> {
        let record = self.record.as_ref().map(|(record, job)| known_record(record, job));
        let ended = self.kept.as_ref().map(|kept| match kept.erased {
            true => Ended { claim: None, ..Ended::of(&kept.result) },
            false => Ended::of(&kept.result),
        });
        (record.is_some() || ended.is_some()).then_some(Known { record, ended })
    }
}

/// The facts for the rules of a record, with the attempts that its message says.
pub(crate) fn known_record(record: &Record, job: &Job) -> rules::Record {
    let payload = match (record.is_erased(), job.keep_record) {
        (true, _) => Payload::Erased,
        (false, true) => Payload::Kept,
        (false, false) => Payload::NotKept,
    };
    rules::Record { job: Arc::new(job.clone()), attempts: record.charged(), started_at: None, payload }
}

/// The answer to a look at a job with all questions asked at once.
pub(crate) enum Glance {
    /// Its run ended.
    Finished(Box<Finished>),
    /// It is in this queue, and this run of it had not ended.
    Open(QueueName, RunId),
    /// The questions have to be asked one after the other.
    Unclear,
}

const OPERATION: &str = "find job";

/// Finds jobs' records, and what their owners may know of them.
pub(crate) struct Records {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
    pub(crate) results: Arc<ResultEntries>,
    pub(crate) held: Arc<HeldJobs>,
    pub(crate) queues: Queues,
    pub(crate) lately: Lately,
}

impl Records {
    /// The record at an address, at its leader.
    pub(crate) async fn record_at(
        &self,
        address: &Address,
        operation: &'static str,
    ) -> Result<Option<Record>, BrokerError> {
        let found = self.api.last_at_leader(&address.stream(), address.anywhere(), operation).await?;
        found.map(Record::read).transpose()
    }

    /// The record of the client's job, in whichever queue it is.
    pub(crate) async fn find(&self, client: &ClientId, job: JobId) -> Result<Option<Record>, BrokerError> {
        let known = self.queues(false).await?;
        if let Some(record) = self.find_in(&known, client, job).await? {
            return Ok(Some(record));
        }
        let mut fresh = self.queues(true).await?;
        fresh.retain(|queue| !known.contains(queue));
        self.find_in(&fresh, client, job).await
    }

    pub(crate) async fn find_in(
        &self,
        queues: &[QueueName],
        client: &ClientId,
        job: JobId,
    ) -> Result<Option<Record>, BrokerError> {
        let addresses: Vec<_> = queues.iter().map(|queue| Address::new(queue, client, job)).collect();
        let mut answers = futures_util::stream::iter(addresses)
            .map(|address| async move {
                // All queues but one have no such job, and that one has none either if it is over and had no key.
                let found = self.api.last_if_any(&address.stream(), address.anywhere(), OPERATION).await?;
                found.map(Record::read).transpose()
            })
            .buffer_unordered(AT_ONCE);
        let mut failed = None;
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(Some(record)) => return Ok(Some(record)),
                Ok(None) => {}
                // A queue that was removed has no such job; results outlive it.
                Err(error) if error.kind() == BrokerErrorKind::NotFound => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Whether the client has the job in one of `queues`. Others are not asked for its record.
    pub(crate) async fn is_in(&self, client: &ClientId, job: JobId, queues: &[QueueName]) -> Result<bool, BrokerError> {
        // By its subject, which has its queue and its owner: its payload is not read for that.
        let addresses: Vec<_> = queues.iter().map(|queue| Address::new(queue, client, job)).collect();
        let mut answers = futures_util::stream::iter(addresses)
            .map(|address| async move {
                let (stream, anywhere) = (address.stream(), address.anywhere());
                stream_calls::subjects(&self.api, &stream, &anywhere, 0, OPERATION).await
            })
            .buffer_unordered(AT_ONCE);
        let mut failed = None;
        while let Some(answer) = answers.next().await {
            match answer {
                Ok((subjects, _)) if !subjects.is_empty() => return Ok(true),
                Ok(_) => {}
                // As in `find_in`.
                Err(error) if error.kind() == BrokerErrorKind::NotFound => {}
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        self.results.is_of(client, job, queues).await
    }

    /// The names of all queues, at most 5 s old.
    pub(crate) async fn queues(&self, now: bool) -> Result<Vec<QueueName>, BrokerError> {
        let cell = &self.queues.0;
        let known = lock(cell).clone();
        if let Some((_, names)) = known.filter(|(at, _)| !now && at.elapsed() < QUEUES_AGE) {
            return Ok(names);
        }
        let asked = Instant::now();
        // By name: a list with the streams' details lacks those that have no leader just now, and their jobs are there.
        let streams = stream_calls::list_names(&self.api, streams::ALL_JOBS, "list queues").await?;
        let mut names: Vec<_> = streams.iter().filter_map(|name| names::queue_of_stream(name)).collect();
        names.sort();
        names.dedup();
        *lock(cell) = Some((asked, names.clone()));
        Ok(names)
    }

    /// The record and the result of the client's job. With one queue the record is asked for first, so that a result
    /// that is not there is asked for once; with several queues the result is asked for first, because it names the
    /// queue. Of a job that this process put in line lately less is asked.
    pub(crate) async fn look(&self, client: &ClientId, job: JobId) -> Result<Found, BrokerError> {
        if let Some(put) = self.lately.put(client, job)
            && let Some(found) = self.look_lately(client, job, &put).await?
        {
            return Ok(found);
        }
        if let [queue] = self.queues(false).await?.as_slice() {
            let record = self.find_in(std::slice::from_ref(queue), client, job).await?;
            let kept = self.results.kept_result(client, job).await?;
            match (record, kept) {
                (Some(record), kept) if kept.as_ref().is_none_or(|kept| kept.result.queue == *queue) => {
                    return self.found(record, kept);
                }
                (None, Some(kept)) if kept.result.queue == *queue => {
                    return Ok(Found { record: None, kept: Some(kept) });
                }
                // It is in a queue that is new, or in none.
                _ => {}
            }
        }
        let mut kept = self.results.kept_result(client, job).await?;
        let record = match &kept {
            Some(kept) => self.find_in(std::slice::from_ref(&kept.result.queue), client, job).await?,
            None => self.find(client, job).await?,
        };
        let Some(record) = record else {
            // Its result may have been recorded, and its record removed, between the two questions.
            if kept.is_none() {
                kept = self.results.kept_result(client, job).await?;
            }
            return Ok(Found { record: None, kept });
        };
        if kept.is_none() {
            // A result recorded after the first question counts: the answer must not be older than the record.
            kept = self.results.kept_result(client, job).await?;
        }
        self.found(record, kept)
    }

    /// The same of a job that this process put in line lately; `None` if things are not as it left them. Its result is asked
    /// for first: without one its record is there, and is read without a question whether it is. The answer is as of the
    /// moment at which there was no result.
    async fn look_lately(&self, client: &ClientId, job: JobId, put: &Put) -> Result<Option<Found>, BrokerError> {
        let address = Address::new(&put.queue, client, job);
        let record = async || match self.record_at(&address, OPERATION).await {
            // The queue was removed; results outlive it.
            Err(error) if error.kind() == BrokerErrorKind::NotFound => Ok(None),
            record => record,
        };
        let Some(kept) = self.results.kept_result(client, job).await? else {
            // One that left the line has its result by now.
            let record = record().await?.filter(|record| record.place != Place::Ended);
            return record.map(|record| self.found(record, None)).transpose();
        };
        let Finished { result, .. } = &kept;
        if result.queue != put.queue || result.run_id < put.run {
            return Ok(None);
        }
        let record = match put.keeps_record {
            true => record().await?,
            // Its record goes, and no later run begins: there is no payload for a rerun, and no letter for a redrive.
            false if !rules::leaves_letter(result.outcome) => None,
            false => self.find_in(std::slice::from_ref(&put.queue), client, job).await?,
        };
        match record {
            Some(record) => self.found(record, Some(kept)).map(Some),
            None => Ok(Some(Found { record: None, kept: Some(kept) })),
        }
    }

    /// The record and the result as they were found, without a record that is past its keeping.
    fn found(&self, record: Record, kept: Option<Finished>) -> Result<Found, BrokerError> {
        let job = record.job()?;
        let is_kept = job.keep_until() > self.clock.now();
        Ok(Found { record: is_kept.then_some((record, job)), kept })
    }

    /// The facts at an address, and the record that is to be replaced there: also one past its keeping, which counts as
    /// absent.
    pub(crate) async fn look_at(
        &self,
        address: &Address,
        operation: &'static str,
    ) -> Result<(Found, Option<Record>), BrokerError> {
        let Address { client, job, .. } = address;
        let mut kept = self.results.kept_result(client, *job).await?;
        let written = self.record_at(address, operation).await?;
        if kept.is_none() {
            // As in `look`: recorded, and the record removed or rewritten, between the two questions.
            kept = self.results.kept_result(client, *job).await?;
        }
        let mut found = Found { record: None, kept };
        if let Some(record) = &written {
            let job = record.job()?;
            if job.keep_until() > self.clock.now() {
                found.record = Some((record.clone(), job));
            }
        }
        Ok((found, written))
    }

    /// Whether the run of the client's job ended, in one round trip: the record and the result are asked for together,
    /// the record in `queue` if that is known. A result that comes between the two answers may be missed, so this is
    /// for callers that are told of results as well. A result that is seen is the run's, whichever was answered first,
    /// because run ids only grow.
    pub(crate) async fn glance(
        &self,
        client: &ClientId,
        job: JobId,
        queue: Option<&QueueName>,
    ) -> Result<Glance, BrokerError> {
        let queues = match queue.cloned().or_else(|| self.lately.put(client, job).map(|put| put.queue)) {
            Some(queue) => vec![queue],
            None => self.queues(false).await?,
        };
        let (kept, record) = tokio::join!(self.results.kept_result(client, job), self.find_in(&queues, client, job));
        let (kept, Ok(Some(record))) = (kept?, record) else { return Ok(Glance::Unclear) };
        let current = record.job()?;
        if current.keep_until() <= self.clock.now() {
            return Ok(Glance::Unclear);
        }
        Ok(match kept {
            Some(kept) if kept.result.queue != current.queue => Glance::Unclear,
            Some(kept) if kept.result.run_id >= current.run_id => Glance::Finished(Box::new(kept)),
            Some(_) | None => Glance::Open(current.queue, current.run_id),
        })
    }

    /// The status that the client may know of its job, or `None` if there is nothing.
    pub(crate) async fn status_of(&self, found: &Found) -> Result<Option<JobStatus>, BrokerError> {
        let ended = found.ended();
        match (&found.record, ended) {
            (Some((record, job)), _) => self.status_of_record(record, job, ended).await.map(Some),
            (None, Some(result)) => Ok(Some(status_of_result(result))),
            (None, None) => Ok(None),
        }
    }

    /// The status that the client may know of the job in `record`; `ended` is the result of its run.
    pub(crate) async fn status_of_record(
        &self,
        record: &Record,
        job: &Job,
        ended: Option<&JobResult>,
    ) -> Result<JobStatus, BrokerError> {
        let now = self.clock.now();
        let mut status = status_of_new(job);
        if let Some(result) = ended {
            status.state = JobState::Finished(result.outcome);
            status.attempt = result.attempt;
            (status.started_at, status.finished_at) = (result.started_at, Some(result.finished_at));
            return Ok(status);
        }
        status.attempt = record.charged();
        if record.place == Place::Timer {
            status.next_attempt_at = record.fires_at().filter(|at| *at > now);
            return Ok(status);
        }
        status.next_attempt_at = Some(job.due(now)).filter(|due| *due > now);
        let running = match self.is_untold(record, job) {
            true => self.held.running_here(job.id, job.run_id),
            false => self.held.running(&job.client, job.id, job.run_id).await?,
        };
        if let Some(running) = running {
            status.started_at = Some(running.started_at);
            if running.is_held(now) {
                (status.state, status.attempt) = (JobState::Leased, running.attempt);
            }
        }
        Ok(status)
    }

    /// Whether no other process has told of the run: it was put in line here, and a run is told of once it has lasted for
    /// some time.
    fn is_untold(&self, record: &Record, job: &Job) -> bool {
        let put = self.lately.put(&job.client, job.id).filter(|put| put.run == job.run_id);
        record.charged() == 0 && put.is_some_and(|put| put.at.elapsed() < TELL_AFTER)
    }

    /// Where the client's job stands, as the leaders have it.
    pub(crate) async fn look_up(&self, client: &ClientId, job: JobId) -> Result<Lookup, BrokerError> {
        let found = self.look(client, job).await?;
        if found.ended().is_some()
            && let Some(kept) = found.kept
        {
            return Ok(Lookup::Finished(Box::new(kept)));
        }
        let status = self.status_of(&found).await?;
        Ok(status.map_or(Lookup::Absent, |status| Lookup::Open(Box::new(status))))
    }
}

/// The status of a job that no worker has taken yet.
pub(crate) fn status_of_new(job: &Job) -> JobStatus {
    JobStatus {
        job_id: job.id,
        run_id: job.run_id,
        generation: job.generation,
        client: job.client.clone(),
        queue: job.queue.clone(),
        key: job.key.clone(),
        fingerprint: job.fingerprint,
        state: JobState::Queued,
        attempt: 0,
        content_type: job.content_type.clone(),
        size: job.payload.len() as u64,
        headers: job.headers.clone(),
        accepted_at: job.accepted_at,
        expires_at: job.expires_at,
        started_at: None,
        finished_at: None,
        next_attempt_at: None,
    }
}

/// The status of a job whose record is gone: its result is all that is left.
fn status_of_result(result: &JobResult) -> JobStatus {
    JobStatus {
        job_id: result.job_id,
        run_id: result.run_id,
        generation: result.generation,
        client: result.client.clone(),
        queue: result.queue.clone(),
        key: result.key.clone(),
        fingerprint: Fingerprint::of("", None, b""),
        state: JobState::Finished(result.outcome),
        attempt: result.attempt,
        content_type: String::new(),
        size: 0,
        headers: result.meta.iter().map(|(name, value)| (format!("{META_PREFIX}{name}"), value.clone())).collect(),
        accepted_at: result.accepted_at,
        expires_at: result.finished_at,
        started_at: result.started_at,
        finished_at: Some(result.finished_at),
        next_attempt_at: None,
    }
}
