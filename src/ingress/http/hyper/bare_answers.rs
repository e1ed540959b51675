//! Hyper answers a head that it can't read by itself, with a status and nothing else. A peer is owed a problem document,
//! so the bare answer is replaced on its way out. It can be told from all others: it is the whole of what is written, while no
//! request runs and no answer of relay's is under way, and has no request id.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::to_bytes;
use axum::response::Response;
use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::answer::Refusal;
use super::super::connection::Connection;
use super::super::{Served, gate};
use crate::api::{Slug, header};

/// A bare answer is shorter: a status line, `connection`, `content-length` and `date`.
const BARE_BYTES_MAX: usize = 256;
/// Longer than any problem document.
const PROBLEM_BYTES_MAX: usize = 64 * 1024;
/// Bytes that are read and thrown away after a refusal, at most: closing with unread bytes would reset the connection, and
/// the reset overtakes the answer.
const UNREAD_BYTES_MAX: usize = 1024 * 1024;

/// How a connection of HTTP/2 begins, and no request of HTTP/1.
pub(crate) const PREFACE: &[u8] = b"PRI";

/// How a handshake of TLS begins.
const TLS: &[u8] = b"\x16\x03";

/// A connection under hyper.
pub(crate) struct Described<S> {
    stream: S,
    served: Arc<Served>,
    connection: Arc<Connection>,
    /// The first bytes that came.
    opening: Vec<u8>,
    /// The bytes that are written instead of a bare answer.
    instead: Bytes,
    /// How much may be thrown away yet, after a refusal; the guards of the connection bound the time.
    unread: usize,
    /// Whether the last write ended within what was to be written: then the next one goes on with it.
    within: bool,
}

impl<S> Described<S> {
    pub(in super::super) fn new(stream: S, served: Arc<Served>, connection: Arc<Connection>) -> Self {
        let opening = Vec::with_capacity(PREFACE.len());
        Self { stream, served, connection, opening, instead: Bytes::new(), unread: 0, within: false }
    }

    /// Takes `bytes` if they are a bare answer.
    fn replace(&mut self, bytes: &[u8]) -> bool {
        // The end of a result may read like one.
        let is_whole = !self.within && !self.connection.is_answering();
        let refusal = is_whole.then(|| refusal_of(bytes)).flatten();
        if let Some(refusal) = refusal {
            if self.opening.starts_with(TLS) {
                self.served.ingress.arrivals().is_encrypted(self.connection.peer);
            }
            let answer = gate::refuse(&self.served, refusal);
            self.instead = written(answer);
            self.unread = UNREAD_BYTES_MAX;
        }
        !self.instead.is_empty()
    }
}

/// The refusal to send instead of a bare answer, if that is one.
fn refusal_of(bytes: &[u8]) -> Option<Refusal> {
    if bytes.len() > BARE_BYTES_MAX || bytes.get(9) != Some(&b'4') {
        return None;
    }
    let text = std::str::from_utf8(bytes).ok()?;
    let (first, rest) = text.split_once("\r\n")?;
    let (version, status) = first.split_once(' ')?;
    let whole = version.starts_with("HTTP/1.") && rest.ends_with("\r\n\r\n");
    if !whole || !rest.contains("content-length: 0\r\n") || rest.contains(header::REQUEST_ID) {
        return None;
    }
    match status.get(..3)? {
        "400" => {
            let detail = "this is no HTTP request that relay can read; nothing was done: check its first line and its \
                          headers, and whether the client speaks TLS to a port without it";
            Some(Refusal::malformed(detail))
        }
        "414" | "431" => {
            let detail = "the request's head has more headers or more bytes than can be read; nothing was done: send \
                          fewer and shorter headers, and data in the body";
            Some(Refusal::new(Slug::HeadersTooLarge, detail))
        }
        _ => None,
    }
}

/// `answer` as HTTP/1.1 writes it, and the end of the connection.
fn written(answer: Response) -> Bytes {
    let (mut head, body) = answer.into_parts();
    // The body is there as a whole: nothing is waited for.
    let body = to_bytes(body, PROBLEM_BYTES_MAX).now_or_never().and_then(Result::ok).unwrap_or_default();
    head.headers.insert(http::header::CONTENT_LENGTH, body.len().into());
    head.headers.insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
    let mut bytes = format!("HTTP/1.1 {}\r\n", head.status).into_bytes();
    for (name, value) in &head.headers {
        bytes.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    bytes.extend_from_slice(&[b"\r\n", &body[..]].concat());
    bytes.into()
}

impl<S: AsyncRead + Unpin> AsyncRead for Described<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = to.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, to))?;
        let come = &to.filled()[before..];
        if !come.is_empty() {
            let missing = PREFACE.len() - self.opening.len();
            self.opening.extend(come.iter().take(missing));
            // Of HTTP/2, bytes may come that are of no head.
            if self.opening != PREFACE {
                self.connection.has_read();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Described<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.replace(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.within = written < bytes.len();
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        if let Some(first) = parts.iter().find(|part| !part.is_empty())
            && first.len() == length
            && self.replace(first)
        {
            return Poll::Ready(Ok(length));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, parts))?;
        self.within = written < length;
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.instead.has_remaining() {
            let written = ready!(Pin::new(&mut this.stream).poll_write(context, &this.instead))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            this.instead.advance(written);
        }
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(context))?;
        ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        let mut space = [0; 4 * 1024];
        while self.unread > 0 {
            let mut to = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut to))?;
            let read = to.filled().len();
            self.unread = if read == 0 { 0 } else { self.unread.saturating_sub(read) };
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_a_whole_bare_answer_is_replaced() {
        let bare = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\
                    date: Wed, 25 Nov 2026 10:00:00 GMT\r\n\r\n";
        assert_eq!(refusal_of(bare.as_bytes()).unwrap().0.slug, Slug::HeadersTooLarge);
        assert_eq!(refusal_of(bare.replace("431", "414").as_bytes()).unwrap().0.slug, Slug::HeadersTooLarge);
        assert_eq!(refusal_of(bare.replace("431", "400").as_bytes()).unwrap().0.slug, Slug::MalformedRequest);
        for other in [
            bare.replace("431", "200"),
            bare.replace("431", "404"),
            bare.replace("connection", "relay-request-id"),
            bare.replace("content-length: 0", "content-length: 7"),
            format!("{bare}x"),
            format!("x{bare}"),
            bare[..bare.len() - 1].to_owned(),
            bare.replace("Wed", &"W".repeat(200)),
            String::new(),
        ] {
            assert!(refusal_of(other.as_bytes()).is_none(), "{other}");
        }
    }
}
