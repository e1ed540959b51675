//! NATS keeps every promise of the suite, on one node and on three.
//!
//! Time is real here, so most tests wait most of the time: they run in a harness of their own, many at once, whatever the
//! number of cores. `--test-threads`, a filter and the other options are those of every test binary.
//!
//! A promise is judged once. A call that got no answer in time is repeated, as users do, and the last lines say how often in
//! which column. Times grow with how long calls take on this machine now.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test that panics is a test that fails")]

mod fixture;

use std::process::ExitCode;

use fixture::{Fixture, Nodes};
use libtest_mimic::{Arguments, Trial};
use relay_conformance::{Column, Fixture as _, PROMISES, RUNS, Run};

/// How many tests are under way at once: more than run, because those of the cluster and those that crash it take turns.
const AT_ONCE: usize = 56;
/// The servers on which the suite runs.
const MODULES: &[(&str, Nodes)] =
    &[("nats_1", Nodes::One), ("nats_one_line", Nodes::OneWithoutTurns), ("nats_3", Nodes::Three)];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    // Those that wait longest begin first, or the last of them would run alone.
    let mut runs = RUNS.to_vec();
    runs.sort_by_key(|(name, _)| !LONG.contains(name));
    let trials = runs.iter().flat_map(|(name, run)| {
        let (name, run) = (*name, *run);
        let group = PROMISES.iter().find(|(_, promise)| *promise == name).map_or("", |(group, _)| group);
        let modules = MODULES.iter().filter(|(module, _)| Column::of(module).runs(group));
        modules.map(move |(module, nodes)| {
            Trial::test(format!("{module}::{name}"), move || {
                keep(module, *nodes, name, run);
                Ok(())
            })
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    fixture::stop_shared();
    for (module, nodes) in MODULES.iter().filter(|_| !arguments.list) {
        println!("{}", nodes.calls().summary(module));
    }
    conclusion.exit_code()
}

/// Tests one promise, on a runtime of its own.
fn keep(module: &str, nodes: Nodes, promise: &str, run: Run) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let fixture = Fixture::open(nodes, promise).await;
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
