//! The PROXY header, version 2, in front of HTTP: a network load balancer says by it which peer a connection is of, and through
//! which VPC endpoint that one came. It is believed from the balancer's own addresses only: anybody can write one.
//!
//! `header`: its bytes. `receive`: reading exactly those from a connection.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::ranges::AddressRange;
use header::EndpointId;

pub(crate) mod header;
pub(crate) mod receive;

/// A listener whose peers are balancers that write a header on each connection.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// The balancers' addresses. Other peers are closed unread.
    pub trusted: Vec<AddressRange>,
    /// The time from a connection's start to the end of its header, within that for a first request. Default 5 s.
    pub within: Duration,
}

impl Proxy {
    /// A listener that believes peers in `trusted`.
    #[must_use]
    pub fn new(trusted: Vec<AddressRange>) -> Self {
        Self { trusted, within: Duration::from_secs(5) }
    }

    /// Whether `peer` is believed.
    pub(crate) fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted.iter().any(|range| range.contains(peer))
    }
}

/// The peer of a connection as the balancer names it. Addresses of two companies may be equal, those behind one endpoint are
/// not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    /// The VPC endpoint that it came through.
    pub(crate) endpoint: Option<EndpointId>,
    /// Its address.
    pub(crate) address: IpAddr,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(endpoint) = &self.endpoint {
            write!(f, "{endpoint}/")?;
        }
        self.address.fmt(f)
    }
}

/// The end of a listener's look at a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderOutcome {
    /// Another peer's connection: it goes on.
    Proxied,
    /// The balancer's own connection: it goes on.
    Local,
    /// The peer is none of the trusted ones.
    Untrusted,
    /// Not a byte came: a balancer that looks whether the port is open, or a client that says nothing.
    Silent,
    /// It ended within its header, or took too long.
    Cut,
    /// The bytes that came are no header that is believed.
    Malformed,
    /// Its source had as many connections without a caller as it may.
    SourceFull,
    /// Its endpoint had as many connections as it may.
    EndpointFull,
}

impl HeaderOutcome {
    /// All of them, in their order.
    pub const ALL: [Self; 8] = [
        Self::Proxied,
        Self::Local,
        Self::Untrusted,
        Self::Silent,
        Self::Cut,
        Self::Malformed,
        Self::SourceFull,
        Self::EndpointFull,
    ];

    /// Its name in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proxied => "proxied",
            Self::Local => "local",
            Self::Untrusted => "untrusted",
            Self::Silent => "silent",
            Self::Cut => "cut",
            Self::Malformed => "malformed",
            Self::SourceFull => "source-full",
            Self::EndpointFull => "endpoint-full",
        }
    }
}

/// How often which outcome was.
#[derive(Debug, Default)]
pub struct HeaderCounts([AtomicU64; HeaderOutcome::ALL.len()]);

impl HeaderCounts {
    /// Counts a connection.
    pub(crate) fn add(&self, outcome: HeaderOutcome) {
        // Outcomes are numbered in the order of `ALL`.
        if let Some(counter) = self.0.get(outcome as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many connections ended so.
    #[must_use]
    pub fn count(&self, outcome: HeaderOutcome) -> u64 {
        self.0.get(outcome as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_a_counter_of_its_own() {
        let counts = HeaderCounts::default();
        for (at, outcome) in HeaderOutcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, at);
            counts.add(*outcome);
        }
        assert!(HeaderOutcome::ALL.iter().all(|outcome| counts.count(*outcome) == 1));
    }
}
