//! The writer of the audit: a thread of its own, because a disk may keep it waiting. It gathers what waits and writes it at
//! once, into a file, or line by line into the log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tracing::{error, info};

use super::Shared;
use super::record::Record;

/// The lines that are written at a time.
const BATCH_MAX: u64 = 256;
/// How soon a file that could not be written is tried again, where every call has to be on record.
const AGAIN: Duration = Duration::from_millis(200);

/// A message for the writer.
pub(super) enum Message {
    /// A line.
    Line(Box<Record>),
    /// The file is opened anew, and the answer says how that went.
    Reopen(std::sync::mpsc::SyncSender<io::Result<()>>),
    /// All that came before is written; the writer ends.
    End(oneshot::Sender<()>),
}

/// Where lines go.
pub(super) enum Sink {
    /// Into this file.
    File(PathBuf, File),
    /// Into the log.
    Log,
}

/// Opens the file at `path`, which only its user can read, and whose lines stay.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Writes what comes until it is told to end, or nobody is left who could send anything.
pub(super) fn run(shared: &Arc<Shared>, mut sink: Sink, mut incoming: mpsc::Receiver<Message>) {
    let mut text = Vec::new();
    while let Some(first) = incoming.blocking_recv() {
        let (mut next, mut lines) = (Some(first), 0);
        let mut order = None;
        while let Some(message) = next.take() {
            match message {
                Message::Line(record) => {
                    lines += 1;
                    match &sink {
                        Sink::Log => log(&record),
                        Sink::File(..) => line(&record, &mut text),
                    }
                }
                other => order = Some(other),
            }
            if order.is_none() && lines < BATCH_MAX {
                next = incoming.try_recv().ok();
            }
        }
        if let Sink::File(path, file) = &mut sink
            && !text.is_empty()
        {
            write(shared, path, file, &text, lines);
            text.clear();
        }
        match order {
            Some(Message::Reopen(answer)) => {
                answer.send(reopen(&mut sink)).ok();
            }
            Some(Message::End(ended)) => {
                ended.send(()).ok();
                return;
            }
            _ => {}
        }
    }
}

fn reopen(sink: &mut Sink) -> io::Result<()> {
    if let Sink::File(path, file) = sink {
        *file = open(path)?;
    }
    Ok(())
}

fn line(record: &Record, into: &mut Vec<u8>) {
    // Neither the one nor the other can fail: every field is a text or a number, and the memory is there.
    serde_json::to_writer(&mut *into, record).ok();
    into.push(b'\n');
}

/// Writes whole lines. Where every call has to be on record, nothing is let go: meanwhile calls are refused.
fn write(shared: &Shared, path: &Path, file: &mut File, text: &[u8], lines: u64) {
    let mut rest = text;
    loop {
        let failed = loop {
            match file.write(rest) {
                Ok(0) => break io::Error::from(io::ErrorKind::WriteZero),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error,
            }
            if rest.is_empty() {
                if shared.failing.swap(false, Ordering::Relaxed) {
                    info!(file = %path.display(), "the audit is written again");
                }
                return;
            }
        };
        if !shared.failing.swap(true, Ordering::Relaxed) {
            let file = path.display();
            error!(error = %failed, %file, "the audit can't be written: see to the disk and to the file");
        }
        if !shared.required || shared.closing.load(Ordering::Relaxed) {
            // The rest of a line that was begun would spoil the next one.
            file.write_all(b"\n").ok();
            shared.dropped.fetch_add(lines, Ordering::Relaxed);
            return;
        }
        std::thread::park_timeout(AGAIN);
        // The file may have been moved away from a full disk.
        if let Ok(opened) = open(path) {
            *file = opened;
        }
    }
}

fn log(record: &Record) {
    info!(
        target: "audit",
        time = %record.time,
        door = record.door.as_str(),
        action = record.action.as_str(),
        outcome = record.outcome.as_str(),
        who = record.who,
        method = record.method,
        credential = record.credential,
        endpoint = record.endpoint,
        source = record.source.map(|source| source.to_string()),
        request_id = record.request_id,
        queue = record.queue.as_ref().map(|queue| queue.as_str()),
        job_id = record.job.map(|job| job.to_string()),
        key_hash = record.key_hash,
        slug = record.slug.map(|slug| slug.as_str()),
        detail = record.detail,
        count = record.count,
        refused = record.refused,
        "audit"
    );
}
