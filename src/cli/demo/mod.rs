//! `relay demo`: the main path on real files in one command, with a kill in the middle of it. Nothing is simulated: a
//! server and several workers run as processes of their own, and the counts come from the store, from the API and from
//! the handlers' own side. Exit code 1 if they disagree.
//!
//! # Layout
//!
//! - `files`: the files to submit.
//! - `handler`: the command that runs on each file, and the record that it keeps.
//! - `cluster`: the processes.
//! - `report`: the counts and whether they agree.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::ProgressBar;
use relay_bridge::contract::JobId;
use relay_embedded::store;
use tokio::sync::watch;

use super::child::Process;
use super::exit::{CliError, Exit};
use super::output;

use super::serve::STORE_FILE;
use crate::client::{Client, NewJob, Patience, RunResult, Submitted};

mod cluster;
mod files;
mod handler;
mod report;

use cluster::{QUEUE, Server, start_worker};
use files::InputFile;
use handler::{Command, StartLog};
use report::{Events, Report, Track};

/// Worker processes, and how many handlers each runs at once.
const WORKERS: usize = 3;
const SLOTS: usize = 2;
/// Submissions, and later waits, under way at once.
const CONCURRENCY: usize = 8;
/// How long the handlers together shall take, so that there is a half-way to kill at: the pause in each handler follows
/// from it.
const WORK_SPAN: Duration = Duration::from_secs(6);
/// The whole demo ends by then, whatever happens.
const DEMO_MAX: Duration = Duration::from_secs(120);
/// How often the handlers' record is looked at while waiting for the moment to kill.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The files to submit, and the command to run on them.
#[derive(Debug, Args)]
#[command(after_help = "\
What happens: a server with a store on disk and three workers start as processes of their own, in a
temporary directory. Each file is submitted over HTTP under an idempotency key; half-way the server
is killed (SIGKILL) and started again. While the workers are at it, one of them is killed with jobs
in its hands; the others finish them. Then everything is submitted again under the same keys, and
nothing runs again. The counts come from the store and from the handlers themselves; the exit code
is 1 if they disagree.

Examples:
  relay demo
  relay demo ~/Pictures -- wc -c
  relay demo --json | jq .lost")]
pub(crate) struct DemoArgs {
    /// Files and directories to submit [default: the sources that this binary was built from]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Leave the server alone and kill only a worker
    #[arg(long)]
    spare_server: bool,
    /// Keep the directory with the store and the logs, and say where it is
    #[arg(long)]
    keep: bool,
    /// Print the counts as one line of JSON
    #[arg(long)]
    json: bool,
    /// The command to run on each file: content on stdin, result on stdout [default: sha256sum]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// `relay demo`
pub(crate) async fn run(args: DemoArgs) -> Result<Exit, CliError> {
    let command = Command::choose(args.command)?;
    let (files, left_out) = files::collect(&args.files)?;
    let dir = tempfile::Builder::new()
        .prefix("relay-demo-")
        .tempdir()
        .map_err(|error| CliError::failed(format!("cannot create a temporary directory: {error}")))?;
    if left_out > 0 {
        output::note(format_args!("{left_out} files are left out: too large, or more than the demo takes"));
    }
    let demo = Demo { files, command, dir: dir.path().to_owned(), spare_server: args.spare_server };
    let ran = tokio::time::timeout(DEMO_MAX, Box::pin(demo.run())).await;
    if args.keep {
        output::note(format_args!("store and logs are in {}", dir.keep().display()));
    }
    let (report, tracks, events) =
        ran.unwrap_or_else(|_| Err(CliError::failed("the demo took too long").hint("--keep shows the logs")))?;
    if args.json {
        output::json(&report)?;
    } else {
        report.print(&tracks, &events)?;
    }
    if report.agrees() {
        output::note(
            "All counts agree: nothing was lost, no job has a second result, and submitting again ran nothing.",
        );
        return Ok(Exit::Done);
    }
    Err(CliError::failed("the counts do not agree").hint("run it again with --keep and look at the logs"))
}

struct Demo {
    files: Vec<InputFile>,
    command: Command,
    dir: PathBuf,
    spare_server: bool,
}

impl Demo {
    async fn run(self) -> Result<(Report, Vec<Track>, Events), CliError> {
        let started = Instant::now();
        let log = StartLog::new(&self.dir);
        let mut server = Server::start(&self.dir).await?;
        let client = Client::new(&format!("http://{}", server.http), None)?.patient(patience());
        let mut workers = self.start_workers(&server, &log, 0).await?;
        output::note(format_args!(
            "{} files, each through `{}`: a server on http://{}, {WORKERS} workers, store in {}",
            self.files.len(),
            self.command.line(),
            server.http,
            Server::data(&self.dir).display(),
        ));

        let (jobs, repeated) = self.submit_all(&client, &mut server).await?;
        let victim = workers.remove(0);
        let worker_killed = victim.name.clone();
        let bar = output::progress("results", jobs.len());
        let (held, results) = tokio::join!(
            self.kill_half_way(victim, &client, &log, &bar),
            self.results(&client, jobs.iter().map(Submitted::job_id).collect(), &bar),
        );
        bar.finish_and_clear();
        let (held, results) = (held?, results?);

        // Handlers that are still at work, on jobs that another one finished first, end in the drain: what starts from
        // here on was started by the second submission.
        stop_all(workers).await?;
        let starts = log.read()?;
        let workers = self.start_workers(&server, &log, WORKERS).await?;
        let tracks = self.submit_again(&client, results).await?;
        stop_all(workers).await?;
        server.stop().await?;
        let starts_in_replay = log.read()?.len() - starts.len();

        let stats = store::stats(&Server::data(&self.dir).join(STORE_FILE))
            .map_err(|error| CliError::failed(error.to_string()))?;
        let events = Events {
            submissions_repeated: repeated,
            server_killed: !self.spare_server,
            worker_killed,
            held,
            starts,
            starts_in_replay,
        };
        let report = Report::new(&self.command, &tracks, &events, &stats, started.elapsed().as_millis());
        Ok((report, tracks, events))
    }

    /// Long enough in each handler that all of them together take [`WORK_SPAN`].
    fn pause(&self) -> Duration {
        let files = u32::try_from(self.files.len().div_ceil(WORKERS * SLOTS)).unwrap_or(u32::MAX);
        (WORK_SPAN / files.max(1)).clamp(Duration::from_millis(100), Duration::from_secs(1))
    }

    async fn start_workers(&self, server: &Server, log: &StartLog, from: usize) -> Result<Vec<Process>, CliError> {
        let mut workers = Vec::with_capacity(WORKERS);
        for number in from..from + WORKERS {
            let name = format!("worker-{}", number + 1);
            let handler = self.command.recorded(log.path(), &name, self.pause());
            workers.push(start_worker(&self.dir, &server.workers, &name, SLOTS, handler).await?);
        }
        Ok(workers)
    }

    /// Submits every file, and kills the server half-way. Also says how many submissions were sent again.
    async fn submit_all(&self, client: &Client, server: &mut Server) -> Result<(Vec<Submitted>, usize), CliError> {
        let (progress, mut half_way) = watch::channel(0_usize);
        let repeated = Arc::new(AtomicUsize::new(0));
        let bar = output::progress("submitted", self.files.len());
        let retried = Arc::clone(&repeated);
        let client = client.clone().telling(move |_| {
            retried.fetch_add(1, Ordering::Relaxed);
        });
        let (bar, client) = (&bar, &client);
        let submit = |job: NewJob| {
            let progress = &progress;
            async move {
                let submitted = client.submit(&job).await?;
                progress.send_modify(|count| *count += 1);
                bar.inc(1);
                Ok::<_, CliError>(submitted)
            }
        };
        let jobs = self.files.iter().map(new_job).collect::<Result<Vec<_>, _>>()?;
        let submissions = stream::iter(jobs).map(submit).buffered(CONCURRENCY).try_collect::<Vec<_>>();
        let kill = async {
            let half = self.files.len() / 2;
            if self.spare_server || half_way.wait_for(|count| *count >= half).await.is_err() {
                return Ok(());
            }
            bar.suspend(|| {
                output::note(format_args!("kill -9: the server, with {half} jobs accepted; it starts again"))
            });
            server.kill_and_restart().await
        };
        let (submitted, killed) = tokio::join!(submissions, kill);
        bar.finish_and_clear();
        killed?;
        Ok((submitted?, repeated.load(Ordering::Relaxed)))
    }

    /// Kills `victim` once half of the files were started and a handler of its own has just begun; says how many jobs
    /// it had in its hands.
    async fn kill_half_way(
        &self,
        mut victim: Process,
        client: &Client,
        log: &StartLog,
        bar: &ProgressBar,
    ) -> Result<usize, CliError> {
        let mut seen = usize::MAX;
        loop {
            let starts = log.read()?;
            let just_begun = starts.len() > seen && starts[seen..].iter().any(|start| start.worker == victim.name);
            // A handler that begins now is at work for the pause that follows.
            if (starts.len() >= self.files.len() / 2 && just_begun) || starts.len() >= self.files.len() {
                break;
            }
            seen = starts.len();
            tokio::time::sleep(LOOK_EVERY).await;
        }
        victim.kill().await;
        let mut held = 0;
        for start in log.read()?.iter().rev().filter(|start| start.worker == victim.name).take(SLOTS) {
            held += usize::from(client.wait(start.job, Duration::ZERO).await?.is_none());
        }
        bar.suspend(|| {
            output::note(format_args!(
                "kill -9: {}, with {held} jobs in its hands; the other workers go on",
                victim.name
            ));
        });
        Ok(held)
    }

    /// Waits for every job's result over HTTP.
    async fn results(&self, client: &Client, jobs: Vec<JobId>, bar: &ProgressBar) -> Result<Vec<RunResult>, CliError> {
        let fetch = |job: JobId| async move {
            let found = client.wait(job, DEMO_MAX).await?;
            bar.inc(1);
            found.ok_or_else(|| CliError::failed(format!("job {job} has no result")))
        };
        stream::iter(jobs).map(fetch).buffered(CONCURRENCY).try_collect().await
    }

    /// Submits every file again under its key, and compares what comes back with the first result.
    async fn submit_again(&self, client: &Client, results: Vec<RunResult>) -> Result<Vec<Track>, CliError> {
        output::note("submitting everything again under the same keys");
        let again = |(file, first): (&InputFile, RunResult)| {
            let file = file.clone();
            async move {
                let job = new_job(&file)?;
                let submitted = client.submit(&job).await?;
                let same_job = submitted.replayed() && submitted.job_id() == first.job_id;
                let second = client.wait(first.job_id, Duration::ZERO).await?;
                let same_result =
                    second.is_some_and(|second| (second.run_id, &second.payload) == (first.run_id, &first.payload));
                Ok::<_, CliError>(Track { file, result: first, replayed: same_job && same_result })
            }
        };
        stream::iter(self.files.iter().zip(results)).map(again).buffered(CONCURRENCY).try_collect().await
    }
}

async fn stop_all(workers: Vec<Process>) -> Result<(), CliError> {
    let stopped = futures_util::future::join_all(workers.into_iter().map(Process::stop)).await;
    stopped.into_iter().collect()
}

fn new_job(file: &InputFile) -> Result<NewJob, CliError> {
    let queue = QUEUE.parse().map_err(|error| CliError::failed(format!("{QUEUE}: {error}")))?;
    Ok(NewJob {
        key: Some(file.key()?),
        meta: std::iter::once(("file".to_owned(), meta_text(Path::new(&file.name)))).collect(),
        ..NewJob::new(queue, file.content.clone())
    })
}

/// A path as a header value can hold it.
fn meta_text(path: &Path) -> String {
    path.display().to_string().chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).take(512).collect()
}

/// Quick to try again: the server is back within a second.
fn patience() -> Patience {
    Patience {
        waits_for_connection: true,
        base: Duration::from_millis(50),
        cap: Duration::from_millis(500),
        give_up_after: Duration::from_secs(60),
    }
}
