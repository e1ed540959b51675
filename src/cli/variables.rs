//! The variables of arguments that are no settings, such as `RELAY_SERVER`: a flag has the last word, and an empty one is not set.
//!
//! To clap a variable is as good as a flag: an empty one is a value, and one that excludes a flag is an error.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

use clap::builder::Resettable;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, Id};

/// An address goes before a context, from the same layer too.
const BEFORE_CONTEXT: [&str; 2] = ["server", "admin_server"];
const CONTEXT: &str = "context";

/// `commands` without the variables that say nothing beside what was typed: those that are empty, those of arguments that exclude a flag
/// that was typed, and that of the context beside an address.
pub(super) fn in_their_place(commands: Command, typed: &[OsString]) -> Command {
    let without_any = reset(commands.clone(), &|_, _| true);
    // What can't be parsed without variables demands one, or is an error that is told below.
    let flags = without_any.try_get_matches_from(typed).map(|matches| flags_of(&matches)).unwrap_or_default();
    reset(commands, &|command, argument| {
        let excluded = |one: &Arg, other: &Arg| {
            command.get_arg_conflicts_with(one).iter().any(|excluded| excluded.get_id() == other.get_id())
        };
        let is_out = |flag: &Arg| excluded(flag, argument) || excluded(argument, flag);
        let goes_before = |other: &Arg| {
            let is_address = argument.get_id() == CONTEXT && BEFORE_CONTEXT.contains(&other.get_id().as_str());
            is_address && !flags.contains(argument.get_id()) && is_set(other)
        };
        let others = || command.get_arguments().filter(|other| other.get_id() != argument.get_id());
        !is_set(argument)
            || others().filter(|other| flags.contains(other.get_id())).any(is_out)
            || others().any(goes_before)
    })
}

/// Whether the variable of an argument has a value.
fn is_set(argument: &Arg) -> bool {
    argument.get_env().and_then(std::env::var_os).is_some_and(|value| value != OsStr::new(""))
}

/// The arguments that were typed for the command that was typed.
fn flags_of(matches: &ArgMatches) -> BTreeSet<Id> {
    let mut of_command = matches;
    while let Some((_, inner)) = of_command.subcommand() {
        of_command = inner;
    }
    let is_typed = |id: &&Id| of_command.value_source(id.as_str()) == Some(ValueSource::CommandLine);
    of_command.ids().filter(is_typed).cloned().collect()
}

/// A command, and those below it, without the variables of which `unset` is true.
fn reset(command: Command, unset: &dyn Fn(&Command, &Arg) -> bool) -> Command {
    let out = |argument: &&Arg| argument.get_env().is_some() && unset(&command, argument);
    let out: Vec<_> = command.get_arguments().filter(out).map(|argument| argument.get_id().clone()).collect();
    let below: Vec<_> = command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    let unread = |argument: Arg| argument.env(Resettable::<clap::builder::OsStr>::Reset);
    let command = out.into_iter().fold(command, |command, id| command.mut_arg(id, unread));
    below.into_iter().fold(command, |command, name| command.mut_subcommand(name, |below| reset(below, unset)))
}
