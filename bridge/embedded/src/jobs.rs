//! The submitter's half: enqueue, status, cancel, rerun, erase, list, depth, sweep.

use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{OptionalExtension as _, params};

use super::ids::find_seq;
use super::row::{
    FINISHED, JobRow, LEASED, NO_ROW, PARKED, PAYLOAD_GONE, PAYLOAD_KEPT, PAYLOAD_UNTIL_END, WAITING, queue_name,
};
use super::shared::NewResult;
use super::sql::unavailable;
use super::writer::Writer;
use super::{Embedded, PAYLOAD_MAX, list};
use relay_bridge::contract::envelope::{decode_result, encode_job, encode_result};
use relay_bridge::contract::{
    ClientId, Job, JobId, JobResult, JobState, JobStatus, Outcome, QueueName, RunId, Timestamp,
};
use relay_bridge::error::BrokerError;
use relay_bridge::job_queue::{Depth, Enqueued, Exact, JobFilter, JobQueue, Listed, Swept};
use relay_bridge::load::{KeptPace, Load};
use relay_bridge::rules::{self, Known, Payload, refusal};

#[async_trait]
impl JobQueue for Embedded {
    async fn enqueue(&self, job: Job) -> Result<Enqueued, BrokerError> {
        let actual = job.payload.len() as u64;
        if actual > PAYLOAD_MAX {
            return Err(refusal::too_large("enqueue", actual, PAYLOAD_MAX));
        }
        self.call(move |writer| writer.enqueue(job)).await
    }

    async fn status(&self, client: &ClientId, job: JobId) -> Result<Option<JobStatus>, BrokerError> {
        let (client, now, shared) = (client.clone(), self.clock().now(), self.shared());
        self.read(move |conn| {
            let row = JobRow::find_owned(conn, &shared.recent, &client, job)?.filter(|row| !row.is_past_keeping(now));
            row.map(|row| row.status(conn, now)).transpose()
        })
        .await
    }

    async fn is_in(&self, client: &ClientId, job: JobId, queues: &[QueueName]) -> Result<bool, BrokerError> {
        let (client, now, shared) = (client.clone(), self.clock().now(), self.shared());
        let queue = self.read(move |conn| {
            let row = JobRow::find_owned(conn, &shared.recent, &client, job)?.filter(|row| !row.is_past_keeping(now));
            // Asked for where there is no job as well: both take the same steps.
            queue_name(conn, row.map_or(NO_ROW, |row| row.queue))
        });
        Ok(queue.await?.is_some_and(|queue| queues.iter().any(|own| own.as_str() == queue)))
    }

    async fn cancel(&self, client: &ClientId, job: JobId) -> Result<JobStatus, BrokerError> {
        let client = client.clone();
        self.call(move |writer| writer.cancel(&client, job)).await
    }

    async fn rerun(&self, client: &ClientId, job: JobId, from: u32) -> Result<Enqueued, BrokerError> {
        let client = client.clone();
        self.call(move |writer| writer.rerun(&client, job, from)).await
    }

    async fn erase(&self, client: &ClientId, job: JobId) -> Result<(), BrokerError> {
        let client = client.clone();
        self.call(move |writer| writer.erase(&client, job)).await?;
        self.forget().await
    }

    async fn list(&self, client: &ClientId, filter: &JobFilter) -> Result<Listed, BrokerError> {
        let (client, filter, now, shared) = (client.clone(), filter.clone(), self.clock().now(), self.shared());
        self.read(move |conn| list::newest_first(conn, &shared.recent, &client, &filter, now)).await
    }

    async fn depth(&self, queue: &QueueName) -> Result<Depth, BrokerError> {
        let queue = queue.clone();
        self.call(move |writer| {
            let (row, _) = writer.state.queue(&queue)?;
            let lines = writer.state.lines.iter().filter(|((queue, _), _)| *queue == row);
            Ok(lines.fold(Depth::default(), |depth, (_, line)| Depth {
                waiting: depth.waiting + line.waiting,
                parked: depth.parked + line.parked,
                leased: depth.leased + u64::from(line.running),
            }))
        })
        .await
    }

    async fn waiting(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        let (client, queue) = (client.clone(), queue.clone());
        self.call(move |writer| writer.state.queue(&queue).map(|(row, _)| Some(writer.counts(&client, row).0))).await
    }

    async fn stored(&self, client: &ClientId, queue: &QueueName) -> Result<Option<u64>, BrokerError> {
        let (client, queue) = (client.clone(), queue.clone());
        self.call(move |writer| writer.state.queue(&queue).map(|(row, _)| Some(writer.counts(&client, row).1))).await
    }

    async fn oldest(&self, queue: &QueueName) -> Result<Option<Timestamp>, BrokerError> {
        let queue = queue.clone();
        self.read(move |conn| {
            // One look at the index for each client that has work: the first of its line.
            let oldest: Option<i64> = conn
                .prepare_cached(
                    "SELECT MIN(j.due_at) FROM queues AS q JOIN lines AS l ON l.queue = q.id JOIN jobs AS j ON j.seq =
                     (SELECT MIN(w.seq) FROM jobs AS w WHERE w.queue = l.queue AND w.client = l.client AND w.state = 0
                      AND w.state < 2) WHERE q.name = ?1 AND l.waiting > 0",
                )
                .and_then(|mut query| query.query_row([queue.as_str()], |row| row.get(0)))
                .map_err(|e| unavailable(e, "oldest job"))?;
            Ok(oldest.map(Timestamp::from_millis))
        })
        .await
    }

    async fn count(&self, queue: &QueueName) -> Result<Exact, BrokerError> {
        Ok(Exact { depth: self.depth(queue).await?, oldest: self.oldest(queue).await? })
    }

    async fn load(&self, queue: &QueueName, within: Duration) -> Result<Load, BrokerError> {
        self.look(queue, within).await
    }

    async fn kept_pace(&self, queue: &QueueName) -> Result<Option<KeptPace>, BrokerError> {
        self.read_pace(queue).await
    }

    async fn keep_pace(&self, queue: &QueueName, pace: &KeptPace) -> Result<(), BrokerError> {
        self.write_pace(queue, pace).await
    }

    async fn sweep(&self, limit: u32) -> Result<Swept, BrokerError> {
        self.call(move |writer| writer.sweep(limit)).await
    }
}

impl Writer {
    pub(super) fn enqueue(&mut self, mut job: Job) -> Result<Enqueued, BrokerError> {
        let now = self.clock.now();
        let (queue, found) = self.state.queue(&job.queue)?;
        let (own, payload_max) = (found.policy.client(&job.client), found.policy.payload_max);
        let limits = (own.max_queued, own.max_stored);
        let actual = job.payload.len() as u64;
        let refusal = (actual > payload_max)
            .then(|| refusal::too_large("enqueue", actual, payload_max))
            .or_else(|| self.refusal("enqueue", &job, queue, limits, actual));
        self.begin()?;
        let known = find_seq(&self.conn, self.state.ids.recent(), job.id)?.is_some();
        if refusal.is_none() && !known {
            return self.insert(queue, job, now);
        }
        // Known, or refused; a known job is answered in both cases.
        let row = self.find(job.id)?;
        if let Some(row) = row.as_ref().filter(|row| !row.is_past_keeping(now)) {
            return Ok(Enqueued::Known(row.status(&self.conn, now)?));
        }
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        if let Some(row) = row {
            job.run_id = RunId::mint(now, Some(row.run));
            self.remove(&row)?;
        }
        self.insert(queue, job, now)
    }

    /// Why a job is not put in line that is not there yet, with `bytes` more to keep: the client's quotas, or the disk.
    fn refusal(
        &mut self,
        operation: &'static str,
        job: &Job,
        queue: i64,
        (max_queued, max_stored): (u64, Option<u64>),
        bytes: u64,
    ) -> Option<BrokerError> {
        let (client, name) = (&job.client, &job.queue);
        let (waiting, kept) = self.counts(client, queue);
        refusal::quota(operation, client, name, waiting, max_queued)
            .or_else(|| refusal::stored(operation, client, name, kept.saturating_add(bytes), max_stored))
            .or_else(|| self.room.refuses(&self.conn, operation, bytes, self.clock.monotonic()))
    }

    /// The client's jobs of the queue that are in line or parked, and its bytes that are kept there.
    fn counts(&self, client: &ClientId, queue: i64) -> (u64, u64) {
        let line = self.state.client_rows.get(client).and_then(|client| self.state.lines.get(&(queue, *client)));
        line.map_or((0, 0), |line| (line.waiting + line.parked, line.stored))
    }

    /// Writes a job whose id is not known.
    pub(super) fn insert(&mut self, queue: i64, job: Job, now: Timestamp) -> Result<Enqueued, BrokerError> {
        let sql = |e| unavailable(e, "enqueue");
        let client = self.state.client_row(&self.conn, &job.client)?;
        let seq = self.state.take_seq();
        let due = job.due(now);
        let state = if due > now { PARKED } else { WAITING };
        // A delay would put the jobs of all its time out of order.
        let in_order = state == WAITING && self.state.takes_in_order(job.expires_at);
        self.conn
            .prepare_cached(
                "INSERT INTO jobs(seq, queue, client, id, run, generation, state, attempt, timer_at, due_at, expires_at,
                 size, payload, in_order_at) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, ?9, ?8, ?9, ?10, ?11, ?12)",
            )
            .and_then(|mut insert| {
                insert.execute(params![
                    seq,
                    queue,
                    client,
                    job.id.as_bytes(),
                    job.run_id.as_bytes(),
                    job.generation,
                    state,
                    due.as_millis(),
                    job.expires_at.as_millis(),
                    job.payload.len() as u64,
                    payload_kept(&job),
                    in_order.then_some(job.expires_at.as_millis()),
                ])
            })
            .map_err(sql)?;
        let envelope = encode_job(&job, self.wire);
        self.conn
            .prepare_cached("INSERT INTO payloads(seq, envelope) VALUES(?1, ?2)")
            .and_then(|mut insert| insert.execute(params![seq, envelope]))
            .map_err(sql)?;
        self.state.add_id(job.id, seq);
        self.keep_in((queue, client), envelope.len(), 0);
        self.join_line((queue, client), state, due);
        Ok(Enqueued::Created(status_of_new(job, now)))
    }

    pub(super) fn join_line(&mut self, key: (i64, i64), state: i64, due_at: Timestamp) {
        if state == PARKED {
            self.state.park(key, due_at);
        } else {
            self.state.lines.at(key).waiting += 1;
        }
        self.state.line_changed(key);
    }

    /// The client's job with what is known of it; another client's is like one that is not there.
    fn owned(&self, client: &ClientId, job: JobId) -> Result<Option<(JobRow, Known)>, BrokerError> {
        let row = JobRow::find_owned(&self.conn, self.state.ids.recent(), client, job)?;
        let Some(row) = row.filter(|row| !row.is_past_keeping(self.clock.now())) else { return Ok(None) };
        let known = self.known(&row, row.job(&self.conn)?)?;
        Ok(Some((row, known)))
    }

    fn cancel(&mut self, client: &ClientId, job: JobId) -> Result<JobStatus, BrokerError> {
        let now = self.clock.now();
        let found = self.owned(client, job)?;
        let verdict = rules::cancel(found.as_ref().map(|(_, known)| known), job, now);
        let (written, row) = (verdict.refused()?, found.map(|(row, _)| row));
        if let (Ok(result), Some(row)) = (written, row) {
            self.finish(&row, &result, !rules::leaves_letter(result.outcome))?;
        }
        self.find(job)?.ok_or_else(|| refusal::no_job("cancel", job))?.status(&self.conn, now)
    }

    /// Ends a run whose deadline has passed; `None` if it has ended.
    pub(super) fn expire(&mut self, row: &JobRow, job: Job) -> Result<Option<JobResult>, BrokerError> {
        let known = self.known(row, job)?;
        let result = rules::expire(Some(&known), row.id, self.clock.now()).refused()?.ok();
        if let Some(result) = &result {
            self.finish(row, result, !rules::leaves_letter(result.outcome))?;
        }
        Ok(result)
    }

    /// Writes the run's one result, the place in the client's log and the end of the job's wait: one transaction. With
    /// `takes_letter` the run's dead letter goes: a worker kept it, and did not come to its result.
    pub(super) fn finish(&mut self, row: &JobRow, result: &JobResult, takes_letter: bool) -> Result<(), BrokerError> {
        let sql = |e| unavailable(e, "record");
        self.begin()?;
        // First, because it can refuse: it reads an envelope.
        let kept = self.drop_payload_unless_kept(row)?;
        let now = self.clock.now();
        // The result of the run before, whose place this one takes.
        let before = if row.generation > 1 { self.result_bytes(row)? } else { 0 };
        let n = self.state.take_n(&self.conn, row.client)?;
        let keep = rules::record::keep_until(result, row.due_at, now);
        let envelope = encode_result(result, self.wire);
        self.keep(row, envelope.len(), before);
        self.conn
            .prepare_cached(
                "INSERT OR REPLACE INTO results(seq, n, client, run, outcome, at, erased, envelope)
                 VALUES(?1, ?2, ?3, ?4, ?5, ?6, 0, ?7)",
            )
            .and_then(|mut insert| {
                insert.execute(params![
                    row.seq,
                    n,
                    row.client,
                    result.run_id.as_bytes(),
                    result.outcome.as_str(),
                    now.as_millis(),
                    &envelope,
                ])
            })
            .map_err(sql)?;
        self.conn
            .prepare_cached(
                "UPDATE jobs SET state = ?2, timer_at = ?3, finished_at = ?4, outcome = ?5, payload = ?6,
                 started_at = coalesce(?7, started_at), in_order_at = NULL WHERE seq = ?1",
            )
            .and_then(|mut update| {
                update.execute(params![
                    row.seq,
                    FINISHED,
                    keep.as_millis(),
                    result.finished_at.as_millis(),
                    result.outcome.as_str(),
                    kept,
                    result.started_at.map(Timestamp::as_millis),
                ])
            })
            .map_err(sql)?;
        if takes_letter && self.remove_dead_letter(row.id, row.run)? {
            self.done.letters_retracted += 1;
        }
        self.leave_line(row, result.outcome);
        self.done.finished.push(NewResult {
            job: row.id,
            run: result.run_id,
            client: result.client.clone(),
            n: n.unsigned_abs(),
            at: now,
            envelope: envelope.into(),
        });
        Ok(())
    }

    fn leave_line(&mut self, row: &JobRow, outcome: Outcome) {
        let key = (row.queue, row.client);
        if row.state == LEASED {
            // The holder keeps its place among the running until it learns of the end.
            self.state.end_leased_run(row.seq, outcome);
            return;
        }
        if row.state == PARKED {
            self.state.unpark(key, row.due_at);
        } else {
            let line = self.state.lines.at(key);
            line.waiting = line.waiting.saturating_sub(1);
        }
        self.state.line_changed(key);
    }

    /// A job without a key keeps no payload after its result, unless its queue says so.
    fn drop_payload_unless_kept(&mut self, row: &JobRow) -> Result<i64, BrokerError> {
        if row.payload == PAYLOAD_UNTIL_END {
            self.replace_payload(row, &Job { payload: bytes::Bytes::new(), ..row.job(&self.conn)? })?;
            return Ok(PAYLOAD_GONE);
        }
        Ok(row.payload)
    }

    fn rerun(&mut self, client: &ClientId, job: JobId, from: u32) -> Result<Enqueued, BrokerError> {
        let now = self.clock.now();
        let found = self.owned(client, job)?;
        let verdict = rules::rerun(found.as_ref().map(|(_, known)| known), job, from, now).refused()?;
        let Some((row, _)) = found else { return Err(refusal::no_job("rerun", job)) };
        let Ok(next) = verdict else { return Ok(Enqueued::Known(row.status(&self.conn, now)?)) };
        let (_, queue) = self.state.queue(&next.queue)?;
        let own = queue.policy.client(client);
        let limits = (own.max_queued, own.max_stored);
        // Its payload is there already.
        match self.refusal("rerun", &next, row.queue, limits, 0) {
            Some(full) => Err(full),
            None => self.start(&row, next, now),
        }
    }

    /// Puts the next run of a finished job in line.
    pub(super) fn start(&mut self, row: &JobRow, next: Job, now: Timestamp) -> Result<Enqueued, BrokerError> {
        self.begin()?;
        self.conn
            .prepare_cached(
                "UPDATE jobs SET run = ?2, generation = ?3, state = 0, attempt = 0, timer_at = ?5, due_at = ?4,
                 expires_at = ?5, started_at = NULL, finished_at = NULL, outcome = NULL WHERE seq = ?1",
            )
            .and_then(|mut update| {
                update.execute(params![
                    row.seq,
                    next.run_id.as_bytes(),
                    next.generation,
                    now.as_millis(),
                    next.expires_at.as_millis(),
                ])
            })
            .map_err(|e| unavailable(e, "start run"))?;
        if row.payload == PAYLOAD_GONE {
            // A dead letter brings it back, for as long as it was kept before.
            self.replace_payload(row, &next)?;
            self.conn
                .execute("UPDATE jobs SET payload = ?2 WHERE seq = ?1", [row.seq, payload_kept(&next)])
                .map_err(|e| unavailable(e, "start run"))?;
        }
        // A holder of the run before may still be there: its lease must not count for the new run.
        self.let_go(row.seq, true);
        self.join_line((row.queue, row.client), WAITING, now);
        Ok(Enqueued::Created(status_of_new(next, now)))
    }

    fn erase(&mut self, client: &ClientId, job: JobId) -> Result<(), BrokerError> {
        let sql = |e| unavailable(e, "erase");
        let found = self.owned(client, job)?;
        let left = rules::erase(found.as_ref().map(|(_, known)| known), job).refused()?;
        let (Some((row, known)), Ok(Some(stripped))) = (found, left) else { return Ok(()) };
        let result: Option<Vec<u8>> = self
            .conn
            .query_row("SELECT envelope FROM results WHERE seq = ?1", [row.seq], |row| row.get(0))
            .optional()
            .map_err(sql)?;
        let before = result.as_ref().map_or(0, Vec::len) as u64;
        // Before the first write, because it can refuse.
        let result = result.map(|result| decode_result(&result.into())).transpose();
        let result = result.map_err(super::state::unreadable)?;
        let stripped_result = result.clone().map(rules::erased_result);
        let is_stripped =
            known.record.is_some_and(|record| record.payload == Payload::Erased && *record.job == stripped);
        if is_stripped && result == stripped_result && !self.has_dead_letter(job)? {
            return Ok(());
        }
        self.begin()?;
        self.shared.set_log_holds_erased(true);
        // Freed bytes are overwritten with zeros for as long as this operation lasts.
        self.conn.pragma_update(None, "secure_delete", true).map_err(sql)?;
        self.replace_payload(&row, &stripped)?;
        if let Some(result) = stripped_result {
            let envelope = encode_result(&result, self.wire);
            self.conn
                .execute("UPDATE results SET erased = 1, envelope = ?2 WHERE seq = ?1", params![row.seq, envelope])
                .map_err(sql)?;
            self.keep(&row, envelope.len(), before);
        }
        self.conn.execute("UPDATE jobs SET payload = 0 WHERE seq = ?1", [row.seq]).map_err(sql)?;
        self.conn.execute("DELETE FROM dead_letters WHERE job = ?1", [job.as_bytes()]).map_err(sql)?;
        self.conn.pragma_update(None, "secure_delete", "FAST").map_err(sql)
    }

    /// Removes a finished job with its payload and result, and remembers how far the client's log is gone.
    pub(super) fn remove(&mut self, row: &JobRow) -> Result<(), BrokerError> {
        let sql = |e| unavailable(e, "remove job");
        let kept = self.payload_bytes(row)? + self.result_bytes(row)?;
        self.keep(row, 0, kept);
        let conn = &self.conn;
        conn.prepare_cached(
            "UPDATE clients SET removed_n = max(removed_n, coalesce((SELECT n FROM results WHERE seq = ?2), 0))
             WHERE id = ?1",
        )
        .and_then(|mut update| update.execute([row.client, row.seq]))
        .map_err(sql)?;
        for table in ["payloads", "results", "jobs"] {
            conn.prepare_cached(&format!("DELETE FROM {table} WHERE seq = ?1"))
                .and_then(|mut delete| delete.execute([row.seq]))
                .map_err(sql)?;
        }
        self.state.remove_id(conn, row.id, row.seq)?;
        self.let_go(row.seq, true);
        Ok(())
    }
}

/// For how long the payload of a job is kept that may run.
fn payload_kept(job: &Job) -> i64 {
    if job.keep_record { PAYLOAD_KEPT } else { PAYLOAD_UNTIL_END }
}

fn status_of_new(job: Job, now: Timestamp) -> JobStatus {
    let next_attempt_at = Some(job.due(now)).filter(|due| *due > now);
    JobStatus {
        job_id: job.id,
        run_id: job.run_id,
        generation: job.generation,
        client: job.client,
        queue: job.queue,
        key: job.key,
        fingerprint: job.fingerprint,
        state: JobState::Queued,
        attempt: 0,
        content_type: job.content_type,
        size: job.payload.len() as u64,
        headers: job.headers,
        accepted_at: job.accepted_at,
        expires_at: job.expires_at,
        started_at: None,
        finished_at: None,
        next_attempt_at,
    }
}
