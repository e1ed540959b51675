//! The names of streams, consumers and subjects. Nothing else in the adapter spells one; nothing here does I/O.
//!
//! A job has one address, `relay.*.<queue>.<client>.<job>`, under which its record is in exactly one place: in line, on
//! a timer, or out of line. Every condition on a job names that wildcard, so that all places are one.

use std::fmt;

use crate::contract::{ClientId, JobId, QueueName, RunId};

/// Before a queue's name in the name of its stream.
pub const JOBS_STREAM_PREFIX: &str = "relay-jobs-";
/// The stream of results, over all queues.
pub const RESULTS_STREAM: &str = "relay-results";
/// The stream of dead letters, over all queues.
pub const DEAD_STREAM: &str = "relay-dead";
/// The stream of what runs, over all queues.
pub const STATE_STREAM: &str = "relay-state";

/// All jobs in line, over all queues: a filter for listing the streams of jobs.
pub const ALL_JOBS: &str = "relay.jobs.>";
/// Every result.
pub const RESULTS_SUBJECTS: &str = "relay.results-log.>";
/// What is left of results whose payload was erased; not announced.
pub const ERASED_SUBJECTS: &str = "relay.erased.>";
/// Where results are republished to.
pub const REPLY_DESTINATION: &str = "relay.reply.>";
/// Every dead letter.
pub const DEAD_SUBJECTS: &str = "relay.dead.>";
/// Every state.
pub const STATE_SUBJECTS: &str = "relay.state.>";

/// The stream of a queue.
#[must_use]
pub fn jobs_stream(queue: &QueueName) -> String {
    format!("{JOBS_STREAM_PREFIX}{queue}")
}

/// The queue of a stream, if it is a stream of jobs.
#[must_use]
pub fn queue_of_stream(stream: &str) -> Option<QueueName> {
    stream.strip_prefix(JOBS_STREAM_PREFIX)?.parse().ok()
}

/// What the stream of a queue stores: its records in every place, and the deadlines that need an entry of their own.
#[must_use]
pub fn jobs_stream_subjects(queue: &QueueName) -> Vec<String> {
    let mut subjects: Vec<String> = Place::ALL.iter().map(|place| format!("relay.{place}.{queue}.*.*")).collect();
    subjects.push(format!("relay.deadline.*.{queue}.*.*"));
    subjects
}

/// Where workers are told that a client has jobs in line.
#[must_use]
pub fn hint(queue: &QueueName, client: &ClientId) -> String {
    format!("relay.hint.{queue}.{client}")
}

/// The hints of a queue: for a worker's subscription, and for what it may publish.
#[must_use]
pub fn hints(queue: &QueueName) -> String {
    format!("relay.hint.{queue}.*")
}

/// The client that a hint is about.
#[must_use]
pub fn client_of_hint(subject: &str) -> Option<ClientId> {
    subject.split('.').nth(3)?.parse().ok()
}

/// What a client's consumer takes: its jobs in line.
#[must_use]
pub fn client_line(queue: &QueueName, client: &ClientId) -> String {
    format!("relay.jobs.{queue}.{client}.*")
}

/// A client's jobs on timers.
#[must_use]
pub fn client_timers(queue: &QueueName, client: &ClientId) -> String {
    format!("relay.timer.{queue}.{client}.*")
}

/// All jobs of a queue on timers.
#[must_use]
pub fn timers(queue: &QueueName) -> String {
    format!("relay.timer.{queue}.*.*")
}

/// A client's records in any place.
#[must_use]
pub fn client_records(queue: &QueueName, client: &ClientId) -> String {
    format!("relay.*.{queue}.{client}.*")
}

/// All deadlines of a queue that have passed and have an entry of their own.
#[must_use]
pub fn overdue(queue: &QueueName) -> String {
    format!("relay.deadline.passed.{queue}.*.*")
}

/// The durable consumer of a client in a queue's stream.
#[must_use]
pub fn consumer(client: &ClientId) -> String {
    client.as_str().to_owned()
}

/// Where a queue's control messages go: cancels and changes of policy, to whom it may concern, best effort.
#[must_use]
pub fn control(queue: &QueueName) -> String {
    format!("relay.control.{queue}")
}

/// The subject of a job's result in [`RESULTS_STREAM`].
#[must_use]
pub fn result(client: &ClientId, job: JobId) -> String {
    format!("relay.results-log.{client}.{job}")
}

/// What is left of a job's erased result, in [`RESULTS_STREAM`] too, but announced to nobody.
#[must_use]
pub fn erased(client: &ClientId, job: JobId) -> String {
    format!("relay.erased.{client}.{job}")
}

/// A job's result, erased or not: what each condition on a result names.
#[must_use]
pub fn result_anywhere(client: &ClientId, job: JobId) -> String {
    format!("relay.*.{client}.{job}")
}

/// All results of a client, erased or not.
#[must_use]
pub fn client_results(client: &ClientId) -> String {
    format!("relay.*.{client}.*")
}

/// Where each result of a job is announced.
#[must_use]
pub fn reply(client: &ClientId, job: JobId) -> String {
    format!("relay.reply.{client}.{job}")
}

/// The announcements of all of a client's results.
#[must_use]
pub fn client_replies(client: &ClientId) -> String {
    format!("relay.reply.{client}.*")
}

/// Where the progress of a job is told; not stored.
#[must_use]
pub fn events(client: &ClientId, job: JobId) -> String {
    format!("relay.events.{client}.{job}")
}

/// The subject of a running job in [`STATE_STREAM`].
#[must_use]
pub fn state(client: &ClientId, job: JobId) -> String {
    format!("relay.state.{client}.{job}")
}

/// What only one process at a time can create, in [`STATE_STREAM`]: whose turn it is to change the policy of `queue`.
#[must_use]
pub fn turn(queue: &QueueName) -> String {
    format!("relay.state.turn.{queue}.policy")
}

/// A dead letter: which job's, of which run, whose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The job and where it was.
    pub address: Address,
    /// The run that ended badly.
    pub run: RunId,
}

impl Letter {
    /// All dead letters in [`DEAD_STREAM`].
    pub const ALL: &str = "relay.dead.>";

    /// The subject of the letter. The job comes first: that is what operators ask by.
    #[must_use]
    pub fn subject(&self) -> String {
        let Address { queue, client, job } = &self.address;
        format!("relay.dead.{job}.{}.{queue}.{client}", self.run)
    }

    /// Reads the subject of a letter.
    #[must_use]
    pub fn parse(subject: &str) -> Option<Self> {
        let mut tokens = subject.strip_prefix("relay.dead.")?.split('.');
        let (job, run) = (tokens.next()?.parse().ok()?, tokens.next()?.parse().ok()?);
        let (queue, client) = (tokens.next()?.parse().ok()?, tokens.next()?.parse().ok()?);
        tokens.next().is_none().then_some(Self { address: Address { queue, client, job }, run })
    }

    /// All letters of a job.
    #[must_use]
    pub fn of_job(job: JobId) -> String {
        format!("relay.dead.{job}.>")
    }

    /// The letter of a run, whoever's it is.
    #[must_use]
    pub fn of_run(job: JobId, run: RunId) -> String {
        format!("relay.dead.{job}.{run}.>")
    }

    /// All letters of a queue.
    #[must_use]
    pub fn in_queue(queue: &QueueName) -> String {
        format!("relay.dead.*.*.{queue}.*")
    }
}

/// A job's record in a queue's stream, whoever's it is: for operators, who know the job alone. It costs the server a look
/// at every subject.
#[must_use]
pub fn record_of_anybody(job: JobId) -> String {
    format!("relay.*.*.*.{job}")
}

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In line, or leased, or finished without having been moved: consumers see it.
    Line,
    /// On a timer: a schedule puts it in line when its time comes.
    Timer,
    /// Out of line: its run ended without a worker.
    Ended,
}

impl Place {
    /// Every place.
    pub const ALL: [Self; 3] = [Self::Line, Self::Timer, Self::Ended];
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Line => "jobs",
            Self::Timer => "timer",
            Self::Ended => "ended",
        })
    }
}

/// One job's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// In which queue.
    pub queue: QueueName,
    /// Whose.
    pub client: ClientId,
    /// Which.
    pub job: JobId,
}

impl Address {
    /// The address of a job.
    #[must_use]
    pub fn new(queue: &QueueName, client: &ClientId, job: JobId) -> Self {
        Self { queue: queue.clone(), client: client.clone(), job }
    }

    /// The subject of the record in `place`.
    #[must_use]
    pub fn at(&self, place: Place) -> String {
        format!("relay.{place}.{}.{}.{}", self.queue, self.client, self.job)
    }

    /// The subject that covers the record in every place: what each condition on the job names.
    #[must_use]
    pub fn anywhere(&self) -> String {
        format!("relay.*.{}.{}.{}", self.queue, self.client, self.job)
    }

    /// The stream that has the record.
    #[must_use]
    pub fn stream(&self) -> String {
        jobs_stream(&self.queue)
    }

    /// The schedule that tells when the run's deadline passes.
    #[must_use]
    pub fn deadline(&self) -> String {
        format!("relay.deadline.at.{}.{}.{}", self.queue, self.client, self.job)
    }

    /// Where that schedule leaves its entry for the sweep.
    #[must_use]
    pub fn overdue(&self) -> String {
        format!("relay.deadline.passed.{}.{}.{}", self.queue, self.client, self.job)
    }

    /// Reads the subject of a record.
    #[must_use]
    pub fn parse(subject: &str) -> Option<(Place, Self)> {
        let mut tokens = subject.strip_prefix("relay.")?.split('.');
        let place = tokens.next()?;
        let place = Place::ALL.into_iter().find(|known| known.to_string() == place)?;
        let address = Self::from_tokens(&mut tokens)?;
        tokens.next().is_none().then_some((place, address))
    }

    /// Reads the subject of an overdue entry.
    #[must_use]
    pub fn parse_overdue(subject: &str) -> Option<Self> {
        Self::from_tokens(&mut subject.strip_prefix("relay.deadline.passed.")?.split('.'))
    }

    fn from_tokens<'a>(tokens: &mut impl Iterator<Item = &'a str>) -> Option<Self> {
        Some(Self {
            queue: tokens.next()?.parse().ok()?,
            client: tokens.next()?.parse().ok()?,
            job: tokens.next()?.parse().ok()?,
        })
    }
}
