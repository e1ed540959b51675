//! Reading a body under the queue's limit, under one budget over all bodies in flight, and no slower than a bound. A declared
//! length is refused where it is beyond the limit, and counts only once a good part of the body has come: to declare costs
//! nothing. A body of unknown length counts as it grows.

use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::answer::Refusal;
use super::connection::Peer;
use super::{Ingress, Limits};
use crate::api::Slug;
use crate::ingress::budget::{Full, Share};
use crate::ingress::jobs::too_large;
use crate::ingress::refusal::scarce;

/// The bytes of a body that come before all of its declared length counts.
const DECLARED_FROM: u64 = 64 * 1024;
/// How long after its head a body may be as slow as it likes.
const SLOW_FOR: Duration = Duration::from_secs(5);

/// The refusal of a body that can't be read to its end.
const UNREADABLE: &str = "the body can't be read to its end: a chunk's size or its line end is wrong, or the body broke off; \
                          nothing was done: correct the chunks, or send the body with its Content-Length";

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
pub(super) async fn read<B>(ingress: &Ingress, peer: &Peer, body: B, max: u64) -> Result<HeldBody, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let declared = body.size_hint().exact();
    if let Some(actual) = declared.filter(|actual| *actual > max) {
        return Err(too_large(max, actual));
    }
    let share = ingress.body_bytes.take(&peer.owner, declared.unwrap_or(0).min(DECLARED_FROM)).map_err(full)?;
    collect(body, declared, max, share, &ingress.limits).await
}

fn full(full: Full) -> Refusal {
    Refusal::full(full, scarce::BODIES)
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

async fn collect<B>(
    mut body: B,
    declared: Option<u64>,
    max: u64,
    mut share: Share,
    limits: &Limits,
) -> Result<HeldBody, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let begun = Instant::now();
    let mut bytes = Vec::with_capacity(usize::try_from(declared.unwrap_or(0).min(DECLARED_FROM)).unwrap_or(0));
    // A body that came together with the head is there at the second look, and needs no timer.
    let mut first = look_twice(pin!(body.frame())).await;
    loop {
        let until = due(limits, begun, bytes.len());
        let frame = match first.take() {
            Some(frame) => frame,
            None => timeout_at(until, body.frame()).await.map_err(|_| too_slow(limits, "body", begun))?,
        };
        let Some(frame) = frame else { break };
        // A peer that is gone reads no answer: one that does has sent chunks that are none.
        let frame = frame.map_err(|_| Refusal::malformed(UNREADABLE))?;
        // Trailers mean nothing to relay.
        let Ok(data) = frame.into_data() else { continue };
        let total = bytes.len() as u64 + data.len() as u64;
        if total > max {
            return Err(too_large(max, total));
        }
        let counted = match declared {
            Some(declared) if total >= DECLARED_FROM => declared,
            Some(_) => 0,
            None => total,
        };
        let more = counted.saturating_sub(share.amount() as u64);
        if more > 0 {
            share.grow(more).map_err(full)?;
            if declared.is_some() {
                bytes.reserve_exact(usize::try_from(counted).unwrap_or(0).saturating_sub(bytes.len()));
            }
        }
        bytes.extend_from_slice(&data);
    }
    Ok(HeldBody { bytes: Bytes::from(bytes), share })
}

/// When more has to be there of what began to come at `begun` and of which so many `bytes` are.
pub(in crate::ingress) fn due(limits: &Limits, begun: Instant, bytes: usize) -> Instant {
    let slowest = SLOW_FOR.max(Duration::from_millis(bytes as u64 * 1_000 / limits.body_rate.max(1)));
    begun + slowest.min(limits.body_timeout)
}

/// The refusal of a `what` of which no more was there when it was due.
pub(in crate::ingress) fn too_slow(limits: &Limits, what: &str, begun: Instant) -> Refusal {
    let why = match begun.elapsed() >= limits.body_timeout {
        true => format!("the {what} did not arrive within {} s", limits.body_timeout.as_secs()),
        false => format!("the {what} came slower than {} bytes a second", limits.body_rate),
    };
    Refusal::new(Slug::RequestTimeout, format!("{why}; nothing was done: send it again"))
}
