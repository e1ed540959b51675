//! Writes a batch of messages to a peer that may read slowly, and knows how much of it has left: behind the half of a message
//! nothing else may be written.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::time;

/// Writes what is left of `batch` behind `at`, and moves `at` as bytes leave, also if the future is dropped.
///
/// # Errors
/// The stream's; [`io::ErrorKind::TimedOut`] once the peer took no bytes for `patience`.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    to: &mut W,
    batch: &[u8],
    at: &mut usize,
    patience: Duration,
) -> io::Result<()> {
    while let Some(left) = batch.get(*at..).filter(|left| !left.is_empty()) {
        match time::timeout(patience, to.write(left)).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => *at += written?,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    // TLS keeps the end of what the socket did not take at once.
    time::timeout(patience, to.flush()).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_a_few_bytes_at_a_time_is_waited_for_and_one_that_takes_none_is_not() {
        let (mut to, mut from) = tokio::io::duplex(4);
        let (batch, mut at) = ([7; 32], 0);
        let reads = async {
            for _ in 0..4 {
                time::sleep(PATIENCE - Duration::from_secs(1)).await;
                from.read_exact(&mut [0; 4]).await.unwrap();
            }
        };
        let begun = time::Instant::now();
        let (written, ()) = tokio::join!(write(&mut to, &batch, &mut at, PATIENCE), reads);
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!((at, begun.elapsed()), (20, 5 * PATIENCE - Duration::from_secs(4)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_is_dropped_tells_how_much_has_left() {
        let (mut to, _from) = tokio::io::duplex(4);
        let mut at = 0;
        let dropped = time::timeout(Duration::from_secs(1), write(&mut to, &[7; 6], &mut at, PATIENCE)).await;
        assert!(dropped.is_err() && at == 4);
    }
}
