//! Sends hints to workers: of jobs in line that came together, and of jobs on timers when their time comes.

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::wire::api::Api;
use crate::wire::hints::EVERY;

/// Sends the hints of jobs that came together, and of jobs whose time comes, until the adapter is closed.
pub(crate) async fn keep_hinting(api: Api, closing: CancellationToken) {
    let mut next = None;
    loop {
        let woken = async {
            api.hints().woken.notified().await;
            // Jobs that come together are told together.
            tokio::time::sleep(EVERY).await;
        };
        tokio::select! {
            () = woken => {}
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            () = closing.cancelled() => return,
        }
        let due;
        (due, next) = api.hints().due(Instant::now());
        for ((queue, lane), jobs) in due {
            api.tell_hint(&queue, &lane, jobs).await;
        }
    }
}
