//! Frames out of a byte stream. The buffer grows with what has arrived, never with what a length announces.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use relay_bridge::contract::wire::frame::{self, FrameError};

/// Reads frames, one after the other. The server uses it too.
#[derive(Debug)]
pub struct FrameReader<R> {
    from: R,
    buffer: BytesMut,
    frame_max: u32,
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
        Self { from, buffer: BytesMut::new(), frame_max }
    }

    /// Takes frames of up to `frame_max` bytes from here on.
    pub fn set_frame_max(&mut self, frame_max: u32) {
        self.frame_max = frame_max;
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
            self.buffer.reserve(self.buffer.len().clamp(CHUNK_BYTES, CHUNK_BYTES_MAX));
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                return Err(ReadError::Broken(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

const CHUNK_BYTES: usize = 8 * 1024;
const CHUNK_BYTES_MAX: usize = 1024 * 1024;
