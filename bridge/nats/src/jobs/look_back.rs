//! Ends runs that were settled and have no result: somebody purged the results, or restored them from an older backup.
//! Their records are below the position up to which their lane is settled, where nothing else looks. The sweep looks
//! each of them up when its deadline comes, in the order of the stream. It looks all of them up once more when the
//! stream of results shows a loss, and after a while, because a purge of some subjects shows nowhere.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Config;
use futures_util::{StreamExt as _, stream};

use crate::jobs::deadlines::{BYTES_MAX, Deadline, Deadlines, OPERATION, Step};
use crate::jobs::remembered::Remembered;
use crate::line::lanes::ConsumerInfo;
use crate::records::end_run::Runs;
use crate::records::find::{Records, known_record};
use crate::records::held::HeldJobs;
use crate::records::letters::LetterStore;
use crate::records::results::ResultEntries;
use crate::records::timers::{IN_ORDER, OUT_OF_ORDER, Timers};
use crate::stored::names::{self, Lane, RESULTS_STREAM};
use crate::stored::record::{Record, is_unreadable};
use crate::wire::api::Api;
use crate::wire::direct_get::{BATCH_MAX, Stretch};
use crate::wire::stream_calls;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{Job, QueueName, Timestamp};
use relay_bridge::error::BrokerError;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::rules::{self, Known};
use relay_bridge::support::lock;

/// How long after a look through a lane the next one begins at the earliest.
const EVERY: Duration = Duration::from_secs(300);
/// The least pause after a look, as a multiple of the time that the look took.
const RARELY: u32 = 200;
/// The most settled records that one step looks at: at one step a second, a known small part of what the server does.
pub(crate) const RECORDS_MAX: u32 = 200;
/// How many results are asked for at once. One may have many MiB, and only its name is of use here.
const AT_ONCE: usize = 4;

/// How far the settled records of each lane were looked at.
#[derive(Debug, Default)]
pub(crate) struct LookingBack {
    lanes: Remembered<(QueueName, Lane), Back>,
    log: Mutex<Option<Log>>,
    /// When it was last logged that nothing can be looked at.
    warned: Mutex<Option<Instant>>,
}

/// The stream of results as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Log {
    /// When it was made, in nanoseconds since the epoch.
    created: i128,
    first: u64,
    last: u64,
}

impl Log {
    /// Whether this stream, seen as `later` afterwards, lost entries that could not have gone by their age alone. If
    /// all of them did go by their age, the records are looked at in vain.
    fn lost(self, later: Self) -> bool {
        let (had_some, passed) = (self.first <= self.last, later.first > self.last);
        self.created != later.created || later.last < self.last || had_some && passed
    }
}

#[derive(Clone, Copy, Debug)]
struct Back {
    /// The first sequence that was not looked at.
    next: u64,
    /// Neither the record there nor one behind it is due before, but for those with an entry of their own.
    due: Timestamp,
    began: Instant,
    /// When all is looked at again: known once the lane was looked through.
    again: Option<Instant>,
}

impl Back {
    fn start() -> Self {
        Self { next: 1, due: Timestamp::EPOCH, began: Instant::now(), again: None }
    }

    /// Notes that all that is due was looked at.
    fn is_through(&mut self) {
        let pause = EVERY.max(self.began.elapsed() * RARELY);
        self.again.get_or_insert_with(|| Instant::now() + pause);
    }
}

impl LookingBack {
    /// From where a lane that settled everything up to `floor` is to be looked at.
    fn place(&self, queue: &QueueName, lane: &Lane, floor: u64) -> Back {
        let known = self.lanes.get(&(queue.clone(), lane.clone()));
        // A floor that fell is of another stream, or of another consumer.
        let known = known.filter(|back| back.next <= floor + 1);
        known.filter(|back| back.again.is_none_or(|again| again > Instant::now())).unwrap_or_else(Back::start)
    }

    /// Takes note of the stream of results: all is looked at again if it lost some.
    fn saw(&self, log: Log) {
        let before = lock(&self.log).replace(log);
        if before.is_some_and(|before| before.lost(log)) {
            self.lanes.clear();
        }
    }

    /// Logs, now and then, that nothing is looked at.
    pub(crate) fn warn(&self, error: &BrokerError) {
        let mut warned = lock(&self.warned);
        if warned.is_none_or(|at| at.elapsed() >= EVERY) {
            *warned = Some(Instant::now());
            tracing::warn!(%error, "runs whose results were lost are not ended: the stream {RESULTS_STREAM} can't be asked for");
        }
    }
}

/// Ends runs that were settled and whose result was lost.
pub(crate) struct LookBack {
    pub(crate) api: Api,
    pub(crate) clock: Clock,
    pub(crate) deadlines: Arc<Deadlines>,
    pub(crate) records: Arc<Records>,
    pub(crate) results: Arc<ResultEntries>,
    pub(crate) letters: Arc<LetterStore>,
    pub(crate) runs: Arc<Runs>,
    pub(crate) held: Arc<HeldJobs>,
    pub(crate) timers: Arc<Timers>,
    pub(crate) looking: LookingBack,
}

impl LookBack {
    /// Notices that results were lost since the last step. Returns how their stream is kept.
    ///
    /// # Errors
    /// The stream of results can't be asked for: then no run can be said to have none.
    pub(crate) async fn look_at_log(&self) -> Result<Config, BrokerError> {
        let info = stream_calls::get(&self.api, RESULTS_STREAM, OPERATION).await?.info;
        let (first, last) = (info.state.first_sequence, info.state.last_sequence);
        self.looking.saw(Log { created: info.created.unix_timestamp_nanos(), first, last });
        Ok(info.config)
    }

    /// Ends the runs of a lane that were settled, are past their deadline and have no result. `consumer` is the lane's.
    pub(crate) async fn look_back(
        &self,
        queue: &QueueName,
        lane: &Lane,
        consumer: &ConsumerInfo,
        policy: &QueuePolicy,
        step: &mut Step,
    ) -> Result<(), BrokerError> {
        let (looking, floor) = (&self.looking, consumer.ack_floor.stream_seq);
        let looked_to = |back| looking.lanes.set((queue.clone(), lane.clone()), Some(back));
        let mut back = looking.place(queue, lane, floor);
        let mut messages = 1;
        while back.next <= floor && back.due <= step.now {
            if step.back == 0 {
                // No work that is due at once: a history of any length takes its time.
                break;
            }
            let stretch = Stretch { from: back.next, subject: lane.filter(queue), messages, bytes: BYTES_MAX };
            let batch = self.api.batch(&names::jobs_stream(queue), &stretch, OPERATION).await?;
            let settled = batch.messages.into_iter().take_while(|stored| stored.seq <= floor);
            // The workers left out those that can't be read, and no result would say of which run they are.
            let settled: Vec<_> = settled.map(|stored| (stored.seq, Record::read(stored).ok())).collect();
            if settled.is_empty() {
                back.next = floor + 1;
                break;
            }
            step.back = step.back.saturating_sub(u32::try_from(settled.len()).unwrap_or(u32::MAX));
            let mut due = Vec::new();
            for (seq, record) in settled {
                if let Some((record, job)) = record.and_then(|record| record.job().ok().map(|job| (record, job))) {
                    match Deadline::of(&record, &job, policy, step.now) {
                        Deadline::Passed => due.push((record, job)),
                        Deadline::InOrder => {
                            back.due = job.expires_at;
                            back.next = seq;
                            break;
                        }
                        Deadline::Later => self.timers.note_deadline(&job, None).await?,
                    }
                }
                back.next = seq + 1;
            }
            self.end_lost(due, step).await?;
            looked_to(back);
            messages = BATCH_MAX;
        }
        if back.next > floor && consumer.num_pending + consumer.num_ack_pending == 0 {
            // All that is settled later comes in line from now on: its deadline is in order, or has an entry of its own.
            back.due = back.due.max(step.now + policy.job_ttl.saturating_sub(IN_ORDER + OUT_OF_ORDER));
        }
        if back.next > floor || back.due > step.now {
            back.is_through();
        }
        looked_to(back);
        Ok(())
    }

    /// Ends the runs of `due` that have no result.
    async fn end_lost(&self, due: Vec<(Record, Job)>, step: &mut Step) -> Result<(), BrokerError> {
        let asked = stream::iter(due).map(async |(record, job)| {
            let ends = match self.results.kept_result(&job.client, job.id).await {
                Ok(Some(kept)) => Ok(kept.result.run_id >= job.run_id),
                // There is one.
                Err(error) if is_unreadable(&error) => Ok(true),
                kept => kept.map(|_| false),
            };
            (record, job, ends)
        });
        let mut asked = asked.buffered(AT_ONCE);
        while let Some((record, job, has_result)) = asked.next().await {
            // A record that another one has taken the place of says nothing any more.
            if !has_result?
                && self.records.record_at(&record.address, OPERATION).await?.is_some_and(|last| last.seq == record.seq)
            {
                tracing::warn!(job_id = %job.id, run_id = %job.run_id, "a run was settled and its result is gone: it ends now");
                self.end_without_result(&record, &job, step).await?;
            }
        }
        Ok(())
    }

    /// Ends a run that was settled and has no result: as its dead letter says, which stays; by its deadline, if it has none.
    async fn end_without_result(&self, record: &Record, job: &Job, step: &mut Step) -> Result<(), BrokerError> {
        let letter = match self.letters.letter_of(job.id, job.run_id, OPERATION).await {
            Ok(letter) => letter,
            // One of a newer relay is for that one to read.
            Err(error) if is_unreadable(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(letter) = letter.filter(|_| job.keep_until() > self.clock.now()) else {
            return self.deadlines.end_by_time(record, job, step).await;
        };
        let known = Known { record: Some(known_record(record, job)), ended: None };
        let ended = self.runs.record_end(job, known, |known, _, _| rules::letters::end_as(known, &letter)).await?.0;
        self.held.holding.ended(job.id, ended.run, ended.outcome);
        self.runs.retire(record, job).await
    }
}
