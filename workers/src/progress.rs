//! Progress on its way to the broker: the latest wins, and at most two a second leave.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use relay_bridge::leasing::{Leasing, Progress, Receipt};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::retry::{CALL_MAX, answered};

/// How long after one report the next one leaves.
const INTERVAL: Duration = Duration::from_millis(500);
/// The longest message, in bytes; longer text is cut at a character boundary.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1024;

/// Brings a handler's progress into bounds: percent 0 to 100 or unknown, message at most [`MESSAGE_BYTES_MAX`].
pub(crate) fn bounded(mut progress: Progress) -> Progress {
    progress.percent = progress.percent.filter(|percent| percent.is_finite()).map(|percent| percent.clamp(0.0, 100.0));
    let mut end = MESSAGE_BYTES_MAX.min(progress.message.len());
    while !progress.message.is_char_boundary(end) {
        end -= 1;
    }
    progress.message.truncate(end);
    progress
}

/// Sends what `latest` holds whenever it changed. Best effort: a report that fails is forgotten.
pub(crate) async fn report(
    leasing: &Arc<dyn Leasing>,
    receipt: &Receipt,
    mut latest: watch::Receiver<Option<Progress>>,
) -> Infallible {
    while latest.changed().await.is_ok() {
        let Some(progress) = latest.borrow_and_update().clone() else { continue };
        if let Err(error) = answered("progress", CALL_MAX, leasing.progress(receipt, &progress)).await {
            tracing::debug!(job_id = %receipt.job_id, %error, "progress not reported");
        }
        sleep(INTERVAL).await;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_of_any_value_is_brought_into_bounds() {
        for (given, kept) in [
            (Some(50.5), Some(50.5)),
            (Some(-1.0), Some(0.0)),
            (Some(1e9), Some(100.0)),
            (Some(f32::NAN), None),
            (Some(f32::INFINITY), None),
            (None, None),
        ] {
            let progress = bounded(Progress { percent: given, message: "ü".repeat(1_000) });
            assert_eq!(progress.percent, kept);
            assert_eq!(progress.message, "ü".repeat(512));
        }
    }
}
