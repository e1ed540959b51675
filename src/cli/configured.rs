//! A configuration file's values, as the flags that they stand for: one way to resolve both. A flag or a variable that
//! is given has the last word.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory as _};

use super::exit::CliError;
use crate::config::contradictions::Above;
use crate::config::file::{self, File};
use crate::config::kind::Kind;
use crate::config::kind::Value;
use crate::config::settings::{COMMAND, SETTINGS, Setting};

/// Of each of these a command takes one: whoever names one on the command line means it instead of the file's.
const ALTERNATIVES: [&[&str]; 6] = [
    &["data", "memory", "nats", "sqs"],
    &["keys", "no-auth"],
    &["nats-listen", "no-nats-listen"],
    &["connect", "nats", "sqs"],
    &["key", "key-file"],
    &["http", HANDLER],
];
/// Stands for the arguments behind a `--`, in place of a flag's name.
const HANDLER: &str = "--";

/// Reads the configuration file that a command names, if it has `--config` and names one.
///
/// # Errors
/// A usage error with every mistake in it.
pub(crate) fn load(command: &Command, arguments: &[OsString]) -> Result<Option<Configured>, CliError> {
    let lenient = command.clone().ignore_errors(true).try_get_matches_from(arguments);
    let Ok(matches) = lenient else { return Ok(None) };
    let Some((name, of_command)) = matches.subcommand() else { return Ok(None) };
    let Ok(Some(path)) = of_command.try_get_one::<PathBuf>("config") else { return Ok(None) };
    let known = command.find_subcommand(name).map(|command| flags(command, of_command)).unwrap_or_default();
    let file = parse(path, &given(name, &known))?;
    let (arguments, handler) = stand_ins(&file, name, &known);
    Ok(Some(Configured { file, arguments, handler }))
}

/// Reads a file as `relay serve` does that is told nothing but by the environment.
///
/// # Errors
/// A usage error with every mistake in it.
pub(crate) fn read(path: &Path) -> Result<File, CliError> {
    const SERVE: &str = "serve";
    let command = super::Cli::command();
    let lenient = command.clone().ignore_errors(true).try_get_matches_from(["relay", SERVE]);
    let known = match (command.find_subcommand(SERVE), lenient.as_ref().ok().and_then(ArgMatches::subcommand)) {
        (Some(command), Some((_, matches))) => flags(command, matches),
        _ => Vec::new(),
    };
    parse(path, &given(SERVE, &known))
}

fn parse(path: &Path, given: &BTreeSet<&'static str>) -> Result<File, CliError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::usage(format!("--config {}: {error}", path.display())))?;
    file::read(path, &text, Above { variable: &variable, given })
        .map_err(|mistakes| CliError::usage(mistakes.to_string()))
}

/// Keys of the settings that flags and variables of a command set.
fn given(command: &str, known: &[Flag]) -> BTreeSet<&'static str> {
    let set = |setting: &&Setting| known.iter().any(|flag| flag.given && flag.set && flag.name == setting.flag);
    SETTINGS.iter().filter(|setting| setting.is_for(command)).filter(set).map(|setting| setting.key).collect()
}

/// A variable that is set and not empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A file, and what it adds to a command line.
pub(crate) struct Configured {
    pub(crate) file: File,
    /// To be put behind the arguments that were typed, and before a `--`.
    arguments: Vec<OsString>,
    /// To be put behind a `--`, where nothing was typed there.
    handler: Vec<OsString>,
}

impl Configured {
    /// The command line with the file's settings in it.
    pub(crate) fn complete(&self, typed: &[OsString]) -> Vec<OsString> {
        let end = typed.iter().position(|argument| argument == "--").unwrap_or(typed.len());
        let (before, after) = typed.split_at(end);
        let typed = before.iter().chain(&self.arguments).chain(after).cloned();
        let dashes = (!self.handler.is_empty() && after.is_empty()).then(|| OsString::from("--"));
        typed.chain(dashes).chain(self.handler.iter().cloned()).collect()
    }
}

/// A flag of a command, and whether somebody gave it.
struct Flag {
    name: String,
    given: bool,
    /// Not `false`.
    set: bool,
}

fn flags(command: &Command, matches: &ArgMatches) -> Vec<Flag> {
    let given = |id: &str| {
        let source = matches.try_contains_id(id).is_ok().then(|| matches.value_source(id)).flatten();
        matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
    };
    let set = |id: &str| matches.try_get_one::<bool>(id).ok().flatten() != Some(&false);
    let flag = |name: &str, id: &str| Flag { name: name.to_owned(), given: given(id), set: set(id) };
    let flags = command.get_arguments().filter_map(|argument| {
        let behind = argument.is_last_set().then_some(HANDLER);
        Some(flag(argument.get_long().or(behind)?, argument.get_id().as_str()))
    });
    // Those of every command.
    flags.chain(["log", "log-format"].map(|name| flag(name, &name.replace('-', "_")))).collect()
}

/// The file's settings as flags of a command, and as what stands behind a `--`: those that it knows and nobody gave in
/// another way.
fn stand_ins(file: &File, command: &str, known: &[Flag]) -> (Vec<OsString>, Vec<OsString>) {
    let mut left_out: BTreeSet<&str> = BTreeSet::new();
    for flag in known.iter().filter(|flag| flag.given) {
        left_out.insert(&flag.name);
        for group in ALTERNATIVES.iter().filter(|group| group.contains(&flag.name.as_str())) {
            left_out.extend(*group);
        }
    }
    // Another broker was named: what the file says about one that is not used.
    let given = |names: &[&str]| known.iter().any(|flag| flag.given && names.contains(&flag.name.as_str()));
    let (elsewhere, nats, sqs) = (given(&["data", "memory", "connect"]), given(&["nats"]), given(&["sqs"]));
    let unused = |flag: &str| {
        let doors = command != "worker" && file.get("listen.nats").is_some();
        let of_nats = (elsewhere || sqs) && !doors && flag.starts_with("nats-");
        let of_sqs = (elsewhere || nats) && flag.starts_with("sqs-");
        of_nats || of_sqs || (elsewhere && flag == "provision") || ((nats || sqs) && flag == "key-file")
    };
    let (mut arguments, mut handler) = (Vec::new(), Vec::new());
    for setting in SETTINGS.iter().filter(|setting| setting.is_for(command)) {
        let Some((value, _)) = file.get(setting.key) else { continue };
        let name = if setting.key == COMMAND { HANDLER } else { setting.flag };
        let takes = known.iter().any(|flag| flag.name == name);
        if !takes || left_out.contains(name) || unused(name) {
            continue;
        }
        let flag = format!("--{name}");
        match value {
            Value::List(texts) if setting.key == COMMAND => handler.extend(texts.iter().map(OsString::from)),
            Value::Flag(_) => arguments.push(flag),
            Value::List(texts) => arguments.extend(texts.iter().map(|text| format!("{flag}={text}"))),
            Value::Number(bytes) if setting.kind == Kind::Size => arguments.push(format!("{flag}={bytes}B")),
            value => arguments.push(format!("{flag}={value}")),
        }
    }
    (arguments.into_iter().map(OsString::from).collect(), handler)
}
