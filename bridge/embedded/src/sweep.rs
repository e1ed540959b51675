//! Ends runs past their deadline, and removes records and dead letters past their keeping. In bounded steps.
//!
//! Most deadlines are in the order of acceptance, because most jobs live for their queue's `job_ttl`: those are found by
//! walking the rows from the first that can be due, and are in no index (which a submission would have to write). The index
//! has all other times: of delayed jobs, of shorter lives beside longer ones, of reruns, and the ends of keeping.

use rusqlite::params;

use super::dispatch::UNREADABLE_FOR;
use super::row::{JobRow, job_columns};
use super::sql::unavailable;
use super::writer::Writer;
use relay_bridge::contract::Timestamp;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Swept;

/// The most records of one step of a sweep.
const SWEEP_MAX: u32 = 1_000;

/// With the index's condition word for word: SQLite uses it only then.
const DUE_BY_TIME: &str = concat!(
    "SELECT ",
    job_columns!(),
    " FROM jobs AS j WHERE j.timer_at IS NOT j.in_order_at AND j.timer_at <= ?1 ORDER BY j.timer_at LIMIT ?2"
);

/// The findings of a walk over the rows.
struct Walk {
    due: Vec<JobRow>,
    /// Where the next one begins, when these are done with.
    upto: i64,
    /// It ended because it had looked at as many rows as it may.
    more: bool,
}

impl Writer {
    /// Ends what is past its deadline and removes what is past its keeping, oldest first.
    pub(super) fn sweep(&mut self, limit: u32) -> Result<Swept, BrokerError> {
        let sql = |e| unavailable(e, "sweep");
        let now = self.clock.now();
        let limit = limit.clamp(1, SWEEP_MAX);
        let mut rows = self.due_by_time(now, limit)?;
        let left = limit.saturating_sub(u32::try_from(rows.len()).unwrap_or(limit));
        let walk = self.due_in_order(now, left)?;
        let mut swept = Swept { more: left == 0 || walk.more, ..Swept::default() };
        rows.extend(walk.due);
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
                swept.expired.extend(self.expire(&row, job)?);
            }
        }
        // Set only now, so that rows that failed above are walked over again.
        self.state.counters.first_in_order = walk.upto;
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

    /// Rows that the index of times finds, the first first.
    fn due_by_time(&self, now: Timestamp, limit: u32) -> Result<Vec<JobRow>, BrokerError> {
        self.conn
            .prepare_cached(DUE_BY_TIME)
            .and_then(|mut query| query.query_map(params![now.as_millis(), limit], JobRow::read)?.collect())
            .map_err(|e| unavailable(e, "sweep"))
    }

    /// Rows whose deadlines are in order, up to the first that is not due. Looks at `limit` rows.
    fn due_in_order(&self, now: Timestamp, limit: u32) -> Result<Walk, BrokerError> {
        let sql = |e| unavailable(e, "sweep");
        let mut walk = Walk { due: Vec::new(), upto: self.state.counters.first_in_order, more: false };
        let mut query = self
            .conn
            .prepare_cached(concat!(
                "SELECT ",
                job_columns!(),
                " FROM jobs AS j WHERE j.seq >= ?1 ORDER BY j.seq LIMIT ?2"
            ))
            .map_err(sql)?;
        let mut walked = 0;
        for row in query.query_map(params![walk.upto, limit], JobRow::read).map_err(sql)? {
            let row = row.map_err(sql)?;
            if row.is_in_order() && row.timer_at > now {
                walk.upto = row.seq;
                return Ok(walk);
            }
            walked += 1;
            walk.upto = row.seq + 1;
            if row.is_in_order() {
                walk.due.push(row);
            }
        }
        walk.more = walked == limit;
        Ok(walk)
    }

    /// A job that this build can't read must not hold up the sweep: others wait behind it.
    fn sweep_later(&mut self, row: &JobRow, failure: &BrokerError) -> Result<(), BrokerError> {
        if !matches!(failure.kind(), BrokerErrorKind::NewerVersion { .. } | BrokerErrorKind::Corrupt) {
            return Err(failure.clone());
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tempfile::TempDir;

    use crate::{Embedded, EmbeddedConfig, store};
    use relay_bridge::clock::Clock;
    use relay_bridge::contract::{JobId, Submission, Timestamp};
    use relay_bridge::policy::QueuePolicy;

    const MINUTE: Duration = Duration::from_secs(60);

    async fn submit(store: &Embedded, key: &str, delay: Duration, expires_in: Option<Duration>) -> JobId {
        let submission = Submission {
            client: "alice".parse().unwrap(),
            queue: "work".parse().unwrap(),
            key: Some(key.parse().unwrap()),
            content_type: "text/plain".to_owned(),
            content_encoding: None,
            headers: Default::default(),
            payload: Bytes::from_static(b"x"),
            delay,
            expires_in,
        };
        let job = submission.accept(&QueuePolicy::default(), store.clock().now());
        store.broker().jobs.enqueue(job).await.unwrap().status().job_id
    }

    /// Keys of the runs that one step of at most `limit` rows expired, in its order, and whether there is more.
    async fn expired(store: &Embedded, limit: u32, jobs: &[(JobId, &'static str)]) -> (Vec<&'static str>, bool) {
        let swept = store.broker().jobs.sweep(limit).await.unwrap();
        let name = |id| jobs.iter().find(|(job, _)| *job == id).map(|(_, key)| *key).unwrap();
        (swept.expired.iter().map(|result| name(result.job_id)).collect(), swept.more)
    }

    #[tokio::test]
    async fn every_deadline_is_found_in_order_or_not_also_after_a_restart() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("relay.db");
        let clock = Clock::manual(Timestamp::from_millis(1_790_000_000_000));
        let open =
            || Embedded::open(EmbeddedConfig { path: Some(path.clone()), clock: clock.clone(), ..Default::default() });
        let opened = open().await.unwrap();
        opened.broker().policies.put_policy(&"work".parse().unwrap(), &QueuePolicy::default(), None).await.unwrap();
        let mut jobs = Vec::new();
        for (key, delay, expires_in) in [
            ("first", 0, None),
            ("short", 0, Some(30)),
            ("delayed", 10, Some(40)),
            ("second", 0, None),
            ("long-delay", 600, None),
            ("third", 0, None),
        ] {
            let id = submit(&opened, key, MINUTE * delay, expires_in.map(|minutes| MINUTE * minutes)).await;
            jobs.push((id, key));
            clock.advance(Duration::from_secs(1));
        }
        clock.advance(MINUTE * 29);
        assert_eq!(expired(&opened, 10, &jobs).await, (vec![], false));
        clock.advance(MINUTE);
        assert_eq!(expired(&opened, 10, &jobs).await, (vec!["short"], false));
        opened.close().await;

        let opened = open().await.unwrap();
        clock.advance(MINUTE * 20);
        assert_eq!(expired(&opened, 10, &jobs).await, (vec!["delayed"], false));
        // Six hours after the first of those with the queue's own life, and the delayed one is not due yet.
        clock.advance(MINUTE * 310);
        assert_eq!(expired(&opened, 2, &jobs).await, (vec!["first"], true));
        assert_eq!(expired(&opened, 2, &jobs).await, (vec!["second"], true));
        assert_eq!(store::check(&path).unwrap().problems, Vec::<String>::new());
        opened.close().await;

        let opened = open().await.unwrap();
        assert_eq!(expired(&opened, 10, &jobs).await, (vec!["third"], false));
        assert_eq!(expired(&opened, 10, &jobs).await, (vec![], false));
        clock.advance(MINUTE * 600);
        assert_eq!(expired(&opened, 10, &jobs).await, (vec!["long-delay"], false));
        opened.close().await;
    }

    #[test]
    fn the_index_of_times_serves_the_sweep() {
        let opened = crate::schema::open(None).unwrap();
        let plan: String = opened
            .connection
            .query_row(&format!("EXPLAIN QUERY PLAN {}", super::DUE_BY_TIME), [0, 0], |row| row.get(3))
            .unwrap();
        assert!(plan.contains("USING INDEX jobs_timer (timer_at<?)"), "{plan}");
    }
}
