//! The demo's findings: counts from the store, from the API and from the handlers' own side, and whether they agree.

use relay_bridge::contract::Outcome;
use relay_embedded::store::Stats;
use serde::Serialize;

use super::super::exit::CliError;
use super::super::{output, values};
use super::files::InputFile;
use super::handler::{Command, Start, by_job};
use crate::client::RunResult;

/// Rows of the table of files; the ones that ran twice come first.
const ROWS_MAX: usize = 12;
/// How much of a result is shown.
const SHOWN_MAX: usize = 24;

/// One file's way through relay.
pub(super) struct Track {
    /// The file.
    pub(super) file: InputFile,
    /// Its result, fetched over HTTP.
    pub(super) result: RunResult,
    /// Whether the second submission was answered as a replay, with the same run and the same bytes.
    pub(super) replayed: bool,
}

/// The events of the demo, besides the tracks.
pub(super) struct Events {
    /// Submissions that were sent again because the server was away.
    pub(super) submissions_repeated: usize,
    /// Whether the server was killed.
    pub(super) server_killed: bool,
    /// The worker that was killed.
    pub(super) worker_killed: String,
    /// Jobs in its hands at that moment.
    pub(super) held: usize,
    /// Handler starts of the first pass, in order.
    pub(super) starts: Vec<Start>,
    /// Handler starts after the second submission.
    pub(super) starts_in_replay: usize,
}

/// The counts. Field names are what `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    command: String,
    files: usize,
    bytes: usize,
    accepted: usize,
    submissions_repeated: usize,
    results: usize,
    succeeded: usize,
    /// `None` if the command's answers are not known here.
    verified: Option<usize>,
    lost: usize,
    second_results: u64,
    handler_starts: usize,
    jobs_started_twice: usize,
    replayed: usize,
    handler_starts_in_replay: usize,
    server_killed: bool,
    worker_killed: String,
    jobs_held_by_killed_worker: usize,
    store: Stored,
    elapsed_ms: u128,
    /// The disagreements; empty if everything agrees.
    disagreements: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Stored {
    jobs: u64,
    results: u64,
    results_recorded: u64,
    dead_letters: u64,
    attempts: u64,
}

impl Report {
    /// Counts, and compares the counts.
    pub(super) fn new(command: &Command, tracks: &[Track], events: &Events, stats: &Stats, elapsed_ms: u128) -> Self {
        let jobs = by_job(&events.starts);
        let expected = |track: &Track| {
            let text = String::from_utf8_lossy(&track.result.payload);
            text.split_whitespace().next() == Some(&track.file.sha256)
        };
        let accepted = tracks.len();
        let mut distinct: Vec<_> = tracks.iter().map(|track| track.result.job_id).collect();
        distinct.sort();
        distinct.dedup();
        let mut report = Self {
            command: command.line(),
            files: tracks.len(),
            bytes: tracks.iter().map(|track| track.file.content.len()).sum(),
            accepted,
            submissions_repeated: events.submissions_repeated,
            results: distinct.len(),
            succeeded: tracks.iter().filter(|track| track.result.outcome == Outcome::Succeeded).count(),
            verified: command.is_sha256.then(|| tracks.iter().filter(|track| expected(track)).count()),
            lost: accepted.saturating_sub(usize::try_from(stats.results).unwrap_or(usize::MAX)),
            second_results: stats.results_recorded.saturating_sub(stats.jobs),
            handler_starts: events.starts.len(),
            jobs_started_twice: jobs.values().filter(|starts| starts.len() > 1).count(),
            replayed: tracks.iter().filter(|track| track.replayed).count(),
            handler_starts_in_replay: events.starts_in_replay,
            server_killed: events.server_killed,
            worker_killed: events.worker_killed.clone(),
            jobs_held_by_killed_worker: events.held,
            store: Stored {
                jobs: stats.jobs,
                results: stats.results,
                results_recorded: stats.results_recorded,
                dead_letters: stats.dead_letters,
                attempts: stats.queues.iter().map(|queue| queue.attempts).sum(),
            },
            elapsed_ms,
            disagreements: Vec::new(),
        };
        report.compare(jobs.len());
        report
    }

    fn compare(&mut self, jobs_started: usize) {
        let files = self.files;
        let stored = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        let equal = [
            ("jobs in the store", stored(self.store.jobs)),
            ("results in the store", stored(self.store.results)),
            ("results over HTTP", self.results),
            ("jobs that a handler saw", jobs_started),
            ("replayed submissions", self.replayed),
        ];
        let wrong = equal.into_iter().filter(|(_, count)| *count != files);
        self.disagreements.extend(wrong.map(|(what, count)| format!("{what}: {count} instead of {files}")));
        let none = [
            ("results beyond one per job", stored(self.second_results)),
            ("accepted jobs without a result", self.lost),
            ("handler starts after the second submission", self.handler_starts_in_replay),
        ];
        let wrong = none.into_iter().filter(|(_, count)| *count != 0);
        self.disagreements.extend(wrong.map(|(what, count)| format!("{what}: {count} instead of 0")));
        if let Some(verified) = self.verified.filter(|verified| *verified != files) {
            self.disagreements.push(format!("results that are the file's SHA-256: {verified} instead of {files}"));
        }
        // The store charges an attempt when it hands the job out, the handler logs a start when it runs: a worker that is killed in
        // between leaves the store ahead, and nothing ever leaves it behind.
        if stored(self.store.attempts) < self.handler_starts {
            let (store, handlers) = (self.store.attempts, self.handler_starts);
            self.disagreements.push(format!("handler starts: {handlers} on {store} attempts in the store"));
        }
    }

    /// Whether all counts agree.
    pub(super) fn agrees(&self) -> bool {
        self.disagreements.is_empty()
    }

    /// Prints tables and counts for people on stdout.
    pub(super) fn print(&self, tracks: &[Track], events: &Events) -> Result<(), CliError> {
        output::line(files_table(tracks, events))?;
        let verified = match self.verified {
            Some(count) => format!(", {count} are the SHA-256 of their file"),
            None => String::new(),
        };
        let handlers = self.handler_starts;
        let killed = if self.server_killed { "server (kill -9 while submitting), " } else { "" };
        for (name, value) in [
            ("files", format!("{}, {} in all", self.files, values::show_size(self.bytes as u64))),
            ("command", self.command.clone()),
            (
                "killed",
                format!(
                    "{killed}{} (kill -9 with {} jobs in hand)",
                    self.worker_killed, self.jobs_held_by_killed_worker
                ),
            ),
            ("accepted", format!("{} jobs ({} submissions were sent again)", self.accepted, self.submissions_repeated)),
            (
                "results",
                format!(
                    "{} over HTTP ({} succeeded), {} in the store{verified}",
                    self.results, self.succeeded, self.store.results
                ),
            ),
            ("lost", self.lost.to_string()),
            ("second results", self.second_results.to_string()),
            ("handler starts", format!("{handlers} ({} jobs started again after a kill)", self.jobs_started_twice)),
            ("sent again", format!("{} replayed, {} handler starts", self.replayed, self.handler_starts_in_replay)),
        ] {
            output::line(format_args!("{name:<15} {value}"))?;
        }
        for disagreement in &self.disagreements {
            output::error(disagreement);
        }
        Ok(())
    }
}

fn files_table(tracks: &[Track], events: &Events) -> String {
    let jobs = by_job(&events.starts);
    let started = |track: &Track| jobs.get(&track.result.job_id).map_or(0, Vec::len);
    let mut order: Vec<&Track> = tracks.iter().collect();
    order.sort_by_key(|track| std::cmp::Reverse(started(track)));
    let rows = order.iter().take(ROWS_MAX).map(|track| {
        let starts = jobs.get(&track.result.job_id).cloned().unwrap_or_default();
        let workers: Vec<_> = starts.iter().map(|start| start.worker.as_str()).collect();
        let text: String = String::from_utf8_lossy(&track.result.payload).trim_end().chars().take(SHOWN_MAX).collect();
        [
            track.file.name.clone(),
            values::show_size(track.file.content.len() as u64),
            track.result.outcome.to_string(),
            starts.len().to_string(),
            workers.join(", then "),
            text,
        ]
    });
    let mut table = output::table(&["file", "size", "outcome", "starts", "on", "result"], &[1, 3], rows);
    if tracks.len() > ROWS_MAX {
        table.push_str(&format!("\n... and {} more files", tracks.len() - ROWS_MAX));
    }
    table
}
