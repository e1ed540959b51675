//! The table of everything that can be set in a file. Help, defaults and variables of a setting that has a flag are the
//! flag's: there is one place for each.

use super::kind::Kind;

/// A setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its key: table and name, `listen.http`.
    pub key: &'static str,
    /// The kind of its value.
    pub kind: Kind,
    /// The flag that it stands for, without the dashes, of the command that [`Setting::command`] names.
    pub flag: &'static str,
}

impl Setting {
    /// Its table.
    #[must_use]
    pub fn table(&self) -> &'static str {
        self.key.split_once('.').map_or(self.key, |(table, _)| table)
    }

    /// The command whose flag it stands for: settings of a worker are `relay worker`'s, all others are `relay serve`'s.
    #[must_use]
    pub fn command(&self) -> &'static str {
        if self.table() == WORKER { "worker" } else { "serve" }
    }

    /// Whether it holds for `command`, which may have a flag of the same name for something else.
    #[must_use]
    pub fn is_for(&self, command: &str) -> bool {
        match self.table() {
            WORKER => command == "worker",
            "listen" | "store" | "access" | "streams" => command != "worker",
            _ => true,
        }
    }
}

/// The table of what a worker does.
const WORKER: &str = "worker";
/// The command behind `--`, which is no flag.
pub const COMMAND: &str = "worker.command";

const fn setting(key: &'static str, kind: Kind, flag: &'static str) -> Setting {
    Setting { key, kind, flag }
}

/// Every setting of a process, in the order of the reference.
pub const SETTINGS: &[Setting] = &[
    setting("listen.http", Kind::Address, "listen"),
    setting("listen.workers", Kind::Address, "worker-listen"),
    setting("listen.nats", Kind::List, "nats-listen"),
    setting("listen.nats_waits", Kind::Count(0, 100_000), "nats-waits"),
    setting("listen.nats_waits_per_client", Kind::Count(1, 100_000), "nats-waits-per-client"),
    setting("listen.followers", Kind::Count(0, 1_000_000), "followers"),
    setting("listen.follow_for", Kind::Duration(1_000), "follow-for"),
    setting("listen.ping_every", Kind::Duration(1_000), "ping-every"),
    setting("listen.idle", Kind::Duration(2_000), "idle"),
    setting("listen.drain", Kind::Duration(0), "drain"),
    setting("listen.drain_delay", Kind::Duration(0), "drain-delay"),
    setting("store.data", Kind::Path, "data"),
    setting("store.memory", Kind::Flag, "memory"),
    setting("access.keys", Kind::Path, "keys"),
    setting("access.no_auth", Kind::Flag, "no-auth"),
    setting("admin.listen", Kind::Address, "admin"),
    setting("admin.token_file", Kind::Path, "admin-token-file"),
    setting("nats.servers", Kind::List, "nats"),
    setting("nats.no_listen", Kind::Flag, "no-nats-listen"),
    setting("nats.creds", Kind::Path, "nats-creds"),
    setting("nats.nkey", Kind::Path, "nats-nkey"),
    setting("nats.user", Kind::Text, "nats-user"),
    setting("nats.password_file", Kind::Path, "nats-password-file"),
    setting("nats.token_file", Kind::Path, "nats-token-file"),
    setting("nats.tls", Kind::Flag, "nats-tls"),
    setting("nats.tls_first", Kind::Flag, "nats-tls-first"),
    setting("nats.ca", Kind::Path, "nats-ca"),
    setting("nats.cert", Kind::Path, "nats-cert"),
    setting("nats.key", Kind::Path, "nats-key"),
    setting("nats.inbox_prefix", Kind::Text, "nats-inbox-prefix"),
    setting("nats.domain", Kind::Text, "nats-domain"),
    setting("nats.ignore_discovered", Kind::Flag, "nats-ignore-discovered"),
    setting("nats.ping", Kind::Duration(1_000), "nats-ping"),
    setting("nats.timeout", Kind::Duration(100), "nats-timeout"),
    setting("nats.in_flight", Kind::Count(1, 8_192), "nats-in-flight"),
    setting("nats.sync_always", Kind::Flag, "nats-sync-always"),
    setting("sqs.enabled", Kind::Flag, "sqs"),
    setting("sqs.region", Kind::Text, "sqs-region"),
    setting("sqs.endpoint", Kind::Text, "sqs-endpoint"),
    setting("sqs.table", Kind::Text, "sqs-table"),
    setting("sqs.prefix", Kind::Text, "sqs-prefix"),
    setting("sqs.fifo", Kind::Flag, "sqs-fifo"),
    setting("sqs.forward", Kind::List, "sqs-forward"),
    setting("sqs.share", Kind::List, "sqs-share"),
    setting("streams.provision", Kind::Flag, "provision"),
    setting("streams.replicas", Kind::Count(1, 5), "nats-replicas"),
    setting("streams.storage", Kind::Choice(&["file", "memory"]), "nats-storage"),
    setting("streams.compression", Kind::Flag, "nats-compression"),
    setting("streams.placement_cluster", Kind::Text, "nats-placement-cluster"),
    setting("streams.placement_tags", Kind::List, "nats-placement-tag"),
    setting("streams.jobs_max", Kind::Size, "nats-jobs-max"),
    setting("streams.results_max", Kind::Size, "nats-results-max"),
    setting("worker.connect", Kind::Text, "connect"),
    setting("worker.key_file", Kind::Path, "key-file"),
    setting("worker.queues", Kind::WeightedQueues, "queue"),
    setting("worker.order", Kind::Choice(&["weighted", "strict"]), "order"),
    setting("worker.slots", Kind::Count(1, u32::MAX as u64), "slots"),
    setting("worker.id", Kind::Worker, "id"),
    setting("worker.drain", Kind::Duration(0), "drain"),
    setting(COMMAND, Kind::List, ""),
    setting("worker.http", Kind::Text, "http"),
    setting("worker.timeout", Kind::Duration(1), "timeout"),
    setting("telemetry.otlp_endpoint", Kind::Text, "otlp-endpoint"),
    setting("log.filter", Kind::Text, "log"),
    setting("log.format", Kind::Choice(&["text", "json"]), "log-format"),
];

/// The subjects of the tables, in the order of the reference.
pub const TABLES: &[(&str, &str)] = &[
    ("listen", "Where clients and workers connect, and how the process ends."),
    ("store", "Where jobs and results are kept, if not on NATS: one of the two."),
    ("access", "Access of callers: one of the two."),
    ("admin", "The port for operators. Its token may also be in `RELAY_ADMIN_TOKEN`."),
    (
        "nats",
        "NATS JetStream as the broker, or how relay connects to NATS to serve clients there. A password may also be in \
              `RELAY_NATS_PASSWORD`, a token in `RELAY_NATS_TOKEN`.",
    ),
    (
        "sqs",
        "SQS with DynamoDB as the broker. Credentials are those of the AWS tools: environment, profile, pod or machine.",
    ),
    ("streams", "The streams on NATS that relay creates."),
    (
        "worker",
        "The work of `relay worker --config FILE`. The worker takes its jobs from the server at `connect`, or from NATS or SQS itself where \
         `[nats]` or `[sqs]` says so. Beside it, `[admin]`, `[telemetry]` and `[log]` hold for a worker as well. Its key may also \
         be in `RELAY_WORKER_KEY`. The command is seen from where the worker was started.",
    ),
    (
        "telemetry",
        "Where spans of jobs go. The other variables of OpenTelemetry, such as `OTEL_TRACES_SAMPLER`, hold as everywhere.",
    ),
    ("log", "The log: its level and its form."),
];

/// A part of a queue's policy. Which queues have which is in the file only; flags change those of every queue.
#[derive(Clone, Copy, Debug)]
pub struct PolicySetting {
    /// Its key within `[[queue]]`, `[queue_defaults]` and, where `per_client`, `[[queue.client]]`.
    pub key: &'static str,
    /// The kind of its value.
    pub kind: Kind,
    /// The value that a new queue has.
    pub default: &'static str,
    /// The flag that sets it for every queue, without the dashes, if there is one.
    pub flag: Option<&'static str>,
    /// Whether single clients may have another value.
    pub per_client: bool,
    /// Its meaning.
    pub help: &'static str,
}

const fn policy(
    key: &'static str,
    kind: Kind,
    default: &'static str,
    flag: Option<&'static str>,
    help: &'static str,
) -> PolicySetting {
    PolicySetting { key, kind, default, flag, per_client: false, help }
}

const fn share(key: &'static str, kind: Kind, default: &'static str, help: &'static str) -> PolicySetting {
    PolicySetting { key, kind, default, flag: None, per_client: true, help }
}

/// Everything that holds for a queue.
pub const POLICY: &[PolicySetting] = &[
    policy(
        "max_attempts",
        Kind::Count(1, u32::MAX as u64),
        "10",
        Some("max-attempts"),
        "Handler starts per run before a job is dead-lettered as `exhausted`.",
    ),
    policy("retry_base", Kind::Duration(1), "1s", Some("retry-base"), "The longest wait before the second attempt."),
    policy("retry_factor", Kind::Factor(1, 10), "2", None, "By how much that wait grows with each attempt."),
    policy("retry_cap", Kind::Duration(1), "5m", Some("retry-cap"), "The longest wait between two attempts."),
    policy(
        "lease",
        Kind::Duration(500),
        "30s",
        Some("lease"),
        "How long a worker holds a job without a heartbeat: how long a dead worker delays its jobs.",
    ),
    policy("lease_max", Kind::Duration(500), "1h", None, "How long a worker holds a job in all."),
    policy(
        "job_ttl",
        Kind::Duration(1_000),
        "6h",
        Some("job-ttl"),
        "The longest a run may take from acceptance to its outcome.",
    ),
    policy(
        "retention",
        Kind::Duration(0),
        "1d",
        Some("retention"),
        "How long after completion results are kept and keys replay.",
    ),
    policy("dead_retention", Kind::Duration(0), "14d", None, "How long a dead letter is kept."),
    policy(
        "keep_keyless",
        Kind::Flag,
        "false",
        Some("keep-keyless"),
        "Keep payload and record of jobs without a key after their result, so that they can be rerun.",
    ),
    policy(
        "fair",
        Kind::Flag,
        "true",
        None,
        "Clients have turns; `false` puts all jobs into one line, which a scaler can read (NATS).",
    ),
    policy("payload_max", Kind::Size, "256KiB", Some("payload-max"), "The largest payload."),
    policy("result_max", Kind::Size, "256KiB", Some("result-max"), "The largest result; a larger one fails its job."),
    policy(
        "content_types",
        Kind::ContentTypes,
        "[\"*/*\"]",
        None,
        "The content types of payloads that are taken, `text/*` for all of a kind; others are answered \
         `unsupported-media-type`.",
    ),
    policy(
        "allowed_clients",
        Kind::Clients,
        "[\"*\"]",
        None,
        "The clients that may submit; others are answered `forbidden`. Reading and cancelling are not bound by it.",
    ),
    share("weight", Kind::Count(1, 1_000), "1", "A client's share of the workers among the clients that have work."),
    share(
        "max_queued",
        Kind::Count(1, u64::MAX),
        "1000000",
        "Jobs of one client that may wait at once; more are answered `quota-exceeded`.",
    ),
    share(
        "max_running",
        Kind::Count(1, u32::MAX as u64),
        "4294967295",
        "Jobs of one client that may be leased at once.",
    ),
    share(
        "rate",
        Kind::Rate,
        "none",
        "How fast one client may submit to each server: `100/s`, `6000/min`, `5000/h`, `100000/d`; beyond it submissions are \
         answered `rate-limited`.",
    ),
    share("burst", Kind::Count(1, u32::MAX as u64), "100", "Submissions that may come at once before `rate` holds."),
];

/// Variables that hold a secret: a file is no place for them.
pub const SECRETS: &[&str] = &["RELAY_ADMIN_TOKEN", "RELAY_NATS_PASSWORD", "RELAY_NATS_TOKEN", "RELAY_WORKER_KEY"];
