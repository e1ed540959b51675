//! A look at a queue's work for those who scale its workers, and the pace that they measured.

use std::time::Duration;

use rusqlite::{OptionalExtension as _, params};

use super::lines::{ClientRow, Line, QueueRow};
use super::map::Map;
use super::parked::due_until;
use super::sql::unavailable;
use super::state::{Queue, damaged};
use super::writer::Writer;
use super::{Embedded, lease::Lease};
use relay_bridge::contract::QueueName;
use relay_bridge::error::BrokerError;
use relay_bridge::load::{KeptPace, Load, SOON_MAX};

const OPERATION: &str = "look at queue";

/// A client's part of the work, and how many of its jobs may run at once.
struct Part {
    client: ClientRow,
    line: Line,
    running_max: u32,
}

impl Embedded {
    pub(super) async fn look(&self, queue: &QueueName, within: Duration) -> Result<Load, BrokerError> {
        let name = queue.clone();
        let (row, mut load, parts) = self.call(move |writer| writer.fill(&name)).await?;
        if parts.is_empty() {
            return Ok(load);
        }
        let parked = parts.iter().any(|part| part.line.parked > 0);
        let soon = if parked && !within.is_zero() {
            let until = self.clock().now() + within.min(SOON_MAX);
            self.read(move |conn| due_until(conn, row, until)).await?
        } else {
            Map::default()
        };
        let startable = |part: &Part| {
            let due = part.line.waiting + soon.get(&part.client).copied().unwrap_or(0).min(part.line.parked);
            due.min(u64::from(part.running_max.saturating_sub(part.line.running)))
        };
        load.startable = parts.iter().map(startable).sum();
        Ok(load)
    }

    pub(super) async fn read_pace(&self, queue: &QueueName) -> Result<Option<KeptPace>, BrokerError> {
        let key = key_of(queue);
        let kept: Option<Vec<u8>> = self
            .read(move |conn| {
                conn.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
                    .optional()
                    .map_err(|e| unavailable(e, OPERATION))
            })
            .await?;
        Ok(kept.and_then(|kept| serde_json::from_slice(&kept).ok()))
    }

    pub(super) async fn write_pace(&self, queue: &QueueName, pace: &KeptPace) -> Result<(), BrokerError> {
        let (queue, pace) = (queue.clone(), serde_json::to_vec(pace).map_err(damaged)?);
        self.call(move |writer| {
            writer.state.queue(&queue)?;
            writer.begin()?;
            let write = "INSERT OR REPLACE INTO meta(key, value) VALUES(?1, ?2)";
            writer.conn.execute(write, params![key_of(&queue), pace]).map(drop).map_err(|e| unavailable(e, OPERATION))
        })
        .await
    }
}

impl Writer {
    /// The counts of a queue, and those of its clients that could start something: none while it is paused.
    fn fill(&self, name: &QueueName) -> Result<(QueueRow, Load, Vec<Part>), BrokerError> {
        let (row, Queue { policy, ended, .. }) = self.state.queue(name)?;
        let (mut load, mut parts) = (Load { ended: ended.attempts, ..Load::default() }, Vec::new());
        for ((_, client), line) in self.state.lines.iter().filter(|((queue, _), _)| *queue == row) {
            load.in_line += line.waiting;
            load.parked += line.parked;
            load.leased += u64::from(line.running);
            if !policy.paused && line.waiting + line.parked > 0 {
                let running_max =
                    self.state.clients.get(client).map_or(u32::MAX, |name| policy.client(name).max_running);
                parts.push(Part { client: *client, line: line.clone(), running_max });
            }
        }
        let mut held = ended.held;
        if load.leased > 0 {
            let now = self.clock.monotonic();
            let running = self.state.leases.values().filter(|lease| lease.line.0 == row);
            held += running.map(|lease| now.saturating_sub(lease.started)).sum();
        }
        load.busy = Some(held);
        Ok((row, load, parts))
    }

    /// Takes a lease away, and counts it as the end of an attempt or of a slot's time alone. A step that is undone may have it
    /// counted twice, which no reader notices.
    pub(super) fn let_go(&mut self, seq: i64, is_attempt: bool) -> Option<Lease> {
        let lease = self.state.end_lease(seq)?;
        let now = self.clock.monotonic();
        if let Some(queue) = self.state.queues.get_mut(&lease.line.0) {
            queue.ended.note(&lease, now, is_attempt);
        }
        Some(lease)
    }
}

fn key_of(queue: &QueueName) -> String {
    format!("pace:{queue}")
}
