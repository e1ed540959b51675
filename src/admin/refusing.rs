//! Things that a process can't do at present, although it should get work: named, and no reason to take it out of
//! service. One outage would take every process from a load balancer at once, and clients could not even read and
//! cancel.

use std::sync::Arc;

use serde::Serialize;

use super::Admin;
use crate::telemetry::LATELY;
use crate::telemetry::exposition::Exposition;

/// A kind of refusal. The words are contract: they are in the answer of `/readyz` and in the label of `relay_refusing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// The broker, or the server of a worker, can't be used: all that needs it is refused.
    Broker,
    /// The broker's storage has no room or can't be written: jobs, or results, are refused.
    Storage,
    /// A queue, or what all queues share, is missing or can't be used.
    Queue,
    /// Jobs that a newer relay wrote are handed back.
    NewerVersion,
}

impl What {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Broker, Self::Storage, Self::Queue, Self::NewerVersion];

    /// The word for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Storage => "storage",
            Self::Queue => "queue",
            Self::NewerVersion => "newer-version",
        }
    }
}

/// Something that is refused at present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusing {
    /// For programs: one of [`What`].
    pub what: &'static str,
    /// For people.
    pub detail: String,
}

impl Admin {
    /// The refusals at present, each kind at most once and in the order of [`What::ALL`]; empty if nothing is known to
    /// be refused.
    #[must_use]
    pub fn refusing(&self) -> Vec<Refusing> {
        let sample = Arc::clone(&self.sample.borrow());
        let now = self.telemetry.clock().monotonic();
        let found = |what| match what {
            What::Broker => sample.trouble.clone(),
            What::Storage => self.telemetry.storage().refusing(now),
            What::Queue => (!sample.unusable.is_empty()).then(|| listed(&sample.unusable)),
            What::NewerVersion => sample.newer_at.filter(|at| now.saturating_sub(*at) <= LATELY).map(|_| {
                let detail = "jobs that a newer relay wrote are handed back: update this process";
                detail.to_owned()
            }),
        };
        What::ALL
            .into_iter()
            .filter_map(|what| found(what).map(|detail| Refusing { what: what.as_str(), detail }))
            .collect()
    }
}

/// As many as a person reads, and how many more there are.
fn listed(all: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut text = all.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
    if let Some(more) = all.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        text += &format!("; and {more} more");
    }
    text
}

/// The refusals as metrics; nothing before the first look, nor in a process that looks at no broker.
pub(super) fn report(text: &mut Exposition, admin: &Admin) {
    let sample = Arc::clone(&admin.sample.borrow());
    if sample.taken_at.is_none() && sample.trouble.is_none() {
        return;
    }
    let refusing = admin.refusing();
    let mut family = text.gauge("relay_refusing", "Whether the process refuses something at present, as /readyz says.");
    for what in What::ALL.map(What::as_str) {
        family.value(&[("what", what)], u8::from(refusing.iter().any(|refused| refused.what == what)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_many_queues_is_cut_and_says_so() {
        let queues: Vec<_> = (0..12).map(|at| format!("queue-{at}: gone")).collect();
        assert_eq!(listed(&queues[..1]), "queue-0: gone");
        assert!(listed(&queues[..10]).ends_with("; queue-9: gone"));
        assert!(listed(&queues).ends_with("; queue-9: gone; and 2 more"));
    }
}
