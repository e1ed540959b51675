//! Everything that holds for a queue, a row each: its key, its kind, its flag, its meaning, and how the field of the policy is
//! read and set. Which queues have which is in the file only; flags change those of every queue.

use std::collections::BTreeSet;
use std::str::FromStr;

use relay_bridge::policy::{ClientPolicy, QueuePolicy};

use super::kind::{Kind, NONE, Value};
use super::values::show_size;

/// A part of a queue's policy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PolicySetting {
    /// Its key within `[[queue]]`, `[queue_defaults]` and, where it may differ for single clients, `[[queue.client]]`.
    pub(crate) key: &'static str,
    /// The kind of its value.
    pub(crate) kind: Kind,
    /// The value that a new queue has.
    pub(crate) default: &'static str,
    /// The flag that sets it for every queue, without the dashes, if there is one.
    pub(crate) flag: Option<&'static str>,
    /// Its meaning.
    pub(crate) help: &'static str,
    field: Field,
}

/// The field that a row stands for: how it is read, and how it is set.
#[derive(Clone, Copy, Debug)]
enum Field {
    /// Of the queue.
    Queue(fn(&QueuePolicy) -> Value, fn(&mut QueuePolicy, &Value)),
    /// Of a client, or of all that are not named.
    Client(fn(&ClientPolicy) -> Value, fn(&mut ClientPolicy, &Value)),
}

impl PolicySetting {
    /// Whether single clients may have another value.
    pub(crate) fn is_per_client(&self) -> bool {
        matches!(self.field, Field::Client(..))
    }

    /// Its value for a queue, and for clients of the queue that are not named.
    pub(crate) fn get(&self, policy: &QueuePolicy) -> Value {
        match self.field {
            Field::Queue(get, _) => get(policy),
            Field::Client(get, _) => get(&policy.client_defaults),
        }
    }

    /// Its value for a client; `None` if it holds for a queue as a whole.
    pub(crate) fn get_for_client(&self, policy: &ClientPolicy) -> Option<Value> {
        if let Field::Client(get, _) = self.field { Some(get(policy)) } else { None }
    }

    /// Sets it for a queue.
    pub(crate) fn set(&self, policy: &mut QueuePolicy, value: &Value) {
        match self.field {
            Field::Queue(_, set) => set(policy, value),
            Field::Client(_, set) => set(&mut policy.client_defaults, value),
        }
    }

    /// Sets it for a client. What holds for a queue as a whole does nothing there.
    pub(crate) fn set_for_client(&self, policy: &mut ClientPolicy, value: &Value) {
        if let Field::Client(_, set) = self.field {
            set(policy, value);
        }
    }

    /// A value of it for people: sizes are rounded, and an empty list is everything.
    pub(crate) fn show(&self, value: &Value) -> String {
        match (self.kind, value) {
            (Kind::Size(_) | Kind::SizeOrNone, Value::Number(bytes)) => show_size(*bytes),
            (_, Value::List(texts)) if texts.is_empty() => "all".to_owned(),
            (_, Value::List(texts)) => texts.join(", "),
            (_, Value::Number(number)) if *number == u64::from(u32::MAX) => "no limit".to_owned(),
            _ => value.to_string(),
        }
    }

    /// With a flag of its own.
    const fn flag(self, flag: &'static str) -> Self {
        Self { flag: Some(flag), ..self }
    }
}

const fn queue(
    key: &'static str,
    kind: Kind,
    default: &'static str,
    get: fn(&QueuePolicy) -> Value,
    set: fn(&mut QueuePolicy, &Value),
    help: &'static str,
) -> PolicySetting {
    PolicySetting { key, kind, default, flag: None, help, field: Field::Queue(get, set) }
}

const fn client(
    key: &'static str,
    kind: Kind,
    default: &'static str,
    get: fn(&ClientPolicy) -> Value,
    set: fn(&mut ClientPolicy, &Value),
    help: &'static str,
) -> PolicySetting {
    PolicySetting { key, kind, default, flag: None, help, field: Field::Client(get, set) }
}

/// Every row, in the order of the reference.
pub(crate) const POLICY: &[PolicySetting] = &[
    queue(
        "max_attempts",
        Kind::Count(1, u32::MAX as u64),
        "10",
        |policy| Value::Number(policy.max_attempts.into()),
        |policy, value| policy.max_attempts = value.count(),
        "Handler starts per run before a job is dead-lettered as `exhausted`.",
    )
    .flag("max-attempts"),
    queue(
        "retry_base",
        Kind::Duration(1),
        "1s",
        |policy| Value::Duration(policy.retry.base),
        |policy, value| policy.retry.base = value.duration(),
        "The longest wait before the second attempt; it grows with each one.",
    )
    .flag("retry-base"),
    queue(
        "retry_factor",
        Kind::Factor(1, 10),
        "2",
        |policy| Value::Factor(policy.retry.factor),
        |policy, value| policy.retry.factor = value.factor(),
        "By how much that wait grows with each attempt.",
    ),
    queue(
        "retry_cap",
        Kind::Duration(1),
        "5m",
        |policy| Value::Duration(policy.retry.cap),
        |policy, value| policy.retry.cap = value.duration(),
        "The longest wait between two attempts.",
    )
    .flag("retry-cap"),
    queue(
        "lease",
        Kind::Duration(500),
        "30s",
        |policy| Value::Duration(policy.lease),
        |policy, value| policy.lease = value.duration(),
        "How long a worker holds a job without a heartbeat: how long a dead worker delays its jobs.",
    )
    .flag("lease"),
    queue(
        "lease_max",
        Kind::Duration(500),
        "1h",
        |policy| Value::Duration(policy.lease_max),
        |policy, value| policy.lease_max = value.duration(),
        "How long a worker holds a job in all.",
    ),
    queue(
        "job_ttl",
        Kind::Duration(1_000),
        "6h",
        |policy| Value::Duration(policy.job_ttl),
        |policy, value| policy.job_ttl = value.duration(),
        "The longest a run may take from acceptance to its outcome.",
    )
    .flag("job-ttl"),
    queue(
        "retention",
        Kind::Duration(0),
        "1d",
        |policy| Value::Duration(policy.retention),
        |policy, value| policy.retention = value.duration(),
        "How long after completion results are kept and keys replay.",
    )
    .flag("retention"),
    queue(
        "dead_retention",
        Kind::Duration(0),
        "14d",
        |policy| Value::Duration(policy.dead_retention),
        |policy, value| policy.dead_retention = value.duration(),
        "How long a dead letter is kept.",
    ),
    queue(
        "keep_keyless",
        Kind::Flag,
        "false",
        |policy| Value::Flag(policy.keep_keyless),
        |policy, value| policy.keep_keyless = value.is_true(),
        "Keep payload and record of jobs without a key after their result, so that they can be rerun.",
    )
    .flag("keep-keyless"),
    queue(
        "fair",
        Kind::Flag,
        "true",
        |policy| Value::Flag(policy.fair),
        |policy, value| policy.fair = value.is_true(),
        "Clients have turns; `false` puts all jobs into one line, which a scaler can read (NATS).",
    ),
    queue(
        "payload_max",
        Kind::Size(0),
        "256KiB",
        |policy| Value::Number(policy.payload_max),
        |policy, value| policy.payload_max = value.number(),
        "The largest payload; more than the broker takes is refused at the start.",
    )
    .flag("payload-max"),
    queue(
        "result_max",
        Kind::Size(0),
        "256KiB",
        |policy| Value::Number(policy.result_max),
        |policy, value| policy.result_max = value.number(),
        "The largest result; a larger one fails its job.",
    )
    .flag("result-max"),
    queue(
        "content_types",
        Kind::ContentTypes,
        "[\"*/*\"]",
        |policy| texts(&policy.content_types),
        |policy, value| policy.content_types = parsed(value.texts()),
        "The content types of payloads that are taken, `text/*` for all of a kind; others are answered \
         `unsupported-media-type`.",
    ),
    queue(
        "allowed_clients",
        Kind::Clients,
        "[\"*\"]",
        |policy| texts(&policy.allowed_clients),
        |policy, value| policy.allowed_clients = parsed(value.texts()),
        "The clients that may submit; others are answered `forbidden`. Reading and cancelling are not bound by it.",
    ),
    client(
        "weight",
        Kind::Count(1, 1_000),
        "1",
        |policy| Value::Number(policy.weight.into()),
        |policy, value| policy.weight = value.count(),
        "A client's share of the workers among the clients that have work.",
    ),
    client(
        "max_queued",
        Kind::Count(1, u64::MAX),
        "1000000",
        |policy| Value::Number(policy.max_queued),
        |policy, value| policy.max_queued = value.number(),
        "Jobs of one client that may wait at once; more are answered `quota-exceeded`.",
    ),
    client(
        "max_running",
        Kind::Count(1, u32::MAX as u64),
        "4294967295",
        |policy| Value::Number(policy.max_running.into()),
        |policy, value| policy.max_running = value.count(),
        "Jobs of one client that may be leased at once.",
    ),
    client(
        "rate",
        Kind::Rate,
        "none",
        |policy| Value::Text(policy.rate.map_or_else(|| NONE.to_owned(), |rate| rate.to_string())),
        // The kind has refused everything else that is no rate but `none`.
        |policy, value| policy.rate = value.to_string().parse().ok(),
        "How fast one client may submit to each server: `100/s`, `6000/min`, `5000/h`, `100000/d`; beyond it submissions are \
         answered `rate-limited`.",
    ),
    client(
        "burst",
        Kind::Count(1, u32::MAX as u64),
        "100",
        |policy| Value::Number(policy.burst.into()),
        |policy, value| policy.burst = value.count(),
        "Submissions that may come at once before `rate` holds.",
    ),
    client(
        "max_stored",
        Kind::SizeOrNone,
        "none",
        |policy| policy.max_stored.map_or_else(|| Value::Text(NONE.to_owned()), Value::Number),
        |policy, value| policy.max_stored = if let Value::Number(bytes) = value { Some(*bytes) } else { None },
        "Bytes of payloads and results of one client that may be kept in the queue; beyond it submissions are answered \
         `quota-exceeded` (embedded store).",
    ),
];

/// The row of a key.
pub(crate) fn row(key: &str) -> Option<&'static PolicySetting> {
    POLICY.iter().find(|setting| setting.key == key)
}

fn texts<T: ToString>(set: &BTreeSet<T>) -> Value {
    Value::List(set.iter().map(ToString::to_string).collect())
}

/// The kind has refused what can't be parsed.
fn parsed<T: FromStr + Ord>(texts: &[String]) -> BTreeSet<T> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use toml::de::DeTable;

    use super::*;

    #[test]
    fn every_row_changes_the_policy_and_its_default_is_the_one_of_new_queues() {
        for setting in POLICY {
            let value = |text: &str| {
                let text = format!("key = {text}");
                let table = DeTable::parse(&text).unwrap();
                setting.kind.read(table.get_ref()["key"].get_ref()).unwrap()
            };
            let with = |text: &str| {
                let mut policy = QueuePolicy::default();
                setting.set(&mut policy, &value(text));
                assert_eq!(setting.get(&policy), value(text), "{}", setting.key);
                policy
            };
            let quoted = |text: &str| match setting.kind {
                Kind::Duration(_) | Kind::Size(_) | Kind::SizeOrNone | Kind::Rate => format!("\"{text}\""),
                _ => text.to_owned(),
            };
            assert_eq!(with(&quoted(setting.default)), QueuePolicy::default(), "{}", setting.key);
            let other = match setting.default {
                "false" => "true",
                "true" => "false",
                "none" if setting.kind == Kind::SizeOrNone => "7KiB",
                "none" => "7/h",
                "[\"*\"]" => "[\"shop\"]",
                "[\"*/*\"]" => "[\"text/*\"]",
                text if text.ends_with(|c: char| c.is_ascii_digit()) => "7",
                text if text.ends_with("iB") => "7KiB",
                _ => "7h",
            };
            assert_ne!(with(&quoted(other)), QueuePolicy::default(), "{}", setting.key);
        }
    }
}
