//! The counts of bridges, as metrics. Names are part of the contract, as those of `telemetry` are; the label is a
//! bridge's name.

use std::sync::Arc;

use relay_bridge::contract::ClientId;
use relay_workers::{WorkerReport, WorkerStats};

use super::stats::{ForeignReport, ForeignStats, RelayReport, RelayStats};
use crate::telemetry::exposition::Exposition;

/// A bridge and its counters.
#[derive(Clone)]
pub struct Counted {
    /// The bridge.
    pub name: ClientId,
    /// The bridge's counters.
    pub counters: Counters,
}

/// The counters of one bridge, while it runs and after.
#[derive(Clone)]
pub enum Counters {
    /// From relay to relay.
    Relay {
        /// The outcomes of the runs at the source.
        worker: Arc<WorkerStats>,
        /// The outcomes of the calls of the target.
        calls: Arc<RelayStats>,
    },
    /// From a stream of others.
    Stream(Arc<ForeignStats>),
}

/// Writes the numbers of all bridges of the process.
pub fn report(text: &mut Exposition, bridges: &[Counted]) {
    let (mut relays, mut streams) = (Vec::new(), Vec::new());
    for Counted { name, counters } in bridges {
        match counters {
            Counters::Relay { worker, calls } => relays.push((name.as_str(), worker.report(), calls.report())),
            Counters::Stream(messages) => streams.push((name.as_str(), messages.report())),
        }
    }
    let mut family = text.gauge("relay_bridge_in_hand", "Jobs and messages in hand.");
    for (name, runs, _) in &relays {
        family.value(&[("bridge", name)], runs.running());
    }
    for (name, messages) in &streams {
        family.value(&[("bridge", name)], messages.received.saturating_sub(messages.ended));
    }
    let help = "Submissions to the target, by whether they made a job or found the one of an attempt before.";
    let mut family = text.counter("relay_bridge_submissions_total", help);
    let relayed = relays.iter().map(|(name, _, RelayReport { created, found, .. })| (name, created, found));
    let taken = streams.iter().map(|(name, ForeignReport { created, found, .. })| (name, created, found));
    for (name, created, found) in relayed.chain(taken) {
        family
            .value(&[("bridge", name), ("job", "created")], created)
            .value(&[("bridge", name), ("job", "found")], found);
    }
    let mut family =
        text.counter("relay_bridge_refusals_total", "Calls that failed because the target was unavailable or full.");
    let relayed = relays.iter().map(|(name, _, calls)| (name, calls.refused));
    for (name, refused) in relayed.chain(streams.iter().map(|(name, messages)| (name, messages.refused))) {
        family.value(&[("bridge", name)], refused);
    }
    runs(text, &relays);
    let help = "Jobs that a target forgot or was told to forget.";
    let mut family = text.counter("relay_bridge_target_jobs_total", help);
    for (name, _, calls) in &relays {
        family
            .value(&[("bridge", name), ("what", "submitted-again")], calls.submitted_again)
            .value(&[("bridge", name), ("what", "cancelled")], calls.cancelled);
    }
    let mut family = text.counter("relay_bridge_messages_total", "Foreign messages, by what became of them.");
    for (name, messages) in &streams {
        for (end, count) in [
            ("job", messages.created + messages.found),
            ("put-aside", messages.put_aside),
            ("given-back", messages.given_back),
            ("unsettled", messages.unsettled),
        ] {
            family.value(&[("bridge", name), ("end", end)], count);
        }
    }
    let mut family = text.counter("relay_bridge_replies_total", "Results for foreign subjects, by who sent them.");
    for (name, messages) in &streams {
        family
            .value(&[("bridge", name), ("by", "this")], messages.replied)
            .value(&[("bridge", name), ("by", "another")], messages.outrun);
    }
}

fn runs(text: &mut Exposition, relays: &[(&str, WorkerReport, RelayReport)]) {
    let help = "Deliveries of a bridge's source, by how they ended.";
    let mut family = text.counter("relay_bridge_deliveries_total", help);
    for (name, runs, _) in relays {
        for (end, count) in [
            ("succeeded", runs.succeeded),
            ("failed", runs.failed),
            ("exhausted", runs.exhausted),
            ("expired", runs.expired),
            ("cancelled", runs.cancelled),
            ("retried", runs.retried),
            ("handed-back", runs.handed_back),
            ("lease-lost", runs.leases_lost),
            ("ended-elsewhere", runs.ended_elsewhere),
            ("superseded", runs.superseded),
            ("unconfirmed", runs.unconfirmed),
        ] {
            family.value(&[("bridge", name), ("end", end)], count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stats::count;
    use super::*;

    #[test]
    fn bridges_of_both_kinds_are_told_apart_by_their_names() {
        let (calls, messages) = (Arc::new(RelayStats::default()), Arc::new(ForeignStats::default()));
        count(&calls.created);
        count(&messages.received);
        count(&messages.put_aside);
        let bridges = [
            ("edge", Counters::Relay { worker: Arc::default(), calls }),
            ("shop", Counters::Stream(Arc::clone(&messages))),
        ];
        let bridges = bridges.map(|(name, counters)| Counted { name: name.parse().unwrap(), counters });
        let mut text = Exposition::default();
        report(&mut text, &bridges);
        let text = text.finish();
        for line in [
            r#"relay_bridge_submissions_total{bridge="edge",job="created"} 1"#,
            r#"relay_bridge_submissions_total{bridge="shop",job="created"} 0"#,
            r#"relay_bridge_messages_total{bridge="shop",end="put-aside"} 1"#,
            r#"relay_bridge_in_hand{bridge="shop"} 1"#,
            r#"relay_bridge_deliveries_total{bridge="edge",end="handed-back"} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let unique: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len(), "a family is written once");
    }
}
