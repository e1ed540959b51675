//! The settings of an adapter: its envelope version, its clock and its intervals.

use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::contract::envelope::WireVersion;

/// The settings of an adapter, for all of its work.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The envelope version that is written.
    pub wire_version: WireVersion,
    /// The clock for deadlines, leases and retention. Processes compare its times with each other: see `skew`.
    pub clock: Clock,
    /// How far the clocks of two processes may be apart. For so long after the end of a lease, its job is leased to
    /// nobody else. Default 5 s.
    pub skew: Duration,
    /// How often this process sweeps each queue, however often it is told to sweep. Default 5 s.
    pub sweep_every: Duration,
    /// How often a call that waits for a job looks by itself, although another process would tell it: messages can be
    /// lost. Default 2 s.
    pub look_every: Duration,
    /// How often this process says that its reply queue is in use, and looks for reply queues of dead processes: those
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
