//! The log's way to stderr. A line that nobody takes is lost and counted: a task that waited for a reader of the log would keep jobs
//! waiting, and the signal that asks for an end.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Mutex;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use relay_bridge::support::lock;
use tracing_subscriber::fmt::MakeWriter;

/// The bytes that a pipe with any room takes at once: `PIPE_BUF` of Linux.
const AT_ONCE: usize = 4_096;
/// How long a reader that is slow is waited for, in milliseconds. From then on it is not waited for until it reads again.
const PATIENCE_MS: u16 = 1_000;

/// Writes whole lines to `out`, as long as they are taken there.
pub(super) struct Lines<W> {
    out: Mutex<Out<W>>,
    /// The line that says how many were lost.
    told: fn(u64) -> String,
}

struct Out<W> {
    to: W,
    /// Lines that were lost since the last one that was written.
    lost: u64,
    /// Whether the last thing written ended amid a line.
    is_torn: bool,
}

impl<W: Write + AsFd> Lines<W> {
    pub(super) fn new(to: W, told: fn(u64) -> String) -> Self {
        Self { out: Mutex::new(Out { to, lost: 0, is_torn: false }), told }
    }
}

impl<W: Write + AsFd> Out<W> {
    /// Writes a line, and before it how many were lost.
    fn line(&mut self, line: &[u8], told: fn(u64) -> String) {
        let mut whole = Vec::new();
        if self.lost > 0 {
            whole.extend_from_slice(if self.is_torn { b"\n" } else { b"" });
            whole.extend_from_slice(told(self.lost).as_bytes());
            whole.extend_from_slice(line);
        }
        let whole = if self.lost > 0 { &whole } else { line };
        let written = self.write(whole);
        if written == whole.len() {
            self.lost = 0;
            self.is_torn = false;
        } else {
            self.lost += 1;
            self.is_torn = (self.is_torn && written == 0) || written > 0;
        }
    }

    /// How many of `bytes` were taken.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        for piece in bytes.chunks(AT_ONCE) {
            if !self.has_room() || self.to.write_all(piece).is_err() {
                break;
            }
            written += piece.len();
        }
        written
    }

    fn has_room(&self) -> bool {
        let mut out = [PollFd::new(self.to.as_fd(), PollFlags::POLLOUT)];
        let patience = if self.lost > 0 { PollTimeout::ZERO } else { PollTimeout::from(PATIENCE_MS) };
        // What can't be asked, and a reader that went away, are for the write to judge: it does not wait then.
        poll(&mut out, patience) != Ok(0)
    }
}

/// One line of the log goes there in one write. It is never told that a line was lost: the log has no other place to say so.
pub(super) struct Line<'a, W>(&'a Lines<W>);

impl<W: Write + AsFd> Write for Line<'_, W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        lock(&self.0.out).line(line, self.0.told);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a, W: Write + AsFd + 'static> MakeWriter<'a> for Lines<W> {
    type Writer = Line<'a, W>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(self)
    }
}
