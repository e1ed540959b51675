//! SQS with DynamoDB keeps every promise of the suite on standard queues, and those about identity, leases and outcomes on
//! FIFO ones, where nothing but the line differs.
//!
//! Time is real here, so most tests wait most of the time: they run in a harness of their own, many at once, whatever the
//! number of cores. `--test-threads`, a filter and the other options are those of every test binary.
//!
//! A promise is judged once. A call that got no answer in time is repeated, as users do, and the last lines say how often in
//! which column. Times grow with how long calls take on this machine now.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test that panics is a test that fails")]

mod fixture;

use std::process::ExitCode;
use std::sync::Mutex;

use fixture::{Fixture, Kind};
use libtest_mimic::{Arguments, Trial};
use relay_bridge::support::lock;
use relay_conformance::{Column, Fixture as _, PROMISES, RUNS, Run};

/// How many tests are under way at once: more than run, because those with hundreds of jobs take turns.
const AT_ONCE: usize = 28;
/// The modules that the suite runs on.
const MODULES: &[(&str, Kind)] = &[("sqs", Kind::Standard), ("sqs_fifo", Kind::Fifo)];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    // Those that wait longest begin first, or the last of them would run alone.
    let mut runs = RUNS.to_vec();
    runs.sort_by_key(|(name, _)| !LONG.contains(name));
    let trials = runs.iter().flat_map(|(name, run)| {
        let is_run =
            move |module| PROMISES.iter().any(|(group, promise)| promise == name && Column::of(module).runs(group));
        MODULES.iter().filter(move |(module, _)| is_run(module)).map(move |(module, kind)| {
            let (name, run) = (*name, *run);
            Trial::test(format!("{module}::{name}"), move || {
                keep(module, *kind, name, run);
                Ok(())
            })
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    fixture::stop_shared();
    for (module, kind) in MODULES.iter().filter(|_| !arguments.list) {
        println!("{}", kind.calls().summary(module));
    }
    conclusion.exit_code()
}

/// The tests with hundreds of jobs, one at a time: the emulator is one process, and serves nobody else in time meanwhile.
const HEAVY: &[&str] = &[
    "a_follower_sees_each_result_once_while_many_record",
    "a_lone_job_is_not_held_up_by_another_clients_backlog",
    "failing_jobs_in_backoff_do_not_hold_up_a_healthy_one",
    "jobs_of_one_client_that_were_not_retried_come_oldest_first_within_reason",
    "many_clients_share_alike",
    "two_workers_never_hold_the_same_job",
    "weights_share_a_queue",
];

static HEAVY_ONE: Mutex<()> = Mutex::new(());

/// Tests one promise, on a runtime of its own.
fn keep(module: &str, kind: Kind, promise: &str, run: Run) {
    let _one = HEAVY.contains(&promise).then(|| lock(&HEAVY_ONE));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let fixture = Fixture::open(kind).await;
        assert_eq!(fixture.broker().capabilities, Column::of(module).capabilities, "what the table says of {module}");
        run(&fixture).await;
        fixture.close().await;
    });
}

/// The tests that wait until everything is past its keeping.
const LONG: &[&str] = &[
    "a_cursor_older_than_retention_starts_over_and_says_so",
    "a_dead_letter_is_kept_for_its_retention_and_no_longer",
    "a_key_whose_record_expired_starts_anew_before_any_sweep",
    "a_key_whose_record_expired_starts_anew_without_the_old_result",
    "a_late_result_of_an_older_run_does_not_finish_a_new_one",
    "a_redrive_works_long_after_the_record_is_gone",
    "a_result_is_readable_for_its_retention_after_completion",
    "a_result_past_its_keeping_is_absent_before_any_sweep",
    "a_sweep_writes_nothing_for_finished_runs_at_any_edge",
];
