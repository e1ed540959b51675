//! Counts anew from the rows of jobs, where a release wrote that does not count: the bytes that are kept of each client (see
//! `stored`), and parked jobs by the second in which they are due (see `parked`).

use rusqlite::{Connection, OptionalExtension as _, params};

use super::marker::{COUNTED, COUNTED_PARKED, NUMBER};

/// Each count: the schema version that brought it, its key in the store, and how it is made. One pass over rows, which reads no payload.
const COUNTS: [(i32, &str, &str); 2] = [
    (
        1004,
        COUNTED,
        "UPDATE lines SET stored = 0;
         UPDATE lines SET stored = sums.bytes FROM
           (SELECT j.queue AS queue, j.client AS client, sum(length(p.envelope) + coalesce(length(r.envelope), 0)) AS bytes
            FROM jobs AS j JOIN payloads AS p ON p.seq = j.seq LEFT JOIN results AS r ON r.seq = j.seq GROUP BY j.queue, j.client) AS sums
           WHERE sums.queue = lines.queue AND sums.client = lines.client;",
    ),
    (
        1005,
        COUNTED_PARKED,
        "DELETE FROM parked;
         INSERT INTO parked(queue, second, client, jobs)
           SELECT queue, due_at / 1000, client, count(*) FROM jobs WHERE state = 2 GROUP BY 1, 2, 3;",
    ),
];

/// Counts anew what a release does not count that had the store open since, which its number tells, and what the store did not
/// have before it was upgraded: it was of `version`; `None` if it is new.
pub(super) fn count_unless_counted(conn: &Connection, version: Option<i32>) -> rusqlite::Result<()> {
    let number = |key: &str| -> rusqlite::Result<Option<Vec<u8>>> {
        conn.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()
    };
    for (since, key, count) in COUNTS {
        let (number, counted) = (number(NUMBER)?, number(key)?);
        if number == counted && version.is_none_or(|version| version >= since) {
            continue;
        }
        let transaction = conn.unchecked_transaction()?;
        transaction.execute_batch(count)?;
        match number {
            Some(number) => {
                transaction.execute("INSERT OR REPLACE INTO meta(key, value) VALUES(?1, ?2)", params![key, number])?
            }
            None => transaction.execute("DELETE FROM meta WHERE key = ?1", [key])?,
        };
        transaction.commit()?;
    }
    Ok(())
}
