//! The names of relay's streams, consumers and subjects. The rest of the adapter spells none but those that `streams`
//! repeats as constants. No I/O.
//!
//! A job has one address, `relay.*.<queue>.<client>.<job>`. Its record is in exactly one place under that address: in
//! line, on a timer, or out of line. Every condition on a job names the wildcard, so that it covers all places. Each
//! place in line is seen by one consumer and no other.

use std::fmt;
use std::hash::Hash;
use std::str::FromStr;

use relay_bridge::contract::{ClientId, JobId, QueueName, RunId};
use relay_bridge::policy::{ClientPolicy, QueuePolicy};

/// Before a queue's name in the name of its stream.
pub const JOBS_STREAM_PREFIX: &str = "relay-jobs-";
/// The stream of results, over all queues.
pub const RESULTS_STREAM: &str = "relay-results";
/// The stream of dead letters, over all queues.
pub const DEAD_STREAM: &str = "relay-dead";
/// The stream of states over all queues: the workers' reports of jobs that run.
pub const STATE_STREAM: &str = "relay-state";

/// All jobs in line, over all queues: a filter for listing the streams of jobs.
pub const ALL_JOBS: &str = "relay.jobs.>";
/// Every result.
pub const RESULTS_SUBJECTS: &str = "relay.results-log.>";
/// The entries that stay of results whose payload was erased; not announced.
pub const ERASED_SUBJECTS: &str = "relay.erased.>";
/// The subjects on which results are republished.
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

/// The subjects of a queue's stream: its records in every place, and the deadlines that need an entry of their own.
#[must_use]
pub fn jobs_stream_subjects(queue: &QueueName) -> Vec<String> {
    let mut subjects: Vec<String> = Place::all().map(|place| format!("relay.{place}.{queue}.*.*")).collect();
    subjects.push(format!("relay.deadline.*.{queue}.*.*"));
    subjects
}

/// All subjects on which a queue may have a record, as a permission: the places of its jobs.
#[must_use]
pub fn records(queue: &QueueName) -> String {
    format!("relay.*.{queue}.*.*")
}

/// The subject on which workers are told that a lane has jobs.
#[must_use]
pub fn hint(queue: &QueueName, lane: &Lane) -> String {
    format!("relay.hint.{queue}.{lane}")
}

/// The hints of a queue: for a worker's subscription, and for what it may publish.
#[must_use]
pub fn hints(queue: &QueueName) -> String {
    format!("relay.hint.{queue}.*")
}

/// The lane that a hint is about.
#[must_use]
pub fn lane_of_hint(subject: &str) -> Option<Lane> {
    subject.split('.').nth(3)?.parse().ok()
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

/// The subject of a queue's control messages, such as cancels and changes of policy. They are best effort, for any
/// process that listens.
#[must_use]
pub fn control(queue: &QueueName) -> String {
    format!("relay.control.{queue}")
}

/// The control messages of all queues.
pub(crate) const CONTROL_SUBJECTS: &str = "relay.control.*";

/// The queue of a subject of [`CONTROL_SUBJECTS`].
pub(crate) fn queue_of_control(subject: &str) -> Option<QueueName> {
    subject.strip_prefix("relay.control.")?.parse().ok()
}

/// The subject of a job's result in [`RESULTS_STREAM`].
#[must_use]
pub fn result(client: &ClientId, job: JobId) -> String {
    format!("relay.results-log.{client}.{job}")
}

/// The entry that stays of a job's erased result, in [`RESULTS_STREAM`] too, but announced to nobody.
#[must_use]
pub fn erased(client: &ClientId, job: JobId) -> String {
    format!("relay.erased.{client}.{job}")
}

/// A job's result, erased or not: each condition on a result names this.
#[must_use]
pub fn result_anywhere(client: &ClientId, job: JobId) -> String {
    format!("relay.*.{client}.{job}")
}

/// All results of a client, erased or not.
#[must_use]
pub fn client_results(client: &ClientId) -> String {
    format!("relay.*.{client}.*")
}

/// The subject on which each result of a job is announced.
#[must_use]
pub fn reply(client: &ClientId, job: JobId) -> String {
    format!("relay.reply.{client}.{job}")
}

/// The announcements of all of a client's results.
#[must_use]
pub fn client_replies(client: &ClientId) -> String {
    format!("relay.reply.{client}.*")
}

/// The subject on which the progress of a job is told; not stored.
#[must_use]
pub fn events(client: &ClientId, job: JobId) -> String {
    format!("relay.events.{client}.{job}")
}

/// The subject of a running job in [`STATE_STREAM`].
#[must_use]
pub fn state(client: &ClientId, job: JobId) -> String {
    format!("relay.state.{client}.{job}")
}

/// The message in [`STATE_STREAM`] that only one process at a time can create: that process has the turn to change the
/// policy of `queue`.
#[must_use]
pub fn turn(queue: &QueueName) -> String {
    format!("relay.state.turn.{queue}.policy")
}

/// The message in [`STATE_STREAM`] that has the pace of a queue's attempts, as it was last measured.
#[must_use]
pub fn pace(queue: &QueueName) -> String {
    format!("relay.state.pace.{queue}.attempts")
}

/// The name of a dead letter, or of the mark that an operator redrove it: the job, its queue and client, and the run.
///
/// The number of tokens of its subject is that of releases before this one, so that permissions given for those stay
/// good. No client can have a name like its last token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The job and where it was.
    pub address: Address,
    /// The run that ended badly.
    pub run: RunId,
    /// Whether it is the letter or the mark.
    pub kind: LetterKind,
}

/// The kind of a message about a run that ended badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterKind {
    /// The letter, and when relay first kept it, in milliseconds since the epoch.
    Kept(u64),
    /// A letter of a release before this one, which did not say when.
    Undated,
    /// The mark that it was redriven.
    Redriven,
}

impl Letter {
    /// All dead letters in [`DEAD_STREAM`].
    pub const ALL: &str = "relay.dead.>";

    /// The subject of the letter. The job comes first, because operators ask by it.
    #[must_use]
    pub fn subject(&self) -> String {
        let Address { queue, client, job } = &self.address;
        let named = format!("relay.dead.{job}.{}.{queue}.{client}", self.run);
        match self.kind {
            LetterKind::Kept(at) => format!("{named}_{at}"),
            LetterKind::Undated => named,
            LetterKind::Redriven => format!("{named}_{REDRIVEN}"),
        }
    }

    /// The letter's place in the order of a list: when it was kept first, in milliseconds since the epoch, then the
    /// run. One without a date counts from its run.
    #[must_use]
    pub fn rank(&self) -> (u64, RunId) {
        let at = match self.kind {
            LetterKind::Kept(at) => at,
            LetterKind::Undated | LetterKind::Redriven => self.run.millis(),
        };
        (at, self.run)
    }

    /// Whether it is the mark, and no letter.
    #[must_use]
    pub fn is_mark(&self) -> bool {
        self.kind == LetterKind::Redriven
    }

    /// Reads the subject of a letter.
    #[must_use]
    pub fn parse(subject: &str) -> Option<Self> {
        let mut tokens = subject.strip_prefix("relay.dead.")?.split('.');
        let (job, run) = (tokens.next()?.parse().ok()?, tokens.next()?.parse().ok()?);
        let (queue, last) = (tokens.next()?.parse().ok()?, tokens.next()?);
        let (client, kind) = match last.split_once('_') {
            None => (last, LetterKind::Undated),
            Some((client, REDRIVEN)) => (client, LetterKind::Redriven),
            Some((client, at)) => (client, LetterKind::Kept(at.parse().ok()?)),
        };
        let address = Address { queue, client: client.parse().ok()?, job };
        tokens.next().is_none().then_some(Self { address, run, kind })
    }

    /// All letters of a job.
    #[must_use]
    pub fn of_job(job: JobId) -> String {
        format!("relay.dead.{job}.>")
    }

    /// The letter of a run and its mark, of any client: each condition on them names this.
    #[must_use]
    pub fn of_run(job: JobId, run: RunId) -> String {
        format!("relay.dead.{job}.{run}.*.*")
    }

    /// All letters of a queue.
    #[must_use]
    pub fn in_queue(queue: &QueueName) -> String {
        format!("relay.dead.*.*.{queue}.*")
    }
}

/// The end of a mark's name.
const REDRIVEN: &str = "redriven";

/// A job's record in a queue's stream, of any client: for operators, who know the job alone. It costs the server a look
/// at every subject.
#[must_use]
pub fn record_of_anybody(job: JobId) -> String {
    format!("relay.*.*.*.{job}")
}

/// The number of lanes that clients share in a queue where everybody has turns and there are more clients than
/// consumers.
pub const SHARED_LANES: u8 = 32;

/// A lane: the part of a queue that one consumer sees, one client's jobs or those of several clients that share it.
///
/// It is written as the consumer's name, and read from it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// One client's lane, which has the client's name.
    Own(ClientId),
    /// A lane of many clients, `lane_<number>`: 0 has all of a queue without turns; 1 to [`SHARED_LANES`] have the
    /// clients beyond those that have their own.
    Shared(u8),
}

impl Lane {
    /// The one lane of a queue without turns.
    pub const ALL: Self = Self::Shared(0);

    /// The lane that a client shares with others where it has none of its own. It stays the same for ever.
    #[must_use]
    pub fn shared_by(client: &ClientId) -> Self {
        let [first, ..] = *blake3::hash(client.as_str().as_bytes()).as_bytes();
        Self::Shared(1 + first % SHARED_LANES)
    }

    /// The part of the queue's policy that the lane goes by. Clients that share a lane have together as much as one of them.
    pub(crate) fn policy<'a>(&self, of: &'a QueuePolicy) -> &'a ClientPolicy {
        match self {
            Self::Own(client) => of.client(client),
            Self::Shared(_) => &of.client_defaults,
        }
    }

    /// The filter of its consumer.
    #[must_use]
    pub fn filter(&self, queue: &QueueName) -> String {
        match self {
            Self::Own(client) => self.place().of_client(queue, client),
            Self::Shared(_) => format!("relay.{}.{queue}.*.*", self.place()),
        }
    }

    /// The place in which its records are.
    #[must_use]
    pub fn place(&self) -> Place {
        match self {
            Self::Own(_) => Place::Line,
            Self::Shared(number) => Place::Lane(*number),
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(client) => f.pad(client.as_str()),
            // No client can be called so.
            Self::Shared(number) => write!(f, "lane_{number}"),
        }
    }
}

impl FromStr for Lane {
    type Err = <ClientId as FromStr>::Err;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let shared = name.strip_prefix("lane_").and_then(|number| number.parse().ok());
        match shared.map(Self::Shared).filter(|lane| lane.to_string() == name) {
            Some(lane) => Ok(lane),
            None => name.parse().map(Self::Own),
        }
    }
}

/// The place of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In its client's own line, or leased, or finished without having been moved: a consumer sees it.
    Line,
    /// The same in a lane that many clients share.
    Lane(u8),
    /// On a timer: a schedule puts it in line when its time comes.
    Timer,
    /// Out of line: its run ended without a worker.
    Ended,
}

impl Place {
    /// Every place.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::Line, Self::Timer, Self::Ended].into_iter().chain((0..=SHARED_LANES).map(Self::Lane))
    }

    /// Whether a consumer sees the records there.
    #[must_use]
    pub fn is_in_line(self) -> bool {
        matches!(self, Self::Line | Self::Lane(_))
    }

    /// A client's records there.
    #[must_use]
    pub fn of_client(self, queue: &QueueName, client: &ClientId) -> String {
        format!("relay.{self}.{queue}.{client}.*")
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line => f.pad("jobs"),
            Self::Lane(number) => write!(f, "lane-{number}"),
            Self::Timer => f.pad("timer"),
            Self::Ended => f.pad("ended"),
        }
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(token: &str) -> Result<Self, ()> {
        match token {
            "jobs" => Ok(Self::Line),
            "timer" => Ok(Self::Timer),
            "ended" => Ok(Self::Ended),
            _ => match token.strip_prefix("lane-").and_then(|number| number.parse().ok()) {
                Some(number @ 0..=SHARED_LANES) => Ok(Self::Lane(number)),
                _ => Err(()),
            },
        }
    }
}

/// One job's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The queue.
    pub queue: QueueName,
    /// The client that owns the job.
    pub client: ClientId,
    /// The job's id.
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

    /// The lane of the record, if it is in line in `place`.
    #[must_use]
    pub fn lane(&self, place: Place) -> Option<Lane> {
        match place {
            Place::Line => Some(Lane::Own(self.client.clone())),
            Place::Lane(number) => Some(Lane::Shared(number)),
            Place::Timer | Place::Ended => None,
        }
    }

    /// The subject that covers the record in every place: each condition on the job names it.
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
        let place = tokens.next()?.parse().ok()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_in_line_is_seen_by_the_consumer_of_its_lane_alone() {
        let queue = "mail".parse().unwrap();
        let clients = ["me", "lane", "lane-1"].map(|name| name.parse::<ClientId>().unwrap());
        let lanes: Vec<_> =
            (clients.iter().cloned().map(Lane::Own)).chain((0..=SHARED_LANES).map(Lane::Shared)).collect();
        for client in &clients {
            let address = Address::new(&queue, client, JobId::mint());
            for place in Place::all() {
                let subject = address.at(place);
                assert_eq!(Address::parse(&subject), Some((place, address.clone())));
                let seen: Vec<_> = lanes.iter().filter(|lane| covers(&lane.filter(&queue), &subject)).collect();
                assert_eq!(seen, address.lane(place).iter().collect::<Vec<_>>(), "{subject}");
            }
        }
        for lane in lanes {
            assert_eq!(lane.to_string().parse(), Ok(lane));
        }
    }

    #[test]
    fn a_letter_and_its_mark_are_read_as_they_were_written_also_one_of_before() {
        let address = Address::new(&"mail_out".parse().unwrap(), &"acme-1".parse().unwrap(), JobId::mint());
        let run = RunId::mint(relay_bridge::contract::Timestamp::from_millis(1_700_000_000_000), None);
        for (kind, at) in [
            (LetterKind::Kept(7), 7),
            (LetterKind::Undated, 1_700_000_000_000),
            (LetterKind::Redriven, 1_700_000_000_000),
        ] {
            let letter = Letter { address: address.clone(), run, kind };
            let subject = letter.subject();
            assert_eq!(Letter::parse(&subject), Some(letter.clone()));
            assert_eq!((letter.rank(), letter.is_mark()), ((at, run), kind == LetterKind::Redriven));
            for filter in [Letter::of_run(address.job, run), Letter::in_queue(&address.queue)] {
                assert!(covers(&filter, &subject), "{filter} {subject}");
            }
        }
        assert_eq!(Letter::parse(&format!("relay.dead.{}.{run}.mail.acme_x", address.job)), None);
    }

    fn covers(filter: &str, subject: &str) -> bool {
        let (filter, subject): (Vec<_>, Vec<_>) = (filter.split('.').collect(), subject.split('.').collect());
        filter.len() == subject.len() && filter.iter().zip(&subject).all(|(want, has)| *want == "*" || want == has)
    }
}
