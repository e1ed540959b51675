//! The findings of runs, for people as lines and for programs as JSON.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::calls::Who;
use super::engine::{Ended, Measured};
use super::tally::Counted;
use super::watch::Cost;
use crate::cli::exit::CliError;
use crate::cli::output;
use crate::config::values::show_size;

/// The question that was asked.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Setup {
    /// The server's address.
    pub(super) url: String,
    /// `http`, `tcp` or `nats`.
    pub(super) protocol: &'static str,
    pub(super) operation: String,
    pub(super) queue: String,
    /// Calls a second of an open loop; `null` for a closed one.
    pub(super) rate: Option<f64>,
    pub(super) connections: usize,
    /// Unanswered calls on each connection at most.
    pub(super) in_flight: usize,
    /// Payloads have from `size_least` to `size_most` bytes.
    pub(super) size_least: usize,
    pub(super) size_most: usize,
    /// Jobs of a call.
    pub(super) jobs_per_call: u64,
    pub(super) warm_up_seconds: f64,
    pub(super) duration_seconds: f64,
}

/// Latencies in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Latencies {
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) p99_9: f64,
    pub(super) max: f64,
    pub(super) mean: f64,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    /// Calls that were answered well.
    pub(super) calls: u64,
    /// Their jobs.
    pub(super) jobs: u64,
    /// From the end of the warm-up to the last good answer.
    pub(super) seconds: f64,
    pub(super) calls_per_second: f64,
    pub(super) jobs_per_second: f64,
    /// `null` without a good answer.
    pub(super) latency_ms: Option<Latencies>,
    pub(super) errors: u64,
    /// By slug of the problem, or by a word of `relay bench`.
    pub(super) errors_by_slug: BTreeMap<String, Counted>,
    #[serde(flatten)]
    pub(super) cost: Cost,
    /// Jobs a second for each core that the server kept busy.
    pub(super) jobs_per_second_per_core: Option<f64>,
    pub(super) stored_bytes_per_job: Option<f64>,
    /// Of all good answers, in microseconds.
    #[serde(skip)]
    pub(super) latencies: Histogram<u64>,
    /// Pairs: latencies of at most so many microseconds, and how many of them there are beyond those of the pair before.
    pub(super) histogram_us: Vec<(u64, u64)>,
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
impl Figures {
    pub(super) fn new(measured: &Measured, cost: Cost) -> Self {
        let tally = &measured.tally;
        let (calls, jobs, seconds) = (tally.calls, tally.jobs, measured.seconds);
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let busy = cost.server.as_ref().map(|server| server.cpu_seconds).filter(|cpu| *cpu > 0.0);
        Self {
            calls,
            jobs,
            seconds,
            calls_per_second: per_second(calls),
            jobs_per_second: per_second(jobs),
            latency_ms: Latencies::of(&tally.latencies),
            errors: tally.errors(),
            errors_by_slug: tally.errors.clone(),
            jobs_per_second_per_core: busy.map(|cpu| jobs as f64 / cpu),
            stored_bytes_per_job: cost.stored_bytes.filter(|_| jobs > 0).map(|bytes| bytes as f64 / jobs as f64),
            cost,
            latencies: tally.latencies.clone(),
            histogram_us: tally
                .latencies
                .iter_recorded()
                .map(|bucket| (bucket.value_iterated_to(), bucket.count_since_last_iteration()))
                .collect(),
        }
    }

    /// The share of calls, or of jobs of batches, that were not answered well.
    pub(super) fn share_of_errors(&self) -> f64 {
        let all = self.calls.max(self.jobs) + self.errors;
        if all == 0 { 1.0 } else { self.errors as f64 / all as f64 }
    }
}

impl Latencies {
    fn of(latencies: &Histogram<u64>) -> Option<Self> {
        #[expect(clippy::cast_precision_loss, reason = "an hour of microseconds is far less than 2^52")]
        let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1_000.0;
        let mean = (latencies.mean() * 1_000.0).round() / 1_000_000.0;
        let all = Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p99_9: at(0.999), max: at(1.0), mean };
        (!latencies.is_empty()).then_some(all)
    }
}

/// One rate of a search.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Step {
    pub(super) rate: f64,
    /// Whether the limit was met.
    pub(super) held: bool,
    #[serde(flatten)]
    pub(super) figures: Figures,
}

/// A search for the highest rate.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Found {
    pub(super) limit: String,
    /// The highest rate that held, in calls a second; `null` if none did.
    pub(super) rate: Option<f64>,
    pub(super) steps: Vec<Step>,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    pub(super) setup: Setup,
    pub(super) server_says: Who,
    /// `done`, `interrupted` or `away`.
    pub(super) ended: &'static str,
    /// The run; of a search the one with the highest rate that held, else the last one.
    pub(super) measured: Figures,
    pub(super) find_max: Option<Found>,
}

/// The word for an end.
pub(super) fn word(ended: Ended) -> &'static str {
    match ended {
        Ended::Done => "done",
        Ended::Interrupted => "interrupted",
        Ended::Away => "away",
    }
}

impl Report {
    /// For people, on stdout.
    ///
    /// # Errors
    /// If stdout can't be written.
    pub(super) fn print(&self) -> Result<(), CliError> {
        output::line(self.setup.line(self.find_max.is_some()))?;
        if let Some(found) = &self.find_max {
            found.print()?;
        }
        for (name, text) in self.measured.lines() {
            output::line(format_args!("{name:<10}{text}"))?;
        }
        Ok(())
    }
}

impl Setup {
    fn line(&self, is_search: bool) -> String {
        let sizes = match (self.size_least, self.size_most) {
            (least, most) if least == most => format!("{most} bytes"),
            (least, most) => format!("{least} to {most} bytes"),
        };
        let pace = match self.rate {
            Some(rate) if is_search => format!("from {rate:.0} calls a second on"),
            Some(rate) => format!("{rate:.0} calls a second"),
            None if is_search => "open loop".to_owned(),
            None => "closed loop".to_owned(),
        };
        let jobs = if self.jobs_per_call > 1 { format!(" of {} jobs", self.jobs_per_call) } else { String::new() };
        format!(
            "{}{jobs} over {} at {}, {pace}, {} connections x {} in flight, {sizes}",
            self.operation, self.protocol, self.url, self.connections, self.in_flight
        )
    }
}

impl Figures {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines =
            vec![("jobs", format!("{} in {:.1} s, {:.1} a second", self.jobs, self.seconds, self.jobs_per_second))];
        lines.push(("latency", match &self.latency_ms {
            None => "no good answer".to_owned(),
            Some(Latencies { p50, p90, p99, p99_9, max, mean }) => format!(
                "p50 {p50:.2} ms, p90 {p90:.2} ms, p99 {p99:.2} ms, p99.9 {p99_9:.2} ms, max {max:.2} ms, mean {mean:.2} ms"
            ),
        }));
        if self.errors == 0 {
            lines.push(("errors", "none".to_owned()));
        } else {
            lines.push(("errors", format!("{} ({:.2} %)", self.errors, self.share_of_errors() * 100.0)));
            for (slug, Counted { count, example }) in &self.errors_by_slug {
                lines.push(("", format!("{slug} {count}: {example}")));
            }
        }
        for (name, used) in [("server", &self.cost.server), ("broker", &self.cost.broker), ("bench", &self.cost.bench)]
        {
            let Some(used) = used else { continue };
            let per_core = match self.jobs_per_second_per_core {
                Some(jobs) if name == "server" => format!(", {jobs:.0} jobs a second for each core"),
                _ => String::new(),
            };
            let (now, peak) = (show_size(used.memory_bytes), show_size(used.memory_peak_bytes));
            lines.push((name, format!("{:.2} cores{per_core}, {now} of memory, {peak} at most", used.cores)));
        }
        if let Some(bytes) = self.cost.stored_bytes {
            let each = self.stored_bytes_per_job.map_or_else(String::new, |each| format!(", {each:.0} bytes a job"));
            lines.push(("stored", format!("{} more{each}", show_size(bytes))));
        }
        lines
    }
}

impl Found {
    fn print(&self) -> Result<(), CliError> {
        let row = |step: &Step| {
            let at = |pick: fn(&Latencies) -> f64| {
                step.figures.latency_ms.as_ref().map_or_else(|| "-".to_owned(), |found| format!("{:.2}", pick(found)))
            };
            let cores =
                step.figures.cost.server.as_ref().map_or_else(|| "-".to_owned(), |used| format!("{:.2}", used.cores));
            [
                format!("{:.0}", step.rate),
                if step.held { "yes" } else { "no" }.to_owned(),
                at(|found| found.p50),
                at(|found| found.p99),
                at(|found| found.max),
                step.figures.errors.to_string(),
                cores,
            ]
        };
        let header = ["CALLS/S", "HELD", "P50 MS", "P99 MS", "MAX MS", "ERRORS", "CORES"];
        output::line(output::table(&header, &[0, 2, 3, 4, 5, 6], self.steps.iter().map(row)))?;
        match self.rate {
            Some(rate) => output::line(format_args!("{} holds up to {rate:.0} calls a second:", self.limit)),
            None => output::line(format_args!("{} holds at no rate that was tried", self.limit)),
        }
    }
}
