//! Keeps a lease alive while its handler runs, and knows whether it still stands. A missed beat is survivable; a lost
//! lease cancels the handler.
//!
//! The holder judges by its own monotonic clock: the lease is dead at the moment the last confirmed extension (or the
//! lease call itself) was *sent*, plus its length. After that nothing is sent for it any more.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use relay_bridge::contract::Outcome;
use relay_bridge::error::BrokerErrorKind;
use relay_bridge::leasing::{Held, Leasing, Receipt};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::retry::answered;
use relay_bridge::support::lock;

/// No beat comes sooner than this after the one before, however short the lease.
const BEAT_MIN: Duration = Duration::from_millis(10);

/// No lease is longer, whatever a broker says: a moment must be able to hold its end.
pub(crate) const LEASE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A job that was in hand for longer before its handler starts is looked up at the broker first.
const IN_HAND_MAX: Duration = Duration::from_millis(250);

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
    /// Cancelled when the handler starts, unless the broker ended_early before: then the answer is known already.
    heeding: CancellationToken,
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
        Self { receipt, state: Mutex::new(state), heeding: CancellationToken::new(), lapsed: CancellationToken::new() }
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

    /// Whether the handler may start: by the holder's clock and what the broker told. The broker is asked only if it
    /// hurries, or if the job is in hand since before `taken_at` + [`IN_HAND_MAX`]. While it does not answer, the clock
    /// decides.
    pub(crate) async fn may_start(&self, leasing: &Arc<dyn Leasing>, taken_at: Instant) -> bool {
        let ended_early = leasing.ended_early(&self.receipt).now_or_never().is_some();
        let mut standing = self.standing();
        if standing == Standing::Held && (ended_early || taken_at.elapsed() > IN_HAND_MAX) {
            standing = self.beat(leasing).await;
        }
        if !ended_early {
            self.heeding.cancel();
        }
        standing == Standing::Held
    }

    /// Until it stands no more.
    pub(crate) async fn lapsed(&self) {
        self.lapsed.cancelled().await;
    }

    /// Beats at a third of the lease, and once earlier if the broker hurries, until the lease is lost or its run ended. It
    /// never returns: drop it when the delivery is settled.
    pub(crate) async fn keep(&self, leasing: &Arc<dyn Leasing>) -> Infallible {
        // Once, and from the start on: then the answer to a beat is known, and what comes later is learned in time.
        let ended_early = async {
            self.heeding.cancelled().await;
            leasing.ended_early(&self.receipt).await;
        };
        tokio::pin!(ended_early);
        let mut told = false;
        loop {
            let beat_at = {
                let state = self.lock();
                state.beat_at.min(state.live_until)
            };
            tokio::select! {
                () = sleep_until(beat_at) => {}
                () = &mut ended_early, if !told => told = true,
            }
            if self.beat(leasing).await != Standing::Held {
                return std::future::pending().await;
            }
        }
    }

    /// Extends it once, and says how it stands then.
    async fn beat(&self, leasing: &Arc<dyn Leasing>) -> Standing {
        let (live_until, beat_every) = {
            let state = self.lock();
            (state.live_until, state.beat_every)
        };
        let sent = Instant::now();
        let left = live_until.saturating_duration_since(sent);
        if left.is_zero() {
            return self.end(Standing::Lost);
        }
        // One beat that hangs must leave time for another.
        match answered("extend", beat_every.min(left), leasing.extend(&self.receipt)).await {
            // Somebody else may have got the job between the lease's end and the answer.
            Ok(Held::Until(_)) if self.standing() == Standing::Lost => return self.end(Standing::Lost),
            Ok(Held::Until(lease)) => self.confirm(sent, lease),
            Ok(Held::Ended(outcome)) => return self.end(Standing::Ended(outcome)),
            Err(error) if error.kind() == BrokerErrorKind::LeaseLost => return self.end(Standing::Lost),
            Err(error) => {
                tracing::debug!(job_id = %self.receipt.job_id, %error, "missed a beat");
                self.lock().beat_at = Instant::now() + (beat_every / 4).max(BEAT_MIN);
            }
        }
        self.standing()
    }

    fn confirm(&self, sent: Instant, lease: Duration) {
        let lease = lease.min(LEASE_MAX);
        let mut state = self.lock();
        state.beat_every = (lease / 3).max(BEAT_MIN);
        state.beat_at = sent + state.beat_every;
        state.live_until = sent + lease;
    }

    fn end(&self, standing: Standing) -> Standing {
        self.lock().standing = standing;
        self.lapsed.cancel();
        standing
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }
}
