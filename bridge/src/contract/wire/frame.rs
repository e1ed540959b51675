//! Cutting a byte stream into frames. A length that is too large is refused when its four bytes are there, before one
//! byte of the frame is buffered; nothing is reserved on the word of a length.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Bytes of the length in front of each frame.
pub const LENGTH_BYTES: usize = 4;

/// The stream can't be cut into frames any more; the connection has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The peer announced more than it may send.
    #[error("a frame of {length} bytes was announced, allowed are {limit}")]
    TooLong {
        /// Bytes announced.
        length: u32,
        /// Bytes allowed.
        limit: u32,
    },
    /// A frame of no bytes holds no message.
    #[error("a frame of 0 bytes was announced")]
    Empty,
}

/// How many bytes the frame has that begins `buffer`, without its length; `None` if that is not there yet.
///
/// # Errors
/// [`FrameError`]: the rest of the stream can't be understood.
pub fn length(buffer: &[u8], frame_max: u32) -> Result<Option<usize>, FrameError> {
    let Some(length) = buffer.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length);
    if length == 0 {
        return Err(FrameError::Empty);
    }
    if length > frame_max {
        return Err(FrameError::TooLong { length, limit: frame_max });
    }
    Ok(Some(usize::try_from(length).unwrap_or(usize::MAX)))
}

/// Takes the next complete frame, without its length, out of `buffer`; `None` if there is none yet.
///
/// The frame shares the buffer's memory: nothing is copied.
///
/// # Errors
/// [`FrameError`]: the rest of the stream can't be understood.
pub fn take(buffer: &mut BytesMut, frame_max: u32) -> Result<Option<Bytes>, FrameError> {
    let Some(length) = length(buffer, frame_max)? else { return Ok(None) };
    if buffer.len() - LENGTH_BYTES < length {
        return Ok(None);
    }
    buffer.advance(LENGTH_BYTES);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// Appends to `buffer` the frame whose content `write` appends.
pub fn put(buffer: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    let start = buffer.len();
    buffer.put_u32(0);
    write(buffer);
    let length = u32::try_from(buffer.len() - start - LENGTH_BYTES).unwrap_or(u32::MAX);
    buffer[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
}
