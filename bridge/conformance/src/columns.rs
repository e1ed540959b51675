//! The brokers that the suite runs on, and how adapters differ where the contract lets them: the columns of
//! `docs/conformance.md`.

use std::fmt::Write as _;
use std::time::Duration;

use super::PROMISES;
use relay_bridge::broker::{Capabilities, Durability, LoadSight};

/// An adapter as the suite runs it.
#[derive(Clone, Debug)]
pub struct Column {
    /// The module of its tests, such as `nats_3`.
    pub name: &'static str,
    /// The broker and the setup that it runs on.
    pub what: &'static str,
    /// How its tests are run.
    pub command: &'static str,
    /// The capabilities that the adapter claims there. The suite's harness compares them with the running adapter.
    pub capabilities: Capabilities,
    /// The groups of promises that it is held to; `None` for all.
    pub groups: Option<&'static [&'static str]>,
}

impl Column {
    /// The column of the tests in module `name`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn of(name: &str) -> &'static Self {
        COLUMNS.iter().find(|column| column.name == name).unwrap()
    }

    /// Whether a promise of this group is tested.
    #[must_use]
    pub fn runs(&self, group: &str) -> bool {
        self.groups.is_none_or(|groups| groups.contains(&group))
    }
}

const EMBEDDED: Capabilities = Capabilities {
    adapter: "embedded",
    payload_max: 16 * 1024 * 1024,
    durability: Durability::PowerLoss,
    lease_lost_certain: true,
    fair: true,
    one_line: false,
    counts_stored: true,
    load: LoadSight { foresees: true, knows_limits: true, times_attempts: true, age: Duration::ZERO },
};
/// A server with the default `max_payload` of 1 MiB, of which 64 KiB are left for headers.
const NATS: Capabilities = Capabilities {
    adapter: "nats",
    payload_max: 960 * 1024,
    durability: Durability::ProcessCrash,
    lease_lost_certain: false,
    fair: true,
    one_line: true,
    counts_stored: false,
    load: LoadSight { foresees: false, knows_limits: true, times_attempts: false, age: Duration::ZERO },
};
const SQS: Capabilities = Capabilities {
    adapter: "sqs",
    payload_max: 350 * 1024,
    durability: Durability::Replicated,
    lease_lost_certain: true,
    fair: false,
    one_line: false,
    counts_stored: false,
    load: LoadSight { foresees: false, knows_limits: false, times_attempts: false, age: Duration::from_secs(5) },
};
const IN_PROCESS: &str = "cargo test -p relay-embedded --test it";
const ON_NATS: &str = "cargo test -p relay-nats --test conformance";
const ON_SQS: &str = "cargo test -p relay-sqs --test conformance";

/// Every adapter that the suite runs on.
pub const COLUMNS: &[Column] = &[
    Column {
        name: "embedded_memory",
        what: "SQLite in memory",
        command: IN_PROCESS,
        capabilities: Capabilities { durability: Durability::None, ..EMBEDDED },
        groups: None,
    },
    Column {
        name: "embedded_disk",
        what: "SQLite in a file",
        command: IN_PROCESS,
        capabilities: EMBEDDED,
        groups: None,
    },
    Column {
        name: "remote",
        what: "SQLite in a file, workers over TCP",
        command: "cargo test -p relay --test it conformance_remote",
        capabilities: EMBEDDED,
        groups: None,
    },
    Column { name: "nats_1", what: "JetStream on one node", command: ON_NATS, capabilities: NATS, groups: None },
    Column {
        name: "nats_one_line",
        what: "JetStream on one node, `fair = false` but where a promise is about `weight` or `max_running`",
        command: ON_NATS,
        capabilities: Capabilities { fair: false, ..NATS },
        groups: Some(&[
            "identity", "leases", "taking", "outcomes", "claims", "expiry", "endings", "letters", "reruns", "sharing",
        ]),
    },
    Column {
        name: "nats_3",
        what: "JetStream on three nodes, three replicas",
        command: ON_NATS,
        capabilities: Capabilities { durability: Durability::Replicated, ..NATS },
        groups: None,
    },
    Column { name: "sqs", what: "standard queues of SQS, DynamoDB", command: ON_SQS, capabilities: SQS, groups: None },
    Column {
        name: "sqs_fifo",
        what: "FIFO queues of SQS, DynamoDB; nothing but the line differs",
        command: ON_SQS,
        capabilities: SQS,
        groups: Some(&["identity", "leases", "outcomes"]),
    },
];

/// The text of `docs/conformance.md`.
#[must_use]
pub fn document() -> String {
    let mut text = String::from(HEAD);
    for Column { name, what, command, capabilities: c, groups } in COLUMNS {
        let lease = if c.lease_lost_certain { "the broker" } else { "its holder's clock" };
        let load = sight(c.load);
        let (fair, one_line, stored) = (yes(c.fair), yes(c.one_line), yes(c.counts_stored));
        let tested = PROMISES.iter().filter(|(group, _)| groups.is_none_or(|groups| groups.contains(group))).count();
        let (kib, durability) = (c.payload_max / 1024, c.durability.as_str());
        writeln!(
            text,
            "| `{name}` | {what} | `{durability}` | {kib} KiB | {lease} | {fair} | {one_line} | {stored} | {load} | {tested} | `{command}` |"
        )
        .unwrap();
    }
    let names: Vec<_> = COLUMNS.iter().map(|column| format!("`{}`", column.name)).collect();
    write!(text, "\n## Promises\n\n| promise | {} |\n|{}\n", names.join(" | "), " --- |".repeat(COLUMNS.len() + 1))
        .unwrap();
    for (group, promise) in PROMISES {
        let file = format!("../bridge/conformance/src/{group}.rs");
        write!(text, "| [{group}]({file}): {} |", promise.replace('_', " ")).unwrap();
        for column in COLUMNS {
            write!(text, " {} |", if column.runs(group) { "yes" } else { "" }).unwrap();
        }
        text.push('\n');
    }
    text
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

/// How exact a look at a queue's work is, in words.
fn sight(sight: LoadSight) -> String {
    let knows = [
        (sight.foresees, "jobs that are due soon"),
        (sight.knows_limits, "running limits"),
        (sight.times_attempts, "times of attempts"),
    ];
    let known: Vec<_> = knows.iter().filter(|(knows, _)| *knows).map(|(_, what)| *what).collect();
    let known = if known.is_empty() { "counts only".to_owned() } else { format!("knows {}", known.join(", ")) };
    match sight.age.as_secs() {
        0 => known,
        age => format!("{known}, {age} s old"),
    }
}

const HEAD: &str = "# What is tested on which broker

One suite holds every broker to [the contract](contract.md). This page is made from the suite itself: a test fails where they differ.
`yes` means that the promise has a test which runs there with every `cargo test --workspace`, against a real server or, for
SQS and DynamoDB, an emulator.

Each promise is judged once ([0021](decisions/0021-the-suite-judges-once.md)): an assertion about what a broker did that does
not hold is a failure. A call to a server that gave no answer in time (`Unavailable`, `Ambiguous`) is repeated, as users do, at
most six times; each run ends with a line per column that says how many calls were. In this process nothing is repeated.

## Adapters, and how they differ

Differences are data that the suite reads: what an adapter claims is tested, and nothing is skipped. The suite of each adapter
fails when the adapter says something else of itself than this table. The durability of JetStream is that of its replicas.

| tests | on | an accepted job survives | largest payload | who knows that a lease is lost | weights of clients count | a queue may do without turns | bytes of each client are counted | a look for scalers | promises | command |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
";
