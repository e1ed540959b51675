//! `[[bridge]]` tables: what `relay bridge` does beside what is typed.
//!
//! A bridge comes `from` a relay (its worker address, or NATS), or from a stream of NATS that knows nothing of relay; it
//! goes `to` a relay on NATS or on SQS, which is that of `[nats]` or `[sqs]` unless it says otherwise.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use relay_bridge::contract::{ClientId, QueueName};
use relay_nats::config::{ClientCertificate, Credentials, NatsConfig, Secret, Tls};
use relay_sqs::config::SqsConfig;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeValue, ValueDeserializer};

use super::mistake::Mistake;
use crate::bridge::config::{BridgeConfig, Destination, ForeignSqs, ForeignStream, Origin, RelaySource, SLOTS};
use crate::bridge::foreign::mapping::JobMapping;
use crate::bridge::foreign::nats::StreamSource;

/// The most bridges of one file: each has connections of its own.
pub(super) const BRIDGES_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: ClientId,
    slots: Option<NonZeroU32>,
    from: FromTable,
    to: Option<ToTable>,
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
    sqs: Option<SqsTable>,
    relay_sqs: Option<RelaySqsTable>,
}

/// A relay that keeps its jobs on SQS and DynamoDB, and what its table and queues are called there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RelaySqsTable {
    region: Option<String>,
    endpoint: Option<String>,
    table: Option<String>,
    queue_prefix: Option<String>,
    #[serde(default)]
    fifo: bool,
}

/// A plain queue of SQS. Credentials are those of the AWS SDK: the environment, the profile, the pod or the machine.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SqsTable {
    queue: String,
    put_aside: String,
    region: Option<String>,
    endpoint: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToTable {
    nats: Option<NatsTable>,
    relay_sqs: Option<RelaySqsTable>,
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

/// How NATS is reached: the names are those of `[nats]`.
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

/// Reads one `[[bridge]]` of the file in `folder`, from which its paths are seen. `line` gives a place's line.
///
/// # Errors
/// The mistakes in it: everything that can't be read, or else everything that contradicts something else.
pub(super) fn read(
    folder: &Path,
    table: Spanned<DeValue<'_>>,
    line: impl Fn(usize) -> usize,
) -> Result<BridgeConfig, Vec<Mistake>> {
    let start = table.span().start;
    let (mut left, mut unread, mut removed) = (table.clone(), Vec::new(), Vec::new());
    let read = loop {
        let error = match Table::deserialize(ValueDeserializer::from(left.clone())) {
            Ok(read) => break read,
            Err(error) => error,
        };
        let at = error.span().map_or(start, |span| span.start);
        let fix = "docs/bridge.md has what a bridge may have".to_owned();
        let what = error.message().to_owned();
        if !removed.iter().any(|key| what == format!("missing field `{key}`")) {
            unread.push(Mistake { line: line(at), key: "bridge".to_owned(), what, fix });
        }
        // The rest is looked at without it; something that is missing in the table itself ends the reading.
        match remove(left.get_mut(), at) {
            Some(key) => removed.push(key),
            None => return Err(unread),
        }
    };
    if !unread.is_empty() {
        return Err(unread);
    }
    let mut wrong = Wrong { name: read.name.to_string(), table: &table, line: &line, folder, mistakes: Vec::new() };
    match read.resolve(&mut wrong) {
        Some(bridge) if wrong.mistakes.is_empty() => Ok(bridge),
        _ => Err(wrong.mistakes),
    }
}

/// Removes the innermost entry at a place, and gives its key. A table that is written with dotted keys has no place of its own.
fn remove(value: &mut DeValue<'_>, at: usize) -> Option<String> {
    let DeValue::Table(table) = value else { return None };
    if let Some(key) = table.iter_mut().find_map(|(_, value)| remove(value.get_mut(), at)) {
        return Some(key);
    }
    let is_there = |key: &Spanned<_>, value: &Spanned<_>| key.span().contains(&at) || value.span().contains(&at);
    let found = table.iter().find(|(key, value)| is_there(key, value)).map(|(key, _)| key.get_ref().to_string());
    found.inspect(|key| drop(table.remove(&**key)))
}

/// Where the deepest of a key's words stands that is written; `None` if not even the first is.
fn place(value: &DeValue<'_>, key: &str) -> Option<usize> {
    let DeValue::Table(table) = value else { return None };
    let (first, rest) = key.split_once('.').unwrap_or((key, ""));
    let (found, value) = table.get_key_value(first)?;
    place(value.get_ref(), rest).or(Some(found.span().start))
}

/// The mistakes of one bridge.
struct Wrong<'a> {
    name: String,
    table: &'a Spanned<DeValue<'a>>,
    line: &'a dyn Fn(usize) -> usize,
    folder: &'a Path,
    mistakes: Vec<Mistake>,
}

impl Wrong<'_> {
    /// Of several keys, `a, b`, the line is that of the first that is written.
    fn add(&mut self, key: &str, what: impl Into<String>, fix: impl Into<String>) {
        let at = key.split(", ").find_map(|key| place(self.table.get_ref(), key));
        let line = (self.line)(at.unwrap_or(self.table.span().start));
        let key = format!("bridge.{}.{key}", self.name);
        self.mistakes.push(Mistake { line, key, what: what.into(), fix: fix.into() });
    }

    fn file(&self, path: PathBuf) -> PathBuf {
        self.folder.join(path)
    }
}

impl Table {
    fn resolve(self, wrong: &mut Wrong<'_>) -> Option<BridgeConfig> {
        let Self { name, slots, from, to, queues, client, job, reply } = self;
        let to = match to {
            Some(to) => Some(to.resolve(wrong)?),
            None => None,
        };
        let from = match from {
            FromTable { relay, nats, sqs, relay_sqs, .. }
                if [relay.is_some(), nats.is_some(), sqs.is_some(), relay_sqs.is_some()]
                    .into_iter()
                    .filter(|is| *is)
                    .count()
                    > 1 =>
            {
                wrong.add(
                    "from",
                    "it comes from more than one place",
                    "leave all but one of relay, nats, sqs and relay_sqs out",
                );
                None
            }
            FromTable { relay: None, nats: None, sqs: None, relay_sqs: None, .. } => {
                wrong.add(
                    "from",
                    "it comes from nowhere",
                    "write from.relay, from.nats or from.sqs, with where that is",
                );
                None
            }
            FromTable { sqs: Some(sqs), stream, .. } => {
                if queues.is_some() || client.is_some() || stream.is_some() {
                    wrong.add(
                        "from, queues, client",
                        "a queue of SQS has only messages",
                        "say in `job` what they become",
                    );
                }
                sqs.resolve(job, reply, wrong)
            }
            FromTable { relay: None, nats: Some(nats), stream: Some(stream), .. } => {
                let connection = nats.resolve("from.nats", wrong);
                if queues.is_some() || client.is_some() {
                    wrong.add("queues, client", "a stream has none", "say in `job` what its messages become");
                }
                stream.resolve(connection, job, reply, wrong)
            }
            FromTable { relay, nats, stream, relay_sqs, .. } => {
                if stream.is_some() {
                    wrong.add("from.stream", "a relay has no streams of others", "write from.nats beside it");
                }
                if job.is_some() || reply.is_some() {
                    let what = "these are for messages of a stream: jobs of a relay stay what they are";
                    wrong.add("job, reply", what, "leave them out, or write from.stream");
                }
                let source = match (relay, nats, relay_sqs) {
                    (_, _, Some(sqs)) => sqs.resolve_source(wrong),
                    (Some(RelayTable { address, key_file }), _, _) => {
                        let key = key_file.map(|path| Secret::File(wrong.file(path)));
                        Some(RelaySource::Tcp { address, key })
                    }
                    (None, nats, None) => {
                        let nats = nats.and_then(|nats| nats.resolve("from.nats", wrong));
                        nats.map(|nats| RelaySource::Nats(Box::new(nats)))
                    }
                };
                if queues.as_ref().is_none_or(BTreeMap::is_empty) {
                    let fix = "name them, and what they are called at the target: queues = { orders = \"orders\" }";
                    wrong.add("queues", "there are none", fix);
                }
                source.zip(queues).map(|(source, queues)| Origin::Relay { source, queues, client })
            }
        };
        let from = from?;
        if let Some(queue) = to.as_ref().and_then(|to| from.leads_back_to(to)) {
            let what = format!("{queue} is the same queue at both sides: its jobs would be submitted to themselves");
            wrong.add("queues", what, "name another queue of the target, or other servers");
        }
        Some(BridgeConfig { name, slots: slots.unwrap_or(SLOTS), from, to })
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
        let (job, client, queue) = said(job, wrong)?;
        for (key, text) in [("from.stream.name", &self.name), ("from.stream.consumer", &self.consumer)] {
            if text.is_empty() || text.contains(['.', '*', '>', '/', '\\']) || text.contains(char::is_whitespace) {
                let what = format!("`{text}` is no name of NATS");
                wrong.add(key, what, "write it without spaces, dots, wildcards and slashes");
            }
        }
        let reply = match (reply, client, queue) {
            (None, _, _) => None,
            (Some(subject), Some(client), Some(queue)) => Some((client, queue, subject)),
            (Some(_), _, _) => {
                let what = "results are those of one client and one queue";
                wrong.add("reply", what, "write job.client and job.queue without places, or leave reply out");
                None
            }
        };
        if let Some((.., subject)) = &reply
            && self.put_aside.as_ref() == Some(subject)
        {
            // The last message of `reply` says which result comes next, and what is put aside says nothing of it.
            let what = format!("{subject} is the subject of `put_aside` as well");
            wrong.add("reply", what, "name another subject for results");
        }
        let Self { name: stream, consumer, subjects, put_aside } = self;
        let source = StreamSource {
            stream,
            consumer,
            subjects,
            put_aside,
            reply: reply.as_ref().map(|(.., subject)| subject.clone()),
        };
        connection.map(|connection| Origin::Stream(Box::new(ForeignStream { connection, source, job, reply })))
    }
}

/// The jobs that messages become; and client and queue, where they are the same for all. `None` if there is a mistake,
/// which was added then.
fn said(job: Option<JobMapping>, wrong: &mut Wrong<'_>) -> Option<(JobMapping, Option<ClientId>, Option<QueueName>)> {
    let Some(job) = job else {
        let fix = "write job = { client = \"shop\", queue = \"orders\" }";
        wrong.add("job", "it is not said what messages become", fix);
        return None;
    };
    let client = job.client.fixed().map(str::parse).transpose();
    let queue = job.queue.fixed().map(str::parse).transpose();
    match (client, queue) {
        (Ok(client), Ok(queue)) => Some((job, client, queue)),
        (client, queue) => {
            for (key, error) in [("job.client", client.err()), ("job.queue", queue.err())] {
                if let Some(error) = error {
                    let error: relay_bridge::contract::ids::InvalidId = error;
                    wrong.add(key, error.to_string(), "correct it");
                }
            }
            None
        }
    }
}

impl SqsTable {
    fn resolve(self, job: Option<JobMapping>, reply: Option<String>, wrong: &mut Wrong<'_>) -> Option<Origin> {
        let (job, ..) = said(job, wrong)?;
        let Self { queue: url, put_aside, region, endpoint } = self;
        let connection = SqsConfig { region, endpoint, ..SqsConfig::default() };
        check_sqs("from.sqs", &connection, wrong);
        let is_url = |reply: &String| ["http://", "https://"].iter().any(|scheme| reply.starts_with(scheme));
        if let Some(reply) = reply.as_ref().filter(|reply| !is_url(reply)) {
            let fix = "write its URL, https://sqs.REGION.amazonaws.com/ACCOUNT/NAME";
            wrong.add("reply", format!("`{reply}` is no queue of SQS, where the messages come from"), fix);
        }
        Some(Origin::Sqs(Box::new(ForeignSqs { connection, url, put_aside, reply, job })))
    }
}

impl RelaySqsTable {
    fn resolve_source(self, wrong: &mut Wrong<'_>) -> Option<RelaySource> {
        Some(RelaySource::Sqs(Box::new(self.resolve("from.relay_sqs", wrong))))
    }

    fn resolve(self, key: &str, wrong: &mut Wrong<'_>) -> SqsConfig {
        let (Self { region, endpoint, table, queue_prefix, fifo }, usual) = (self, SqsConfig::default());
        let config = SqsConfig {
            region,
            endpoint,
            table: table.unwrap_or(usual.table),
            queue_prefix: queue_prefix.unwrap_or(usual.queue_prefix),
            fifo,
            ..SqsConfig::default()
        };
        check_sqs(key, &config, wrong);
        config
    }
}

impl ToTable {
    /// `None` if something is wrong with it, which was added then.
    fn resolve(self, wrong: &mut Wrong<'_>) -> Option<Destination> {
        match (self.nats, self.relay_sqs) {
            (Some(nats), None) => nats.resolve("to.nats", wrong).map(|nats| Destination::Nats(Box::new(nats))),
            (None, Some(sqs)) => Some(Destination::Sqs(Box::new(sqs.resolve("to.relay_sqs", wrong)))),
            _ => {
                wrong.add("to", "it goes to one place", "write to.nats or to.relay_sqs, with where that is");
                None
            }
        }
    }
}

/// Says what is wrong with it; also that this build can't reach it.
fn check_sqs(key: &str, config: &SqsConfig, wrong: &mut Wrong<'_>) {
    if !relay_sqs::IS_BUILT {
        wrong.add(key, "this relay was built without SQS", "build it with the feature `sqs`");
    }
    let Err(invalid) = config.check() else { return };
    for problem in invalid.problems() {
        let (of, what) = problem.split_once(": ").unwrap_or(("", problem));
        wrong.add(&format!("{key}.{of}"), what, "correct it");
    }
}

impl NatsTable {
    /// `None` if something is wrong with it, which was added then.
    fn resolve(self, key: &str, wrong: &mut Wrong<'_>) -> Option<NatsConfig> {
        let before = wrong.mistakes.len();
        let mut identities = Vec::new();
        match (self.user, self.password_file) {
            (Some(name), Some(password)) => {
                identities.push(Credentials::User { name, password: Secret::File(wrong.file(password)) });
            }
            (None, None) => {}
            _ => wrong.add(key, "user and password_file go together", "write both, or leave both out"),
        }
        identities.extend(self.token_file.map(|path| Credentials::Token(Secret::File(wrong.file(path)))));
        identities.extend(self.nkey.map(|path| Credentials::NKey(Secret::File(wrong.file(path)))));
        identities.extend(self.creds.map(|path| Credentials::Creds(Secret::File(wrong.file(path)))));
        if identities.len() > 1 {
            let fix = "leave one of user, token_file, nkey and creds";
            wrong.add(key, "the bridge has more than one identity there", fix);
        }
        if self.cert.is_some() != self.key.is_some() {
            wrong.add(key, "cert and key go together", "write both, or leave both out");
        }
        let client = self.cert.zip(self.key);
        let config = NatsConfig {
            servers: self.servers,
            credentials: identities.pop().unwrap_or_default(),
            tls: Tls {
                required: self.tls,
                first: self.tls_first,
                ca: self.ca.map(|path| wrong.file(path)),
                client: client.map(|(cert, key)| ClientCertificate { cert: wrong.file(cert), key: wrong.file(key) }),
            },
            inbox_prefix: self.inbox_prefix,
            name: format!("relay-{}", wrong.name),
            domain: self.domain,
            ignore_discovered_servers: self.ignore_discovered,
            ..NatsConfig::default()
        };
        if let Err(invalid) = config.check() {
            for problem in invalid.problems() {
                let (of, what) = problem.split_once(": ").unwrap_or(("", problem));
                wrong.add(&format!("{key}.{of}"), what, "correct it");
            }
        }
        (wrong.mistakes.len() == before).then_some(config)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::file;
    use crate::config::mistake::Mistakes;

    const EDGE: &str = r#"
[[bridge]]
name = "edge"
slots = 200
client = "outer"
queues = { orders = "orders-eu" }
from.relay = { address = "127.0.0.1:7411", key_file = "edge.key" }
to.nats = { servers = ["nats://inner:4222"] }
"#;

    const SHOP: &str = r#"
[[bridge]]
name = "shop"
reply = "orders.results"
from.nats = { servers = ["nats://shop:4222"] }
from.stream = { name = "ORDERS", consumer = "relay", subjects = ["orders.>"], put_aside = "refused" }

[bridge.job]
client = "shop"
queue = "orders"
key = "{header.Order-Id}"
meta = ["X-Tenant"]
"#;

    fn parse(text: &str) -> Result<Vec<BridgeConfig>, String> {
        let (file, all) = file::read(Path::new("etc/relay.toml"), text);
        if all.is_empty() { Ok(file.bridges) } else { Err(Mistakes { file: file.path, all }.to_string()) }
    }

    #[test]
    fn bridges_of_both_kinds_are_read() {
        let bridges = parse(&format!("{EDGE}{SHOP}")).unwrap();
        let [edge, shop] = &bridges[..] else { panic!("{bridges:?}") };
        let Origin::Relay { source: RelaySource::Tcp { address, key: Some(Secret::File(key)) }, queues, client } =
            &edge.from
        else {
            panic!("{:?}", edge.from);
        };
        assert_eq!((edge.name.as_str(), edge.slots.get(), address.as_str()), ("edge", 200, "127.0.0.1:7411"));
        assert_eq!(key, Path::new("etc/edge.key"), "paths are seen from the file's folder");
        assert_eq!(queues.iter().next().unwrap().1.as_str(), "orders-eu");
        assert_eq!(client.as_ref().unwrap().as_str(), "outer");
        let Origin::Stream(stream) = &shop.from else { panic!("{:?}", shop.from) };
        let ForeignStream { source, job, reply, .. } = &**stream;
        assert_eq!((shop.slots, source.put_aside.as_deref()), (SLOTS, Some("refused")));
        assert_eq!(job.key.as_ref().unwrap().to_string(), "{header.Order-Id}");
        assert_eq!(reply.as_ref().unwrap().2, "orders.results");
        assert!(shop.to.is_none(), "it goes where the process is told otherwise");
    }

    #[test]
    fn a_mistake_is_named_with_its_file_line_and_key() {
        for (from, to, expected) in [
            ("slots = 200", "slot = 200", "relay.toml:4: bridge: unknown field `slot`"),
            ("slots = 200", "slots = 0", "relay.toml:4: bridge: "),
            ("\"orders-eu\"", "\"Orders\"", "relay.toml:6: bridge: queue"),
            (
                "from.relay = { address = \"127.0.0.1:7411\", key_file = \"edge.key\" }",
                "from = {}",
                "relay.toml:7: bridge.edge.from: it comes",
            ),
            ("queues = { orders = \"orders-eu\" }", "", "relay.toml:2: bridge.edge.queues: there"),
            ("nats://inner:4222", "ws://inner", "relay.toml:8: bridge.edge.to.nats.servers"),
            ("client = \"outer\"", "reply = \"x\"", "relay.toml:5: bridge.edge.job, reply"),
        ] {
            assert!(EDGE.contains(from));
            let error = parse(&EDGE.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        for (from, to, expected) in [
            ("{header.Order-Id}", "{body}", "relay.toml:11: bridge: `{body}`: a place is one of"),
            ("client = \"shop\"", "client = \"{subject.2}\"", "bridge.shop.reply: results are those of one client"),
            ("queue = \"orders\"", "queue = \"Orders\"", "bridge.shop.job.queue: queue"),
            ("name = \"ORDERS\"", "name = \"OR DERS\"", "bridge.shop.from.stream.name: `OR DERS`"),
        ] {
            assert!(SHOP.contains(from));
            let error = parse(&SHOP.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn a_relay_on_sqs_has_the_usual_names_unless_others_are_written() {
        let on_sqs = |table: &str| {
            let relay = "from.relay = { address = \"127.0.0.1:7411\", key_file = \"edge.key\" }";
            parse(&EDGE.replace(relay, &format!("from.relay_sqs = {table}")))
        };
        for (table, expected) in [("{}", "relay"), ("{ table = \"jobs\" }", "jobs")] {
            let bridges = on_sqs(table).unwrap();
            let Origin::Relay { source: RelaySource::Sqs(sqs), .. } = &bridges[0].from else { panic!("{bridges:?}") };
            assert_eq!((sqs.table.as_str(), sqs.queue_prefix.as_str()), (expected, "relay-"));
        }
        let to = EDGE.replace("to.nats = { servers = [\"nats://inner:4222\"] }", "to.relay_sqs = { table = \"jobs\" }");
        let Some(Destination::Sqs(to)) = &parse(&to).unwrap()[0].to else { panic!("it goes to SQS") };
        assert_eq!(to.table, "jobs");
        let error = on_sqs("{ table = \"a b\" }").unwrap_err();
        assert!(error.contains("bridge.edge.from.relay_sqs.table"), "{error}");
    }

    #[test]
    fn a_queue_of_sqs_is_read_like_a_stream() {
        const ORDERS: &str = r#"
[[bridge]]
name = "aws"
from.sqs = { queue = "https://sqs.eu-central-1.amazonaws.com/1/orders", put_aside = "https://sqs/1/refused", region = "eu-central-1" }
job = { client = "shop", queue = "orders" }
"#;
        let bridges = parse(ORDERS).unwrap();
        let Origin::Sqs(queue) = &bridges[0].from else { panic!("{bridges:?}") };
        assert!(queue.url.ends_with("/orders") && queue.put_aside.ends_with("/refused") && queue.reply.is_none());
        for (from, to, expected) in [
            ("job = {", "reply = \"x\"\njob = {", "bridge.aws.reply: `x` is no queue of SQS"),
            ("job = { client = \"shop\", queue = \"orders\" }", "", "bridge.aws.job: it is not said"),
            ("region = \"eu-central-1\"", "region = \"eu central\"", "bridge.aws.from.sqs.region"),
            (", put_aside = \"https://sqs/1/refused\"", "", "missing field `put_aside`"),
        ] {
            let error = parse(&ORDERS.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn every_mistake_of_a_bridge_is_named_with_its_own_line() {
        let unread = SHOP
            .replace("reply = ", "answer = ")
            .replace("consumer = \"relay\"", "consumer = 7, colour = \"red\"")
            .replace("meta = [\"X-Tenant\"]", "meta = \"X-Tenant\"");
        let error = parse(&unread).unwrap_err();
        for part in [
            "toml:4: bridge: unknown field `answer`",
            "toml:6: bridge: invalid type",
            "toml:6: bridge: unknown field `colour`",
            "toml:12: bridge: invalid type",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(error.contains("has 4 mistakes"), "{error}");
        let contradicting = SHOP
            .replace("servers = [\"nats://shop:4222\"]", "servers = [\"ws://shop\"]")
            .replace("\"ORDERS\"", "\"OR DERS\"")
            .replace("from.nats", "queues = {}\nfrom.nats");
        let error = parse(&contradicting).unwrap_err();
        for part in [
            "toml:5: bridge.shop.queues, client",
            "toml:6: bridge.shop.from.nats.servers",
            "toml:7: bridge.shop.from.stream.name",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let reply = SHOP.lines().find_map(|line| line.strip_prefix("reply = ")).unwrap();
        let error = parse(&SHOP.replace("put_aside = \"refused\"", &format!("put_aside = {reply}"))).unwrap_err();
        assert!(error.contains("is the subject of `put_aside` as well"), "{error}");
    }

    #[test]
    fn mistakes_of_all_bridges_are_named_at_once() {
        let relay = "from.relay = { address = \"127.0.0.1:7411\", key_file = \"edge.key\" }";
        let same = EDGE.replace(relay, "from.nats = { servers = [\"nats://inner:4222\"] }");
        let same = same.replace("orders-eu", "orders").replace("\"edge\"", "\"same\"");
        let twice = SHOP.replace("name = \"shop\"", "name = \"edge\"");
        let error = parse(&format!("{EDGE}{same}{twice}{}", SHOP.replace("key = ", "kee = "))).unwrap_err();
        for part in [
            "bridge.same.queues: orders is the same queue",
            "bridge.edge: this bridge is on line 2 already",
            "unknown field `kee`",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(error.contains("has 3 mistakes"), "{error}");
    }
}
