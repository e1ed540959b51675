//! A row of `jobs` with its payload's envelope, and what it means to a submitter.

use bytes::Bytes;
use rusqlite::{Connection, MAIN_DB, OptionalExtension as _, Row, params};

use super::ids::{Recent, find_seq, nearest_seq};
use super::sql::unavailable;
use super::state::unreadable;
use relay_bridge::contract::envelope::{decode_job, decode_job_head};
use relay_bridge::contract::{ClientId, Job, JobId, JobState, JobStatus, Outcome, RunId, Timestamp};
use relay_bridge::error::BrokerError;

/// States as they are stored.
pub(super) const WAITING: i64 = 0;
pub(super) const LEASED: i64 = 1;
pub(super) const PARKED: i64 = 2;
pub(super) const FINISHED: i64 = 3;

/// How long the payload is kept, as it is stored: gone, kept with the record, or kept until the run ends.
pub(super) const PAYLOAD_GONE: i64 = 0;
pub(super) const PAYLOAD_KEPT: i64 = 1;
pub(super) const PAYLOAD_UNTIL_END: i64 = 2;

/// How many bytes of an envelope are read where its payload is not wanted. More than what comes before that, mostly.
const HEAD_MAX: usize = 16 * 1024;

/// The columns that [`JobRow::read`] expects, of `jobs AS j`. A macro, so that statements are literals.
macro_rules! job_columns {
    () => {
        "j.seq, j.queue, j.client, j.id, j.run, j.generation, j.state, j.attempt, j.timer_at, j.due_at, j.expires_at, \
         j.size, j.payload, j.started_at, j.finished_at, j.outcome, j.in_order_at"
    };
}
pub(super) use job_columns;

/// The row of a client, if it ever had a job.
pub(super) fn client_row(conn: &Connection, client: &ClientId) -> Result<Option<i64>, BrokerError> {
    conn.prepare_cached("SELECT id FROM clients WHERE name = ?1")
        .and_then(|mut query| query.query_row([client.as_str()], |row| row.get(0)).optional())
        .map_err(|e| unavailable(e, "find client"))
}

/// The row that no queue has.
pub(super) const NO_ROW: i64 = 0;

/// The name of the queue of this row, if there is one.
pub(super) fn queue_name(conn: &Connection, row: i64) -> Result<Option<String>, BrokerError> {
    conn.prepare_cached("SELECT name FROM queues WHERE id = ?1")
        .and_then(|mut query| query.query_row([row], |row| row.get(0)).optional())
        .map_err(|e| unavailable(e, "find queue"))
}

/// The narrow row of a job.
pub(super) struct JobRow {
    pub(super) seq: i64,
    pub(super) queue: i64,
    pub(super) client: i64,
    pub(super) id: JobId,
    pub(super) run: RunId,
    pub(super) generation: u32,
    pub(super) state: i64,
    pub(super) attempt: u32,
    pub(super) timer_at: Timestamp,
    pub(super) due_at: Timestamp,
    pub(super) expires_at: Timestamp,
    pub(super) size: u64,
    pub(super) payload: i64,
    pub(super) started_at: Option<Timestamp>,
    pub(super) finished_at: Option<Timestamp>,
    pub(super) outcome: Option<Outcome>,
    pub(super) in_order_at: Option<Timestamp>,
}

impl JobRow {
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let time = |index| row.get(index).map(Timestamp::from_millis);
        let outcome: Option<String> = row.get(15)?;
        Ok(Self {
            seq: row.get(0)?,
            queue: row.get(1)?,
            client: row.get(2)?,
            id: JobId::from_bytes(row.get(3)?),
            run: RunId::from_bytes(row.get(4)?),
            generation: row.get(5)?,
            state: row.get(6)?,
            attempt: row.get(7)?,
            timer_at: time(8)?,
            due_at: time(9)?,
            expires_at: time(10)?,
            size: row.get(11)?,
            payload: row.get(12)?,
            started_at: row.get::<_, Option<i64>>(13)?.map(Timestamp::from_millis),
            finished_at: row.get::<_, Option<i64>>(14)?.map(Timestamp::from_millis),
            outcome: outcome.and_then(|outcome| outcome.parse().ok()),
            in_order_at: row.get::<_, Option<i64>>(16)?.map(Timestamp::from_millis),
        })
    }

    /// The job with this id, whosever it is: for callers that are no clients.
    pub(super) fn find(conn: &Connection, recent: &Recent, id: JobId) -> Result<Option<Self>, BrokerError> {
        let Some(seq) = find_seq(conn, recent, id)? else { return Ok(None) };
        conn.prepare_cached(concat!("SELECT ", job_columns!(), " FROM jobs AS j WHERE j.seq = ?1 AND j.id = ?2"))
            .and_then(|mut query| query.query_row(params![seq, id.as_bytes()], Self::read).optional())
            .map_err(|e| unavailable(e, "find job"))
    }

    /// The client's job with this id. Another client's job takes the same steps as one that is not there: of either no more
    /// is read than a narrow row. What else is known of a job is read once it is known to be the client's.
    pub(super) fn find_owned(
        conn: &Connection,
        recent: &Recent,
        client: &ClientId,
        id: JobId,
    ) -> Result<Option<Self>, BrokerError> {
        // First of all: recent ids are asked before the snapshot begins.
        let seq = nearest_seq(conn, recent, id)?;
        let owner = client_row(conn, client)?;
        conn.prepare_cached(concat!(
            "SELECT ",
            job_columns!(),
            " FROM jobs AS j WHERE j.seq = ?1 AND j.id = ?2 AND j.client IS ?3"
        ))
        .and_then(|mut query| query.query_row(params![seq, id.as_bytes(), owner], Self::read).optional())
        .map_err(|e| unavailable(e, "find job"))
    }

    /// Whether the run ended.
    pub(super) fn is_finished(&self) -> bool {
        self.state == FINISHED
    }

    /// Whether a sweep finds it by its place instead of by the index of times.
    pub(super) fn is_in_order(&self) -> bool {
        self.in_order_at == Some(self.timer_at)
    }

    /// Whether a sweep may remove it: everything of it counts as absent.
    pub(super) fn is_past_keeping(&self, now: Timestamp) -> bool {
        self.is_finished() && self.timer_at <= now
    }

    /// The job as it is in its current run.
    pub(super) fn job(&self, conn: &Connection) -> Result<Job, BrokerError> {
        let envelope: Vec<u8> = conn
            .prepare_cached("SELECT envelope FROM payloads WHERE seq = ?1")
            .and_then(|mut query| query.query_row([self.seq], |row| row.get(0)))
            .map_err(|e| unavailable(e, "read payload"))?;
        self.job_from(envelope)
    }

    /// The same from an envelope that was read already. The row is newer than the envelope: it decides.
    pub(super) fn job_from(&self, envelope: Vec<u8>) -> Result<Job, BrokerError> {
        decode_job(&Bytes::from(envelope)).map(|job| self.in_current_run(job)).map_err(unreadable)
    }

    /// A job from its envelope, which is of its first run. The row's `due_at` moves with every retry, so the start of
    /// the run is told from its end.
    pub(super) fn in_current_run(&self, job: Job) -> Job {
        let ttl = i64::try_from(job.ttl_ms).unwrap_or(i64::MAX);
        let due_at = Timestamp::from_millis(self.expires_at.as_millis().saturating_sub(ttl));
        Job { run_id: self.run, generation: self.generation, due_at, expires_at: self.expires_at, ..job }
    }

    /// The status that the submitter may see.
    pub(super) fn status(&self, conn: &Connection, now: Timestamp) -> Result<JobStatus, BrokerError> {
        let job = if self.size > HEAD_MAX as u64 { self.head(conn)? } else { self.job(conn)? };
        Ok(self.status_of(job, now))
    }

    /// The job in its current run without its payload: of a large one no more than the beginning is read.
    fn head(&self, conn: &Connection) -> Result<Job, BrokerError> {
        let read = |e| unavailable(e, "read job");
        let blob = conn.blob_open(MAIN_DB, "payloads", "envelope", self.seq, true).map_err(read)?;
        let mut head = vec![0; blob.len().min(HEAD_MAX)];
        blob.read_at_exact(&mut head, 0).map_err(read)?;
        match decode_job_head(&head.into()) {
            Ok(job) => Ok(self.in_current_run(job)),
            // It may go on behind what was read.
            Err(_) => self.job(conn),
        }
    }

    /// The same from a job that was read already.
    pub(super) fn status_of(&self, job: Job, now: Timestamp) -> JobStatus {
        let state = match (self.state, self.outcome) {
            (FINISHED, Some(outcome)) => JobState::Finished(outcome),
            (LEASED, _) => JobState::Leased,
            _ => JobState::Queued,
        };
        JobStatus {
            job_id: self.id,
            run_id: self.run,
            generation: self.generation,
            client: job.client,
            queue: job.queue,
            key: job.key,
            fingerprint: job.fingerprint,
            state,
            attempt: self.attempt,
            content_type: job.content_type,
            size: self.size,
            headers: job.headers,
            accepted_at: job.accepted_at,
            expires_at: self.expires_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            next_attempt_at: Some(self.due_at).filter(|due| self.state == PARKED && *due > now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;
    use relay_bridge::contract::envelope::encode_job;
    use relay_bridge::contract::{Job, Submission};
    use relay_bridge::policy::QueuePolicy;

    fn now() -> Timestamp {
        Timestamp::from_millis(1_763_865_086_007)
    }

    fn job(headers: usize, payload: usize) -> Job {
        let submission = Submission {
            client: "me".parse().unwrap(),
            queue: "mail".parse().unwrap(),
            key: Some("key".parse().unwrap()),
            content_type: "text/plain".to_owned(),
            content_encoding: None,
            headers: (0..headers).map(|number| (format!("x-{number}"), "x".repeat(1_000))).collect(),
            payload: vec![7; payload].into(),
            delay: Default::default(),
            expires_in: None,
        };
        submission.accept(&QueuePolicy::default(), now())
    }

    /// The row of a job of whose envelope the last `cut` bytes are missing.
    fn stored(conn: &Connection, job: &Job, cut: usize) -> JobRow {
        let envelope = encode_job(job, Default::default());
        conn.execute("INSERT INTO payloads(seq, envelope) VALUES(1, ?1)", params![&envelope[..envelope.len() - cut]])
            .unwrap();
        JobRow {
            seq: 1,
            queue: 1,
            client: 1,
            id: job.id,
            run: job.run_id,
            generation: 1,
            state: WAITING,
            attempt: 0,
            timer_at: job.expires_at,
            due_at: job.due_at,
            expires_at: job.expires_at,
            size: job.payload.len() as u64,
            payload: PAYLOAD_KEPT,
            started_at: None,
            finished_at: None,
            outcome: None,
            in_order_at: None,
        }
    }

    #[test]
    fn a_status_reads_no_large_payload() {
        let (conn, job) = (schema::open(None).unwrap().connection, job(3, 1024 * 1024));
        // Without its end the payload can't be read, as a reader of it sees.
        let row = stored(&conn, &job, 1);
        row.job(&conn).unwrap_err();
        let status = row.status(&conn, now()).unwrap();
        assert_eq!((status.key, status.headers, status.fingerprint), (job.key, job.headers, job.fingerprint));
        assert_eq!((status.size, status.accepted_at, status.expires_at), (1024 * 1024, now(), job.expires_at));
    }

    #[test]
    fn a_status_has_all_headers_also_where_they_are_long() {
        let (conn, job) = (schema::open(None).unwrap().connection, job(30, 1024 * 1024));
        let status = stored(&conn, &job, 0).status(&conn, now()).unwrap();
        assert_eq!(status.headers, job.headers);
    }
}
