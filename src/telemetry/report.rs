//! These numbers as Prometheus reads them. Names are part of the contract: dashboards and alerts are written against them.

use relay_bridge::contract::Outcome;

use super::Telemetry;
use super::exposition::Exposition;

/// One of a histogram's numbers, in seconds.
const MICROSECOND: f64 = 1e-6;

impl Telemetry {
    /// Writes everything that is counted.
    pub fn report(&self, text: &mut Exposition) {
        let flows = self.flows().by_queue();
        let mut family = text.counter("relay_jobs_submitted_total", "Jobs accepted, each once.");
        flows.iter().for_each(|(queue, counts)| {
            family.value(&[("queue", queue.as_str())], counts.submitted);
        });
        let mut family =
            text.counter("relay_jobs_replayed_total", "Submissions that found their job under its key: retries.");
        flows.iter().for_each(|(queue, counts)| {
            family.value(&[("queue", queue.as_str())], counts.replayed);
        });
        let mut family = text.counter("relay_jobs_settled_total", "Runs that ended, by outcome.");
        for (queue, counts) in &flows {
            for (outcome, count) in Outcome::ALL.iter().zip(counts.settled) {
                family.value(&[("queue", queue.as_str()), ("outcome", outcome.as_str())], count);
            }
        }
        let inner = &*self.0;
        text.counter("relay_jobs_rerun_total", "Runs that clients started again.").value(&[], inner.reruns.read());
        text.counter("relay_deliveries_leased_total", "Jobs handed to workers.").value(&[], inner.leased.read());
        text.counter("relay_deliveries_settled_total", "Deliveries that ended, by what the worker decided.")
            .value(&[("settlement", "complete")], inner.completed.read())
            .value(&[("settlement", "retry")], inner.retried.read())
            .value(&[("settlement", "dead-letter")], inner.dead_lettered.read())
            .value(&[("settlement", "hand-back")], inner.handed_back.read());
        text.counter("relay_results_superseded_total", "Results that came second for their run and were dropped.")
            .value(&[], inner.superseded.read());
        let counts = inner.rules.get().map(|rules| rules.read()).unwrap_or_default();
        text.counter("relay_results_corrected_total", "Results of which something was not as their worker said.")
            .value(&[("fact", "attempt")], counts.attempts_corrected)
            .value(&[("fact", "record")], counts.facts_corrected)
            .value(&[("fact", "time")], counts.times_corrected);
        text.counter("relay_results_refused_total", "Results that could not be kept: their runs ended as failed.")
            .value(&[("reason", "result-invalid")], counts.results_invalid)
            .value(&[("reason", "result-too-large")], counts.results_too_large);
        text.counter("relay_results_resent_total", "Results that came again and were their run's result.")
            .value(&[], counts.results_resent);
        text.counter(
            "relay_dead_letters_retracted_total",
            "Dead letters taken back from runs that did not fail after all.",
        )
        .value(&[], counts.letters_retracted);
        text.counter("relay_lease_extensions_total", "Heartbeats that held a job.").value(&[], inner.extended.read());
        text.counter("relay_lease_extensions_lost_total", "Heartbeats that came after the lease was lost.")
            .value(&[], inner.leases_lost.read());
        let handlers = inner.handlers.read();
        text.histograms(
            "relay_handler_duration_seconds",
            "From the start of the attempt that ended a run to its end.",
            "queue",
            handlers.iter().map(|(queue, buckets)| (queue.as_str(), buckets)),
            MICROSECOND,
        );
        text.histogram(
            "relay_job_duration_seconds",
            "From a job's acceptance to the outcome of its first run.",
            &inner.end_to_end.read(),
            MICROSECOND,
        );
        let workers = self.workers_seen().lately(self.clock().monotonic()).len();
        text.gauge("relay_workers", "Workers that asked this process for jobs within three minutes.")
            .value(&[], workers);
    }
}
