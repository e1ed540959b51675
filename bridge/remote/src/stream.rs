//! Frames out of a byte stream. The buffer grows with what has arrived; only once 64 KiB of a frame have, as its length says. A
//! stream on which nothing comes has none.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use relay_bridge::contract::wire::frame::{self, FrameError, LENGTH_BYTES};

/// Writes all of `bytes` and has them leave: TLS keeps what the socket did not take at once until it is flushed, so that the end of
/// a large frame would wait for the next one.
///
/// # Errors
/// Those of the stream.
pub async fn write_out<W: AsyncWrite + Unpin>(to: &mut W, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

/// Reads frames, one after the other. The server uses it too.
#[derive(Debug)]
pub struct FrameReader<R> {
    from: R,
    buffer: BytesMut,
    frame_max: u32,
    /// How much is asked for where nothing is here: more after a read that was full, less after a small one.
    asks: usize,
}

/// No frame can be read any more.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream broke, also in the middle of a frame.
    #[error("the connection broke")]
    Broken(#[from] io::Error),
    /// The peer announced a frame that it may not send.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames of up to `frame_max` bytes from `from`.
    pub fn new(from: R, frame_max: u32) -> Self {
        Self { from, buffer: BytesMut::new(), frame_max, asks: ASKS_LEAST }
    }

    /// Takes frames of up to `frame_max` bytes from here on.
    pub fn set_frame_max(&mut self, frame_max: u32) {
        self.frame_max = frame_max;
    }

    /// The bytes that have come and are in no frame that was given.
    pub fn here(&self) -> usize {
        self.buffer.len()
    }

    /// The stream itself, without what is buffered here.
    pub fn inner_mut(&mut self) -> &mut R {
        &mut self.from
    }

    /// The next frame, without its length; `None` after the peer closed the stream between two frames.
    ///
    /// Dropping the future loses nothing: bytes that were read stay in the buffer.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            if let Some(frame) = frame::take(&mut self.buffer, self.frame_max)? {
                return Ok(Some(frame));
            }
            if !self.read().await? {
                return Ok(None);
            }
        }
    }

    /// The length of the next frame, once the frame or [`BEGUN_BYTES`] of it are here; `None` after the peer closed the stream
    /// between two frames. [`next`](Self::next) gives that frame.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn begun(&mut self) -> Result<Option<usize>, ReadError> {
        loop {
            if let Some(length) = frame::length(&self.buffer, self.frame_max)?
                && self.buffer.len() >= length.min(BEGUN_BYTES) + LENGTH_BYTES
            {
                return Ok(Some(length));
            }
            if !self.read().await? {
                return Ok(None);
            }
        }
    }

    /// Reads more; `false` after the peer closed the stream between two frames.
    async fn read(&mut self) -> Result<bool, ReadError> {
        let (read, room) = match self.buffer.is_empty() && self.asks == ASKS_LEAST {
            true => {
                // Thousands of connections may wait here: memory is taken once there is something to keep in it.
                self.buffer = BytesMut::new();
                (poll_fn(|context| self.poll_few(context)).await?, ASKS_LEAST)
            }
            false => {
                self.buffer.reserve(self.more()?);
                let room = self.buffer.capacity() - self.buffer.len();
                (self.from.read_buf(&mut self.buffer).await?, room)
            }
        };
        if read > 0 {
            self.asks =
                if read == room { (self.asks * 2).min(CHUNK_BYTES) } else { (read * 2).clamp(ASKS_LEAST, self.asks) };
            return Ok(true);
        }
        if self.buffer.is_empty() {
            return Ok(false);
        }
        Err(ReadError::Broken(io::ErrorKind::UnexpectedEof.into()))
    }

    /// How much is asked for beside what is here.
    fn more(&self) -> Result<usize, FrameError> {
        Ok(match frame::length(&self.buffer, self.frame_max)? {
            // The peer has shown that it means it: the memory is taken once instead of twice as much in steps.
            Some(length) if self.buffer.len() >= BEGUN_BYTES => length + LENGTH_BYTES - self.buffer.len(),
            _ => self.buffer.len().clamp(self.asks, BEGUN_BYTES),
        })
    }

    /// Reads a few bytes by way of the stack.
    fn poll_few(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [MaybeUninit::uninit(); ASKS_LEAST];
        let mut few = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.from).poll_read(context, &mut few))?;
        self.buffer.extend_from_slice(few.filled());
        Poll::Ready(Ok(few.filled().len()))
    }
}

/// So many bytes of a frame are read before memory is taken for all of it.
pub const BEGUN_BYTES: usize = 64 * 1024;

/// A connection that waits for a frame asks for so much, and one that is busy for [`CHUNK_BYTES`].
const ASKS_LEAST: usize = 512;
const CHUNK_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Waker;

    use relay_bridge::contract::wire::FRAME_MAX;

    use super::*;

    /// What is here of a future's work, without waiting for more.
    fn now<T>(future: impl Future<Output = T>) -> Poll<T> {
        pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn frames_come_whole_however_they_are_cut_and_a_reader_that_waits_holds_no_memory() {
        let (mut to, from) = tokio::io::duplex(64 * 1024);
        let mut reader = FrameReader::new(from, FRAME_MAX);
        for length in [1, ASKS_LEAST - LENGTH_BYTES, ASKS_LEAST, 3 * CHUNK_BYTES, 7, 7] {
            let mut bytes = u32::try_from(length).unwrap().to_be_bytes().to_vec();
            bytes.extend(std::iter::repeat_n(7, length));
            for part in bytes.chunks(bytes.len().div_ceil(3)) {
                to.write_all(part).await.unwrap();
                // It reads all that is here, and waits for the rest.
                if let Poll::Ready(begun) = now(reader.begun()) {
                    assert_eq!(begun.unwrap(), Some(length));
                }
            }
            let frame = reader.next().await.unwrap().unwrap();
            assert!(frame.len() == length && frame.iter().all(|byte| *byte == 7));
        }
        assert!(now(reader.next()).is_pending());
        assert_eq!(reader.buffer.capacity(), 0);
        to.write_all(&[0, 0]).await.unwrap();
        assert!(now(reader.next()).is_pending());
        assert_eq!(reader.here(), 2);
        drop(to);
        assert!(matches!(reader.next().await, Err(ReadError::Broken(_))));
    }
}
