//! `relay config`: what holds for a server and where each value comes from, whether a file is right, and what can be set.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Command, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::configured::{self, Configured, variable};
use super::contexts::FILE_VARIABLE;
use super::exit::{CliError, Exit};
use super::{flags, logs, output};
use crate::config::kind::{Kind, Value};
use crate::config::layers::{Held, Layer};
use crate::config::mistake::meant;
use crate::config::policy::{self, POLICY, PolicySetting};
use crate::config::settings::{self, SECRETS, Setting, TABLES};

#[cfg(test)]
mod tests;

/// The text that is shown in place of a secret.
const MASK: &str = "********";

/// The action to take.
#[derive(Debug, Args)]
#[command(after_help = "\
A flag has the last word, then a variable, then the file, then the default.

Examples:
  relay config check relay.toml                    every mistake at once, with line and fix
  relay config show --config relay.toml            each value, and where it comes from
  relay config reference > configuration.md        everything that can be set")]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print each value and where it comes from; secrets are masked
    Show {
        /// The configuration file
        #[arg(long, value_name = "FILE", env = "RELAY_CONFIG")]
        config: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Find every mistake in a file, and variables that nobody reads
    Check {
        /// The configuration file
        #[arg(value_name = "FILE", env = "RELAY_CONFIG")]
        file: PathBuf,
    },
    /// Print what can be set, as Markdown
    Reference,
}

/// `relay config`
pub(crate) fn run(args: ConfigArgs) -> Result<Exit, CliError> {
    match args.command {
        ConfigCommand::Show { config, json } => show(config, json),
        ConfigCommand::Check { file } => {
            let Configured { file: read, settings, .. } = configured::without_flags("serve", Some(&file))?;
            settings.log.filter.as_deref().map(logs::read).transpose()?;
            warn_of_unknown_variables();
            let (settings, queues, bridges) =
                read.map_or((0, 0, 0), |read| (read.values.len(), read.queues.len(), read.bridges.len()));
            output::note(format_args!(
                "{} is right: {settings} settings, {queues} queues, {bridges} bridges",
                file.display()
            ));
            Ok(Exit::Done)
        }
        ConfigCommand::Reference => {
            output::bytes(reference().as_bytes())?;
            Ok(Exit::Done)
        }
    }
}

/// Says which `RELAY_*` variables nobody reads: a slip in one would go unnoticed.
pub(super) fn warn_of_unknown_variables() {
    let known = variables();
    let set = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let ours = |name: &str| name.starts_with("RELAY_") && !name.starts_with("RELAY_META_");
    for (name, value) in set.filter(|(name, _)| ours(name) && !known.contains(name)) {
        if is_of_a_service(&name, &value.to_string_lossy()) {
            continue;
        }
        let hint = meant(&name, known.iter().map(String::as_str));
        let hint = hint.map_or_else(String::new, |meant| format!(": did you mean {meant}?"));
        tracing::warn!("nobody reads the variable {name}{hint}");
    }
}

/// Whether Kubernetes gave a variable to its pods, for a Service whose name begins with `relay`:
/// <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>
fn is_of_a_service(name: &str, value: &str) -> bool {
    const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];
    let of_port = |rest: &str| {
        let (port, rest) = rest.split_once('_').unwrap_or((rest, ""));
        let protocol = rest.split('_').next().unwrap_or_default().to_ascii_lowercase();
        port.parse::<u16>().is_ok() && PROTOCOLS.contains(&protocol.as_str())
    };
    let is_address = value.split_once("://").is_some_and(|(protocol, _)| PROTOCOLS.contains(&protocol));
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT") && is_address
        || name.split_once("_PORT_").is_some_and(|(_, rest)| of_port(rest))
}

/// The variables that handlers are given, after `RELAY_`; beside them each `relay-meta-*` header as `RELAY_META_*`.
const GIVEN: &[&str] = &[
    "ACCEPTED_AT",
    "ATTEMPT",
    "CLIENT",
    "CONTENT_ENCODING",
    "CONTENT_TYPE",
    "DEADLINE",
    "EXPIRES_AT",
    "GENERATION",
    "GUARD",
    "IDEMPOTENCY_KEY",
    "JOB_ID",
    "MAX_ATTEMPTS",
    "QUEUE",
    "RUN_ID",
];

/// Every variable of every command, and those that relay gives to handlers, which may start relay in turn.
fn variables() -> Vec<String> {
    fn collect(command: &Command, into: &mut Vec<String>) {
        into.extend(command.get_arguments().filter_map(|argument| Some(argument.get_env()?.to_str()?.to_owned())));
        command.get_subcommands().for_each(|command| collect(command, into));
    }
    let mut known: Vec<String> = SECRETS.iter().map(|name| (*name).to_owned()).collect();
    known.push(FILE_VARIABLE.to_owned());
    known.extend(settings::all().map(|setting| setting.variable.to_owned()).filter(|name| !name.is_empty()));
    collect(&super::commands(false), &mut known);
    known.extend(GIVEN.iter().map(|name| format!("RELAY_{name}")));
    known
}

/// A value, and where it comes from.
#[derive(Debug, Serialize)]
struct Shown {
    key: String,
    value: String,
    origin: String,
}

fn show(path: Option<PathBuf>, as_json: bool) -> Result<Exit, CliError> {
    // One file may be for a server and its workers: each takes the variables that are its own.
    let Configured { merged, file, .. } = configured::without_flags("serve", path.as_deref())?;
    let (of_worker, _) = configured::merge("worker", file.as_ref(), Ok(Layer::default()), &variable)?;
    let held = settings::all().filter_map(|setting| {
        let merged = if flags::has("serve", setting) { &merged } else { &of_worker };
        Some((setting.key.to_owned(), merged.get(setting.key)?))
    });
    let mut shown: Vec<Shown> = held
        .map(|(key, Held { value, origin })| {
            let origin = origin.unwrap_or_else(|| "default".to_owned());
            Shown { key, value: without_password(&value), origin }
        })
        .collect();
    for secret in SECRETS.iter().filter(|name| variable(name).is_some()) {
        shown.push(Shown { key: (*secret).to_owned(), value: MASK.to_owned(), origin: "environment".to_owned() });
    }
    if let Some(file) = &file {
        for queue in &file.queues {
            let origin = |line: usize| format!("{}:{line}", file.path.display());
            let of_queue = |key: String, value: String, line| Shown {
                key: format!("queue.{}{key}", queue.name),
                value,
                origin: origin(line),
            };
            shown.push(of_queue(String::new(), queue.name.to_string(), queue.line));
            let values = queue.patch.values.iter();
            shown.extend(values.map(|(key, (value, line))| of_queue(format!(".{key}"), text(key, value), *line)));
            for (client, written) in &queue.patch.clients {
                let values = written.iter();
                shown.extend(
                    values.map(|(key, (value, line))| {
                        of_queue(format!(".client.{client}.{key}"), text(key, value), *line)
                    }),
                );
            }
        }
        for (key, value, line) in &file.bridge_values {
            let value = match value {
                Value::List(values) => values.iter().map(|value| without_password(value)).collect::<Vec<_>>().join(","),
                value => without_password(&value.to_string()),
            };
            shown.push(Shown { key: key.clone(), value, origin: format!("{}:{line}", file.path.display()) });
        }
    }
    if as_json {
        output::json(&json!({ "settings": shown }))?;
    } else {
        let rows = shown.into_iter().map(|shown| [shown.key, shown.value, shown.origin]);
        output::line(output::table(&["key", "value", "origin"], &[], rows))?;
    }
    Ok(Exit::Done)
}

fn text(key: &str, value: &Value) -> String {
    if *value == Value::List(Vec::new()) {
        return "all".to_owned();
    }
    let bytes = policy::row(key).is_some_and(|setting| matches!(setting.kind, Kind::Size(_)));
    if bytes { format!("{value}B") } else { value.to_string() }
}

/// Addresses may have a user and a password in them.
fn without_password(value: &str) -> String {
    let addresses = value.split(',').map(|address| match (address.split_once("://"), address.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{MASK}@{host}"),
        // Servers of NATS may be written without a scheme; paths and templates are no addresses.
        (None, Some((_, host))) if !address.contains(['/', '{']) => format!("{MASK}@{host}"),
        _ => address.to_owned(),
    });
    addresses.collect::<Vec<_>>().join(",")
}

/// `docs/configuration.md`.
fn reference() -> String {
    let mut text = String::from(HEAD);
    for table in TABLES {
        // Writing to a string can't fail.
        write!(
            text,
            "\n## `[{}]`\n\n{}\n\n| key | value | default | flag and variable | |\n| --- | --- | --- | --- | --- |\n",
            table.name,
            table.about()
        )
        .ok();
        for setting in table.settings {
            let (help, in_help) = help(setting);
            let default = setting.default.map(ToOwned::to_owned).or(in_help);
            let default = default.map_or_else(String::new, |default| format!("`{default}`"));
            let typed = match setting.flag {
                "" => "behind `--`".to_owned(),
                flag => format!("`--{flag}` `{}`", setting.variable),
            };
            let key = setting.key.trim_start_matches(&format!("{}.", table.name));
            writeln!(text, "| `{key}` | {} | {default} | {typed} | {help} |", setting.kind).ok();
        }
    }
    text.push_str(QUEUES);
    for setting in POLICY {
        let PolicySetting { key, kind, default, flag, help, .. } = setting;
        let flag = flag.map_or_else(String::new, |flag| format!("`--{flag}`"));
        let client = if setting.is_per_client() { "yes" } else { "" };
        writeln!(text, "| `{key}` | {kind} | `{default}` | {flag} | {client} | {help} |").ok();
    }
    text.push_str(BRIDGES);
    text.push_str(LISTENERS);
    text.push_str(AUTHORITIES);
    text
}

/// A flag's help as a sentence, without its default, and that default.
fn help(setting: &Setting) -> (String, Option<String>) {
    let help = setting.help().replace('|', "\\|");
    let (help, default) = match help.split_once(" [default: ") {
        Some((help, default)) => (help.to_owned(), default.split_once(']').map(|(default, _)| default.to_owned())),
        None => (help, None),
    };
    // Text about other flags applies to the flags of their keys: people know both.
    (format!("{}.", help.trim_end_matches('.')), default)
}

const HEAD: &str = r#"# Configuration

Written by `relay config reference` from the table that also reads the file.

`relay serve`, `relay worker` and `relay provision` take a file with `--config FILE` or `RELAY_CONFIG`, `relay bridge` with
`--config FILE`. Every setting of a process is also a flag of `relay serve`, or of `relay worker` what is below `[worker]`, and a
variable; the order is **flag, variable, file, default**. Where settings exclude each other, such as `--memory`, `--data`, `--nats`
and `--sqs`, the highest layer that names one of them wins, and the others are left out of the layers below. A variable that is
empty is not set. Each process reads the settings that it knows, so that one file may be for several processes: on one machine,
give one of them another `--admin`.

A file is checked whole before anything starts: unknown keys, values without a unit or of another type, queues that are there
twice, and what contradicts something else are all reported at once, each with file, line, value and what to write instead.
Where one setting needs another, such as `[streams]` the address of NATS, the other may be a flag or a variable as well.
`relay config check FILE` does the same without starting anything, with the variables and without flags;
`relay config show --config FILE` prints what holds and where it comes from. Paths in a file are seen from the file's folder.

```toml
[listen]
http = "0.0.0.0:7410"
tls_cert = "/etc/relay/tls.pem"
tls_key = "/etc/relay/tls.key"
client_auth = "optional"
workers = "127.0.0.1:7411"

[store]
data = "/var/lib/relay"

[access]
keys = "/etc/relay/keys.toml"

[admin]
listen = "127.0.0.1:7412"

[[client_ca]]
file = "/etc/relay/clients-of-a.pem"
names = ["spiffe://a.example/*"]
crl = "/etc/relay/revoked-by-a.pem"

[worker]
command = ["./handle", "--fast"]
queues = ["orders=3", "thumbnails"]
slots = 8
key_file = "/etc/relay/worker.key"

[queue_defaults]
retention = "3d"

[[queue]]
name = "orders"
max_attempts = 5
payload_max = "4MiB"

[[queue.client]]
name = "shop"
weight = 3
max_queued = 10000
rate = "50/s"

[[queue]]
name = "thumbnails"
lease = "2m"
content_types = ["image/png", "image/jpeg"]
allowed_clients = ["shop", "studio"]
```
"#;

const QUEUES: &str = "
## `[[queue]]`, `[queue_defaults]` and `[[queue.client]]`

Each `[[queue]]` has a `name` and its settings; `[queue_defaults]` is below all of them. The policy lives in the broker: a
setting that is not written stays as it is there, and one that takes away from what clients rely on, such as a smaller retention,
needs `--force`. Some of it may differ for single clients, in `[[queue.client]]` with the client's `name`. Flags change the policy of
every queue that is named by `--queue` or in the file. A pause is not configuration: it stands until the queue is resumed.
Servers and `relay provision` may write one queue at the same time: each writes what it names, over what the others wrote.

A rate is counted by each server for itself, over HTTP and NATS together: of N servers behind one address each lets that much
in. Every submission counts, also a retry, each entry of a batch and a rerun that starts a run. Bridges submit to the broker
itself: `content_types` and `allowed_clients` hold for them, a rate does not.

| key | value | of new queues | flag | per client | |
| --- | --- | --- | --- | --- | --- |
";

const LISTENERS: &str = "
## `[[listener]]`

Addresses where clients and workers connect, at most 16, beside those of `[listen]`: each is one more way in, and all of them share the
limits and the certificate of the process. A file that has one for clients has no listener at the usual address of `listen.http`;
setting that, or `--listen`, adds one, which is called `http`, as the one of `listen.workers` is called `workers`.

| key | value | default | |
| --- | --- | --- | --- |
| `name` | letters, digits and `-` |  | Its name in the log and in the line of `--json`. |
| `address` | an address |  | Where it listens; port 0 takes a free one. |
| `protocol` | `http`, `relay` or `worker` | `http` | The peers: clients over HTTP and, where TLS ends in relay, over [relay's TCP protocol](protocol.md#the-client-role) as well; clients over that one alone; or workers. |
| `proxy` | `off` or `required` | `off` | Whether a load balancer writes a PROXY header in front of each connection. |
| `trusted` | a list of addresses or ranges of them |  | From whom a header is believed; other peers are closed unread. |
| `tls` | `off`, `on` or `terminated-in-front` | `off` | Where TLS ends: `on` is in relay, with `listen.tls_cert`. Addresses that others can reach need it, or the word that something in front ends it and the network behind that is trusted. |
| `client_auth` | `off`, `optional` or `required` | `off` | Whether peers are asked for a certificate of a `[[client_ca]]`. |

For one behind a network load balancer, one for pods of the cluster that come without it, and one for workers elsewhere:

```toml
[[listener]]
name = \"nlb\"
address = \"0.0.0.0:7410\"
proxy = \"required\"
trusted = [\"10.0.1.7\", \"10.0.2.7\"]
tls = \"on\"
client_auth = \"optional\"

[[listener]]
name = \"cluster\"
address = \"0.0.0.0:7414\"
tls = \"on\"

[[listener]]
name = \"workers\"
protocol = \"worker\"
address = \"0.0.0.0:7411\"
tls = \"on\"
client_auth = \"required\"
```
";

const AUTHORITIES: &str = "
## `[[client_ca]]`

The authorities whose certificates clients and workers may show where `client_auth` of their listener asks for one, at most 64: `file` (PEM), `names`, and `crl`
(PEM, one list for each authority of a chain; without it nothing is revoked). `names` are those that the authority may give:
`spiffe://a.example/*` for URIs that begin so and go on, `*.a.example` for DNS names of one label more, or one name as it is. The files
are read again when they change; the tables are not.
";

const BRIDGES: &str = "
## `[[bridge]]`

The bridges of `relay bridge --config FILE`, each under a `name`: [bridge.md](bridge.md) has their settings. Beside them it takes
`[nats]` as the target of those that say no other, `[admin]` and `[log]`. `relay serve` checks them and leaves them alone.

## `[[admin_token]]`

Tokens of the admin port beside that of `admin.token_file`, 64 at most: each has a `name`, `rights` (some of `metrics`, `read` and
`operate`) and a `token_file`. [security.md](security.md#workers-and-operators) says which call needs which right. Servers read the
files again when they change.
";
