//! The store's knowledge of a job, as the rules ask for it, and the dead letters that they have kept or removed.

use std::sync::Arc;

use rusqlite::{OptionalExtension as _, params};

use super::row::{JobRow, PAYLOAD_GONE, PAYLOAD_KEPT};
use super::sql::unavailable;
use super::state::unreadable;
use super::writer::Writer;
use relay_bridge::contract::envelope::{decode_result, encode_dead_letter};
use relay_bridge::contract::{Job, JobId, RunId};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::error::BrokerError;
use relay_bridge::rules::{Ended, Known, Payload, Record};

impl Writer {
    /// The facts known of the job of `row`, which is `job` in its current run.
    pub(super) fn known(&self, row: &JobRow, job: impl Into<Arc<Job>>) -> Result<Known, BrokerError> {
        let ended = row.outcome.filter(|_| row.is_finished()).map(|outcome| Ended {
            run: row.run,
            generation: row.generation,
            outcome,
            claim: None,
        });
        let payload = match row.payload {
            PAYLOAD_KEPT => Payload::Kept,
            PAYLOAD_GONE if self.is_erased(row)? => Payload::Erased,
            _ => Payload::NotKept,
        };
        let record = Record { job: job.into(), attempts: row.attempt, started_at: row.started_at, payload };
        Ok(Known { record: Some(record), ended })
    }

    /// Whether the client had the job erased: its latest result says so.
    fn is_erased(&self, row: &JobRow) -> Result<bool, BrokerError> {
        self.conn
            .prepare_cached("SELECT 1 FROM results WHERE seq = ?1 AND erased")
            .and_then(|mut query| query.exists([row.seq]))
            .map_err(|e| unavailable(e, "read result"))
    }

    /// The job's latest result, of whichever run.
    pub(super) fn ended(&self, row: &JobRow) -> Result<Option<Ended>, BrokerError> {
        let found: Option<(Vec<u8>, bool)> = self
            .conn
            .prepare_cached("SELECT envelope, erased FROM results WHERE seq = ?1")
            .and_then(|mut query| query.query_row([row.seq], |row| Ok((row.get(0)?, row.get(1)?))).optional())
            .map_err(|e| unavailable(e, "read result"))?;
        let Some((envelope, erased)) = found else { return Ok(None) };
        let ended = Ended::of(&decode_result(&envelope.into()).map_err(unreadable)?);
        Ok(Some(Ended { claim: ended.claim.filter(|_| !erased), ..ended }))
    }

    /// Keeps a dead letter, once per run.
    pub(super) fn keep_letter(&mut self, letter: &DeadLetter) -> Result<(), BrokerError> {
        let (queue, found) = self.state.queue(&letter.job.queue)?;
        let remove_at = self.clock.now() + found.policy.dead_retention;
        self.begin()?;
        self.conn
            .prepare_cached(
                "INSERT INTO dead_letters(job, run, queue, remove_at, envelope) VALUES(?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO NOTHING",
            )
            .and_then(|mut insert| {
                insert.execute(params![
                    letter.job.id.as_bytes(),
                    letter.job.run_id.as_bytes(),
                    queue,
                    remove_at.as_millis(),
                    encode_dead_letter(letter, self.wire),
                ])
            })
            .map_err(|e| unavailable(e, "dead-letter"))?;
        Ok(())
    }

    /// Whether there is one, of any of the job's runs.
    pub(super) fn has_dead_letter(&self, job: JobId) -> Result<bool, BrokerError> {
        self.conn
            .prepare_cached("SELECT 1 FROM dead_letters WHERE job = ?1")
            .and_then(|mut query| query.exists([job.as_bytes()]))
            .map_err(|e| unavailable(e, "read dead letter"))
    }

    /// Whether there was one.
    pub(super) fn remove_dead_letter(&mut self, job: JobId, run: RunId) -> Result<bool, BrokerError> {
        self.begin()?;
        self.conn
            .prepare_cached("DELETE FROM dead_letters WHERE job = ?1 AND run = ?2")
            .and_then(|mut delete| delete.execute(params![job.as_bytes(), run.as_bytes()]))
            .map(|removed| removed > 0)
            .map_err(|e| unavailable(e, "remove dead letter"))
    }
}
