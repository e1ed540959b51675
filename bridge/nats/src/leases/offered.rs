//! Offers jobs that came to the calls that wait, and takes them back if none takes them in time.

use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use super::deliver::Asked;
use super::grant::Grant;
use super::pulling::Pulls;
use crate::line::queue_state::QueueState;
use crate::line::ready::{Came, TAKEN_WITHIN};
use relay_bridge::leasing::Delivery;

impl Pulls {
    /// Adds the jobs that are there for a call that was made at `called`, up to `max` in all, the queues in the order given.
    /// Their leases are shorter by the time that had passed by then.
    pub(crate) fn ready(&self, grant: &mut Grant, asked: &[Asked], max: u32, called: Instant) {
        for Asked { line, policy } in asked {
            if policy.paused {
                continue;
            }
            let left = usize::try_from(grant.left(max)).unwrap_or(usize::MAX);
            let came = line.ready.take(left, |delivery| grant.fits(delivery));
            if came.is_empty() {
                continue;
            }
            self.lines.places().release(&line.queue, u32::try_from(came.len()).unwrap_or(u32::MAX));
            for Came { mut delivery, asked_at, .. } in came {
                let passed = called.saturating_duration_since(asked_at);
                delivery.lease = delivery.lease.saturating_sub(passed);
                grant.push(delivery);
            }
            if !line.ready.is_empty() {
                // For another call.
                line.woken.notify_one();
            }
        }
    }

    /// Keeps jobs for the next call, for a short time; then they go back. Their places are held.
    pub(crate) fn offer(
        self: &Arc<Self>,
        line: &Arc<QueueState>,
        jobs: impl Iterator<Item = Delivery>,
        asked_at: Instant,
    ) {
        if line.ready.put(jobs, asked_at) {
            // One for all that comes in a row: a task for each would be woken when what it keeps is taken.
            self.tasks.spawn(keep(Arc::clone(self), Arc::clone(line)));
        }
        line.woken.notify_one();
    }
}

/// Gives back the jobs that nobody took, until there are none left.
async fn keep(pulls: Arc<Pulls>, line: Arc<QueueState>) {
    let mut next = Some(Instant::now() + TAKEN_WITHIN);
    while let Some(at) = next {
        let is_over = pulls.closing.run_until_cancelled(sleep_until(at)).await.is_none();
        let (overdue, more) = line.ready.overdue(if is_over { at + TAKEN_WITHIN } else { Instant::now() });
        pulls.lines.places().release(&line.queue, u32::try_from(overdue.len()).unwrap_or(u32::MAX));
        // Dropped, it goes back.
        drop(Grant::of(&pulls.settling, overdue.into_iter().map(|came| came.delivery).collect()));
        next = more;
    }
}
