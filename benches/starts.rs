//! Handlers that are commands: the time from a job to its result, with a guard and without one, by turns.
//!
//! `cargo bench --bench starts`. The command does nothing, so that what is measured is its start and its end.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark fails by panicking and prints its figures")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use relay_bridge::clock::Clock;
use relay_bridge::contract::{Job, Submission};
use relay_bridge::policy::QueuePolicy;
use relay_workers::handler::exec::guard::Guard;
use relay_workers::handler::exec::{Exec, ExecConfig};
use relay_workers::{Attempt, Context, Handler};
use support::{cpu, median};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Turns, and starts in each.
const PAIRS: usize = 15;
const STARTS: u32 = 200;

fn main() {
    let runtime = Runtime::new().unwrap();
    let job = job();
    let exec = || Exec::new(ExecConfig { command: vec!["/bin/true".into()], ..ExecConfig::default() }).unwrap();
    let guard = Guard::new(env!("CARGO_BIN_EXE_relay"), ["guard"]);
    let (plain, guarded) = (exec(), exec().guarded(Arc::new(guard)));
    // The guard is started with the first command.
    for exec in [&plain, &guarded] {
        runtime.block_on(starts(exec, &job));
    }
    let pairs: Vec<(Cost, Cost)> = (0..PAIRS)
        .map(|_| (runtime.block_on(starts(&plain, &job)), runtime.block_on(starts(&guarded, &job))))
        .collect();
    let figures = |of: fn(&Cost) -> f64| {
        let plain: Vec<f64> = pairs.iter().map(|(plain, _)| of(plain)).collect();
        let guarded: Vec<f64> = pairs.iter().map(|(_, guarded)| of(guarded)).collect();
        let part = pairs.iter().map(|(plain, guarded)| of(guarded) - of(plain)).collect();
        [plain, guarded, part]
    };
    let [plain, guarded, part] = figures(|cost| cost.time);
    line("a command without a guard", plain);
    line("a command with a guard", guarded);
    line("the guard's part, goal <= 2000", part);
    let [plain, guarded, part] = figures(|cost| cost.cpu);
    line("processor time without a guard", plain);
    line("processor time with a guard", guarded);
    line("the guard's part of it", part);
}

/// Of a start, in microseconds.
struct Cost {
    time: f64,
    /// Of the worker alone: neither the command nor the guard's process is in it.
    cpu: f64,
}

/// One after the other.
async fn starts(exec: &Exec, job: &Job) -> Cost {
    let (begin, before) = (Instant::now(), cpu());
    for _ in 0..STARTS {
        let context = Context::detached(1, &QueuePolicy::default(), Duration::from_secs(60), CancellationToken::new());
        assert!(matches!(exec.handle(job, &context).await, Attempt::Done(_)));
    }
    let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(STARTS);
    Cost { time: each(begin.elapsed()), cpu: each(cpu() - before) }
}

fn job() -> Job {
    let submission = Submission {
        client: "bench".parse().unwrap(),
        queue: "bench".parse().unwrap(),
        key: None,
        content_type: "text/plain".to_owned(),
        content_encoding: None,
        headers: BTreeMap::new(),
        payload: b"x".to_vec().into(),
        delay: Duration::ZERO,
        expires_in: None,
    };
    submission.accept(&QueuePolicy::default(), Clock::system().now())
}

fn line(what: &str, micros: Vec<f64>) {
    let (low, high) = micros.iter().fold((f64::MAX, f64::MIN), |(low, high), t| (low.min(*t), high.max(*t)));
    println!("{what:<34} {:>8.1} us  [{low:.1} to {high:.1}], {PAIRS} turns of {STARTS}", median(micros));
}
