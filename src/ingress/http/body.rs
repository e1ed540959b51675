//! Reading a body under the queue's limit and under one budget over all bodies in flight. Whether it fits is decided
//! before it is read where its length is known; a body of unknown length reserves as it grows.

use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;

use super::Ingress;
use super::answer::Refusal;
use crate::api::Slug;
use crate::ingress::budget::Share;
use crate::ingress::jobs::too_large;

/// A body, and its share of the budget until it is dropped.
pub(super) struct HeldBody {
    pub(super) bytes: Bytes,
    share: Share,
}

impl HeldBody {
    /// The bytes, and what holds their share of the budget: drop it when they are on their way.
    pub(super) fn into_parts(self) -> (Bytes, impl Send + 'static) {
        (self.bytes, self.share)
    }
}

/// Reads `body`, at most `max` bytes of it.
///
/// # Errors
/// `payload-too-large`, `overloaded`, `request-timeout`; `malformed-request` if the peer breaks off.
pub(super) async fn read<B>(ingress: &Ingress, body: B, max: u64) -> Result<HeldBody, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let declared = body.size_hint().exact();
    if let Some(actual) = declared.filter(|actual| *actual > max) {
        return Err(too_large(max, actual));
    }
    let share = ingress.body_bytes.take(declared.unwrap_or(0)).ok_or_else(Refusal::too_many_bytes)?;
    let timeout = ingress.limits.body_timeout;
    let mut collect = pin!(collect(body, declared, max, share));
    // A body that came together with the head is there at the second look, and needs no timer.
    match look_twice(collect.as_mut()).await {
        Some(held) => held,
        None => tokio::time::timeout(timeout, collect).await.map_err(|_| {
            let detail =
                format!("the body did not arrive within {} s; nothing was done: send it again", timeout.as_secs());
            Refusal::new(Slug::RequestTimeout, detail)
        })?,
    }
}

/// The output of `future` if it is ready now, or after the task had one more turn; else `None`.
async fn look_twice<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    let mut looked = false;
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if looked => Poll::Ready(None),
        Poll::Pending => {
            looked = true;
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

async fn collect<B>(mut body: B, declared: Option<u64>, max: u64, mut share: Share) -> Result<HeldBody, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut bytes = Vec::with_capacity(usize::try_from(declared.unwrap_or(0)).unwrap_or(0));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::malformed("the body broke off before its end: send it again"))?;
        // Trailers mean nothing to relay.
        let Ok(data) = frame.into_data() else { continue };
        let total = bytes.len() as u64 + data.len() as u64;
        if total > max {
            return Err(too_large(max, total));
        }
        if declared.is_none() && !share.grow(data.len() as u64) {
            return Err(Refusal::too_many_bytes());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(HeldBody { bytes: Bytes::from(bytes), share })
}
