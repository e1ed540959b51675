//! The settings of a command: its flags over its variables over a configuration file over defaults, found right as a whole.

use std::env::VarError;
use std::path::{Path, PathBuf};

use clap::ArgMatches;

use super::exit::CliError;
use super::flags;
use crate::config::contradictions::{self, Found};
use crate::config::file::{self, File};
use crate::config::layers::{Layer, Merged};
use crate::config::listeners;
use crate::config::mistake::{Mistake, Mistakes};
use crate::config::settings::Settings;

/// The settings of a command, and the file that it was told to read.
pub(crate) struct Configured {
    pub(crate) settings: Settings,
    pub(crate) merged: Merged,
    pub(crate) file: Option<File>,
    /// The contradictions in flags and variables, each with the way to correct it.
    above: Vec<(String, String)>,
}

/// The settings of the command `name` with the flags in `matches`.
///
/// # Errors
/// A usage error with every mistake in the file, or in flags and variables.
pub(crate) fn of_command(name: &str, matches: &ArgMatches) -> Result<Configured, CliError> {
    check_variables(name)?;
    let path = matches.try_get_one::<PathBuf>("config").ok().flatten();
    let configured = resolve(name, flags::typed(name, matches), path.map(PathBuf::as_path), &variable)?;
    let texts: Vec<_> = configured.above.iter().map(|(what, _)| what.as_str()).collect();
    if let Some((_, fix)) = configured.above.first() {
        return Err(CliError::usage(texts.join("\n")).hint(fix.clone()));
    }
    let missing = flags::missing(name, |key| configured.merged.is(key));
    if missing.is_empty() {
        return Ok(configured);
    }
    let fix = format!("`relay {name} --help` says what each means");
    Err(CliError::usage(missing.join("\n")).hint(fix))
}

/// The settings of the command `name` that is told nothing but by a file and the environment. Variables may need a flag that
/// is not there: they are not judged.
///
/// # Errors
/// A usage error with every mistake in the file.
pub(crate) fn without_flags(name: &str, path: Option<&Path>) -> Result<Configured, CliError> {
    check_variables(name)?;
    resolve(name, Ok(Layer::default()), path, &variable)
}

/// A value that is no text would be no value, and a layer below would hold without a word.
fn check_variables(command: &str) -> Result<(), CliError> {
    let no_text = |name: &&str| matches!(std::env::var(name), Err(VarError::NotUnicode(_)));
    match flags::of(command).map(|setting| setting.variable).filter(|name| !name.is_empty()).find(no_text) {
        Some(name) => Err(CliError::usage(format!("variable {name}: its value is not UTF-8"))
            .hint("write it in UTF-8, or unset the variable")),
        None => Ok(()),
    }
}

/// A variable that is set and not empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Puts the layers of a command on top of each other, and judges the whole.
fn resolve(
    command: &str,
    typed: Result<Layer, Vec<String>>,
    path: Option<&Path>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Configured, CliError> {
    let (file, mut mistakes) = match path.map(read).transpose()? {
        Some((file, mistakes)) => (Some(file), mistakes),
        None => (None, Vec::new()),
    };
    let (merged, mut settings) = merge(command, file.as_ref(), typed, variable)?;
    settings.admin_tokens = file.as_ref().map(|file| file.admin_tokens.clone()).unwrap_or_default();
    settings.listeners = listeners::all(&settings.listen, merged.is("listen.http"), file.as_ref());
    let serves = matches!(command, "serve" | "dev");
    let Found { in_file, above } = contradictions::find(serves, file.as_ref(), &merged, &settings, variable);
    mistakes.extend(in_file);
    mistakes.sort_by_key(|mistake| mistake.line);
    match file {
        Some(file) if !mistakes.is_empty() => {
            Err(CliError::usage(Mistakes { file: file.path, all: mistakes }.to_string()))
        }
        file => Ok(Configured { settings, merged, file, above }),
    }
}

/// The layers of a command on top of each other, not judged.
///
/// # Errors
/// A usage error with every flag and variable whose value is none of its kind.
pub(crate) fn merge(
    command: &str,
    file: Option<&File>,
    typed: Result<Layer, Vec<String>>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<(Merged, Settings), CliError> {
    let (typed, variables) = match (typed, flags::variables(command, variable)) {
        (Ok(typed), Ok(variables)) => (typed, variables),
        (typed, variables) => {
            let wrong = [typed.err(), variables.err()].into_iter().flatten().flatten();
            return Err(CliError::usage(wrong.collect::<Vec<_>>().join("\n")));
        }
    };
    let of_file = file.map(Layer::of_file).unwrap_or_default();
    // Every value has the type of its kind, so that neither fails.
    let failed = |error: ::config::ConfigError| CliError::failed(error.to_string());
    let merged = Merged::of(vec![of_file, variables, typed]).map_err(failed)?;
    let settings = merged.settings().map_err(failed)?;
    Ok((merged, settings))
}

fn read(path: &Path) -> Result<(File, Vec<Mistake>), CliError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::usage(format!("--config {}: {error}", path.display())))?;
    Ok(file::read(path, &text))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The settings of a command that is typed, with these variables.
    pub(crate) fn settings(name: &str, line: &str, variables: &[(&str, &str)]) -> Result<Settings, CliError> {
        let (_, matches) = crate::cli::tests::parsed(&format!("{name} {line}"));
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let configured = resolve(name, flags::typed(name, matches.subcommand().unwrap().1), None, &variable)?;
        match configured.above.first() {
            Some((what, fix)) => Err(CliError::usage(what.clone()).hint(fix.clone())),
            None => Ok(configured.settings),
        }
    }
}
