//! `[[bridge]]` tables: what `relay bridge` does beside what is typed.
//!
//! A bridge comes `from` a relay (its worker address, or NATS), or from a stream of NATS that knows nothing of relay; it
//! goes `to` a relay on NATS or on SQS, which is that of `[nats]` or `[sqs]` unless it says otherwise.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use relay_bridge::contract::job::DEFAULT_CONTENT_TYPE;
use relay_bridge::contract::{ClientId, QueueName};
use relay_nats::config::{ClientCertificate, Credentials, NatsConfig, Secret, Tls};
use relay_sqs::config::SqsConfig;
use toml::de::DeTable;

use super::kind::{Kind, Value};
use super::reader::Reader;
use crate::bridge::config::{BridgeConfig, Destination, ForeignSqs, ForeignStream, Origin, RelaySource, SLOTS};
use crate::bridge::foreign::mapping::JobMapping;
use crate::bridge::foreign::nats::StreamSource;

#[cfg(test)]
mod tests;
mod written;

use written::Entry::{May, Must, Queues, Table};
use written::{Schema, Written};

/// The most bridges of one file: each has connections of its own.
pub(super) const BRIDGES_MAX: usize = 64;

const BRIDGE: Schema = &[
    ("name", Must(Kind::Client)),
    ("slots", May(Kind::Count(1, u32::MAX as u64))),
    ("from", Table(FROM)),
    ("to", Table(&[("nats", Table(NATS)), ("relay_sqs", Table(RELAY_SQS))])),
    ("queues", Queues),
    ("client", May(Kind::Client)),
    ("job", Table(JOB)),
    ("reply", May(Kind::Text)),
];

const FROM: Schema = &[
    (
        "relay",
        Table(&[
            ("address", Must(Kind::Text)),
            ("key_file", May(Kind::Path)),
            ("ca", May(Kind::Path)),
            ("certificate", May(Kind::Path)),
            ("certificate_key", May(Kind::Path)),
        ]),
    ),
    ("nats", Table(NATS)),
    ("stream", Table(STREAM)),
    ("sqs", Table(SQS)),
    ("relay_sqs", Table(RELAY_SQS)),
];

/// How NATS is reached: the names are those of `[nats]`.
const NATS: Schema = &[
    ("servers", Must(Kind::List)),
    ("creds", May(Kind::Path)),
    ("nkey", May(Kind::Path)),
    ("user", May(Kind::Text)),
    ("password_file", May(Kind::Path)),
    ("token_file", May(Kind::Path)),
    ("tls", May(Kind::Flag)),
    ("tls_first", May(Kind::Flag)),
    ("ca", May(Kind::Path)),
    ("cert", May(Kind::Path)),
    ("key", May(Kind::Path)),
    ("inbox_prefix", May(Kind::Text)),
    ("domain", May(Kind::Text)),
    ("ignore_discovered", May(Kind::Flag)),
];

const STREAM: Schema = &[
    ("name", Must(Kind::Text)),
    ("consumer", Must(Kind::Text)),
    ("subjects", May(Kind::List)),
    ("put_aside", May(Kind::Text)),
];

/// A plain queue of SQS. Credentials are those of the AWS SDK: the environment, the profile, the pod or the machine.
const SQS: Schema = &[
    ("queue", Must(Kind::Text)),
    ("put_aside", Must(Kind::Text)),
    ("region", May(Kind::Text)),
    ("endpoint", May(Kind::Text)),
];

/// A relay that keeps its jobs on SQS and DynamoDB, and what its table and queues are called there.
const RELAY_SQS: Schema = &[
    ("region", May(Kind::Text)),
    ("endpoint", May(Kind::Text)),
    ("table", May(Kind::Text)),
    ("queue_prefix", May(Kind::Text)),
    ("fifo", May(Kind::Flag)),
];

const JOB: Schema = &[
    ("client", Must(Kind::Template)),
    ("queue", Must(Kind::Template)),
    ("key", May(Kind::Template)),
    ("content_type", May(Kind::Text)),
    ("meta", May(Kind::List)),
];

/// A bridge, and its values, each with its key and its line.
pub(super) type Read = (BridgeConfig, Vec<(String, Value, usize)>);

/// Reads one `[[bridge]]`. `None` if there are mistakes in it, which the reader was told then: everything that can't be read,
/// or else everything that contradicts something else.
pub(super) fn read(reader: &mut Reader<'_>, span: &Range<usize>, table: &DeTable<'_>) -> Option<Read> {
    let name = table.get("name").and_then(|name| name.get_ref().as_str()).unwrap_or_default().to_owned();
    let mut written = Written::read(reader, &name, BRIDGE, span, table)?;
    let bridge = bridge(&mut written);
    if written.mistakes.is_empty() {
        return bridge.map(|bridge| (bridge, written.values().collect()));
    }
    reader.mistakes.append(&mut written.mistakes);
    None
}

/// `None` if something is wrong with it, which is among its mistakes then.
fn bridge(written: &mut Written) -> Option<BridgeConfig> {
    let to = destination(written);
    let from = origin(written);
    let (name, from) = (written.parsed("name")?, from?);
    if let Some(queue) = to.as_ref().and_then(|to| from.leads_back_to(to)) {
        let what = format!("{queue} is the same queue at both sides: its jobs would be submitted to themselves");
        written.wrong("queues", what, "name another queue of the target, or other servers");
    }
    Some(BridgeConfig { name, slots: written.parsed("slots").unwrap_or(SLOTS), from, to })
}

fn destination(written: &mut Written) -> Option<Destination> {
    match (written.has("to.nats"), written.has("to.relay_sqs")) {
        (true, false) => Some(Destination::Nats(Box::new(nats(written, "to.nats")))),
        (false, true) => Some(Destination::Sqs(Box::new(relay_sqs(written, "to.relay_sqs")))),
        (false, false) if !written.has("to") => None,
        _ => {
            written.wrong("to", "it goes to one place", "write to.nats or to.relay_sqs, with where that is");
            None
        }
    }
}

fn origin(written: &mut Written) -> Option<Origin> {
    const PLACES: [&str; 4] = ["from.relay", "from.nats", "from.sqs", "from.relay_sqs"];
    let places: Vec<_> = PLACES.into_iter().filter(|place| written.has(place)).collect();
    let [place] = places[..] else {
        let (what, fix) = match places.len() {
            0 => ("it comes from nowhere", "write from.relay, from.nats or from.sqs, with where that is"),
            _ => ("it comes from more than one place", "leave all but one of relay, nats, sqs and relay_sqs out"),
        };
        written.wrong("from", what, fix);
        return None;
    };
    match (place, written.has("from.stream")) {
        ("from.sqs", stream) => {
            if written.has("queues") || written.has("client") || stream {
                let fix = "say in `job` what they become";
                written.wrong("from, queues, client", "a queue of SQS has only messages", fix);
            }
            foreign_sqs(written)
        }
        ("from.nats", true) => {
            if written.has("queues") || written.has("client") {
                written.wrong("queues, client", "a stream has none", "say in `job` what its messages become");
            }
            foreign_stream(written)
        }
        (place, stream) => {
            if stream {
                written.wrong("from.stream", "a relay has no streams of others", "write from.nats beside it");
            }
            relay(written, place)
        }
    }
}

/// The certificate that the bridge shows, and its key.
fn identity(written: &mut Written) -> Option<(PathBuf, PathBuf)> {
    const CERTIFICATE: &str = "from.relay.certificate";
    let both = (written.path(CERTIFICATE), written.path("from.relay.certificate_key"));
    if both.0.is_some() != both.1.is_some() {
        written.wrong(
            CERTIFICATE,
            "a certificate has a key",
            "write certificate and certificate_key, or leave both out",
        );
    }
    both.0.zip(both.1)
}

/// A relay, of which the bridge is a worker.
fn relay(written: &mut Written, place: &str) -> Option<Origin> {
    if written.has("job") || written.has("reply") {
        let what = "these are for messages of a stream: jobs of a relay stay what they are";
        written.wrong("job, reply", what, "leave them out, or write from.stream");
    }
    let source = match place {
        "from.relay_sqs" => RelaySource::Sqs(Box::new(relay_sqs(written, place))),
        "from.nats" => RelaySource::Nats(Box::new(nats(written, place))),
        _ => RelaySource::Tcp {
            address: written.needed("from.relay.address"),
            key: written.path("from.relay.key_file").map(Secret::File),
            ca: written.path("from.relay.ca"),
            identity: identity(written),
        },
    };
    let name = |text: &str| text.parse::<QueueName>().ok();
    let queues = written.below("queues").filter_map(|(from, to)| Some((name(from)?, name(&to.to_string())?)));
    let queues: BTreeMap<_, _> = queues.collect();
    if queues.is_empty() {
        let fix = "name them, and what they are called at the target: queues = { orders = \"orders\" }";
        written.wrong("queues", "there are none", fix);
    }
    Some(Origin::Relay { source, queues, client: written.parsed("client") })
}

fn foreign_stream(written: &mut Written) -> Option<Origin> {
    let connection = nats(written, "from.nats");
    let (job, client, queue) = job(written)?;
    for key in ["from.stream.name", "from.stream.consumer"] {
        let text = written.needed(key);
        if text.contains(['.', '*', '>', '/', '\\']) || text.contains(char::is_whitespace) {
            let what = format!("`{text}` is no name of NATS");
            written.wrong(key, what, "write it without spaces, dots, wildcards and slashes");
        }
    }
    let put_aside = written.text("from.stream.put_aside");
    let reply = match (written.text("reply"), client, queue) {
        (None, _, _) => None,
        (Some(subject), Some(client), Some(queue)) => Some((client, queue, subject)),
        (Some(_), _, _) => {
            let what = "results are those of one client and one queue";
            written.wrong("reply", what, "write job.client and job.queue without places, or leave reply out");
            None
        }
    };
    if let Some((.., subject)) = reply.as_ref().filter(|(.., subject)| put_aside.as_ref() == Some(subject)) {
        // The last message of `reply` says which result comes next, and what is put aside says nothing of it.
        let what = format!("{subject} is the subject of `put_aside` as well");
        written.wrong("reply", what, "name another subject for results");
    }
    let source = StreamSource {
        stream: written.needed("from.stream.name"),
        consumer: written.needed("from.stream.consumer"),
        subjects: written.texts("from.stream.subjects"),
        put_aside,
        reply: reply.as_ref().map(|(.., subject)| subject.clone()),
    };
    Some(Origin::Stream(Box::new(ForeignStream { connection, source, job, reply })))
}

fn foreign_sqs(written: &mut Written) -> Option<Origin> {
    let (job, ..) = job(written)?;
    let (region, endpoint) = (written.text("from.sqs.region"), written.text("from.sqs.endpoint"));
    let connection = SqsConfig { region, endpoint, ..SqsConfig::default() };
    check_sqs("from.sqs", &connection, written);
    let reply = written.text("reply");
    let is_url = |reply: &String| ["http://", "https://"].iter().any(|scheme| reply.starts_with(scheme));
    if let Some(reply) = reply.as_ref().filter(|reply| !is_url(reply)) {
        let fix = "write its URL, https://sqs.REGION.amazonaws.com/ACCOUNT/NAME";
        written.wrong("reply", format!("`{reply}` is no queue of SQS, where the messages come from"), fix);
    }
    let (url, put_aside) = (written.needed("from.sqs.queue"), written.needed("from.sqs.put_aside"));
    Some(Origin::Sqs(Box::new(ForeignSqs { connection, url, put_aside, reply, job })))
}

/// The jobs that messages become; and client and queue, where they are the same for all. `None` if there is a mistake.
fn job(written: &mut Written) -> Option<(JobMapping, Option<ClientId>, Option<QueueName>)> {
    let (Some(client), Some(queue)) = (written.parsed("job.client"), written.parsed("job.queue")) else {
        let fix = "write job = { client = \"shop\", queue = \"orders\" }";
        written.wrong("job", "it is not said what messages become", fix);
        return None;
    };
    let job = JobMapping {
        client,
        queue,
        key: written.parsed("job.key"),
        content_type: written.text("job.content_type").unwrap_or_else(|| DEFAULT_CONTENT_TYPE.to_owned()),
        meta: written.texts("job.meta"),
    };
    let client = job.client.fixed().map(str::parse::<ClientId>).transpose();
    let queue = job.queue.fixed().map(str::parse::<QueueName>).transpose();
    for (key, error) in [("job.client", client.as_ref().err()), ("job.queue", queue.as_ref().err())] {
        if let Some(error) = error {
            written.wrong(key, error.to_string(), "correct it");
        }
    }
    Some((job, client.ok()?, queue.ok()?))
}

fn relay_sqs(written: &mut Written, at: &str) -> SqsConfig {
    let (of, usual) = (|key: &str| written.text(&format!("{at}.{key}")), SqsConfig::default());
    let config = SqsConfig {
        region: of("region"),
        endpoint: of("endpoint"),
        table: of("table").unwrap_or(usual.table),
        queue_prefix: of("queue_prefix").unwrap_or(usual.queue_prefix),
        fifo: written.is_true(&format!("{at}.fifo")),
        ..SqsConfig::default()
    };
    check_sqs(at, &config, written);
    config
}

/// Says what is wrong with it; also that this build can't reach it.
fn check_sqs(at: &str, config: &SqsConfig, written: &mut Written) {
    if !relay_sqs::IS_BUILT {
        written.wrong(at, "this relay was built without SQS", "build it with the feature `sqs`");
    }
    if let Err(invalid) = config.check() {
        problems(at, invalid.problems(), written);
    }
}

fn problems(at: &str, problems: &[String], written: &mut Written) {
    for problem in problems {
        let (of, what) = problem.split_once(": ").unwrap_or(("", problem));
        written.wrong(&format!("{at}.{of}"), what, "correct it");
    }
}

fn nats(written: &mut Written, at: &str) -> NatsConfig {
    let of = |key: &str| format!("{at}.{key}");
    let secret = |key: &str| written.path(&of(key)).map(Secret::File);
    let user = written.text(&of("user")).zip(secret("password_file"));
    let identities = [
        user.map(|(name, password)| Credentials::User { name, password }),
        secret("token_file").map(Credentials::Token),
        secret("nkey").map(Credentials::NKey),
        secret("creds").map(Credentials::Creds),
    ];
    let identities: Vec<_> = identities.into_iter().flatten().collect();
    let cert = written.path(&of("cert")).zip(written.path(&of("key")));
    for (first, second) in [("user", "password_file"), ("cert", "key")] {
        if written.has(&of(first)) != written.has(&of(second)) {
            written.wrong(at, format!("{first} and {second} go together"), "write both, or leave both out");
        }
    }
    if identities.len() > 1 {
        let fix = "leave one of user, token_file, nkey and creds";
        written.wrong(at, "the bridge has more than one identity there", fix);
    }
    let config = NatsConfig {
        servers: written.texts(&of("servers")),
        credentials: identities.into_iter().next().unwrap_or_default(),
        tls: Tls {
            required: written.is_true(&of("tls")),
            first: written.is_true(&of("tls_first")),
            ca: written.path(&of("ca")),
            client: cert.map(|(cert, key)| ClientCertificate { cert, key }),
        },
        inbox_prefix: written.text(&of("inbox_prefix")),
        name: format!("relay-{}", written.needed("name")),
        domain: written.text(&of("domain")),
        ignore_discovered_servers: written.is_true(&of("ignore_discovered")),
        ..NatsConfig::default()
    };
    if let Err(invalid) = config.check() {
        problems(at, invalid.problems(), written);
    }
    config
}
