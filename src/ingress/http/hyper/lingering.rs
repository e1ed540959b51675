//! Reading on after a refusal. Closing an HTTP/1.1 connection with unread bytes resets it, and the reset overtakes the
//! answer: a client that sends its whole body first would never learn why. So what is left is read and thrown away,
//! within bounds, beside the answer (RFC 9112, section 9.6).

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::request::Parts;
use http::{Version, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// Bytes that are read and thrown away at most. Clients that send more at once ask first, with `Expect`.
const BYTES_MAX: usize = 1024 * 1024;
/// How long that takes at most.
const TIME_MAX: Duration = Duration::from_secs(2);

/// A request's body, which is read on for a while if it is dropped before its end.
pub(crate) struct Lingering<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    /// `None` only while it is dropped.
    body: Option<B>,
    /// Where the reading on runs; `None` if there is none.
    tasks: Option<TaskTracker>,
}

impl<B> Lingering<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    /// The body of a request with this head; the reading on is a task of `tasks`.
    pub(crate) fn new(head: &Parts, body: B, tasks: TaskTracker) -> Self {
        // HTTP/2 ends a single stream; and reading would tell a client that asked first to send.
        let plain = head.version >= Version::HTTP_2 || head.headers.contains_key(header::EXPECT);
        Self { body: Some(body), tasks: Some(tasks).filter(|_| !plain) }
    }
}

impl<B> Drop for Lingering<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    fn drop(&mut self) {
        let unread = self.body.take().filter(|body| !body.is_end_stream());
        if let (Some(body), Some(tasks), Ok(runtime)) = (unread, &self.tasks, Handle::try_current()) {
            tasks.spawn_on(read_on(body), &runtime);
        }
    }
}

impl<B> Body for Lingering<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.body.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

async fn read_on<B: Body<Data = Bytes> + Unpin>(mut body: B) {
    let read = async {
        let mut left = BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(1, Buf::remaining));
            if left == 0 {
                return;
            }
        }
    };
    // Whether it was all of it makes no difference: if not, the connection is closed.
    drop(tokio::time::timeout(TIME_MAX, read).await);
}
