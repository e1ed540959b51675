//! Stdout up to a cap, and the end of stderr.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

const CHUNK: usize = 16 * 1024;

/// Everything a command wrote, or the fact that it was more than the cap.
#[derive(Debug)]
pub(super) struct Capped {
    pub(super) bytes: Vec<u8>,
    max: usize,
}

/// More was written than may be kept.
#[derive(Debug)]
pub(super) struct Overflow;

impl Capped {
    pub(super) fn new(max: usize) -> Self {
        Self { bytes: Vec::new(), max }
    }

    /// Reads to the end of the stream, or until it is more than the cap. A stream that breaks counts as ended.
    pub(super) async fn fill(&mut self, stream: Option<impl AsyncRead + Unpin>) -> Result<(), Overflow> {
        let Some(stream) = stream else { return Ok(()) };
        let room = u64::try_from(self.max).unwrap_or(u64::MAX).saturating_add(1);
        let mut stream = stream.take(room);
        loop {
            self.bytes.reserve(CHUNK.min(self.max.saturating_add(1).saturating_sub(self.bytes.len())));
            match stream.read_buf(&mut self.bytes).await {
                Ok(0) => return Ok(()),
                Ok(_) if self.bytes.len() > self.max => return Err(Overflow),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Ok(()),
            }
        }
    }
}

/// The last bytes a command wrote.
#[derive(Debug)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    max: usize,
    cut: bool,
}

impl Tail {
    pub(super) fn new(max: usize) -> Self {
        Self { bytes: Vec::new(), max, cut: false }
    }

    /// Reads to the end of the stream. A stream that breaks counts as ended.
    pub(super) async fn fill(&mut self, stream: Option<impl AsyncRead + Unpin>) {
        let Some(mut stream) = stream else { return };
        let mut chunk = vec![0; CHUNK];
        loop {
            match stream.read(&mut chunk).await {
                Ok(0) => return,
                Ok(read) => self.push(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn push(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
        let excess = self.bytes.len().saturating_sub(self.max);
        self.cut |= excess > 0;
        self.bytes.drain(..excess);
    }

    /// The end as text of at most `bytes_max` bytes, with `...` in front if something is missing.
    pub(super) fn text(&self, bytes_max: usize) -> String {
        const MARK: &str = "...";
        // Bytes that are not UTF-8 grow when they are replaced, so the text is cut after that.
        let text = String::from_utf8_lossy(&self.bytes);
        let text = text.trim_end();
        if !self.cut && text.len() <= bytes_max {
            return text.to_owned();
        }
        let mut start = text.len().saturating_sub(bytes_max.saturating_sub(MARK.len()));
        while !text.is_char_boundary(start) {
            start += 1;
        }
        format!("{MARK}{}", &text[start..])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test]
    async fn a_stream_of_exactly_the_cap_is_kept_and_one_byte_more_is_an_overflow() {
        for (len, fits) in [(0, true), (99, true), (100, true), (101, false), (100_000, false)] {
            let data = vec![7; len];
            let mut capped = Capped::new(100);
            assert_eq!(capped.fill(Some(&data[..])).await.is_ok(), fits, "{len}");
            assert!(capped.bytes.len() <= 101);
        }
    }

    #[test]
    fn the_tail_keeps_the_end() {
        let mut tail = Tail::new(5);
        tail.push(b"hello ");
        tail.push(b"world\n");
        assert_eq!(tail.text(100), "...orld");
        assert_eq!(tail.text(6), "...rld");
        let mut short = Tail::new(100);
        short.push(b"oops\n");
        assert_eq!(short.text(100), "oops");
    }

    proptest! {
        #[test]
        fn the_tail_stays_in_its_bounds_whatever_the_bytes(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20), max in 0_usize..64,
        ) {
            let mut tail = Tail::new(max);
            for chunk in &chunks {
                tail.push(chunk);
                prop_assert!(tail.bytes.len() <= max);
            }
            prop_assert!(chunks.concat().ends_with(&tail.bytes));
            prop_assert!(tail.text(40).len() <= 40);
        }
    }
}
