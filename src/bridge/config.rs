//! Bridges as a file says them: `[[bridge]]` tables of TOML, checked as a whole, with file, line and key of every mistake.
//!
//! A bridge comes `from` a relay (its worker address, or NATS), or from a stream of NATS that knows nothing of relay; it
//! goes `to` a relay on NATS.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use relay_bridge::contract::{ClientId, QueueName};
use relay_bridge::nats::config::{ClientCertificate, Credentials, NatsConfig, Secret, Tls};
use serde::Deserialize;
use toml::Spanned;

use super::foreign::mapping::JobMapping;
use super::foreign::nats::StreamSource;

/// The most bridges of one file: each has connections of its own.
pub const BRIDGES_MAX: usize = 64;
/// Messages or jobs in hand of one bridge, unless it says otherwise.
pub const SLOTS: NonZeroU32 = NonZeroU32::new(64).unwrap();

/// One bridge, with valid values only.
#[derive(Clone, Debug)]
pub struct BridgeConfig {
    /// What it is called in logs and lists of connections.
    pub name: ClientId,
    /// Jobs or messages in hand at once.
    pub slots: NonZeroU32,
    /// Where they come from, and what they become.
    pub from: Origin,
    /// Where they go.
    pub to: NatsConfig,
}

/// Where a bridge takes its jobs from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A relay, of which the bridge is a worker.
    Relay {
        /// How to reach it.
        source: RelaySource,
        /// Its queues, and those at the target.
        queues: BTreeMap<QueueName, QueueName>,
        /// Whose jobs they are at the target. `None`: the same client's.
        client: Option<ClientId>,
    },
    /// A stream of NATS that others write to.
    Stream(Box<ForeignStream>),
}

/// A stream of NATS that others write to.
#[derive(Clone, Debug)]
pub struct ForeignStream {
    /// How to reach it.
    pub connection: NatsConfig,
    /// Which one.
    pub source: StreamSource,
    /// What its messages become.
    pub job: JobMapping,
    /// Where results are sent: whose, of which queue, and to which subject of the same NATS.
    pub reply: Option<(ClientId, QueueName, String)>,
}

impl Origin {
    /// The queue, if there is one, whose jobs would be submitted to itself at `to`.
    #[must_use]
    pub fn leads_back_to(&self, to: &NatsConfig) -> Option<&QueueName> {
        let Self::Relay { source: RelaySource::Nats(source), queues, .. } = self else { return None };
        let same = source.servers.iter().any(|server| to.servers.contains(server));
        queues.iter().find(|(from, to)| same && from == to).map(|(queue, _)| queue)
    }
}

/// How a relay is reached by a worker.
#[derive(Clone, Debug)]
pub enum RelaySource {
    /// The worker address of a server.
    Tcp {
        /// `HOST:PORT`.
        address: String,
        /// The worker's key, or the file that holds it.
        key: Option<Secret>,
    },
    /// NATS, as the broker that keeps the jobs.
    Nats(Box<NatsConfig>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    bridge: Vec<Spanned<Table>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: ClientId,
    #[serde(default = "slots")]
    slots: NonZeroU32,
    from: FromTable,
    to: ToTable,
    queues: Option<BTreeMap<QueueName, QueueName>>,
    client: Option<ClientId>,
    job: Option<JobMapping>,
    reply: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FromTable {
    relay: Option<RelayTable>,
    nats: Option<NatsTable>,
    stream: Option<StreamTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToTable {
    nats: NatsTable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RelayTable {
    address: String,
    key_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamTable {
    name: String,
    consumer: String,
    #[serde(default)]
    subjects: Vec<String>,
    put_aside: Option<String>,
}

/// How NATS is reached: the names are those of the `--nats-` flags.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NatsTable {
    servers: Vec<String>,
    creds: Option<PathBuf>,
    nkey: Option<PathBuf>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
    #[serde(default)]
    tls: bool,
    #[serde(default)]
    tls_first: bool,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    inbox_prefix: Option<String>,
    domain: Option<String>,
    #[serde(default)]
    ignore_discovered: bool,
}

fn slots() -> NonZeroU32 {
    SLOTS
}

/// Reads the bridges of a file whose text is `text`; `path` is for messages.
///
/// # Errors
/// A text for people: the first thing that is no such file, or everything that contradicts itself, line by line.
pub fn read(path: &Path, text: &str) -> Result<Vec<BridgeConfig>, String> {
    let document: Document = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        format!("{}:{line}: {}", path.display(), error.message())
    })?;
    let (mut bridges, mut problems) = (Vec::new(), Vec::new());
    let mut names = std::collections::BTreeSet::new();
    if document.bridge.len() > BRIDGES_MAX {
        problems.push(format!(
            "{}:1: bridge: there are {}, at most {BRIDGES_MAX}",
            path.display(),
            document.bridge.len()
        ));
    }
    for table in document.bridge {
        let line = line_of(text, table.span().start);
        let table = table.into_inner();
        let name = table.name.clone();
        let mut wrong = Wrong { place: format!("{}:{line}: bridge {name}", path.display()), problems: &mut problems };
        if !names.insert(name) {
            wrong.add("name: there are two of it: a name tells bridges apart");
        }
        bridges.extend(table.resolve(&mut wrong));
    }
    if problems.is_empty() { Ok(bridges) } else { Err(problems.join("\n")) }
}

/// What is wrong with one bridge.
struct Wrong<'a> {
    place: String,
    problems: &'a mut Vec<String>,
}

impl Wrong<'_> {
    fn add(&mut self, what: impl std::fmt::Display) {
        self.problems.push(format!("{}: {what}", self.place));
    }
}

impl Table {
    fn resolve(self, wrong: &mut Wrong<'_>) -> Option<BridgeConfig> {
        let Self { name, slots, from, to, queues, client, job, reply } = self;
        let to = to.nats.resolve("to.nats", &name, wrong);
        let from = match from {
            FromTable { relay: Some(_), nats: Some(_), .. } => {
                wrong.add("from: it has both relay and nats: leave one out");
                None
            }
            FromTable { relay: None, nats: None, .. } => {
                wrong.add("from: it needs relay or nats, with where that is");
                None
            }
            FromTable { relay: None, nats: Some(nats), stream: Some(stream) } => {
                let connection = nats.resolve("from.nats", &name, wrong);
                if queues.is_some() || client.is_some() {
                    wrong.add("queues, client: a stream has none: `job` says what its messages become");
                }
                stream.resolve(connection, job, reply, wrong)
            }
            FromTable { relay, nats, stream } => {
                if stream.is_some() {
                    wrong.add("from.stream: only with from.nats");
                }
                if job.is_some() || reply.is_some() {
                    wrong.add("job, reply: only for messages of a stream: jobs of a relay stay what they are");
                }
                let source = match (relay, nats) {
                    (Some(RelayTable { address, key_file }), _) => {
                        Some(RelaySource::Tcp { address, key: key_file.map(Secret::File) })
                    }
                    (None, nats) => nats
                        .and_then(|nats| nats.resolve("from.nats", &name, wrong))
                        .map(|nats| RelaySource::Nats(Box::new(nats))),
                };
                if queues.as_ref().is_none_or(BTreeMap::is_empty) {
                    wrong.add(
                        "queues: name the queues, and what they are called at the target: { orders = \"orders\" }",
                    );
                }
                source.zip(queues).map(|(source, queues)| Origin::Relay { source, queues, client })
            }
        };
        let (from, to) = (from?, to?);
        if let Some(queue) = from.leads_back_to(&to) {
            wrong.add(format!(
                "queues: {queue} is the same queue at both sides: its jobs would be submitted to themselves"
            ));
        }
        Some(BridgeConfig { name, slots, from, to })
    }
}

impl StreamTable {
    fn resolve(
        self,
        connection: Option<NatsConfig>,
        job: Option<JobMapping>,
        reply: Option<String>,
        wrong: &mut Wrong<'_>,
    ) -> Option<Origin> {
        let Some(job) = job else {
            wrong.add("job: say what messages become: { client = \"shop\", queue = \"orders\" }");
            return None;
        };
        for (key, template) in [("job.client", &job.client), ("job.queue", &job.queue)] {
            if let Some(text) = template.fixed()
                && let Err(error) = text.parse::<QueueName>()
            {
                wrong.add(format!("{key}: {error}"));
            }
        }
        for (key, text) in [("from.stream.name", &self.name), ("from.stream.consumer", &self.consumer)] {
            if text.is_empty() || text.contains(['.', '*', '>', '/', '\\']) || text.contains(char::is_whitespace) {
                wrong.add(format!("{key}: `{text}` is no name of NATS: it has no spaces, dots, wildcards and slashes"));
            }
        }
        let reply = match reply {
            None => None,
            Some(subject) => {
                let fixed = |text: Option<&str>| text.map(ToOwned::to_owned);
                let client = fixed(job.client.fixed()).and_then(|text| text.parse().ok());
                let queue = fixed(job.queue.fixed()).and_then(|text| text.parse().ok());
                let (Some(client), Some(queue)) = (client, queue) else {
                    wrong.add(
                        "reply: results are those of one client and one queue: job.client and job.queue must be fixed",
                    );
                    return None;
                };
                Some((client, queue, subject))
            }
        };
        let source = StreamSource {
            stream: self.name,
            consumer: self.consumer,
            subjects: self.subjects,
            put_aside: self.put_aside,
        };
        connection.map(|connection| Origin::Stream(Box::new(ForeignStream { connection, source, job, reply })))
    }
}

impl NatsTable {
    fn resolve(self, key: &str, name: &ClientId, wrong: &mut Wrong<'_>) -> Option<NatsConfig> {
        let before = wrong.problems.len();
        let file = |path: PathBuf| Secret::File(path);
        let mut identities = Vec::new();
        match (self.user, self.password_file) {
            (Some(name), Some(password)) => identities.push(Credentials::User { name, password: file(password) }),
            (None, None) => {}
            _ => wrong.add(format!("{key}: user and password_file go together")),
        }
        identities.extend(self.token_file.map(|path| Credentials::Token(file(path))));
        identities.extend(self.nkey.map(|path| Credentials::NKey(file(path))));
        identities.extend(self.creds.map(|path| Credentials::Creds(file(path))));
        if identities.len() > 1 {
            wrong.add(format!("{key}: one of user, token_file, nkey and creds: the bridge has one identity there"));
        }
        if self.cert.is_some() != self.key.is_some() {
            wrong.add(format!("{key}: cert and key go together"));
        }
        let config = NatsConfig {
            servers: self.servers,
            credentials: identities.pop().unwrap_or_default(),
            tls: Tls {
                required: self.tls,
                first: self.tls_first,
                ca: self.ca,
                client: self.cert.zip(self.key).map(|(cert, key)| ClientCertificate { cert, key }),
            },
            inbox_prefix: self.inbox_prefix,
            name: format!("relay-{name}"),
            domain: self.domain,
            ignore_discovered_servers: self.ignore_discovered,
            ..NatsConfig::default()
        };
        if let Err(invalid) = config.check() {
            invalid.problems().iter().for_each(|problem| wrong.add(format!("{key}: {problem}")));
        }
        (wrong.problems.len() == before).then_some(config)
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDGE: &str = r#"
[[bridge]]
name = "edge"
slots = 200
client = "outer"
queues = { orders = "orders-eu" }
from.relay = { address = "127.0.0.1:7411" }
to.nats = { servers = ["nats://inner:4222"] }
"#;

    const SHOP: &str = r#"
[[bridge]]
name = "shop"
reply = "orders.results"
from.nats = { servers = ["nats://shop:4222"] }
from.stream = { name = "ORDERS", consumer = "relay", subjects = ["orders.>"], put_aside = "refused" }
to.nats = { servers = ["nats://inner:4222"] }

[bridge.job]
client = "shop"
queue = "orders"
key = "{header.Order-Id}"
meta = ["X-Tenant"]
"#;

    fn parse(text: &str) -> Result<Vec<BridgeConfig>, String> {
        read(Path::new("relay.toml"), text)
    }

    #[test]
    fn bridges_of_both_kinds_are_read() {
        let bridges = parse(&format!("{EDGE}{SHOP}")).unwrap();
        let [edge, shop] = &bridges[..] else { panic!("{bridges:?}") };
        let Origin::Relay { source: RelaySource::Tcp { address, key: None }, queues, client } = &edge.from else {
            panic!("{:?}", edge.from);
        };
        assert_eq!((edge.name.as_str(), edge.slots.get(), address.as_str()), ("edge", 200, "127.0.0.1:7411"));
        assert_eq!(queues.iter().next().unwrap().1.as_str(), "orders-eu");
        assert_eq!(client.as_ref().unwrap().as_str(), "outer");
        let Origin::Stream(stream) = &shop.from else { panic!("{:?}", shop.from) };
        let ForeignStream { source, job, reply, .. } = &**stream;
        assert_eq!((shop.slots, source.put_aside.as_deref()), (SLOTS, Some("refused")));
        assert_eq!(job.key.to_string(), "{header.Order-Id}");
        assert_eq!(reply.as_ref().unwrap().2, "orders.results");
    }

    #[test]
    fn a_mistake_is_named_with_its_file_line_and_key() {
        for (from, to, expected) in [
            ("slots = 200", "slot = 200", "relay.toml:4: unknown field `slot`"),
            ("slots = 200", "slots = 0", "relay.toml:4: "),
            ("\"orders-eu\"", "\"Orders\"", "relay.toml:6: queue"),
            ("from.relay = { address = \"127.0.0.1:7411\" }", "from = {}", "relay.toml:2: bridge edge: from: it needs"),
            ("queues = { orders = \"orders-eu\" }", "", "relay.toml:2: bridge edge: queues: name"),
            ("nats://inner:4222", "ws://inner", "relay.toml:2: bridge edge: to.nats: servers"),
            ("client = \"outer\"", "reply = \"x\"", "relay.toml:2: bridge edge: job, reply"),
        ] {
            assert!(EDGE.contains(from));
            let error = parse(&EDGE.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        for (from, to, expected) in [
            ("{header.Order-Id}", "{body}", "relay.toml:12: `{body}`: a place is one of"),
            ("client = \"shop\"", "client = \"{subject.2}\"", "reply: results are those of one client"),
            ("queue = \"orders\"", "queue = \"Orders\"", "job.queue: queue"),
            ("name = \"ORDERS\"", "name = \"OR DERS\"", "from.stream.name: `OR DERS`"),
        ] {
            assert!(SHOP.contains(from));
            let error = parse(&SHOP.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn all_contradictions_are_named_at_once() {
        let same = EDGE.replace(
            "from.relay = { address = \"127.0.0.1:7411\" }",
            "from.nats = { servers = [\"nats://inner:4222\"] }",
        );
        let same = same.replace("orders-eu", "orders");
        let error = parse(&format!("{same}{}", SHOP.replace("\"shop\"\nreply", "\"edge\"\nreply"))).unwrap_err();
        for part in ["relay.toml:2: bridge edge: queues: orders is the same queue", "name: there are two of it"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(error.lines().count(), 2, "{error}");
    }
}
