//! Counts the bytes that are kept of each client row by row, where a release wrote that counts none (see `stored`).

use rusqlite::{Connection, OptionalExtension as _, params};

use super::marker::{COUNTED, NUMBER};

/// Counts what every client keeps. One pass over the rows, which reads no payload.
const COUNT: &str = "
UPDATE lines SET stored = 0;
UPDATE lines SET stored = sums.bytes FROM
  (SELECT j.queue AS queue, j.client AS client, sum(length(p.envelope) + coalesce(length(r.envelope), 0)) AS bytes
   FROM jobs AS j JOIN payloads AS p ON p.seq = j.seq LEFT JOIN results AS r ON r.seq = j.seq GROUP BY j.queue, j.client) AS sums
  WHERE sums.queue = lines.queue AND sums.client = lines.client;
";

/// Counts anew if a release that counts no bytes had the store open since, which its number tells, or if it has just been
/// `upgraded`.
pub(super) fn count_unless_counted(conn: &Connection, upgraded: bool) -> rusqlite::Result<()> {
    let number = |key: &str| -> rusqlite::Result<Option<Vec<u8>>> {
        conn.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()
    };
    let (number, counted) = (number(NUMBER)?, number(COUNTED)?);
    if number == counted && !upgraded {
        return Ok(());
    }
    let transaction = conn.unchecked_transaction()?;
    transaction.execute_batch(COUNT)?;
    match number {
        Some(number) => {
            transaction.execute("INSERT OR REPLACE INTO meta(key, value) VALUES(?1, ?2)", params![COUNTED, number])?
        }
        None => transaction.execute("DELETE FROM meta WHERE key = ?1", [COUNTED])?,
    };
    transaction.commit()
}
