//! Runs as somebody asked for them: one, or one after the other in search of the highest rate, with a follower of results beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::calls::Caller;
use super::engine::{self, Arrivals, Ended, Plan, Progress};
use super::knee::{Limit, Search};
use super::report::{Figures, Found, Step};
use super::watch::{Cost, Watch};
use super::workload::{Operation, Workload};
use crate::cli::exit::CliError;
use crate::cli::output;

/// The share of errors up to which a rate holds.
const ERRORS_HELD: f64 = 0.001;
/// How often a person who watches is told how far it is.
const TOLD_EVERY: Duration = Duration::from_millis(250);
/// How long a follower may take until it follows.
const FOLLOWS_MAX: Duration = Duration::from_secs(10);

/// All that a run needs.
pub(super) struct Run {
    pub(super) watch: Watch,
    pub(super) caller: Arc<Caller>,
    pub(super) workload: Arc<Workload>,
    pub(super) next: Arc<AtomicU64>,
    pub(super) plan: Plan,
    pub(super) stop: CancellationToken,
}

impl Run {
    /// One run, shown to a person who watches.
    pub(super) async fn once(&self, arrivals: Arrivals) -> (Figures, Ended) {
        let plan = Plan { arrivals, ..self.plan };
        let progress = Arc::<Progress>::default();
        let bar = output::jobs_progress(None);
        let shown = async {
            loop {
                bar.set_position(progress.answered.load(Ordering::Relaxed) * self.workload.jobs_per_call());
                tokio::time::sleep(TOLD_EVERY).await;
            }
        };
        let run =
            engine::run(plan, &self.caller, &self.workload, &self.next, &progress, &self.stop, || self.watch.begin());
        let measured = tokio::select! {
            measured = run => measured,
            () = shown => unreachable!("it is shown as long as the run lasts"),
        };
        let cost = self.watch.end();
        bar.finish_and_clear();
        (Figures::new(&measured, cost), measured.ended)
    }

    /// The highest rate at which `limit` holds.
    pub(super) async fn search(&self, limit: Limit, first: f64) -> (Figures, Ended, Option<Found>) {
        let mut search = Search::from(first);
        let mut found = Found { limit: limit.to_string(), rate: None, steps: Vec::new() };
        let (mut best, mut ended) = (None, Ended::Done);
        while let Some(rate) = search.next() {
            let (figures, end) = self.once(Arrivals::Open(rate)).await;
            ended = end;
            let held =
                end == Ended::Done && figures.share_of_errors() <= ERRORS_HELD && limit.holds(&figures.latencies);
            found.steps.push(Step { rate, held, figures: figures.clone() });
            if end != Ended::Done {
                break;
            }
            if held && found.rate.is_none_or(|best| best < rate) {
                found.rate = Some(rate);
                best = Some(figures);
            }
            search.told(held);
            let verdict = if held { "holds" } else { "does not hold" };
            output::note(format_args!("{rate:.0} calls a second: {limit} {verdict}"));
        }
        let last = found.steps.last().map(|step| step.figures.clone());
        let figures = best.or(last).unwrap_or_else(|| Figures::new(&engine::Measured::none(), Cost::default()));
        (figures, ended, Some(found))
    }

    /// Follows results, where the calls need that.
    pub(super) async fn follow(&self) -> Result<Follower, CliError> {
        let (stop, ready) = (CancellationToken::new(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        let lost = CancellationToken::new();
        if self.workload.operation == Operation::Follow {
            let (caller, workload) = (Arc::clone(&self.caller), Arc::clone(&self.workload));
            let (its_ready, its_stop, its_lost, calls) = (ready.clone(), stop.clone(), lost.clone(), self.stop.clone());
            tasks.spawn(async move {
                if let Err(failure) = caller.follow(&workload, &its_ready, &its_stop).await {
                    output::warning(format_args!(
                        "results do not come any more ({}): {}",
                        failure.slug, failure.detail
                    ));
                    its_lost.cancel();
                    calls.cancel();
                }
            });
            let follows = tokio::time::timeout(FOLLOWS_MAX, async {
                tokio::select! {
                    () = ready.cancelled() => true,
                    () = lost.cancelled() => false,
                }
            });
            if !matches!(follows.await, Ok(true)) {
                return Err(CliError::unavailable("the results of this client can't be followed"));
            }
        }
        Ok(Follower { stop, lost, tasks })
    }
}

/// The task that takes results.
pub(super) struct Follower {
    pub(super) stop: CancellationToken,
    lost: CancellationToken,
    tasks: JoinSet<()>,
}

impl Follower {
    pub(super) fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}
