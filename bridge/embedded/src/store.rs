//! `relay store`: looks at a store's file from outside, also while relay has it open.

use std::io::ErrorKind;
use std::path::Path;

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, params};
use serde::Serialize;

use super::marker::lost_log;
use super::private;
use super::schema::{new_log_id, open_reader, open_without_log};
use super::sql::unavailable;
use relay_bridge::contract::Job;
use relay_bridge::contract::envelope::{EnvelopeError, decode_dead_letter, decode_job, decode_result};
use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// The findings of a check.
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    /// Jobs looked at.
    pub jobs: u64,
    /// The problems, one line each; empty if there are none. At most 100.
    pub problems: Vec<String>,
}

/// The contents of a store, in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// The schema's version, `major.minor`.
    pub version: String,
    /// The file's size in bytes, without the write-ahead log.
    pub file_bytes: u64,
    /// The write-ahead log's size in bytes.
    pub log_bytes: u64,
    /// Jobs in the store, finished ones included.
    pub jobs: u64,
    /// Results in the store.
    pub results: u64,
    /// Results ever recorded, removed and replaced ones included.
    pub results_recorded: u64,
    /// Dead letters in the store.
    pub dead_letters: u64,
    /// By queue, in the order of names.
    pub queues: Vec<QueueStats>,
}

/// The contents of one queue, in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct QueueStats {
    /// The queue.
    pub queue: String,
    /// In line now.
    pub waiting: u64,
    /// Held by workers.
    pub leased: u64,
    /// Waiting for a delay or a backoff to end.
    pub parked: u64,
    /// Finished and still kept.
    pub finished: u64,
    /// Attempts charged to the runs that are kept: one for each time that a job was handed out, whether a handler
    /// started or not, less those that were handed back.
    pub attempts: u64,
}

/// Rules that a store must keep, each with the schema version from which it holds, the words for a violation, and the
/// query that counts violations.
const RULES: [(i32, &str, &str); 10] = [
    (1000, "jobs without a payload row", "SELECT count(*) FROM jobs WHERE seq NOT IN (SELECT seq FROM payloads)"),
    (1000, "payloads without a job", "SELECT count(*) FROM payloads WHERE seq NOT IN (SELECT seq FROM jobs)"),
    (
        1000,
        "jobs whose id does not lead to them",
        "SELECT count(*) FROM jobs AS j WHERE seq <= (SELECT ids_upto FROM counters)
         AND NOT EXISTS (SELECT 1 FROM ids WHERE id = j.id AND seq = j.seq)",
    ),
    (1000, "ids without a job", "SELECT count(*) FROM ids WHERE seq NOT IN (SELECT seq FROM jobs)"),
    (
        1000,
        "finished jobs without the result of their run",
        "SELECT count(*) FROM jobs AS j WHERE j.state = 3
         AND NOT EXISTS (SELECT 1 FROM results AS r WHERE r.seq = j.seq AND r.run = j.run)",
    ),
    (
        1000,
        "open jobs with a result of their run",
        "SELECT count(*) FROM jobs AS j JOIN results AS r ON r.seq = j.seq AND r.run = j.run WHERE j.state <> 3",
    ),
    (
        1001,
        "jobs whose deadlines are out of order",
        "SELECT count(*) FROM (SELECT timer_at < lag(timer_at) OVER (ORDER BY seq) AS back FROM jobs
         WHERE timer_at IS in_order_at) WHERE back",
    ),
    (
        1000,
        "lines whose counts are wrong",
        "SELECT count(*) FROM lines AS l WHERE
         (l.waiting + l.parked) <> (SELECT count(*) FROM jobs AS j WHERE j.queue = l.queue AND j.client = l.client AND j.state IN (0, 2))",
    ),
    (
        1004,
        "lines whose bytes are counted wrong",
        // Where a release that counts none wrote last, they are counted at the next opening.
        "SELECT count(*) FROM lines AS l LEFT JOIN
         (SELECT j.queue AS queue, j.client AS client, sum(length(p.envelope) + coalesce(length(r.envelope), 0)) AS bytes
          FROM jobs AS j JOIN payloads AS p ON p.seq = j.seq LEFT JOIN results AS r ON r.seq = j.seq GROUP BY j.queue, j.client)
         AS sums ON sums.queue = l.queue AND sums.client = l.client WHERE l.stored <> coalesce(sums.bytes, 0)
         AND (SELECT value FROM meta WHERE key = 'counted') IS (SELECT value FROM meta WHERE key = 'openings')",
    ),
    (
        1005,
        "seconds in which parked jobs are due and are counted wrong",
        "SELECT count(*) FROM (SELECT 1 FROM
         (SELECT queue, second, client, jobs FROM parked UNION ALL
          SELECT queue, due_at / 1000, client, -1 FROM jobs WHERE state = 2) GROUP BY queue, second, client HAVING sum(jobs) <> 0)
         WHERE (SELECT value FROM meta WHERE key = 'counted_parked') IS (SELECT value FROM meta WHERE key = 'openings')",
    ),
];

/// Checks the file's pages, the rules that hold between its rows, every envelope, and payloads by their fingerprints. Reads everything: minutes on a large store.
///
/// # Errors
/// As for opening the store.
pub fn check(path: &Path) -> Result<CheckReport, BrokerError> {
    let sql = |e| unavailable(e, "check");
    let conn = existing(path)?;
    let mut problems: Vec<String> = {
        let mut pages = conn.prepare("PRAGMA integrity_check(50)").map_err(sql)?;
        let rows = pages.query_map([], |row| row.get::<_, String>(0));
        rows.and_then(Iterator::collect).map_err(sql)?
    };
    problems.retain(|line| line != "ok");
    if lost_log(path) {
        problems.insert(0, "the write-ahead log (`-wal`), which held accepted jobs, is gone".to_owned());
    }
    // One snapshot for all rules: relay may be writing.
    conn.execute_batch("BEGIN").map_err(sql)?;
    let version: i32 = conn.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sql)?;
    for (_, what, rule) in RULES.into_iter().filter(|(since, ..)| *since <= version) {
        let broken: u64 = conn.query_row(rule, [], |row| row.get(0)).map_err(sql)?;
        if broken > 0 {
            problems.push(format!("{broken} {what}"));
        }
    }
    problems.extend(damaged_envelopes(&conn)?);
    let jobs = conn.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0)).map_err(sql)?;
    problems.truncate(100);
    Ok(CheckReport { jobs, problems })
}

/// Reads every envelope. One that a newer relay wrote is no damage.
fn damaged_envelopes(conn: &Connection) -> Result<Vec<String>, BrokerError> {
    let sql = |e| unavailable(e, "check");
    let count = |query: &str, is_damaged: fn(Bytes, bool) -> bool| {
        let mut rows = conn.prepare(query).map_err(sql)?;
        let rows = rows.query_map([], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?))).map_err(sql)?;
        rows.map(|row| row.map(|(envelope, whole)| u64::from(is_damaged(envelope.into(), whole))))
            .sum::<rusqlite::Result<u64>>()
            .map_err(sql)
    };
    fn unread<T>(read: Result<T, EnvelopeError>) -> bool {
        matches!(read, Err(EnvelopeError::Malformed(_)))
    }
    fn changed(job: &Job) -> bool {
        !job.fingerprint.is_of(&job.content_type, job.content_encoding.as_deref(), &job.payload)
    }
    let payloads = "SELECT p.envelope, j.payload <> 0 FROM payloads AS p JOIN jobs AS j ON j.seq = p.seq";
    let (results, letters) = ("SELECT envelope, 1 FROM results", "SELECT envelope, 1 FROM dead_letters");
    let found = [
        ("jobs that can't be read", count(payloads, |job, _| unread(decode_job(&job)))?),
        (
            "jobs whose payload is not the one that was accepted",
            count(payloads, |job, whole| whole && decode_job(&job).is_ok_and(|job| changed(&job)))?,
        ),
        ("results that can't be read", count(results, |result, _| unread(decode_result(&result)))?),
        ("dead letters that can't be read", count(letters, |letter, _| unread(decode_dead_letter(&letter)))?),
        (
            "dead letters whose payload is not the one that was accepted",
            // Earlier releases kept letters without the payload, of finished jobs without a key.
            count(letters, |letter, _| {
                decode_dead_letter(&letter).is_ok_and(|letter| !letter.job.payload.is_empty() && changed(&letter.job))
            })?,
        ),
    ];
    Ok(found.into_iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}")).collect())
}

/// Counts what is in the store. Reads every job's row.
///
/// # Errors
/// As for opening the store.
pub fn stats(path: &Path) -> Result<Stats, BrokerError> {
    let sql = |e| unavailable(e, "stats");
    let conn = existing(path)?;
    conn.execute_batch("BEGIN").map_err(sql)?;
    let number = |query: &str| conn.query_row(query, [], |row| row.get::<_, u64>(0)).map_err(sql);
    let version = number("SELECT user_version FROM pragma_user_version")?;
    let queues = {
        let mut query = conn
            .prepare(
                "SELECT q.name, coalesce(sum(j.state = 0), 0), coalesce(sum(j.state = 1), 0), coalesce(sum(j.state = 2), 0),
                 coalesce(sum(j.state = 3), 0), coalesce(sum(j.attempt), 0)
                 FROM queues AS q LEFT JOIN jobs AS j ON j.queue = q.id GROUP BY q.id ORDER BY q.name",
            )
            .map_err(sql)?;
        let rows = query.query_map([], |row| {
            Ok(QueueStats {
                queue: row.get(0)?,
                waiting: row.get(1)?,
                leased: row.get(2)?,
                parked: row.get(3)?,
                finished: row.get(4)?,
                attempts: row.get(5)?,
            })
        });
        rows.and_then(Iterator::collect).map_err(sql)?
    };
    let size =
        |suffix: &str| std::fs::metadata(format!("{}{suffix}", path.display())).map_or(0, |metadata| metadata.len());
    Ok(Stats {
        version: format!("{}.{}", version / 1000, version % 1000),
        file_bytes: size(""),
        log_bytes: size("-wal"),
        jobs: number("SELECT count(*) FROM jobs")?,
        results: number("SELECT count(*) FROM results")?,
        results_recorded: number("SELECT next_n - 1 FROM counters")?,
        dead_letters: number("SELECT count(*) FROM dead_letters")?,
        queues,
    })
}

/// Copies a consistent state of the store to a new file, while relay goes on. The copy has a log id of its own, so that
/// clients whose cursors are newer than the backup are told to start over (`reset`). Only its user can read it. [`restore`](crate::restore()) puts it in a store's place.
///
/// # Errors
/// As for opening the store; `StateConflict` if `to` exists.
pub fn backup(path: &Path, to: &Path) -> Result<u64, BrokerError> {
    let sql = |e| unavailable(e, "backup");
    // A link that leads nowhere is there as well.
    if std::fs::symlink_metadata(to).is_ok() {
        let why = format!("{} exists: choose another name, a backup overwrites nothing", to.display());
        return Err(BrokerError::new(BrokerErrorKind::StateConflict, "backup", why));
    }
    let partial = to.with_extension("partial");
    copy(path, &partial)?.close().map_err(|(_, e)| sql(e))?;
    let renamed =
        std::fs::File::open(&partial).and_then(|file| file.sync_all()).and_then(|()| std::fs::rename(&partial, to));
    renamed.map_err(|e| {
        BrokerError::new(BrokerErrorKind::Unavailable, "backup", format!("can't write {}", to.display())).with_source(e)
    })?;
    Ok(std::fs::metadata(to).map_or(0, |metadata| metadata.len()))
}

/// A consistent copy of the store at `path`, in a new file, with a log id of its own.
pub(super) fn copy(path: &Path, partial: &Path) -> Result<Connection, BrokerError> {
    let sql = |e| unavailable(e, "copy store");
    let conn = existing(path)?;
    // SQLite fills an empty file as well as a new one, which would have the permissions that the umask leaves.
    private::create_new(partial).map_err(|e| {
        let (kind, why) = match e.kind() {
            ErrorKind::AlreadyExists => {
                (BrokerErrorKind::StateConflict, "is left over from a copy that was interrupted: remove it".to_owned())
            }
            _ => (BrokerErrorKind::Unavailable, format!("can't be written: {e}: see that this user may write there")),
        };
        BrokerError::new(kind, "copy store", format!("{} {why}", partial.display())).with_source(e)
    })?;
    if let Err(error) = conn.execute("VACUUM INTO ?1", [partial.to_string_lossy()]) {
        std::fs::remove_file(partial).ok();
        return Err(sql(error));
    }
    let copy = Connection::open_with_flags(partial, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(sql)?;
    copy.execute("UPDATE meta SET value = ?1 WHERE key = 'log_id'", params![new_log_id().0.as_slice()]).map_err(sql)?;
    Ok(copy)
}

fn existing(path: &Path) -> Result<Connection, BrokerError> {
    if !path.is_file() {
        let why =
            format!("there is no store at {}: name the folder that `relay serve --data` was given", path.display());
        return Err(BrokerError::new(BrokerErrorKind::NotFound, "open store", why));
    }
    // To open a file whose log is gone makes an empty one, and the loss would not be noticed any more.
    let conn = if lost_log(path) { open_without_log(path)? } else { open_reader(path)? };
    let tables: i64 = conn
        .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'jobs'", [], |row| row.get(0))
        .map_err(|e| unavailable(e, "open store"))?;
    if tables == 0 {
        let why = format!("{} is empty: it is not a relay store", path.display());
        return Err(BrokerError::new(BrokerErrorKind::Corrupt, "open store", why));
    }
    Ok(conn)
}
