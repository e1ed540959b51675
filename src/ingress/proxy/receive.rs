//! Reads a header from a connection, and not one byte more: what comes behind it is the client's, also where it looks like another
//! header.

use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use super::HeaderOutcome;
use super::header::{self, Header, Look, Malformed};

/// Why there is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Unread {
    /// Not a byte came.
    #[error("the connection ended, or its time for a PROXY header did, before its first byte")]
    Silent,
    /// It ended early, or took too long.
    #[error("the connection ended, or its time for a PROXY header did, within the header")]
    Cut,
    /// The bytes that came are no header.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl From<Unread> for HeaderOutcome {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Silent => Self::Silent,
            Unread::Cut => Self::Cut,
            Unread::Malformed(_) => Self::Malformed,
        }
    }
}

/// Reads the header of `stream`, until `within` is over or `ended` ends.
///
/// # Errors
/// If it did not come, or is none that is believed.
pub(crate) async fn header(
    stream: &mut (impl AsyncRead + Unpin),
    within: Duration,
    ended: impl Future<Output = ()>,
) -> Result<Header, Unread> {
    let mut bytes = Vec::new();
    let read = tokio::select! {
        read = timeout(within, read(stream, &mut bytes)) => read.unwrap_or(Ok(None))?,
        () = ended => None,
    };
    read.ok_or(if bytes.is_empty() { Unread::Silent } else { Unread::Cut })
}

/// `None` if `stream` ends before its header does.
async fn read(stream: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> Result<Option<Header>, Malformed> {
    loop {
        let more = match header::look(bytes)? {
            Look::Whole(header) => return Ok(Some(header)),
            Look::More(more) => more,
        };
        // A header is read in two steps, of which the second one says how long it is.
        bytes.reserve_exact(more);
        let limit = u64::try_from(more).unwrap_or(u64::MAX);
        if !matches!((&mut *stream).take(limit).read_buf(bytes).await, Ok(1..)) {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    const WITHIN: Duration = Duration::from_secs(5);
    const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\x03abc";

    #[tokio::test]
    async fn exactly_the_headers_bytes_are_read_and_a_second_header_is_payload() {
        let stream = [LOCAL, LOCAL, b"GET"].concat();
        for split in 0..=stream.len() {
            let (mut near, mut far) = duplex(1_024);
            let (first, second) = stream.split_at(split);
            let (header, ()) = tokio::join!(header(&mut near, WITHIN, pending()), async {
                far.write_all(first).await.unwrap();
                tokio::task::yield_now().await;
                far.write_all(second).await.unwrap();
                far.shutdown().await.unwrap();
            });
            assert_eq!(header, Ok(Header::Local), "split at {split}");
            let mut rest = Vec::new();
            near.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, [LOCAL, b"GET"].concat(), "split at {split}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_that_does_not_end_has_its_time_and_silence_is_told_from_a_part_of_one() {
        for sent in 0..LOCAL.len() {
            let expected = Err(if sent == 0 { Unread::Silent } else { Unread::Cut });
            let (mut near, mut far) = duplex(1_024);
            far.write_all(&LOCAL[..sent]).await.unwrap();
            let start = tokio::time::Instant::now();
            assert_eq!(header(&mut near, WITHIN, pending()).await, expected, "{sent} bytes, and no more");
            assert_eq!(start.elapsed(), WITHIN);

            let (mut near, mut far) = duplex(1_024);
            far.write_all(&LOCAL[..sent]).await.unwrap();
            drop(far);
            assert_eq!(header(&mut near, WITHIN, pending()).await, expected, "{sent} bytes, and the end");
        }
        let (mut near, _far) = duplex(1_024);
        assert_eq!(header(&mut near, WITHIN, async {}).await, Err(Unread::Silent), "ended from outside");
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused_at_its_first_wrong_byte() {
        let (mut near, mut far) = duplex(1_024);
        far.write_all(b"G").await.unwrap();
        assert_eq!(header(&mut near, WITHIN, pending()).await, Err(Malformed::Signature.into()));
    }
}
