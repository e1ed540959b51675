//! The numbers of a process's parts as metrics. Names are part of the contract, as those of `telemetry` are; label values are a bounded
//! set: queues of the operator, slugs, and words of relay's own.

use std::time::Duration;

use relay_bridge::contract::{Timestamp, WorkerId};
use relay_embedded::Commits;
use relay_nats::connection::Connection;
use relay_workers::WorkerReport;

use super::sampler::Sample;
use crate::api::Slug;
use crate::audit::Audit;
use crate::ingress::authentications::METHODS;
use crate::ingress::proxy::HeaderOutcome;
use crate::ingress::refusals::Refusals;
use crate::ingress::tcp::client::Clients;
use crate::ingress::{http, nats};
use crate::reload::Reload;
use crate::scaler::{Looks, Trigger};
use crate::telemetry::Seen;
use crate::telemetry::exposition::Exposition;
use crate::tls::{Expiry, Handshake, Tls};

/// How old the figure of a queue may be that is told.
const SLOTS_AGE: Duration = Duration::from_secs(30);

/// The process as such.
pub(super) fn process(text: &mut Exposition, started_at: Timestamp, ready: bool) {
    text.gauge("relay_build_info", "1, labelled with the version.").value(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    text.gauge("relay_ready", "Whether the process should get work, as /readyz says.").value(&[], u8::from(ready));
    #[expect(clippy::cast_precision_loss, reason = "Prometheus has nothing but f64")]
    let started_at = started_at.as_millis() as f64 / 1_000.0;
    text.gauge("process_start_time_seconds", "When the process started, since 1970.").value(&[], started_at);
    if let Some(bytes) = resident_bytes() {
        text.gauge("process_resident_memory_bytes", "Memory that the process holds.").value(&[], bytes);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        text.gauge("process_open_fds", "Files and sockets that are open.").value(&[], files.count());
    }
}

/// `VmRSS` of Linux; nothing elsewhere.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

/// Queues as they were found last. While the broker is away they are as they were before, and say how old they are by no
/// word: `relay_refusing` does.
pub(super) fn queues(text: &mut Exposition, sample: &Sample, workers: &[(WorkerId, Seen)]) {
    if sample.taken_at.is_none() {
        return;
    }
    let mut family = text.gauge("relay_queue_jobs", "Jobs of a queue that have not ended, by state.");
    for queue in &sample.queues {
        let name = queue.name.as_str();
        for (state, count) in
            [("waiting", queue.depth.waiting), ("parked", queue.depth.parked), ("leased", queue.depth.leased)]
        {
            family.value(&[("queue", name), ("state", state)], count);
        }
    }
    let help = "How long the job waits that waits longest; none where the broker can't say it cheaply.";
    let mut family = text.gauge("relay_queue_oldest_age_seconds", help);
    for queue in &sample.queues {
        if let Some(oldest) = queue.oldest {
            family.value(&[("queue", queue.name.as_str())], oldest.as_secs_f64());
        }
    }
    let help = "Dead letters of a queue, at most half a minute ago; 10,000 stands for more, none where the broker doesn't count them.";
    let mut family = text.gauge("relay_dead_letters", help);
    for queue in &sample.queues {
        if let Some((letters, _)) = queue.letters {
            family.value(&[("queue", queue.name.as_str())], letters);
        }
    }
    let help = "Workers that asked this process for jobs of a queue within three minutes.";
    let mut family = text.gauge("relay_queue_workers", help);
    for queue in &sample.queues {
        let takes = |(_, seen): &&(WorkerId, Seen)| seen.queues.contains(&queue.name);
        family.value(&[("queue", queue.name.as_str())], workers.iter().filter(takes).count());
    }
    let mut family = text.gauge("relay_queue_paused", "Whether no jobs of a queue are handed out.");
    for queue in &sample.queues {
        family.value(&[("queue", queue.name.as_str())], u8::from(queue.policy.paused));
    }
}

/// The slots that queues want, as a trigger would be told that says nothing but the queue. While the broker is away there is
/// no figure of it: one that stayed would keep workers as they are for no reason, and 0 would take them away.
pub(super) fn slots_wanted(text: &mut Exposition, sample: &Sample, looks: &Looks) {
    let help = "Slots of workers that a queue needs for what waits, runs and comes; none while that is not known.";
    let mut family = text.gauge("relay_queue_slots_wanted", help);
    for queue in &sample.queues {
        if let Some(looked) = looks.last(&queue.name, SLOTS_AGE) {
            let wanted = Trigger::of(queue.name.clone()).wanted(&looked);
            family.value(&[("queue", queue.name.as_str())], wanted);
        }
    }
}

/// The lines of the audit that were lost.
pub(super) fn audit(text: &mut Exposition, audit: &Audit) {
    let help = "Lines of the audit that were lost: too many waited, or the file could not be written.";
    text.counter("relay_audit_dropped_total", help).value(&[], audit.dropped());
}

/// The parts whose files can be read again.
pub(super) fn reload(text: &mut Exposition, reload: &Reload) {
    let help = "Whether a part of the process has what its files say; 0 while a mistake in them keeps it as it was.";
    let mut family = text.gauge("relay_reload_ok", help);
    for (part, ok) in reload.parts() {
        family.value(&[("part", part)], u8::from(ok));
    }
}

/// Requests of clients over HTTP, TCP and NATS.
pub fn ingresses(
    text: &mut Exposition,
    (http, tcp): (&http::Ingress, &Clients),
    nats: Option<&nats::Ingress>,
    tls: Option<&Tls>,
) {
    // Requests over HTTP and TCP take places of one budget.
    let (all, over_tcp) = (http.in_flight(), tcp.in_flight());
    let ingresses = [
        Some(("http", http.refusals(), all.saturating_sub(over_tcp))),
        Some(("tcp", tcp.refusals(), over_tcp)),
        nats.map(|ingress| ("nats", ingress.refusals(), ingress.in_flight())),
    ];
    let ingresses: Vec<(&str, &Refusals, usize)> = ingresses.into_iter().flatten().collect();
    let mut family = text.counter(
        "relay_requests_refused_total",
        "Requests, and entries of batches, answered with a problem, by its slug.",
    );
    for (protocol, refusals, _) in &ingresses {
        for slug in Slug::ALL {
            family.value(&[("protocol", protocol), ("slug", slug.as_str())], refusals.count(*slug));
        }
    }
    let mut family = text.gauge("relay_requests_in_flight", "Requests that are not answered yet, waits included.");
    for (protocol, _, in_flight) in &ingresses {
        family.value(&[("protocol", protocol)], in_flight);
    }
    text.gauge("relay_streams", "Streams of events that are open.").value(&[], http.followers());
    text.gauge("relay_request_body_bytes", "Bytes of all bodies in flight.").value(&[], http.byte_budget().taken());
    let budgets = http.budgets();
    let help = "The part of a budget that is in use, in places or bytes.";
    let mut family = text.gauge("relay_budget_taken", help);
    for (name, budget) in &budgets {
        family.value(&[("budget", name)], budget.taken());
    }
    let mut family = text.gauge("relay_budget_max", "What a budget has in all, in places or bytes.");
    for (name, budget) in &budgets {
        family.value(&[("budget", name)], budget.max());
    }
    let help = "Requests for which a budget had no room, by whether the budget or the client's share of it was in use.";
    let mut family = text.counter("relay_budget_refusals_total", help);
    for (name, budget) in &budgets {
        let (all, share) = budget.refusals();
        family.value(&[("budget", name), ("full", "budget")], all);
        family.value(&[("budget", name), ("full", "share")], share);
    }
    let (proven, unproven) = http.connections();
    text.gauge(
        "relay_connections",
        "Connections of clients over HTTP and TCP, by whether a caller was authenticated on them.",
    )
    .value(&[("pool", "proven")], proven)
    .value(&[("pool", "unproven")], unproven);
    let help = "Of these, connections over TCP on which a caller was authenticated.";
    text.gauge("relay_tcp_connections", help).value(&[], tcp.connections());
    let help = "Time since an issuer of tokens that is asked over https gave its keys.";
    let mut family = text.gauge("relay_issuer_keys_age_seconds", help);
    for (issuer, age) in http.issuer_ages() {
        family.value(&[("issuer", &issuer)], age.as_secs());
    }
    let help = "Callers over HTTP and TCP, and workers, that showed who they are, by what they showed and whether they were let in.";
    let mut family = text.counter("relay_authentications_total", help);
    let authentications = http.authentications();
    for method in METHODS {
        for (outcome, let_in) in [("let-in", true), ("refused", false)] {
            family.value(&[("method", method), ("outcome", outcome)], authentications.count(method, let_in));
        }
    }
    let help = "New connections of clients and workers where a PROXY header is required, by what came of it.";
    let mut family = text.counter("relay_proxy_headers_total", help);
    for outcome in HeaderOutcome::ALL {
        family.value(&[("outcome", outcome.as_str())], http.proxy_headers().count(outcome));
    }
    let help = "New connections of clients and workers where TLS is spoken, by the end of their handshake.";
    let mut family = text.counter("relay_tls_handshakes_total", help);
    for end in Handshake::ALL {
        family.value(&[("outcome", end.as_str())], tls.map_or(0, |tls| tls.handshakes().count(end)));
    }
    let help = "When the first certificate of a file expires, or its first list of revoked ones is due to be replaced.";
    let mut family = text.gauge("relay_tls_expiry_timestamp_seconds", help);
    for Expiry { kind, file, at, .. } in tls.map(Tls::expiries).unwrap_or_default() {
        let at = u64::try_from(at).unwrap_or_default();
        family.value(&[("kind", kind), ("file", &file.to_string_lossy())], at);
    }
}

/// The cost of the embedded store's commits.
pub fn commits(text: &mut Exposition, commits: &Commits) {
    let help = "How many calls one commit of the store answered.";
    text.histogram("relay_store_commit_operations", help, &commits.operations.read(), 1.0);
    let help = "How long the store's commits took, the flush to the disk included.";
    text.histogram("relay_store_commit_duration_seconds", help, &commits.micros.read(), 1e-6);
}

/// The connection to NATS.
pub fn nats_link(text: &mut Exposition, connection: &Connection) {
    let up = connection.link().borrow().is_up();
    text.gauge("relay_nats_up", "Whether the broker's NATS connection stands.").value(&[], u8::from(up));
    let counts = connection.counts();
    text.counter("relay_nats_events_total", "Failures of the broker's NATS connection.")
        .value(&[("event", "connection-lost")], counts.losses)
        .value(&[("event", "lame-duck")], counts.lame_ducks)
        .value(&[("event", "slow-consumer")], counts.slow_consumers)
        .value(&[("event", "permission-refused")], counts.refusals)
        .value(&[("event", "server-error")], counts.server_errors);
}

/// A worker in this process.
pub fn worker(text: &mut Exposition, report: &WorkerReport) {
    text.gauge("relay_worker_running", "Deliveries in hand.").value(&[], report.running());
    text.counter("relay_worker_handlers_started_total", "Handlers started, those included whose start failed.")
        .value(&[], report.started);
    let help = "Starts that failed for a reason of this host; the jobs were handed back.";
    text.counter("relay_worker_starts_failed_total", help).value(&[], report.not_started);
    let help = "Whether the handler can't be started on this host, and leasing waits until it can.";
    text.gauge("relay_worker_starts_failing", help).value(&[], report.starts_failing);
    text.counter("relay_worker_deliveries_total", "Deliveries of this worker, by how they ended.")
        .value(&[("end", "succeeded")], report.succeeded)
        .value(&[("end", "retried")], report.retried)
        .value(&[("end", "failed")], report.failed)
        .value(&[("end", "exhausted")], report.exhausted)
        .value(&[("end", "expired")], report.expired)
        .value(&[("end", "cancelled")], report.cancelled)
        .value(&[("end", "handed-back")], report.handed_back)
        .value(&[("end", "lease-lost")], report.leases_lost)
        .value(&[("end", "ended-elsewhere")], report.ended_elsewhere)
        .value(&[("end", "superseded")], report.superseded)
        .value(&[("end", "unconfirmed")], report.unconfirmed);
}
