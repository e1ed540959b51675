//! `relay config`: what holds for a server and where each value comes from, whether a file is right, and what can be set.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Arg, Args, Command, CommandFactory as _, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::configured::{self, variable};
use super::contexts::FILE_VARIABLE;
use super::exit::{CliError, Exit};
use super::output;
use crate::config::file::File;
use crate::config::kind::{Kind, Value};
use crate::config::mistake::meant;
use crate::config::settings::{COMMAND, POLICY, PolicySetting, SECRETS, SETTINGS, Setting, TABLES};

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
            let read = configured::read(&file)?;
            warn_of_unknown_variables();
            let (settings, queues, bridges) = (read.values.len(), read.queues.len(), read.bridges.len());
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
pub(crate) fn warn_of_unknown_variables() {
    let known = variables();
    let set = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let ours = |name: &String| name.starts_with("RELAY_") && !name.starts_with("RELAY_META_");
    for name in set.filter(|name| ours(name) && !known.contains(name)) {
        let hint = meant(&name, known.iter().map(String::as_str));
        let hint = hint.map_or_else(String::new, |meant| format!(": did you mean {meant}?"));
        tracing::warn!("nobody reads the variable {name}{hint}");
    }
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
    collect(&super::Cli::command(), &mut known);
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
    let file = path.as_deref().map(configured::read).transpose()?;
    let commands = commands();
    let mut shown: Vec<Shown> =
        SETTINGS.iter().filter_map(|setting| resolved(setting, &commands, file.as_ref())).collect();
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

/// The value that holds for a setting, if any does.
fn resolved(setting: &Setting, commands: &Command, file: Option<&File>) -> Option<Shown> {
    let argument = argument(commands, setting)?;
    let name = argument.get_env().and_then(|name| name.to_str()).unwrap_or_default();
    let written = file.and_then(|file| Some((file, file.values.get(setting.key)?)));
    let default = || argument.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
    let (value, origin) = match (variable(name), written) {
        (Some(value), _) => (value, format!("variable {name}")),
        (None, Some((file, (value, line)))) => {
            let bytes = setting.kind == Kind::Size;
            (if bytes { format!("{value}B") } else { value.to_string() }, format!("{}:{line}", file.path.display()))
        }
        (None, None) => (default()?, "default".to_owned()),
    };
    Some(Shown { key: setting.key.to_owned(), value: without_password(&value), origin })
}

fn text(key: &str, value: &Value) -> String {
    if *value == Value::List(Vec::new()) {
        return "all".to_owned();
    }
    let bytes = POLICY.iter().any(|setting| setting.key == key && setting.kind == Kind::Size);
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

/// Every command, with what all of them take.
fn commands() -> Command {
    let mut command = super::Cli::command();
    command.build();
    command
}

/// The argument that a setting stands for.
fn argument<'a>(commands: &'a Command, setting: &Setting) -> Option<&'a Arg> {
    commands.find_subcommand(setting.command())?.get_arguments().find(|argument| {
        if setting.key == COMMAND { argument.is_last_set() } else { argument.get_long() == Some(setting.flag) }
    })
}

/// `docs/configuration.md`.
fn reference() -> String {
    let commands = commands();
    let mut text = String::from(HEAD);
    for (table, about) in TABLES {
        // Writing to a string can't fail.
        write!(text, "\n## `[{table}]`\n\n{about}\n\n| key | value | default | flag and variable | |\n| --- | --- | --- | --- | --- |\n").ok();
        let prefix = format!("{table}.");
        for setting in SETTINGS.iter().filter(|setting| setting.key.starts_with(&prefix)) {
            let Some(argument) = argument(&commands, setting) else { continue };
            let (help, in_help) = help(argument);
            let default = argument.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
            let default = default.or(in_help).map_or_else(String::new, |default| format!("`{default}`"));
            let typed = match argument.get_env() {
                Some(variable) => format!("`--{}` `{}`", setting.flag, variable.to_string_lossy()),
                None => "behind `--`".to_owned(),
            };
            let key = setting.key.trim_start_matches(&prefix);
            writeln!(text, "| `{key}` | {} | {default} | {typed} | {help} |", setting.kind).ok();
        }
    }
    text.push_str(QUEUES);
    for setting in POLICY {
        let PolicySetting { key, kind, default, flag, per_client, help } = setting;
        let flag = flag.map_or_else(String::new, |flag| format!("`--{flag}`"));
        let client = if *per_client { "yes" } else { "" };
        writeln!(text, "| `{key}` | {kind} | `{default}` | {flag} | {client} | {help} |").ok();
    }
    text.push_str(BRIDGES);
    text
}

/// A flag's help as a sentence, without its default, and that default.
fn help(argument: &Arg) -> (String, Option<String>) {
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default().replace('|', "\\|");
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
variable; the order is **flag, variable, file, default**. Of alternatives, such as the place where jobs are kept, the one that
was named by a flag or a variable counts, and the file's is left out. Each process reads what it knows, so that one file may
be for several: if they are on one machine, give one of them another `--admin`.

A file is checked whole before anything starts: unknown keys, values without a unit or of another type, queues that are there
twice, and what contradicts something else are all reported at once, each with file, line, value and what to write instead.
Where one setting needs another, such as `[streams]` the address of NATS, the other may be a flag or a variable as well.
`relay config check FILE` does the same without starting anything, with the variables and without flags;
`relay config show --config FILE` prints what holds and where it comes from. Paths in a file are seen from the file's folder.

```toml
[listen]
http = "0.0.0.0:7410"
workers = "127.0.0.1:7411"

[store]
data = "/var/lib/relay"

[access]
keys = "/etc/relay/keys.toml"

[admin]
listen = "127.0.0.1:7412"

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

const BRIDGES: &str = "
## `[[bridge]]`

The bridges of `relay bridge --config FILE`, each under a `name`: [bridge.md](bridge.md) has their settings. Beside them it takes
`[nats]` as the target of those that say no other, `[admin]` and `[log]`. `relay serve` checks them and leaves them alone.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_a_flag_with_a_variable_of_the_same_name() {
        let commands = commands();
        for setting in SETTINGS.iter().filter(|setting| setting.key != COMMAND) {
            let argument = argument(&commands, setting).unwrap_or_else(|| panic!("--{} is not there", setting.flag));
            let ours = match (setting.flag, setting.command()) {
                // One is OpenTelemetry's, which every program reads.
                ("otlp-endpoint", _) => "OTEL_EXPORTER",
                // Handlers are given `RELAY_QUEUE` and the like, and may start relay in turn.
                (_, "worker") => "RELAY_WORKER",
                _ => "RELAY",
            };
            let variable = format!("{ours}_{}", setting.flag.to_uppercase().replace('-', "_"));
            assert_eq!(
                argument.get_env().and_then(|name| name.to_str()),
                Some(variable.as_str()),
                "--{}",
                setting.flag
            );
        }
        for setting in POLICY {
            let Some(name) = setting.flag else { continue };
            let serve = commands.find_subcommand("serve").unwrap();
            assert!(serve.get_arguments().any(|argument| argument.get_long() == Some(name)), "--{name}");
        }
    }

    #[test]
    fn every_flag_of_a_process_is_a_setting() {
        let commands = commands();
        for (command, about_this_start) in [
            ("serve", &["config", "help", "json", "force", "queue"][..]),
            ("worker", &["config", "help", "json", "key"]),
        ] {
            let flags = commands.find_subcommand(command).unwrap().get_arguments().filter_map(Arg::get_long);
            for name in flags {
                let known = SETTINGS.iter().any(|setting| setting.flag == name && setting.is_for(command))
                    || POLICY.iter().any(|setting| setting.flag == Some(name));
                assert!(known || about_this_start.contains(&name), "--{name} of {command} can't be written in a file");
            }
        }
    }

    #[test]
    fn a_variable_that_is_read_is_known() {
        for name in ["RELAY_CONTEXTS", "RELAY_CONTEXT", "RELAY_API_KEY", "RELAY_NATS_PASSWORD", "RELAY_JOB_ID"] {
            assert!(variables().iter().any(|known| known == name), "{name}");
        }
    }

    #[test]
    fn passwords_in_addresses_are_masked() {
        let shown = without_password("nats://relay:hush@a:4222,nats://b,relay:hush@c,/home/me@work/relay");
        assert_eq!(shown, format!("nats://{MASK}@a:4222,nats://b,{MASK}@c,/home/me@work/relay"));
    }
}
