//! The settings of a process as flags of its command. They are made from the settings' own table, so that a setting that is
//! added there has its flag, its variable and its help everywhere.

use clap::builder::PossibleValue;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command};

use crate::config::kind::{Kind, Unfit, Value};
use crate::config::layers::Layer;
use crate::config::policy::{POLICY, PolicySetting};
use crate::config::settings::{self, COMMAND, Setting};

/// Whether a command has the flag of a setting, and so reads its variable.
pub(super) fn has(command: &str, setting: &Setting) -> bool {
    let (key, table) = (setting.key, setting.table().name);
    match command {
        _ if table == "log" => true,
        "serve" => table != "worker",
        "dev" => match key {
            "store.data" | "worker.http" | "worker.timeout" | "worker.pass_env" | COMMAND => true,
            "listen.tcp"
            | "listen.workers"
            | "listen.worker_tls"
            | "listen.worker_client_auth"
            | "streams.provision" => false,
            _ => ["listen", "limits", "admin", "telemetry", "nats", "streams"].contains(&table),
        },
        "worker" | "scaler" | "bridge" if ["nats.no_listen", "sqs.forward", "sqs.share"].contains(&key) => false,
        // The admin port's.
        "worker" | "bridge" if ["listen.tls_cert", "listen.tls_key"].contains(&key) => true,
        "worker" => ["worker", "admin", "telemetry", "nats", "sqs"].contains(&table),
        "doctor" => ["nats", "sqs"].contains(&table) && !["nats.no_listen", "sqs.forward", "sqs.share"].contains(&key),
        "scaler" => {
            ["scaler", "admin", "nats", "sqs"].contains(&table) || ["listen.tls_cert", "listen.tls_key"].contains(&key)
        }
        "bench" => table == "nats" && !["nats.no_listen", "nats.sync_always", "nats.domain"].contains(&key),
        "bridge" => ["admin", "nats", "sqs"].contains(&table),
        "provision" => {
            ["nats", "sqs", "streams"].contains(&table) && !["nats.no_listen", "streams.provision"].contains(&key)
        }
        _ => false,
    }
}

/// The settings of a command.
pub(super) fn of(command: &str) -> impl Iterator<Item = &'static Setting> {
    settings::all().filter(move |setting| has(command, setting))
}

/// The rows of the policy that are flags of a command.
fn policy_of(command: &str) -> impl Iterator<Item = (&'static PolicySetting, &'static str)> {
    let has_queues = ["serve", "dev", "provision"].contains(&command);
    POLICY.iter().filter(move |_| has_queues).filter_map(|setting| Some((setting, setting.flag?)))
}

/// The demands of a command: one setting of each group, from whichever layer. Help shows it; [`missing`] judges it after the
/// layers are merged.
fn demands(command: &str) -> &'static [(&'static str, &'static [&'static str])] {
    match command {
        "serve" => &[
            ("no store and no broker is configured", &["store.data", "store.memory", "nats.servers", "sqs.enabled"]),
            ("access is not configured", &["access.keys", "access.clients", "access.no_auth"]),
        ],
        "scaler" => {
            &[("no broker is configured", &["nats.servers", "sqs.enabled"]), ("KEDA is not served", &["scaler.listen"])]
        }
        "worker" | "dev" => &[("no handler is configured", &["worker.http", COMMAND])],
        _ => &[],
    }
}

/// The demands that nobody met, each with the flags that meet it.
pub(super) fn missing(command: &str, is: impl Fn(&str) -> bool) -> Vec<String> {
    let unmet = demands(command).iter().filter(|(_, keys)| !keys.iter().any(|key| is(key)));
    let flag = |setting: &Setting| match setting.key {
        COMMAND => "-- COMMAND".to_owned(),
        _ => format!("--{}", setting.flag),
    };
    let text = |(what, keys): &(&str, &[&str])| {
        let flags: Vec<_> = keys.iter().filter_map(|key| settings::of(key)).map(flag).collect();
        format!("{what}: give one of {}", flags.join(", "))
    };
    unmet.map(text).collect()
}

/// A command with its settings as flags: as help shows it, with variables and what is demanded, or as it is parsed, where
/// other layers may give what is demanded.
pub(super) fn add(mut command: Command, name: &'static str, in_help: bool) -> Command {
    for setting in of(name).filter(|setting| setting.table().name != "log") {
        command = command.arg(argument(setting, in_help));
    }
    for (setting, flag) in policy_of(name) {
        command = command.arg(policy_argument(setting, flag));
    }
    if in_help {
        // The usage line shows a command behind `--` already.
        for (group, keys) in demands(name).iter().filter(|(_, keys)| !keys.contains(&COMMAND)) {
            command = command.group(ArgGroup::new(*group).required(true).args(keys.iter().copied()));
        }
    }
    command
}

/// The flags about the log, which every command has.
pub(super) fn add_log(command: Command, in_help: bool) -> Command {
    of("").fold(command, |command, setting| command.arg(argument(setting, in_help).global(true)))
}

fn argument(setting: &'static Setting, in_help: bool) -> Arg {
    let mut argument = Arg::new(setting.key).help(setting.help());
    argument = match setting.key {
        COMMAND => argument.last(true).num_args(1..),
        _ => argument.long(setting.flag),
    };
    argument = argument.help_heading(setting.heading());
    if in_help && !setting.variable.is_empty() {
        argument = argument.env(setting.variable);
    }
    if setting.kind == Kind::Flag {
        return argument.action(ArgAction::SetTrue);
    }
    if let Some(default) = setting.default {
        argument = argument.default_value(default);
    }
    if let Some(alone) = setting.alone {
        argument = argument.num_args(0..=1).default_missing_value(alone);
    }
    argument = argument.value_name(setting.value_name);
    if let Kind::Choice(words) = setting.kind {
        argument = argument.value_parser(
            words.iter().map(|(word, meaning)| PossibleValue::new(*word).help(*meaning)).collect::<Vec<_>>(),
        );
    }
    match (setting.kind.is_list(), setting.key) {
        (true, COMMAND) => argument.action(ArgAction::Append),
        (true, _) => argument.action(ArgAction::Append).value_delimiter(','),
        _ => argument,
    }
}

fn policy_argument(setting: &'static PolicySetting, flag: &'static str) -> Arg {
    let help = format!("{} [new queues: {}]", setting.help.trim_end_matches('.'), setting.default);
    let argument = Arg::new(setting.key).long(flag).help(help).help_heading("Queues").value_name(match setting.kind {
        Kind::Duration(_) => "DURATION",
        Kind::Size(_) | Kind::SizeOrNone => "SIZE",
        Kind::Flag => "BOOL",
        _ => "N",
    });
    if setting.kind == Kind::Flag { argument.num_args(0..=1).default_missing_value("true") } else { argument }
}

/// The flags that were typed for a command.
///
/// # Errors
/// Every flag whose value is none of its kind.
pub(super) fn typed(command: &str, matches: &ArgMatches) -> Result<Layer, Vec<String>> {
    let given = of(command).filter(|setting| matches.value_source(setting.key) == Some(ValueSource::CommandLine));
    layer(given.filter_map(|setting| {
        let value = match setting.kind {
            Kind::Flag => Ok(Value::Flag(matches.get_flag(setting.key))),
            // Of a command each word is as it was typed.
            _ if setting.key == COMMAND => Ok(Value::List(matches.get_many::<String>(COMMAND)?.cloned().collect())),
            kind => parse(kind, matches.get_many::<String>(setting.key)?.map(String::as_str)),
        };
        Some((setting, format!("--{}", setting.flag), value))
    }))
}

/// The parts of the policy that were typed for a command.
///
/// # Errors
/// As [`typed`].
pub(super) fn typed_policy(
    command: &str,
    matches: &ArgMatches,
) -> Result<Vec<(&'static PolicySetting, Value)>, Vec<String>> {
    let (mut values, mut wrong) = (Vec::new(), Vec::new());
    for (setting, flag) in policy_of(command) {
        let Some(text) = matches.get_one::<String>(setting.key) else { continue };
        match setting.kind.parse(text) {
            Ok(value) => values.push((setting, value)),
            Err(unfit) => wrong.push(format!("--{flag}: {unfit}")),
        }
    }
    if wrong.is_empty() { Ok(values) } else { Err(wrong) }
}

/// The variables of a command's settings. One that is empty is not set.
///
/// # Errors
/// Every variable whose value is none of its kind.
pub(super) fn variables(command: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Layer, Vec<String>> {
    layer(of(command).filter(|setting| !setting.variable.is_empty()).filter_map(|setting| {
        let text = variable(setting.variable)?;
        let value = if setting.kind.is_list() {
            parse(setting.kind, text.split(','))
        } else {
            parse(setting.kind, [text.as_str()].into_iter())
        };
        Some((setting, format!("variable {}", setting.variable), value))
    }))
}

/// A layer of what was read, or everything that could not be.
fn layer(read: impl Iterator<Item = (&'static Setting, String, Result<Value, Unfit>)>) -> Result<Layer, Vec<String>> {
    let (mut layer, mut wrong) = (Layer::default(), Vec::new());
    for (setting, origin, value) in read {
        match value {
            Ok(value) => layer.set(setting.key, value, origin),
            Err(unfit) => wrong.push(format!("{origin}: {unfit}")),
        }
    }
    if wrong.is_empty() { Ok(layer) } else { Err(wrong) }
}

/// A value of one text, or of several if it is a list.
fn parse<'a>(kind: Kind, mut texts: impl Iterator<Item = &'a str>) -> Result<Value, Unfit> {
    if !kind.is_list() {
        return kind.parse(texts.next().unwrap_or_default());
    }
    let lists = texts.map(|text| kind.parse(text)).collect::<Result<Vec<_>, _>>()?;
    Ok(Value::List(lists.iter().flat_map(Value::texts).cloned().collect()))
}
