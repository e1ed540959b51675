//! Looks at a queue's work, by which its workers are scaled.

use std::time::{Duration, Instant};

use relay_bridge::error::BrokerErrorKind;
use relay_bridge::load::{KeptPace, Load};
use relay_bridge::settlement::Settlement;

use super::fixture::Fixture;
use super::stage::{Stage, refused};

const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long a broker may take to count attempts that ended, where it collects them.
const COUNTED_WITHIN: Duration = Duration::from_secs(30);

/// How long an attempt that is given back waits: it must not be due before a broker has counted, however slow the machine is.
const PARKED_FOR: Duration = Duration::from_secs(600);

/// Looks within `lead` until it is as `expected` says, because a broker may count a moment after it answered.
async fn look(stage: &Stage<'_>, lead: Duration, expected: impl Fn(&Load) -> bool) -> Load {
    let until = Instant::now() + stage.awaited().max(COUNTED_WITHIN);
    loop {
        let load = stage.broker.jobs.load(&stage.queue, lead).await.unwrap();
        if expected(&load) {
            return load;
        }
        assert!(Instant::now() < until, "{load:?}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

pub async fn a_look_counts_what_could_start_what_runs_and_what_ended(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let (now, sight) = (Duration::ZERO, stage.broker.capabilities.load);
    let first = look(&stage, now, |load| load.in_line == 0 && load.leased == 0).await;
    assert_eq!((first.startable, first.busy.is_some()), (0, sight.times_attempts));
    stage.backlog(&stage.client("a"), 3).await;
    stage.backlog(&stage.client("b"), 2).await;
    look(&stage, now, |load| (load.in_line, load.startable, load.leased) == (5, 5, 0)).await;
    let mut held = stage.lease_some(2).await;
    while held.len() < 2 {
        held.extend(stage.lease_some(1).await);
    }
    look(&stage, now, |load| (load.in_line, load.startable, load.leased) == (3, 3, 2)).await;
    stage.succeed(&held[0]).await;
    stage.settle(&held[1], Settlement::RetryAfter(PARKED_FOR)).await;
    let ended = first.ended + 2;
    look(&stage, now, |load| (load.in_line, load.leased, load.ended) == (3, 0, ended)).await;
    if sight.foresees {
        look(&stage, PARKED_FOR * 2, |load| (load.in_line, load.startable) == (3, 4)).await;
    }
    stage.broker.policies.set_paused(&stage.queue, true).await.unwrap();
    look(&stage, now, |load| (load.in_line, load.startable) == (3, 0)).await;
}

pub async fn a_look_leaves_out_what_a_clients_running_limit_holds_back_where_that_is_known(fixture: &dyn Fixture) {
    let stage = Stage::with(fixture, |policy| policy.client_defaults.max_running = 2).await;
    stage.backlog(&stage.client("a"), 5).await;
    stage.backlog(&stage.client("b"), 1).await;
    let expected = if stage.broker.capabilities.load.knows_limits { 3 } else { 6 };
    look(&stage, Duration::ZERO, |load| (load.in_line, load.startable) == (6, expected)).await;
}

pub async fn the_last_pace_that_was_kept_is_read_by_others(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let jobs = &stage.broker.jobs;
    assert_eq!(jobs.kept_pace(&stage.queue).await.unwrap(), None);
    for attempts in [10.0, 20.0] {
        let pace = KeptPace { attempts, busy: 2.5 };
        jobs.keep_pace(&stage.queue, &pace).await.unwrap();
        let until = Instant::now() + stage.awaited();
        while jobs.kept_pace(&stage.queue).await.unwrap() != Some(pace) {
            assert!(Instant::now() < until);
        }
    }
    let nowhere = "nowhere".parse().unwrap();
    assert_eq!(refused(jobs.load(&nowhere, Duration::ZERO).await), BrokerErrorKind::NotFound);
    assert_eq!(
        refused(jobs.keep_pace(&nowhere, &KeptPace { attempts: 1.0, busy: 1.0 }).await),
        BrokerErrorKind::NotFound
    );
}
