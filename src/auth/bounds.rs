//! Bounds on what strangers may cost: signatures that relay checks for nothing, in tokens and in handshakes, and lines in the log.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;
use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::support::lock;

/// The time that one failed signature is worth: 20 a second.
const EACH: Duration = Duration::from_millis(50);
/// How many may fail at once.
const BURST: u32 = 100;
/// Sources that are counted at a time.
const SOURCES_MAX: usize = 65_536;
/// How often a line is due, and how many different ones are remembered.
const LINE_EVERY: Duration = Duration::from_secs(60);
const LINES_MAX: usize = 1_000;

/// The endpoint that a peer came through, and its address: addresses of two companies may be equal.
pub(crate) type Source = (Option<String>, Option<IpAddr>);

/// The source that `source` is counted as: of IPv6 its network of 64 bits, in which one peer may have every address.
fn counted(source: &Source) -> Source {
    let network = |address: IpAddr| match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address => address,
    };
    (source.0.clone(), source.1.map(network))
}

/// Signatures that failed, by source.
#[derive(Debug)]
pub(crate) struct Failures {
    clock: Clock,
    /// When each source will have all of its burst again; monotonic.
    full_at: Mutex<HashMap<Source, Duration>>,
}

impl Failures {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, full_at: Mutex::default() }
    }

    /// Takes one from `source` before a signature is checked; it is [given back](Self::give_back) if the signature is right.
    ///
    /// # Errors
    /// After how long there is one.
    pub(crate) fn take(&self, source: &Source) -> Result<(), Duration> {
        let (now, source) = (self.clock.monotonic(), counted(source));
        let mut sources = lock(&self.full_at);
        if sources.len() >= SOURCES_MAX && !sources.contains_key(&source) {
            sources.retain(|_, full_at| *full_at > now);
            if sources.len() >= SOURCES_MAX {
                // A new source has its burst. So many sources are nobody's single one.
                return Ok(());
            }
        }
        let full_at = sources.entry(source).or_insert(now);
        let next = (*full_at).max(now) + EACH;
        match next.checked_sub(now + EACH * BURST) {
            Some(over) if !over.is_zero() => Err(over),
            _ => {
                *full_at = next;
                Ok(())
            }
        }
    }

    /// Whether `source` has one. For what is [taken](Self::take) only once it has failed, so that many good ones at a time are none too
    /// many.
    pub(crate) fn has_room(&self, source: &Source) -> bool {
        let over =
            lock(&self.full_at).get(&counted(source)).and_then(|full_at| full_at.checked_sub(self.clock.monotonic()));
        over.is_none_or(|over| over + EACH <= EACH * BURST)
    }

    /// Gives one back that was taken, and did not fail.
    pub(crate) fn give_back(&self, source: &Source) {
        if let Some(full_at) = lock(&self.full_at).get_mut(&counted(source)) {
            *full_at = full_at.saturating_sub(EACH);
        }
    }
}

/// Lines of the log, each at most once a minute.
#[derive(Debug)]
pub(crate) struct Lines {
    clock: Clock,
    said: Mutex<HashMap<String, Duration>>,
}

impl Lines {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, said: Mutex::default() }
    }

    /// Whether the line about `subject` is due.
    pub(crate) fn is_due(&self, subject: &str) -> bool {
        let now = self.clock.monotonic();
        let mut said = lock(&self.said);
        if said.get(subject).is_some_and(|at| now.saturating_sub(*at) < LINE_EVERY) {
            return false;
        }
        if said.len() >= LINES_MAX {
            said.retain(|_, at| now.saturating_sub(*at) < LINE_EVERY);
        }
        if said.len() >= LINES_MAX {
            return false;
        }
        said.insert(subject.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use relay_bridge::contract::Timestamp;

    use super::*;

    #[test]
    fn a_source_may_fail_a_hundred_times_at_once_and_then_twenty_times_a_second_and_others_are_not_held() {
        let clock = Clock::manual(Timestamp::from_millis(0));
        let failures = Failures::new(clock.clone());
        let source = |id: &str| (Some(id.to_owned()), Some(IpAddr::from([10, 0, 0, 1])));
        let mine = source("vpce-0a1b2c3d");
        assert_eq!((0..1_000).filter(|_| failures.take(&mine).is_ok()).count(), 100);
        assert_eq!(failures.take(&mine), Err(EACH));
        clock.advance(Duration::from_secs(1));
        assert_eq!((0..1_000).filter(|_| failures.take(&mine).is_ok()).count(), 20);
        assert!(failures.take(&source("vpce-4d5e6f70")).is_ok(), "the same address through another endpoint");
        assert!(!failures.has_room(&mine) && failures.has_room(&source("vpce-7a8b9c0d")));
        failures.give_back(&mine);
        assert!(failures.has_room(&mine));
        assert!(failures.take(&mine).is_ok(), "a right signature costs nothing");
    }

    #[test]
    fn the_addresses_of_one_network_of_ipv6_are_one_source_and_those_of_ipv4_are_not() {
        let failures = Failures::new(Clock::manual(Timestamp::from_millis(0)));
        let source = |address: &str| (None, Some(address.parse().unwrap()));
        for n in 0..100 {
            assert!(failures.take(&source(&format!("2001:db8::{n:x}:1"))).is_ok());
        }
        assert!(failures.take(&source("2001:db8::ffff:2")).is_err() && !failures.has_room(&source("2001:db8::")));
        assert!(failures.has_room(&source("2001:db8:0:1::1")), "the network beside it");
        for address in ["10.0.0.1", "10.0.0.2"] {
            assert_eq!((0..200).filter(|_| failures.take(&source(address)).is_ok()).count(), 100, "{address}");
        }
        assert!(!failures.has_room(&source("::ffff:10.0.0.1")), "it is the same peer");
    }

    #[test]
    fn a_line_is_said_once_a_minute_and_a_flood_of_different_ones_is_bounded() {
        let clock = Clock::manual(Timestamp::from_millis(0));
        let lines = Lines::new(clock.clone());
        assert_eq!((0..5_000).filter(|n| lines.is_due(&n.to_string())).count(), LINES_MAX);
        assert!(!lines.is_due("0"));
        clock.advance(LINE_EVERY);
        assert!(lines.is_due("0") && !lines.is_due("0"));
    }
}
