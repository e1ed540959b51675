//! A client's jobs, newest first. A queue's jobs are in order within each state, so a list merges a few runs of rows, and
//! needs no index of its own: one more would make every submission dearer.

use std::collections::VecDeque;

use rusqlite::{Connection, params};

use super::ids::Recent;
use super::row::{FINISHED, JobRow, LEASED, PARKED, PAYLOAD_GONE, WAITING, client_row, job_columns};
use super::sql::unavailable;
use relay_bridge::contract::{ClientId, IdempotencyKey, JobState, JobStatus, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::{JobFilter, Listed};

/// The most jobs of one list.
const LIST_MAX: u32 = 1_000;
/// The most rows a list looks at to find those that match its filter.
const ROWS_MAX: u32 = 20_000;
/// The most jobs whose envelopes it reads, and about how many bytes of them: their keys are in there.
const READ_MAX: u32 = 1_000;
const READ_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Rows that are read of one run at first, and at most. A list of a hundred reads few of each where there are many runs.
const CHUNK_MIN: u32 = 16;
const CHUNK_MAX: u32 = 1_024;

/// The page of `client`'s jobs that `filter` asks for.
pub(super) fn newest_first(
    conn: &Connection,
    recent: &Recent,
    client: &ClientId,
    filter: &JobFilter,
    now: Timestamp,
) -> Result<Listed, BrokerError> {
    // Before anything else: recent ids are asked before the snapshot begins.
    let after = filter.after.map(|after| JobRow::find_owned(conn, recent, client, after)).transpose()?;
    let Some(owner) = client_row(conn, client)? else { return Ok(Listed::default()) };
    let queues = queues(conn, filter)?;
    let (after, after_known) = match after {
        // A job of another client, or of a queue that is left out, finds nothing, as one that is not there.
        Some(row) => {
            let row = row.filter(|row| queues.contains(&row.queue));
            row.map_or((0, false), |row| (row.seq, true))
        }
        None => (i64::MAX, false),
    };
    let mut runs = runs(&queues, owner, filter, after);
    let limit = filter.limit.clamp(1, LIST_MAX) as usize;
    let mut listed = Listed { after_known, ..Listed::default() };
    let (mut last, mut looked_at, mut read, mut read_bytes) = (None, 0, 0, 0);
    while looked_at < ROWS_MAX && read < READ_MAX && read_bytes < READ_BYTES_MAX {
        let Some(row) = next(conn, &mut runs)? else { return Ok(listed) };
        looked_at += 1;
        if may_be_wanted(&row, filter, now) {
            if listed.jobs.len() == limit {
                break;
            }
            read += 1;
            read_bytes += if row.payload == PAYLOAD_GONE { 0 } else { row.size };
            listed.jobs.extend(wanted(conn, &row, filter, now)?);
        }
        last = Some(row.id);
    }
    listed.next = last;
    Ok(listed)
}

/// The rows of one client in one state of one queue, newest first.
struct Run {
    queue: i64,
    client: i64,
    state: i64,
    /// Rows older than this one are not read yet; `None` if there are no more.
    before: Option<i64>,
    chunk: u32,
    rows: VecDeque<JobRow>,
}

/// The queues that the filter wants.
fn queues(conn: &Connection, filter: &JobFilter) -> Result<Vec<i64>, BrokerError> {
    let named: Vec<(i64, String)> = conn
        .prepare_cached("SELECT id, name FROM queues")
        .and_then(|mut query| query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).and_then(Iterator::collect))
        .map_err(|e| unavailable(e, "list"))?;
    let wanted = |(id, name): (i64, String)| {
        let queues = filter.queues.as_ref();
        queues.is_none_or(|queues| queues.iter().any(|queue| queue.as_str() == name)).then_some(id)
    };
    Ok(named.into_iter().filter_map(wanted).collect())
}

/// The runs that the filter's jobs are in.
fn runs(queues: &[i64], client: i64, filter: &JobFilter, before: i64) -> Vec<Run> {
    let states: &[i64] = match filter.state {
        None => &[WAITING, LEASED, PARKED, FINISHED],
        Some(JobState::Queued) => &[WAITING, PARKED],
        Some(JobState::Leased) => &[LEASED],
        Some(JobState::Finished(_)) => &[FINISHED],
    };
    let run =
        |queue, state| Run { queue, client, state, before: Some(before), chunk: CHUNK_MIN, rows: VecDeque::new() };
    queues.iter().flat_map(|queue| states.iter().map(move |state| run(*queue, *state))).collect()
}

/// The newest row of all runs.
fn next(conn: &Connection, runs: &mut Vec<Run>) -> Result<Option<JobRow>, BrokerError> {
    for run in runs.iter_mut() {
        run.fill(conn)?;
    }
    runs.retain(|run| !run.rows.is_empty());
    let newest = runs.iter_mut().max_by_key(|run| run.rows.front().map(|row| row.seq));
    Ok(newest.and_then(|run| run.rows.pop_front()))
}

impl Run {
    /// Sees to it that its newest row is there, if there is one.
    fn fill(&mut self, conn: &Connection) -> Result<(), BrokerError> {
        let Some(before) = self.before.filter(|_| self.rows.is_empty()) else { return Ok(()) };
        let rows: Vec<JobRow> = conn
            .prepare_cached(concat!(
                "SELECT ",
                job_columns!(),
                " FROM jobs AS j INDEXED BY jobs_line WHERE j.queue = ?1 AND j.client = ?2 AND j.state = ?3 AND j.seq < ?4
                 ORDER BY j.seq DESC LIMIT ?5"
            ))
            .and_then(|mut query| {
                let of = params![self.queue, self.client, self.state, before, self.chunk];
                query.query_map(of, JobRow::read).and_then(Iterator::collect)
            })
            .map_err(|e| unavailable(e, "list"))?;
        self.before = rows.last().map(|row| row.seq).filter(|_| rows.len() == self.chunk as usize);
        self.chunk = (4 * self.chunk).min(CHUNK_MAX);
        self.rows = rows.into();
        Ok(())
    }
}

/// Whether the filter could want the job, as far as its row says: the rest takes reading its envelope.
fn may_be_wanted(row: &JobRow, filter: &JobFilter, now: Timestamp) -> bool {
    let outcome = filter.state.and_then(JobState::outcome);
    !row.is_past_keeping(now) && outcome.is_none_or(|outcome| row.outcome == Some(outcome))
}

/// The job as a list shows it, if its filter wants it.
fn wanted(
    conn: &Connection,
    row: &JobRow,
    filter: &JobFilter,
    now: Timestamp,
) -> Result<Option<JobStatus>, BrokerError> {
    let status = match row.status(conn, now) {
        Ok(status) => status,
        Err(failure) if matches!(failure.kind(), BrokerErrorKind::NewerVersion { .. } | BrokerErrorKind::Corrupt) => {
            tracing::warn!(job_id = %row.id, error = %failure, "job left out of a list");
            return Ok(None);
        }
        Err(failure) => return Err(failure),
    };
    let in_queue = filter.wants_queue(&status.queue);
    let in_state = filter.state.is_none_or(|state| state == status.state);
    let begins = IdempotencyKey::begins_with(status.key.as_ref(), filter.key_prefix.as_deref());
    Ok(Some(status).filter(|_| in_queue && in_state && begins))
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;
    use uuid::Uuid;

    use super::*;
    use crate::schema;
    use relay_bridge::contract::{Job, JobId, QueueName, Submission};
    use relay_bridge::policy::QueuePolicy;

    /// Rows as the writer makes them, in every state of two queues, of two clients.
    fn store() -> (Connection, Vec<(JobId, &'static str, i64)>) {
        let conn = schema::open(None).unwrap().connection;
        conn.execute_batch(
            "INSERT INTO queues(name, policy) VALUES('a', ''), ('b', ''); INSERT INTO clients(name) VALUES('me'), ('you')",
        )
        .unwrap();
        let mut mine = Vec::new();
        for seq in 1..=2_000_i64 {
            let (queue, client, state) = (seq / 3 % 2, seq % 5 / 4, seq % 7 % 4);
            let name = ["a", "b"][usize::try_from(queue).unwrap()];
            let submission = Submission {
                client: ["me", "you"][usize::try_from(client).unwrap()].parse().unwrap(),
                queue: name.parse().unwrap(),
                key: None,
                content_type: String::new(),
                content_encoding: None,
                headers: Default::default(),
                payload: Default::default(),
                delay: Default::default(),
                expires_in: None,
            };
            let now = Timestamp::from_millis(1_763_865_086_007);
            let job: Job = submission.accept(&QueuePolicy::default(), now);
            conn.execute(
                "INSERT INTO jobs(seq, queue, client, id, run, generation, state, attempt, timer_at, due_at, expires_at,
                 size, payload, outcome) VALUES(?1, ?2, ?3, ?4, ?5, 1, ?6, 0, ?7, 0, ?7, 0, 1, ?8)",
                params![
                    seq,
                    queue + 1,
                    client + 1,
                    job.id.as_bytes(),
                    Uuid::now_v7().as_bytes(),
                    state,
                    i64::MAX,
                    (state == FINISHED).then_some("succeeded"),
                ],
            )
            .unwrap();
            let envelope = relay_bridge::contract::envelope::encode_job(&job, Default::default());
            conn.execute("INSERT INTO payloads(seq, envelope) VALUES(?1, ?2)", params![seq, envelope]).unwrap();
            if client == 0 {
                mine.push((job.id, name, state));
            }
        }
        mine.reverse();
        (conn, mine)
    }

    fn recent(conn: &Connection) -> Recent {
        let ids = "INSERT INTO ids(id, seq) SELECT id, seq FROM jobs";
        conn.execute_batch(ids).unwrap();
        Recent::default()
    }

    #[test]
    fn a_page_reads_a_bounded_number_of_jobs_and_goes_on_where_it_stopped() {
        let (conn, mine) = store();
        let recent = recent(&conn);
        let key_prefix = Some("nobodys".to_owned());
        let mut filter = JobFilter { queues: None, state: None, key_prefix, after: None, limit: 10 };
        let page = |filter: &JobFilter| {
            let now = Timestamp::from_millis(1_763_865_086_008);
            newest_first(&conn, &recent, &"me".parse().unwrap(), filter, now).unwrap()
        };
        let first = page(&filter);
        assert!(mine.len() > READ_MAX as usize, "{} jobs", mine.len());
        assert_eq!((first.jobs.len(), first.next), (0, Some(mine[READ_MAX as usize - 1].0)));
        filter.after = first.next;
        let last = page(&filter);
        assert_eq!((last.jobs.len(), last.next), (0, None), "{} jobs were left", mine.len() - READ_MAX as usize);
    }

    #[test]
    fn a_page_goes_on_after_a_job_that_is_past_its_keeping_too() {
        let (conn, mine) = store();
        let recent = recent(&conn);
        let kept: Vec<JobId> = mine.iter().filter(|(.., state)| *state != FINISHED).map(|(id, ..)| *id).collect();
        let now = Timestamp::from_millis(1_763_865_086_008);
        conn.execute("UPDATE jobs SET timer_at = ?1 WHERE state = ?2", params![now.as_millis(), FINISHED]).unwrap();
        let mut filter = JobFilter { queues: None, state: None, key_prefix: None, after: None, limit: 10 };
        let mut found = Vec::new();
        loop {
            let page = newest_first(&conn, &recent, &"me".parse().unwrap(), &filter, now).unwrap();
            found.extend(page.jobs.iter().map(|job| job.job_id));
            assert_eq!(page.after_known, filter.after.is_some(), "the page before said where to go on");
            let Some(next) = page.next else { break };
            filter.after = Some(next);
        }
        assert_eq!(found, kept);
        filter.after = mine.iter().find(|(.., state)| *state == FINISHED).map(|(id, ..)| *id);
        let listed = |client: &str| newest_first(&conn, &recent, &client.parse().unwrap(), &filter, now).unwrap();
        assert!(listed("me").after_known && !listed("you").after_known, "it is another client's");
    }

    #[test]
    fn pages_of_every_filter_have_each_job_once_and_the_newest_first() {
        let (conn, mine) = store();
        let recent = recent(&conn);
        let queues: [Option<QueueName>; 3] = [None, Some("a".parse().unwrap()), Some("b".parse().unwrap())];
        let succeeded = JobState::Finished(relay_bridge::contract::Outcome::Succeeded);
        let states = [None, Some(JobState::Queued), Some(JobState::Leased), Some(succeeded)];
        for (queue, state) in queues.iter().flat_map(|queue| states.iter().map(move |state| (queue, *state))) {
            let of_state = |stored: i64| match state {
                None => true,
                Some(JobState::Queued) => [WAITING, PARKED].contains(&stored),
                Some(JobState::Leased) => stored == LEASED,
                Some(JobState::Finished(_)) => stored == FINISHED,
            };
            let expected: Vec<JobId> = mine
                .iter()
                .filter(|(_, name, stored)| {
                    queue.as_ref().is_none_or(|queue| queue.as_str() == *name) && of_state(*stored)
                })
                .map(|(id, ..)| *id)
                .collect();
            let mut filter = JobFilter {
                queues: queue.clone().map(|queue| vec![queue]),
                state,
                key_prefix: None,
                after: None,
                limit: 70,
            };
            let mut found = Vec::new();
            loop {
                let now = Timestamp::from_millis(1_763_865_086_008);
                let page = newest_first(&conn, &recent, &"me".parse().unwrap(), &filter, now).unwrap();
                found.extend(page.jobs.iter().map(|job| job.job_id));
                let Some(next) = page.next else { break };
                filter.after = Some(next);
            }
            assert_eq!(found, expected, "{queue:?} {state:?}");
            assert!(expected.len() > 100, "{queue:?} {state:?}");
        }
    }
}
