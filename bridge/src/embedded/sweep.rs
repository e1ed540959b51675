//! What time ends: runs past their deadline, records and dead letters past their keeping. In bounded steps.

use rusqlite::params;

use super::dispatch::UNREADABLE_FOR;
use super::row::{JobRow, job_columns};
use super::schema::unavailable;
use super::writer::{Writer, copy};
use crate::contract::{Failure, Outcome};
use crate::error::{BrokerError, BrokerErrorKind};
use crate::job_queue::Swept;

/// The most records of one step of a sweep.
const SWEEP_MAX: u32 = 1_000;

impl Writer {
    /// Ends what is past its deadline and removes what is past its keeping, oldest first.
    pub(super) fn sweep(&mut self, limit: u32) -> Result<Swept, BrokerError> {
        let sql = |e| unavailable(e, "sweep");
        let now = self.clock.now();
        let limit = limit.clamp(1, SWEEP_MAX);
        let rows: Vec<JobRow> = {
            let mut query = self
                .conn
                .prepare_cached(concat!(
                    "SELECT ",
                    job_columns!(),
                    " FROM jobs AS j WHERE j.timer_at <= ?1 ORDER BY j.timer_at LIMIT ?2"
                ))
                .map_err(sql)?;
            let rows = query.query_map(params![now.as_millis(), limit], JobRow::read);
            rows.and_then(Iterator::collect).map_err(sql)?
        };
        let mut swept = Swept { more: rows.len() >= limit as usize, ..Swept::default() };
        for row in rows {
            self.begin()?;
            if row.is_finished() {
                self.remove(&row)?;
                swept.removed += 1;
            } else {
                let job = match row.job(&self.conn) {
                    Ok(job) => job,
                    Err(failure) => {
                        self.sweep_later(&row, &failure)?;
                        continue;
                    }
                };
                let failure = Failure::new("expired", format!("not finished by its deadline {}", row.expires_at));
                swept.expired.push(self.end(&row, &job, Outcome::Expired, failure)?);
            }
        }
        let letters: i64 = self
            .conn
            .prepare_cached("SELECT count(*) FROM (SELECT 1 FROM dead_letters WHERE remove_at <= ?1 LIMIT 1)")
            .and_then(|mut query| query.query_row([now.as_millis()], |row| row.get(0)))
            .map_err(sql)?;
        if letters > 0 {
            self.begin()?;
            let removed = self
                .conn
                .execute(
                    "DELETE FROM dead_letters WHERE rowid IN
                     (SELECT rowid FROM dead_letters WHERE remove_at <= ?1 ORDER BY remove_at LIMIT ?2)",
                    params![now.as_millis(), limit],
                )
                .map_err(sql)?;
            swept.removed += removed as u64;
            swept.more |= removed >= limit as usize;
        }
        Ok(swept)
    }

    /// A job that this build can't read must not hold up the sweep: others wait behind it.
    fn sweep_later(&mut self, row: &JobRow, failure: &BrokerError) -> Result<(), BrokerError> {
        if !matches!(failure.kind(), BrokerErrorKind::NewerVersion { .. } | BrokerErrorKind::Corrupt) {
            return Err(copy(failure));
        }
        tracing::error!(job_id = %row.id, error = %failure, "expired job can't be read: left for later");
        let later = self.clock.now() + UNREADABLE_FOR;
        self.conn
            .prepare_cached("UPDATE jobs SET timer_at = ?2 WHERE seq = ?1")
            .and_then(|mut update| update.execute(params![row.seq, later.as_millis()]))
            .map_err(|e| unavailable(e, "sweep"))?;
        Ok(())
    }
}
