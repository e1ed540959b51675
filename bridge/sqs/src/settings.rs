//! What holds for all of an adapter's work.

use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::contract::envelope::WireVersion;

/// What holds for all of an adapter's work.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The envelope version that is written.
    pub wire_version: WireVersion,
    /// The clock of deadlines, leases and retention, which processes share: see `skew`.
    pub clock: Clock,
    /// How far the clocks of two processes may be apart: for so long after its end a lease is given to nobody else.
    /// Default 5 s.
    pub skew: Duration,
    /// How often this process looks for what time demands in each queue, however often it is told to sweep. Default 5 s.
    pub sweep_every: Duration,
    /// How often who waits for a job looks by itself, where another process would tell it: messages can be lost. Default 2 s.
    pub look_every: Duration,
    /// How often this process says that its reply queue is in use, and looks for queues of dead processes, which are those
    /// that said nothing for 5 minutes. Default 60 s.
    pub reply_beat: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            wire_version: WireVersion::default(),
            clock: Clock::default(),
            skew: Duration::from_secs(5),
            sweep_every: Duration::from_secs(5),
            look_every: Duration::from_secs(2),
            reply_beat: Duration::from_secs(60),
        }
    }
}
