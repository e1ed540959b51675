//! The operator's calls: dead letters, policies, provisioning.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{Connection, MAIN_DB, OptionalExtension as _, params};

use super::Embedded;
use super::lines::QueueRow;
use super::sql::unavailable;
use super::state::{damaged, unreadable};
use super::writer::Writer;
use relay_bridge::contract::envelope::{EnvelopeError, decode_dead_letter, decode_dead_letter_head};
use relay_bridge::contract::{JobId, QueueName, RunId};
use relay_bridge::dead_letters::{DeadLetter, DeadLetters, LETTERS_PASSED_MAX, LetterHead, LetterPlace, Letters};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Enqueued;
use relay_bridge::policy::{PolicyStore, QueuePolicy};
use relay_bridge::provision::{Change, Provision, Wanted, policy_changes};
use relay_bridge::rules::{self, refusal::no_letter};

/// The most dead letters of one list.
const LIST_MAX: u32 = 1_000;

/// Dead letters of all queues, or of one, before a row, the newest first.
const OF_ALL: &str = "SELECT rowid FROM dead_letters WHERE rowid < ?1 ORDER BY rowid DESC";
const OF_QUEUE: &str = "SELECT rowid FROM dead_letters WHERE rowid < ?1 AND queue = ?2 ORDER BY rowid DESC";
const COUNT_IN_QUEUE: &str = "SELECT count(*) FROM (SELECT 1 FROM dead_letters WHERE queue = ?1 LIMIT ?2)";
/// How many bytes of an envelope are read for a list: more than what comes before the payload, mostly.
const HEAD_MAX: usize = 16 * 1024;

#[async_trait]
impl DeadLetters for Embedded {
    async fn list(
        &self,
        queue: Option<&QueueName>,
        key_prefix: Option<&str>,
        after: Option<&LetterPlace>,
        limit: u32,
    ) -> Result<Letters, BrokerError> {
        let (queue, key_prefix) = (queue.cloned(), key_prefix.map(str::to_owned));
        let limit = limit.clamp(1, LIST_MAX) as usize;
        // Rows are numbered in the order in which letters were kept first.
        let after = match after {
            Some(place) => place.as_str().parse().map_err(|_| place.unknown())?,
            None => i64::MAX,
        };
        self.read(move |conn| {
            let sql = |e| unavailable(e, "list dead letters");
            let queue = match queue {
                Some(name) => match queue_row(conn, &name)? {
                    Some(row) => Some(row),
                    None => return Ok(Letters::default()),
                },
                None => None,
            };
            let mut query = conn.prepare_cached(if queue.is_some() { OF_QUEUE } else { OF_ALL }).map_err(sql)?;
            let mut rows = match queue {
                Some(queue) => query.query([after, queue]),
                None => query.query([after]),
            }
            .map_err(sql)?;
            let (mut found, mut passed, mut last) = (Letters::default(), 0, None::<i64>);
            while let Some(row) = rows.next().map_err(sql)? {
                if found.letters.len() == limit || passed == LETTERS_PASSED_MAX {
                    found.next = last.and_then(|last| last.to_string().parse().ok());
                    break;
                }
                let number: i64 = row.get(0).map_err(sql)?;
                last = Some(number);
                // A job that can't be read, as a newer relay's, holds up none that can.
                let head = read_head(conn, number).inspect_err(
                    |failure| tracing::warn!(row = last, error = %failure, "left out of a list of dead letters"),
                );
                match head.ok().filter(|head| head.letter.has_key_prefix(key_prefix.as_deref())) {
                    Some(head) => found.letters.push(head),
                    None => passed += 1,
                }
            }
            Ok(found)
        })
        .await
    }

    async fn count(&self, queue: &QueueName, max: u32) -> Result<Option<u64>, BrokerError> {
        let queue = queue.clone();
        self.read(move |conn| {
            let Some(queue) = queue_row(conn, &queue)? else { return Ok(Some(0)) };
            conn.prepare_cached(COUNT_IN_QUEUE)
                .and_then(|mut query| query.query_row(params![queue, max], |row| row.get(0)))
                .map(Some)
                .map_err(|e| unavailable(e, "count dead letters"))
        })
        .await
    }

    async fn get(&self, job: JobId) -> Result<Option<DeadLetter>, BrokerError> {
        self.read(move |conn| {
            let envelope: Option<Vec<u8>> = conn
                .prepare_cached("SELECT envelope FROM dead_letters WHERE job = ?1 ORDER BY run DESC LIMIT 1")
                .and_then(|mut query| query.query_row([job.as_bytes()], |row| row.get(0)).optional())
                .map_err(|e| unavailable(e, "get dead letter"))?;
            envelope.map(read).transpose()
        })
        .await
    }

    async fn redrive(&self, job: JobId, run: RunId) -> Result<Enqueued, BrokerError> {
        self.call(move |writer| writer.redrive(job, run)).await
    }

    async fn purge(&self, job: JobId, run: RunId) -> Result<bool, BrokerError> {
        self.call(move |writer| writer.remove_dead_letter(job, run)).await
    }
}

fn queue_row(conn: &Connection, name: &QueueName) -> Result<Option<QueueRow>, BrokerError> {
    conn.prepare_cached("SELECT id FROM queues WHERE name = ?1")
        .and_then(|mut query| query.query_row([name.as_str()], |row| row.get(0)).optional())
        .map_err(|e| unavailable(e, "find queue"))
}

/// A letter without its payload, of which no more than the beginning is read.
fn read_head(conn: &Connection, row: i64) -> Result<LetterHead, BrokerError> {
    let sql = |e| unavailable(e, "list dead letters");
    let blob = conn.blob_open(MAIN_DB, "dead_letters", "envelope", row, true).map_err(sql)?;
    let part = |bytes: usize| {
        let mut head = vec![0; blob.len().min(bytes)];
        blob.read_at_exact(&mut head, 0).map_err(sql)?;
        Ok(decode_dead_letter_head(&head.into()).map(|(letter, size)| LetterHead { size, ..LetterHead::of(letter) }))
    };
    match part(HEAD_MAX)? {
        // The payload may begin behind what was read.
        Err(EnvelopeError::Malformed(_)) if blob.len() > HEAD_MAX => part(blob.len())?.map_err(unreadable),
        read => read.map_err(unreadable),
    }
}

fn read(envelope: Vec<u8>) -> Result<DeadLetter, BrokerError> {
    decode_dead_letter(&Bytes::from(envelope)).map_err(unreadable)
}

impl Writer {
    fn redrive(&mut self, job: JobId, run: RunId) -> Result<Enqueued, BrokerError> {
        let now = self.clock.now();
        let envelope: Option<Vec<u8>> = self
            .conn
            .query_row(
                "SELECT envelope FROM dead_letters WHERE job = ?1 AND run = ?2",
                params![job.as_bytes(), run.as_bytes()],
                |row| row.get(0),
            )
            .optional()
            .map_err(|e| unavailable(e, "redrive"))?;
        let letter = envelope.map(read).transpose()?;
        let row = self.find(job)?;
        let live = row.as_ref().filter(|row| !row.is_past_keeping(now));
        let known = match live {
            Some(row) => Some(self.known(row, row.job(&self.conn)?)?),
            None => None,
        };
        let verdict = rules::redrive(known.as_ref(), letter.as_ref(), job, run, now).refused()?;
        let enqueued = match (verdict, live) {
            (Ok(next), Some(live)) => self.start(live, next, now)?,
            (Ok(next), None) => {
                let (queue, _) = self.state.queue(&next.queue)?;
                let mut next = next;
                if let Some(past) = row {
                    next.run_id = RunId::mint(now, Some(past.run.max(next.run_id)));
                    self.remove(&past)?;
                }
                self.insert(queue, next, now)?
            }
            (Err(()), Some(live)) => Enqueued::Known(live.status(&self.conn, now)?),
            (Err(()), None) => return Err(no_letter("redrive", job, run)),
        };
        self.remove_dead_letter(job, run)?;
        Ok(enqueued)
    }
}

#[async_trait]
impl PolicyStore for Embedded {
    async fn policy(&self, queue: &QueueName) -> Result<Option<QueuePolicy>, BrokerError> {
        let queue = queue.clone();
        self.call(move |writer| Ok(writer.state.queue(&queue).ok().map(|(_, queue)| queue.policy.clone()))).await
    }

    async fn recent(&self, queue: &QueueName) -> Result<Option<Arc<QueuePolicy>>, BrokerError> {
        Ok(self.policy(queue).await?.map(Arc::new))
    }

    async fn policies(&self) -> Result<Vec<(QueueName, QueuePolicy)>, BrokerError> {
        self.call(|writer| {
            let queues = writer.state.queues.values();
            let mut all: Vec<_> = queues.map(|queue| (queue.name.clone(), queue.policy.clone())).collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(all)
        })
        .await
    }

    async fn put_policy(
        &self,
        queue: &QueueName,
        policy: &QueuePolicy,
        seen: Option<&QueuePolicy>,
    ) -> Result<(), BrokerError> {
        let wanted = Wanted { queue: queue.clone(), policy: policy.clone(), seen: seen.cloned() };
        self.call(move |writer| writer.put_policy(&wanted)).await
    }

    async fn set_paused(&self, queue: &QueueName, paused: bool) -> Result<(), BrokerError> {
        let queue = queue.clone();
        self.call(move |writer| {
            let policy = QueuePolicy { paused, ..writer.state.queue(&queue)?.1.policy.clone() };
            writer.write_policy(&queue, policy)
        })
        .await
    }
}

impl Writer {
    fn stored_policy(&self, name: &QueueName) -> Option<&QueuePolicy> {
        self.state.queue(name).ok().map(|(_, queue)| &queue.policy)
    }

    fn put_policy(&mut self, wanted: &Wanted) -> Result<(), BrokerError> {
        let stored = self.stored_policy(&wanted.queue);
        if !wanted.replaces(stored)? {
            return Ok(());
        }
        let paused = stored.map_or(wanted.policy.paused, |stored| stored.paused);
        self.write_policy(&wanted.queue, QueuePolicy { paused, ..wanted.policy.clone() })
    }

    fn write_policy(&mut self, name: &QueueName, policy: QueuePolicy) -> Result<(), BrokerError> {
        let sql = |e| unavailable(e, "write policy");
        let text = serde_json::to_string(&policy).map_err(damaged)?;
        self.begin()?;
        self.conn
            .execute(
                "INSERT INTO queues(name, policy) VALUES(?1, ?2) ON CONFLICT(name) DO UPDATE SET policy = ?2",
                params![name.as_str(), text],
            )
            .map_err(sql)?;
        let row: i64 = self
            .conn
            .query_row("SELECT id FROM queues WHERE name = ?1", [name.as_str()], |row| row.get(0))
            .map_err(sql)?;
        self.state.set_policy(row, name, policy);
        Ok(())
    }
}

#[async_trait]
impl Provision for Embedded {
    async fn plan(&self, queues: &[Wanted]) -> Result<Vec<Change>, BrokerError> {
        let queues = queues.to_vec();
        self.call(move |writer| Ok(queues.iter().flat_map(|wanted| changes(writer, wanted)).collect())).await
    }

    async fn apply(&self, queues: &[Wanted], force: bool) -> Result<Vec<Change>, BrokerError> {
        let queues = queues.to_vec();
        self.call(move |writer| {
            // All of them are checked first, so that a refusal changes nothing.
            for wanted in &queues {
                wanted.replaces(writer.stored_policy(&wanted.queue))?;
            }
            let planned: Vec<Change> = queues.iter().flat_map(|wanted| changes(writer, wanted)).collect();
            if let Some(refused) = planned.iter().find(|change| change.destructive && !force) {
                let why =
                    format!("{}: {} shortens what clients rely on; it needs `force`", refused.queue, refused.what);
                return Err(BrokerError::new(BrokerErrorKind::StateConflict, "provision", why));
            }
            for wanted in &queues {
                writer.put_policy(wanted)?;
            }
            Ok(planned)
        })
        .await
    }
}

fn changes(writer: &Writer, wanted: &Wanted) -> Vec<Change> {
    policy_changes(&wanted.queue, writer.stored_policy(&wanted.queue), &wanted.policy)
}

#[cfg(test)]
mod tests {
    use relay_bridge::contract::envelope::encode_dead_letter;
    use relay_bridge::contract::{Failure, Job, Outcome, Submission, Timestamp};
    use rusqlite::params;

    use super::*;
    use crate::schema;

    #[test]
    fn a_list_reads_no_payload_and_all_of_the_rest() {
        let conn = schema::open(None).unwrap().connection;
        let now = Timestamp::from_millis(1_763_865_086_007);
        let submission =
            Submission::plain("me".parse().unwrap(), "mail".parse().unwrap(), "text/plain", vec![7; 1 << 20]);
        let job = submission.accept(&QueuePolicy::default(), now);
        for (headers, whole) in [(1, false), (30, true)] {
            let headers = (0..headers).map(|number| (format!("x-{number}"), "x".repeat(1_000))).collect();
            let letter = DeadLetter {
                job: Job { headers, ..job.clone() },
                outcome: Outcome::Failed,
                attempt: 3,
                failure: Failure::new("exit-code", "d".repeat(8_000)),
                at: now,
                extra: Default::default(),
            };
            let mut envelope = encode_dead_letter(&letter, Default::default());
            // Without its end the payload can't be read, as a reader of it sees.
            envelope.truncate(envelope.len() - usize::from(!whole));
            conn.execute("DELETE FROM dead_letters", []).unwrap();
            let insert =
                "INSERT INTO dead_letters(rowid, job, run, queue, remove_at, envelope) VALUES(1, ?1, ?2, 1, 1, ?3)";
            conn.execute(insert, params![job.id.as_bytes(), job.run_id.as_bytes(), envelope]).unwrap();
            assert_eq!(read(envelope).is_ok(), whole);
            assert_eq!(read_head(&conn, 1).unwrap(), LetterHead::of(letter));
        }
    }

    #[test]
    fn the_index_of_queues_gives_the_dead_letters_of_one_in_their_order() {
        let opened = schema::open(None).unwrap();
        let mut query = opened.connection.prepare(&format!("EXPLAIN QUERY PLAN {}", super::OF_QUEUE)).unwrap();
        let plan: Vec<String> =
            query.query_map([i64::MAX, 1], |row| row.get(3)).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(plan, ["SEARCH dead_letters USING COVERING INDEX dead_letters_queue (queue=? AND rowid<?)"]);
    }
}
