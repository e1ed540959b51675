//! Peers that have shown no valid key. Each of them may be an attacker who wants the disk full of log lines, or just a client whose
//! key was revoked: the log has one line a minute of each kind of refusal, with how many there were.

use std::sync::Mutex;
use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::support::lock;

/// How often a line is due.
const EVERY: Duration = Duration::from_secs(60);

/// The refusals of one kind.
#[derive(Debug)]
pub(crate) struct Strangers {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the last line was due; monotonic.
    said: Option<Duration>,
    /// Refusals since then.
    unsaid: u64,
}

impl Strangers {
    /// None yet.
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, state: Mutex::default() }
    }

    /// One more was refused. If a line is due: how many were since the last line, this one included. The first is told at once;
    /// those that nobody follows within the minute are told with the next one, however late it comes.
    pub(crate) fn refused(&self) -> Option<u64> {
        let now = self.clock.monotonic();
        let mut state = lock(&self.state);
        state.unsaid += 1;
        if state.said.is_some_and(|said| now.saturating_sub(said) < EVERY) {
            return None;
        }
        state.said = Some(now);
        Some(std::mem::take(&mut state.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line_a_minute_and_none_is_left_out_of_the_count() {
        let clock = Clock::manual(relay_bridge::contract::Timestamp::from_millis(1_763_865_086_007));
        let strangers = Strangers::new(clock.clone());
        let flood = || (0..1_000).filter_map(|_| strangers.refused()).collect::<Vec<_>>();
        assert_eq!(flood(), [1], "the first at once");
        clock.advance(EVERY - Duration::from_millis(1));
        assert_eq!(flood(), [0; 0]);
        clock.advance(Duration::from_millis(1));
        assert_eq!(flood(), [2_000], "all since the first line");
        clock.advance(EVERY * 5);
        assert_eq!(flood(), [1_000]);
    }
}
