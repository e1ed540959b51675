//! The streams that relay needs on JetStream, as values, and how a stream that exists differs from what is needed.
//!
//! A queue has a stream of its own; results, dead letters and states have one each. Nothing but age, replacement and
//! relay itself ever removes a message: no stream has a size limit, because a full one would drop jobs that were
//! accepted.

use std::collections::HashMap;
use std::num::NonZeroU8;
use std::time::Duration;

use async_nats::jetstream::stream::{
    Compression, Config, DiscardPolicy, PersistenceMode, Placement, Republish, RetentionPolicy, StorageType,
};

use crate::stored::names::{self};
use relay_bridge::contract::QueueName;
use relay_bridge::policy::QueuePolicy;

/// A subject that every stream of jobs covers, and no other stream.
pub(crate) const ALL_JOBS: &str = "relay.jobs.>";
const RESULTS_SUBJECTS: &str = "relay.results-log.>";
const ERASED_SUBJECTS: &str = "relay.erased.>";
const REPLY_DESTINATION: &str = "relay.reply.>";
const STATE_SUBJECTS: &str = "relay.state.>";
/// An addition to the age at which a stream removes a message, so that a message's own time always comes first.
const AGE_ALLOWANCE: Duration = Duration::from_secs(3_600);
/// The most consumers of one stream. Explicit, because a server of 2.15 takes no more than 1,000 otherwise:
/// <https://docs.nats.io/running-a-nats-service/configuration/resource_management>
const CONSUMERS_MAX: i32 = 10_000;
/// How long a job's state is kept after its worker's last report.
const STATE_AGE: Duration = Duration::from_secs(3_600);

/// How relay's streams are kept: settings that a person writes, once for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSettings {
    /// Copies of each message, 1 to 5; 1 outside a cluster. Default 1.
    pub replicas: NonZeroU8,
    /// Whether messages are kept in memory only. For trials: a restart of the server forgets them. Default `false`.
    pub memory: bool,
    /// Whether the server compresses stored blocks (S2). Default `false`.
    pub compression: bool,
    /// The cluster to place streams in; `None` leaves it to the server.
    pub placement_cluster: Option<String>,
    /// Tags that servers which hold the streams must have.
    pub placement_tags: Vec<String>,
    /// Bytes that the streams of jobs may have together before new jobs are refused at 90 % of it; `None`: as far as
    /// the account's storage goes.
    pub jobs_bytes_max: Option<u64>,
    /// The same for results and dead letters.
    pub results_bytes_max: Option<u64>,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self {
            replicas: NonZeroU8::MIN,
            memory: false,
            compression: false,
            placement_cluster: None,
            placement_tags: Vec::new(),
            jobs_bytes_max: None,
            results_bytes_max: None,
        }
    }
}

impl StreamSettings {
    /// The stream of `queue`: each job's record, which is its place in line too, and its timer.
    pub(crate) fn jobs(&self, queue: &QueueName, policy: &QueuePolicy) -> Config {
        Config {
            name: names::jobs_stream(queue),
            description: Some(format!("relay: jobs of queue {queue}")),
            subjects: names::jobs_stream_subjects(queue),
            max_consumers: CONSUMERS_MAX,
            // Every record has a time of its own to go; this bounds messages that were given none.
            max_age: policy.job_ttl.saturating_add(policy.retention).saturating_add(AGE_ALLOWANCE),
            allow_message_schedules: true,
            ..self.common()
        }
    }

    /// The one stream of results, announced on the clients' reply subjects.
    pub(crate) fn results(&self) -> Config {
        Config {
            name: names::RESULTS_STREAM.to_owned(),
            description: Some("relay: the one result of each run".to_owned()),
            subjects: vec![RESULTS_SUBJECTS.to_owned(), ERASED_SUBJECTS.to_owned()],
            republish: Some(Republish {
                source: RESULTS_SUBJECTS.to_owned(),
                destination: REPLY_DESTINATION.to_owned(),
                headers_only: false,
            }),
            ..self.common()
        }
    }

    /// The one stream of dead letters.
    pub(crate) fn dead_letters(&self) -> Config {
        Config {
            name: names::DEAD_STREAM.to_owned(),
            description: Some("relay: jobs that ended badly".to_owned()),
            subjects: vec![names::Letter::ALL.to_owned()],
            ..self.common()
        }
    }

    /// The one stream of states: which attempt of a job runs, and since when. It is not in memory, although workers
    /// repeat their reports: a server that restarts alone forgets such a stream altogether, and a process that may
    /// create it need not be there.
    pub(crate) fn states(&self) -> Config {
        Config {
            name: names::STATE_STREAM.to_owned(),
            description: Some("relay: what runs, as workers last said".to_owned()),
            subjects: vec![STATE_SUBJECTS.to_owned()],
            max_age: STATE_AGE,
            ..self.common()
        }
    }

    /// The streams that all queues share.
    pub(crate) fn shared(&self) -> [Config; 3] {
        [self.results(), self.dead_letters(), self.states()]
    }

    fn common(&self) -> Config {
        let placed = self.placement_cluster.is_some() || !self.placement_tags.is_empty();
        Config {
            retention: RetentionPolicy::Limits,
            // Schedules are refused together with `discard: new`; without a size limit nothing is discarded.
            discard: DiscardPolicy::Old,
            max_bytes: -1,
            max_messages: -1,
            max_messages_per_subject: 1,
            max_consumers: 1_000,
            storage: if self.memory { StorageType::Memory } else { StorageType::File },
            num_replicas: usize::from(self.replicas.get()),
            compression: Some(if self.compression && !self.memory { Compression::S2 } else { Compression::None }),
            placement: placed
                .then(|| Placement { cluster: self.placement_cluster.clone(), tags: self.placement_tags.clone() }),
            allow_direct: true,
            allow_message_ttl: true,
            metadata: HashMap::new(),
            ..Config::default()
        }
    }
}

/// One thing in which a stream is not as relay needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// The setting, the value that was found, and the value that is wanted.
    pub(crate) what: String,
    /// Whether relay can't keep its promises on the stream as it is. A difference that is only wanted is not needed.
    pub(crate) needed: bool,
    /// Whether the change can take away something that somebody relies on.
    pub(crate) destructive: bool,
    /// Whether the server can't make this change to a stream that exists.
    pub(crate) impossible: bool,
}

/// The differences that are mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mend {
    /// Those without which relay can't keep its promises, as `serve` mends them.
    Needed,
    /// All of them, as `provision` mends them.
    All,
}

/// The configuration `found` changed to what `wanted` needs, and the differences. Settings of `found` that go beyond it
/// stay: more subjects, a greater age, more consumers, metadata of others.
pub(crate) fn reconcile(found: &Config, wanted: &Config, mend: Mend) -> (Config, Vec<Difference>) {
    let (mut next, mut differences) = compare(found, wanted);
    if mend == Mend::Needed {
        differences.retain(|difference| difference.needed);
        next = Config {
            storage: found.storage,
            num_replicas: found.num_replicas.max(wanted.num_replicas),
            max_consumers: found.max_consumers,
            compression: found.compression.clone(),
            placement: found.placement.clone(),
            ..next
        };
    }
    (next, differences)
}

fn compare(found: &Config, wanted: &Config) -> (Config, Vec<Difference>) {
    let mut next = found.clone();
    let mut differences = Vec::new();
    let mut note = |what: String, needed: bool, destructive: bool, impossible: bool| {
        differences.push(Difference { what, needed, destructive, impossible });
    };
    let is_there = |subject: &String| found.subjects.iter().any(|wider| covers(wider, subject));
    let missing: Vec<_> = wanted.subjects.iter().filter(|subject| !is_there(subject)).collect();
    if !missing.is_empty() {
        note(format!("subjects: add {missing:?}"), true, false, false);
        next.subjects.extend(missing.into_iter().cloned());
    }
    if found.storage != wanted.storage {
        let what = format!("storage: {:?} -> {:?}", found.storage, wanted.storage).to_lowercase();
        note(what, false, true, true);
    }
    if found.retention != wanted.retention {
        note(format!("retention: {:?} -> {:?}", found.retention, wanted.retention).to_lowercase(), true, true, true);
    }
    if found.num_replicas != wanted.num_replicas {
        let fewer = wanted.num_replicas < found.num_replicas;
        note(format!("replicas: {} -> {}", found.num_replicas, wanted.num_replicas), !fewer, fewer, false);
        next.num_replicas = wanted.num_replicas;
    }
    if found.max_age != Duration::ZERO && (wanted.max_age == Duration::ZERO || found.max_age < wanted.max_age) {
        let word = if wanted.max_age.is_zero() { "none".to_owned() } else { seconds(wanted.max_age) };
        note(format!("max_age: {} -> {word}", seconds(found.max_age)), true, false, false);
        next.max_age = wanted.max_age;
    }
    if found.max_consumers < wanted.max_consumers {
        note(format!("max_consumers: {} -> {}", found.max_consumers, wanted.max_consumers), false, false, false);
        next.max_consumers = wanted.max_consumers;
    }
    if found.max_messages_per_subject != wanted.max_messages_per_subject {
        let (from, to) = (found.max_messages_per_subject, wanted.max_messages_per_subject);
        note(format!("max_msgs_per_subject: {from} -> {to}"), true, false, false);
        next.max_messages_per_subject = to;
    }
    for (name, from, to) in
        [("max_bytes", found.max_bytes, &mut next.max_bytes), ("max_msgs", found.max_messages, &mut next.max_messages)]
    {
        if from > 0 {
            note(format!("{name}: {from} -> none, because a full stream would drop accepted jobs"), true, false, false);
            *to = -1;
        }
    }
    if found.max_message_size > 0 {
        note(format!("max_msg_size: {} -> none", found.max_message_size), true, false, false);
        next.max_message_size = -1;
    }
    if found.discard != wanted.discard {
        note(format!("discard: {:?} -> {:?}", found.discard, wanted.discard).to_lowercase(), true, false, false);
        next.discard = wanted.discard;
        // The server takes no other configuration with the one than with the other.
        next.discard_new_per_subject = false;
    }
    if let Some(kept) = found.subject_delete_marker_ttl.filter(|kept| !kept.is_zero()) {
        let why = "because a marker would be in line as a job that nobody can read";
        note(format!("subject_delete_marker_ttl: {} -> none, {why}", seconds(kept)), true, false, false);
        next.subject_delete_marker_ttl = None;
    }
    for (name, from, wanted, to) in [
        ("allow_direct", found.allow_direct, wanted.allow_direct, &mut next.allow_direct),
        ("allow_msg_ttl", found.allow_message_ttl, wanted.allow_message_ttl, &mut next.allow_message_ttl),
        (
            "allow_msg_schedules",
            found.allow_message_schedules,
            wanted.allow_message_schedules,
            &mut next.allow_message_schedules,
        ),
    ] {
        if wanted && !from {
            note(format!("{name}: false -> true"), true, false, false);
            *to = true;
        }
    }
    if wanted.republish.is_some() && found.republish != wanted.republish {
        note("republish: announce each stored message".to_owned(), true, false, false);
        next.republish.clone_from(&wanted.republish);
    }
    if compressed(found) != compressed(wanted) {
        let word = |on| if on { "s2" } else { "none" };
        note(format!("compression: {} -> {}", word(compressed(found)), word(compressed(wanted))), false, false, false);
        next.compression.clone_from(&wanted.compression);
    }
    if wanted.placement.is_some() && found.placement != wanted.placement {
        note(format!("placement: {:?} -> {:?}", found.placement, wanted.placement), false, false, false);
        next.placement.clone_from(&wanted.placement);
    }
    if found.subject_transform.is_some() {
        note("subject_transform: none, because records would be under other subjects".to_owned(), true, false, false);
        next.subject_transform = None;
    }
    if found.consumer_limits.is_some() {
        note("consumer_limits: none, because a client's consumer may need more".to_owned(), true, false, false);
        next.consumer_limits = None;
    }
    if found.persist_mode == Some(PersistenceMode::Async) {
        note(
            "persist_mode: async -> default, because answers came before the write was on disk".to_owned(),
            true,
            true,
            true,
        );
    }
    // Releases before this one removed letters by purging their subjects; elsewhere nothing was ever purged.
    let deny_purge = found.deny_purge && wanted.name == names::DEAD_STREAM;
    for (name, set) in [
        ("sealed", found.sealed),
        ("deny_delete", found.deny_delete),
        ("deny_purge", deny_purge),
        ("no_ack", found.no_ack),
    ] {
        if set {
            note(format!("{name}: true -> false"), true, true, true);
        }
    }
    (next, differences)
}

/// Whether `wider` covers every subject that `subject` covers; both may have `*`, and a last `>`.
fn covers(wider: &str, subject: &str) -> bool {
    let mut parts = subject.split('.');
    for word in wider.split('.') {
        match (word, parts.next()) {
            (">", Some(_)) => return true,
            ("*", Some(part)) if part != ">" => {}
            (word, Some(part)) if word == part => {}
            _ => return false,
        }
    }
    parts.next().is_none()
}

fn compressed(config: &Config) -> bool {
    matches!(config.compression, Some(Compression::S2))
}

fn seconds(age: Duration) -> String {
    format!("{} s", age.as_secs())
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::stream::{ConsumerLimits, SubjectTransform};

    use super::*;

    fn wanted() -> Config {
        StreamSettings::default().jobs(&"work".parse().unwrap(), &QueuePolicy::default())
    }

    #[test]
    fn a_stream_as_it_was_created_needs_nothing() {
        assert_eq!(reconcile(&wanted(), &wanted(), Mend::All), (wanted(), Vec::new()));
    }

    #[test]
    fn what_a_stream_has_beyond_the_need_stays() {
        let mut found = wanted();
        found.subjects.push("audit.>".to_owned());
        found.max_age = Duration::ZERO;
        found.max_consumers = 50_000;
        found.metadata.insert("team".to_owned(), "payments".to_owned());
        found.allow_batch_publish = true;
        assert_eq!(reconcile(&found, &wanted(), Mend::All), (found, Vec::new()));
    }

    #[test]
    fn what_would_break_a_promise_is_needed_and_mended() {
        type Break = fn(&mut Config);
        const LIMITS: ConsumerLimits = ConsumerLimits { inactive_threshold: Duration::ZERO, max_ack_pending: 10 };
        let breaks: [Break; 12] = [
            |config| config.subject_delete_marker_ttl = Some(Duration::from_secs(60)),
            |config| (config.discard, config.discard_new_per_subject) = (DiscardPolicy::New, true),
            |config| config.consumer_limits = Some(LIMITS),
            |config| {
                config.subject_transform = Some(SubjectTransform { source: ">".into(), destination: "x.>".into() })
            },
            |config| config.max_messages_per_subject = -1,
            |config| config.max_bytes = 1_000_000,
            |config| config.max_messages = 10,
            |config| config.discard = DiscardPolicy::New,
            |config| config.allow_direct = false,
            |config| config.allow_message_ttl = false,
            |config| config.max_age = Duration::from_secs(60),
            |config| drop(config.subjects.pop()),
        ];
        for (number, spoil) in breaks.into_iter().enumerate() {
            let mut found = wanted();
            spoil(&mut found);
            let (next, differences) = reconcile(&found, &wanted(), Mend::All);
            assert!(differences.len() == 1 && differences[0].needed, "break {number}: {differences:?}");
            assert_eq!(reconcile(&next, &wanted(), Mend::All).1, [], "break {number} was not mended");
        }
    }

    #[test]
    fn subjects_that_cover_the_needed_ones_are_enough() {
        let mut found = wanted();
        found.subjects = vec!["relay.>".to_owned()];
        assert_eq!(reconcile(&found, &wanted(), Mend::All), (found.clone(), Vec::new()));
        found.subjects = found.subjects.iter().map(|_| "relay.jobs.*".to_owned()).collect();
        assert!(reconcile(&found, &wanted(), Mend::All).1[0].needed);
        for (wider, subject, expected) in [
            ("a.*.c", "a.b.c", true),
            ("a.*.c", "a.*.c", true),
            ("a.>", "a.*.>", true),
            ("a.*", "a.>", false),
            ("a.*.c", "a.b", false),
            ("a.b", "a.*", false),
            ("a.>", "a", false),
        ] {
            assert_eq!(covers(wider, subject), expected, "{wider} {subject}");
        }
    }

    #[test]
    fn what_no_server_can_mend_and_would_break_a_promise_is_told() {
        let dead = || Config { name: names::DEAD_STREAM.to_owned(), ..wanted() };
        for (found, wanted, says) in [
            (Config { persist_mode: Some(PersistenceMode::Async), ..wanted() }, wanted(), "persist_mode"),
            (Config { sealed: true, ..wanted() }, wanted(), "sealed"),
            (Config { deny_purge: true, ..dead() }, dead(), "deny_purge"),
        ] {
            let differences = reconcile(&found, &wanted, Mend::Needed).1;
            assert!(differences.len() == 1 && differences[0].what.contains(says), "{differences:?}");
            assert!(differences[0].needed && differences[0].impossible);
        }
        let elsewhere = Config { deny_purge: true, ..wanted() };
        assert_eq!(reconcile(&elsewhere, &wanted(), Mend::All).1, [], "nothing is purged there");
    }

    #[test]
    fn fewer_replicas_and_another_storage_are_destructive() {
        let three = StreamSettings { replicas: NonZeroU8::new(3).unwrap(), ..StreamSettings::default() };
        let found = three.jobs(&"work".parse().unwrap(), &QueuePolicy::default());
        let (_, differences) = reconcile(&found, &wanted(), Mend::All);
        assert!(differences[0].destructive && !differences[0].impossible);
        let memory = StreamSettings { memory: true, ..StreamSettings::default() };
        let (_, differences) =
            reconcile(&memory.jobs(&"work".parse().unwrap(), &QueuePolicy::default()), &wanted(), Mend::All);
        assert!(differences[0].destructive && differences[0].impossible);
    }
}
