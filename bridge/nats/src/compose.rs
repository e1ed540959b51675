//! Builds the parts of the adapter, and gives each part the others that it uses.

use super::{Parts, Settings};
use crate::closing::Alive;
use crate::jobs::Jobs;
use crate::jobs::deadlines::Deadlines;
use crate::jobs::enqueue::Submissions;
use crate::jobs::list::Listing;
use crate::jobs::look_back::{LookBack, LookingBack};
use crate::jobs::looks::{Ended, Looks};
use crate::jobs::room::{Room, Waiting};
use crate::jobs::start::Starts;
use crate::jobs::storage::{Sizes, Storage};
use crate::jobs::storage_limit::{Admission, StorageLimit};
use crate::jobs::sweep::{Sweep, Sweeping};
use crate::leases::Leases;
use crate::leases::acks::Acks;
use crate::leases::deliver::Deliveries;
use crate::leases::listening::Hearing;
use crate::leases::pulling::Pulls;
use crate::leases::recording::Recording;
use crate::leases::rounds::RoundMaker;
use crate::leases::settling::Settling;
use crate::line::lanes::{Consumers, Lanes};
use crate::line::lines::Lines;
use crate::line::lost_lanes::{LanesChecked, LostLanes};
use crate::operate::dead_letters::Operator;
use crate::operate::provision::Provisioning;
use crate::operate::redrive::Redrives;
use crate::records::end_run::Runs;
use crate::records::find::{Queues, Records};
use crate::records::held::{self, HeldJobs, Holding};
use crate::records::hinting;
use crate::records::lately::Lately;
use crate::records::letters::LetterStore;
use crate::records::log::LogReader;
use crate::records::policies::Policies;
use crate::records::policy_changes::PolicyChanges;
use crate::records::results::ResultEntries;
use crate::records::timers::Timers;
use crate::results::Results;
use crate::results::follow::{Positions, Reader};
use crate::results::waiting::Waits;
use crate::stored::kept::{Copies, Kept};
use crate::wire::api::Api;
use relay_bridge::newer_jobs::NewerJobs;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Builds all parts, from the bottom layer up.
pub(crate) fn compose(api: Api, settings: Settings, payload_max: u64) -> Parts {
    let Settings { wire_version: wire, clock, streams } = settings;
    let (tasks, closing) = (TaskTracker::new(), CancellationToken::new());
    let (rule_counts, newer_jobs) = (Arc::<relay_bridge::rules::Counts>::default(), Arc::<NewerJobs>::default());
    let kept = Arc::new(Kept::new(Copies::by(usize::from(streams.replicas.get()), streams.memory)));
    let alive = Arc::new(Alive(closing.clone()));
    let policies = Arc::new(Policies::new(api.clone(), streams, payload_max));
    let log = Arc::new(LogReader::new(api.clone()));
    let results = Arc::new(ResultEntries { api: api.clone(), clock: clock.clone(), wire, log: log.clone() });
    let held = Arc::new(HeldJobs {
        api: api.clone(),
        clock: clock.clone(),
        policies: policies.clone(),
        holding: Holding::default(),
    });
    let records = Arc::new(Records {
        api: api.clone(),
        clock: clock.clone(),
        results: results.clone(),
        held: held.clone(),
        queues: Queues::default(),
        lately: Lately::default(),
    });
    let timers = Arc::new(Timers { api: api.clone(), clock: clock.clone() });
    let letters = Arc::new(LetterStore {
        api: api.clone(),
        clock: clock.clone(),
        policies: policies.clone(),
        rule_counts: rule_counts.clone(),
        wire,
        records: records.clone(),
        results: results.clone(),
        held: held.clone(),
    });
    let runs = Arc::new(Runs {
        api: api.clone(),
        clock: clock.clone(),
        records: records.clone(),
        results: results.clone(),
        letters: letters.clone(),
        held: held.clone(),
    });
    let policy_changes = Arc::new(PolicyChanges {
        api: api.clone(),
        policies: policies.clone(),
        hears: AtomicBool::new(false),
        closing: closing.clone(),
        tasks: tasks.clone(),
    });
    let lanes = Arc::new(Lanes { api: api.clone(), consumers: Consumers::default() });
    let lost_lanes = Arc::new(LostLanes { api: api.clone(), lanes: lanes.clone(), checked: LanesChecked::default() });
    let lines = Arc::new(Lines {
        api: api.clone(),
        tasks: tasks.clone(),
        lanes: lanes.clone(),
        open: tokio::sync::Mutex::default(),
        places: Mutex::default(),
    });
    let acks = Arc::new(Acks { api: api.clone(), tasks: tasks.clone(), waiting: Mutex::default() });
    let settling = Arc::new(Settling {
        api: api.clone(),
        clock: clock.clone(),
        policies: policies.clone(),
        runtime: tokio::runtime::Handle::current(),
        tasks: tasks.clone(),
        lanes: lanes.clone(),
        lines: lines.clone(),
        records: records.clone(),
        results: results.clone(),
        held: held.clone(),
        timers: timers.clone(),
        acks: acks.clone(),
    });
    let deliveries = Arc::new(Deliveries {
        api: api.clone(),
        clock: clock.clone(),
        newer_jobs: newer_jobs.clone(),
        lanes: lanes.clone(),
        lines: lines.clone(),
        records: records.clone(),
        results: results.clone(),
        letters: letters.clone(),
        runs: runs.clone(),
        held: held.clone(),
        timers: timers.clone(),
        settling: settling.clone(),
    });
    let pulls = Arc::new(Pulls {
        api: api.clone(),
        closing: closing.clone(),
        tasks: tasks.clone(),
        lines: lines.clone(),
        deliveries: deliveries.clone(),
        settling: settling.clone(),
    });
    let rounds = Arc::new(RoundMaker {
        api: api.clone(),
        policies: policies.clone(),
        lanes: lanes.clone(),
        lines: lines.clone(),
    });
    let hearing = Arc::new(Hearing {
        api: api.clone(),
        closing: closing.clone(),
        policies: policies.clone(),
        lines: lines.clone(),
        pulls: pulls.clone(),
        rounds: rounds.clone(),
        held: held.clone(),
    });
    let recording = Arc::new(Recording {
        clock: clock.clone(),
        payload_max,
        policies: policies.clone(),
        rule_counts: rule_counts.clone(),
        records: records.clone(),
        results: results.clone(),
        letters: letters.clone(),
        held: held.clone(),
    });
    let storage_limit = Arc::new(StorageLimit {
        api: api.clone(),
        storage: Storage { api: api.clone(), policies: policies.clone(), kept: kept.clone(), sizes: Sizes::default() },
        admission: Admission::default(),
    });
    let room = Arc::new(Room {
        api: api.clone(),
        lanes: lanes.clone(),
        storage: storage_limit.clone(),
        counts: Waiting::default(),
    });
    let starts = Arc::new(Starts { api: api.clone(), wire, lanes: lanes.clone(), timers: timers.clone() });
    let submissions = Arc::new(Submissions {
        api: api.clone(),
        clock: clock.clone(),
        payload_max,
        policies: policies.clone(),
        wire,
        lanes: lanes.clone(),
        records: records.clone(),
        results: results.clone(),
        timers: timers.clone(),
        room: room.clone(),
        policy_changes: policy_changes.clone(),
    });
    let listing = Arc::new(Listing {
        api: api.clone(),
        clock: clock.clone(),
        records: records.clone(),
        results: results.clone(),
    });
    let deadlines = Arc::new(Deadlines {
        api: api.clone(),
        clock: clock.clone(),
        results: results.clone(),
        letters: letters.clone(),
        runs: runs.clone(),
    });
    let history = Arc::new(LookBack {
        api: api.clone(),
        clock: clock.clone(),
        deadlines: deadlines.clone(),
        records: records.clone(),
        results: results.clone(),
        letters: letters.clone(),
        runs: runs.clone(),
        held: held.clone(),
        timers: timers.clone(),
        looking: LookingBack::default(),
    });
    let sweep = Arc::new(Sweep {
        api: api.clone(),
        clock: clock.clone(),
        policies: policies.clone(),
        lanes: lanes.clone(),
        lost_lanes: lost_lanes.clone(),
        records: records.clone(),
        timers: timers.clone(),
        deadlines: deadlines.clone(),
        history: history.clone(),
        sweeping: Sweeping::default(),
    });
    let waits = Arc::new(Waits::new(api.clone(), closing.clone(), log.clone(), records.clone(), results.clone()));
    let reader = Arc::new(Reader {
        api: api.clone(),
        clock: clock.clone(),
        policies: policies.clone(),
        log: log.clone(),
        waits: waits.clone(),
        positions: Positions::default(),
    });
    let redrives = Arc::new(Redrives {
        api: api.clone(),
        clock: clock.clone(),
        policies: policies.clone(),
        records: records.clone(),
        letters: letters.clone(),
        starts: starts.clone(),
    });
    let leases = Arc::new(Leases {
        api: api.clone(),
        clock: clock.clone(),
        closing: closing.clone(),
        policies: policies.clone(),
        tasks: tasks.clone(),
        lines: lines.clone(),
        pulls: pulls.clone(),
        rounds: rounds.clone(),
        settling: settling.clone(),
        recording: recording.clone(),
        letters: letters.clone(),
        held: held.clone(),
        hearing,
        _alive: alive.clone(),
    });
    let jobs = Arc::new(Jobs {
        api: api.clone(),
        clock: clock.clone(),
        policies: policies.clone(),
        wire,
        lanes: lanes.clone(),
        records: records.clone(),
        results: results.clone(),
        letters: letters.clone(),
        runs: runs.clone(),
        room: room.clone(),
        starts: starts.clone(),
        submissions: submissions.clone(),
        listing: listing.clone(),
        looks: Looks {
            api: api.clone(),
            policies: policies.clone(),
            lanes: lanes.clone(),
            room: room.clone(),
            ended: Ended::default(),
        },
        sweep: sweep.clone(),
        _alive: alive.clone(),
    });
    let reading = Arc::new(Results {
        records: records.clone(),
        waits: waits.clone(),
        reader: reader.clone(),
        _alive: alive.clone(),
    });
    let dead_letters = Arc::new(Operator::new(letters.clone(), redrives.clone(), alive.clone()));
    let provision = Arc::new(Provisioning {
        kept: kept.clone(),
        api: api.clone(),
        policies: policies.clone(),
        lanes: lanes.clone(),
    });
    tasks.spawn(held::keep_telling(held, closing.clone()));
    tasks.spawn(hinting::keep_hinting(api.clone(), closing));
    Parts {
        api,
        kept,
        payload_max,
        rule_counts,
        newer_jobs,
        policies,
        jobs,
        leases,
        results: reading,
        dead_letters,
        provision,
        tasks,
        alive,
    }
}
