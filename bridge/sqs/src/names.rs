//! Keys of items in the table, partitions of its indexes, and names of queues in SQS.

use crate::config::SqsConfig;
use crate::limits::{FIFO, QUEUE_MAX};
use relay_bridge::contract::{ClientId, JobId, QueueName, RunId, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// The key of an item: its partition, and its place in the partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) pk: String,
    pub(crate) sk: String,
}

fn key(pk: impl Into<String>, sk: impl Into<String>) -> Key {
    Key { pk: pk.into(), sk: sk.into() }
}

/// The partition of everything about one job.
pub(crate) fn job_partition(job: JobId) -> String {
    format!("job#{job}")
}

/// A job's record.
pub(crate) fn record(job: JobId) -> Key {
    key(job_partition(job), "record")
}

/// A payload that is too large for the record; `run` is the run that brought it.
pub(crate) fn payload(job: JobId, run: RunId) -> Key {
    key(job_partition(job), format!("payload#{run}"))
}

/// A result that is too large for the record. `by` names the call that brought the result, so that no other call
/// overwrites a result that a record names.
pub(crate) fn result(job: JobId, run: RunId, by: &str) -> Key {
    key(job_partition(job), format!("result#{run}#{by}"))
}

/// The start of the places of dead letters.
pub(crate) const DEAD: &str = "dead#";

/// The dead letter of a run.
pub(crate) fn dead_letter(job: JobId, run: RunId) -> Key {
    key(job_partition(job), format!("{DEAD}{run}"))
}

/// The partition of a client's log.
pub(crate) fn log_partition(client: &ClientId) -> String {
    format!("log#{client}")
}

/// The number of the log's last page.
pub(crate) fn log_head(client: &ClientId) -> Key {
    key(log_partition(client), "head")
}

/// A page of the log. Places sort as the numbers do.
pub(crate) fn log_page(client: &ClientId, number: u64) -> Key {
    key(log_partition(client), page_place(number))
}

/// The place of page `number` in its log.
pub(crate) fn page_place(number: u64) -> String {
    format!("page#{number:020}")
}

/// The partition of all policies.
pub(crate) const POLICIES: &str = "policy";

/// A queue's policy.
pub(crate) fn policy(queue: &QueueName) -> Key {
    key(POLICIES, queue.as_str())
}

/// The facts about the table itself.
pub(crate) fn meta() -> Key {
    key("meta", "meta")
}

/// How far a client's results were sent to a queue of its own, and the process that sends them.
pub(crate) fn forward(client: &ClientId) -> Key {
    key("forward", client.as_str())
}

/// The partition of the reply queues that are in use.
pub(crate) const REPLIES: &str = "replies";

/// A reply queue that is in use.
pub(crate) fn reply(name: &str) -> Key {
    key(REPLIES, name)
}

/// The text behind the prefix in the names of reply queues in SQS. No queue of relay has a name that begins like this.
pub(crate) const REPLY: &str = "_reply_";

/// The name of a reply queue in SQS.
pub(crate) fn reply_queue(config: &SqsConfig, name: &str) -> String {
    format!("{}{REPLY}{name}", config.queue_prefix)
}

/// The number of a client's jobs that wait in a queue, for a client whose bound is counted.
pub(crate) fn queued(queue: &QueueName, client: &ClientId) -> Key {
    key(format!("queued#{queue}"), client.as_str())
}

/// The number of a queue's messages in line for which no job waits.
pub(crate) fn spares(queue: &QueueName) -> Key {
    key("spares", queue.as_str())
}

/// The attempts of a queue that ended, and their pace.
pub(crate) fn attempts(queue: &QueueName) -> Key {
    key("attempts", queue.as_str())
}

/// The leases of a client's jobs that hold a slot in a queue.
pub(crate) fn slots(queue: &QueueName, client: &ClientId) -> Key {
    key(format!("slots#{queue}"), client.as_str())
}

/// The number of partitions of a queue's open records in the index by time. Clients are spread over four, and each of
/// these is split in two by job, so that no partition takes all of a queue's writes.
pub(crate) const SHARDS: u8 = 8;

/// The shards in which a client's open records are.
pub(crate) fn shards_of(client: &ClientId) -> [u8; 2] {
    let half = blake3::hash(client.as_str().as_bytes()).as_bytes()[0] % (SHARDS / 2);
    [half * 2, half * 2 + 1]
}

/// The partition of an open record in the index by time.
pub(crate) fn open_partition(queue: &QueueName, client: &ClientId, job: JobId) -> String {
    open_shard(queue, shards_of(client)[usize::from(job.as_bytes()[15] & 1)])
}

/// One shard of a queue's open records.
pub(crate) fn open_shard(queue: &QueueName, shard: u8) -> String {
    format!("open#{queue}#{shard}")
}

/// The partition of a queue's dead letters in the index by time.
pub(crate) fn dead_partition(queue: &QueueName) -> String {
    format!("dead#{queue}")
}

/// The place of a dead letter in that partition. It begins with the time at which the letter was kept, in the form in
/// which the text of a run tells when the run began: in the release before this one, the run was the place.
pub(crate) fn dead_place(at: Timestamp, run: RunId) -> String {
    let millis = at.as_millis().max(0);
    format!("{:08x}-{:04x}-{run}", millis >> 16, millis & 0xffff)
}

/// Whether a text is the place of a dead letter, of this release or the one before.
pub(crate) fn is_dead_place(text: &str) -> bool {
    let run = |text: &str| text.parse::<RunId>().is_ok();
    run(text) || text.get(..14).is_some_and(|at| at.ends_with('-')) && text.get(14..).is_some_and(run)
}

/// A moment as text that sorts as moments do.
pub(crate) fn moment(at: Timestamp) -> String {
    format!("{:015}", at.as_millis().max(0))
}

/// The number of partitions of a client's records in the index by client.
pub(crate) const CLIENT_SHARDS: u8 = 4;

/// The partition of a record in the index by client.
pub(crate) fn client_partition(client: &ClientId, job: JobId) -> String {
    client_shard(client, job.as_bytes()[15] % CLIENT_SHARDS)
}

/// One shard of a client's records.
pub(crate) fn client_shard(client: &ClientId, shard: u8) -> String {
    format!("{client}#{shard}")
}

/// The place of a record among those of its client: ordered by acceptance, and unique.
pub(crate) fn client_place(accepted: Timestamp, job: JobId) -> String {
    format!("{}#{job}", moment(accepted))
}

/// The job in a place of the index by client.
pub(crate) fn job_of_place(place: &str) -> Option<JobId> {
    place.split_once('#').and_then(|(_, job)| job.parse().ok())
}

/// Whether two places of the index by client are of one moment.
pub(crate) fn is_of_one_moment(place: &str, other: &str) -> bool {
    place.split_once('#').map(|(moment, _)| moment) == other.split_once('#').map(|(moment, _)| moment)
}

/// A position in the index by client that names no job: an id that only says the moment of `place`. No job has such an
/// id, because those that are minted are random but for their time.
pub(crate) fn position(place: &str) -> Option<JobId> {
    let millis: u64 = place.split_once('#')?.0.parse().ok()?;
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    (bytes[6], bytes[8]) = (0x70, 0x80);
    Some(JobId::from_bytes(bytes))
}

/// The place from which a list goes on at a [`position`]: everything of its moment and before is still to come. `None` if
/// the id is a job's.
pub(crate) fn place_of_position(id: JobId) -> Option<String> {
    let (moment, rest) = id.as_bytes().split_at(6);
    if *rest != [0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, 0] {
        return None;
    }
    let millis = moment.iter().fold(0, |millis, byte| millis << 8 | i64::from(*byte));
    Some(client_place(Timestamp::from_millis(millis), JobId::from_bytes([0xff; 16])))
}

/// The job in the partition of its items.
pub(crate) fn job_of_partition(pk: &str) -> Option<JobId> {
    pk.strip_prefix("job#").and_then(|job| job.parse().ok())
}

/// The name of `queue` in SQS.
///
/// # Errors
/// `Invalid` if the name is longer than SQS takes.
pub(crate) fn sqs_queue(config: &SqsConfig, queue: &QueueName, operation: &'static str) -> Result<String, BrokerError> {
    let name = format!("{}{queue}{}", config.queue_prefix, if config.fifo { FIFO } else { "" });
    if name.len() <= QUEUE_MAX {
        return Ok(name);
    }
    let why =
        format!("`{name}` has more than the {QUEUE_MAX} characters of a name in SQS: shorten the prefix or the queue");
    Err(BrokerError::new(BrokerErrorKind::Invalid, operation, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_moments_sort_as_numbers_do() {
        assert!(page_place(9) < page_place(10) && page_place(10) < page_place(u64::MAX));
        assert!(moment(Timestamp::from_millis(999)) < moment(Timestamp::from_millis(1_000)));
        assert!(moment(Timestamp::from_millis(1)) < moment(Timestamp::MAX));
    }

    #[test]
    fn a_position_names_a_moment_and_no_job() {
        let (at, job) = (Timestamp::from_millis(1_763_865_086_007), JobId::mint());
        let place = client_place(at, job);
        let position = position(&place).unwrap();
        assert_eq!(position.to_string().parse::<JobId>().unwrap(), position);
        let next = place_of_position(position).unwrap();
        assert!(is_of_one_moment(&next, &place) && place < next);
        assert!(next < client_place(Timestamp::from_millis(at.as_millis() + 1), JobId::from_bytes([0; 16])));
        assert_eq!(place_of_position(job), None);
    }

    #[test]
    fn a_clients_open_records_are_in_its_own_shards_only() {
        let (queue, client): (QueueName, ClientId) = ("orders".parse().unwrap(), "shop".parse().unwrap());
        let own = shards_of(&client).map(|shard| open_shard(&queue, shard));
        for _ in 0..20 {
            assert!(own.contains(&open_partition(&queue, &client, JobId::mint())));
        }
    }

    #[test]
    fn a_name_that_sqs_does_not_take_is_refused_before_the_call() {
        let queue = "q".repeat(63).parse().unwrap();
        let config = SqsConfig { fifo: true, ..SqsConfig::default() };
        assert_eq!(sqs_queue(&config, &queue, "test").unwrap().len(), 74);
        let long = SqsConfig { queue_prefix: "relay-production-".to_owned(), ..config };
        assert_eq!(sqs_queue(&long, &queue, "test").unwrap_err().kind(), BrokerErrorKind::Invalid);
    }
}
