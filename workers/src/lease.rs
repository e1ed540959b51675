//! Keeps a lease alive while its handler runs, and knows whether it still stands. A missed beat is survivable; a lost
//! lease cancels the handler.
//!
//! The holder judges by its own monotonic clock: the lease is dead at the moment the last confirmed extension (or the
//! lease call itself) was *sent*, plus its length. After that nothing is sent for it any more.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use relay_bridge::contract::Outcome;
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::leasing::{Held, Leasing, Receipt};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::retry::answered;

/// No beat comes sooner than this after the one before, however short the lease.
const BEAT_MIN: Duration = Duration::from_millis(10);

/// No lease is longer, whatever a broker says: a moment must be able to hold its end.
pub(crate) const LEASE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Whether the delivery is still this worker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is.
    Held,
    /// It may be someone else's: nothing but a success may be recorded, and nothing is settled.
    Lost,
    /// Its run ended elsewhere: record nothing, settle `Complete`.
    Ended(Outcome),
}

/// One delivery's lease.
pub(crate) struct Lease {
    receipt: Receipt,
    state: Mutex<State>,
    lapsed: CancellationToken,
}

struct State {
    standing: Standing,
    live_until: Instant,
    /// When the next beat is due.
    beat_at: Instant,
    /// A third of the lease.
    beat_every: Duration,
}

impl Lease {
    /// The lease of a delivery that came with a lease call sent at `asked_at`.
    pub(crate) fn new(receipt: Receipt, asked_at: Instant, lease: Duration) -> Self {
        let lease = lease.min(LEASE_MAX);
        let beat_every = (lease / 3).max(BEAT_MIN);
        let state = State {
            standing: Standing::Held,
            live_until: asked_at + lease,
            beat_at: asked_at + beat_every,
            beat_every,
        };
        Self { receipt, state: Mutex::new(state), lapsed: CancellationToken::new() }
    }

    pub(crate) fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// Whether it stands now.
    pub(crate) fn standing(&self) -> Standing {
        let state = self.lock();
        match state.standing {
            Standing::Held if Instant::now() >= state.live_until => Standing::Lost,
            standing => standing,
        }
    }

    /// Until it stands no more.
    pub(crate) async fn lapsed(&self) {
        self.lapsed.cancelled().await;
    }

    /// Beats at a third of the lease, and once earlier if the broker hurries, until the lease is lost or its run ended. It
    /// never returns: drop it when the
    /// delivery is settled.
    pub(crate) async fn keep(&self, leasing: &Arc<dyn Leasing>) -> Infallible {
        // Once: then the answer to a beat is known, and what comes later is learned in time.
        let (mut hurried, mut told) = (leasing.hurried(&self.receipt), false);
        loop {
            let (beat_at, live_until, beat_every) = {
                let state = self.lock();
                (state.beat_at, state.live_until, state.beat_every)
            };
            tokio::select! {
                () = sleep_until(beat_at.min(live_until)) => {}
                () = &mut hurried, if !told => told = true,
            }
            let sent = Instant::now();
            let left = live_until.saturating_duration_since(sent);
            if left.is_zero() {
                return self.lapse(Standing::Lost).await;
            }
            // One beat that hangs must leave time for another.
            match answered("extend", beat_every.min(left), leasing.extend(&self.receipt)).await {
                // Somebody else may have got the job between the lease's end and the answer.
                Ok(Held::Until(_)) if Instant::now() >= live_until => return self.lapse(Standing::Lost).await,
                Ok(Held::Until(lease)) => self.confirm(sent, lease),
                Ok(Held::Ended(outcome)) => return self.lapse(Standing::Ended(outcome)).await,
                Err(error) if error.kind() == BrokerErrorKind::LeaseLost => return self.lapse(Standing::Lost).await,
                Err(error) => {
                    tracing::debug!(job_id = %self.receipt.job_id, %error, "missed a beat");
                    self.lock().beat_at = Instant::now() + (beat_every / 4).max(BEAT_MIN);
                }
            }
        }
    }

    fn confirm(&self, sent: Instant, lease: Duration) {
        let lease = lease.min(LEASE_MAX);
        let mut state = self.lock();
        state.beat_every = (lease / 3).max(BEAT_MIN);
        state.beat_at = sent + state.beat_every;
        state.live_until = sent + lease;
    }

    async fn lapse(&self, standing: Standing) -> Infallible {
        self.lock().standing = standing;
        self.lapsed.cancel();
        std::future::pending().await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
