//! The command line: one file a command. stdout is data, everything else goes to stderr.
//!
//! # Layout
//!
//! - [`exit`]: exit codes and the error that ends a command.
//! - `flags`: the settings of a process as flags; `configured`: what holds of them, with variables and a file. `variables`: those of
//!   arguments that are no settings.
//! - `output` with `shown`, `logs`, `signals`, `remote`, `policy`, `nats`, `sqs`, `source`, `admin`, `audit`, `traces`, `tls`: what commands share.
//! - `serve`, `worker`, `bridge`, `dev`: processes that serve until they are stopped.
//! - `submit` with `inputs`, `result`, `results`, `jobs`, `whoami`, `context`: what a client does.
//! - `queues`, `dead`, `reload`, `keys` with `secret_file`, `store`, `provision`, `nats_users`, `config`, `completions`, `man`: what an operator does.
//! - `init`: what the first process of a container has to do. `cores`: no process that serves leaves its memory on a disk.
//! - `demo`: all of it, on real files, with a kill in the middle. `bench`: how much a server does. `child`: the processes that they start.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

mod admin;
mod audit;
mod bench;
mod bridge;
mod child;
mod completions;
mod config;
mod configured;
mod context;
mod contexts;
mod cores;
mod dead;
mod demo;
mod dev;
mod doctor;
pub mod exit;
mod flags;
mod handler;
mod init;
mod inputs;
mod jobs;
mod keys;
mod limits;
mod listening;
mod logs;
mod man;
mod memory;
mod nats;
mod nats_users;
mod output;
mod policy;
mod provision;
mod proxied;
mod queues;
mod reload;
mod remote;
mod result;
mod results;
mod scaler;
mod secret_file;
mod secured;
mod serve;
mod shown;
mod signals;
mod source;
mod sqs;
mod store;
mod submit;
mod tls;
mod traces;
mod variables;
mod whoami;
mod worker;

use relay_workers::handler::exec::guard;

use configured::Configured;
use exit::CliError;
pub use exit::Exit;

use crate::config::settings::Settings;
use crate::config::values;

/// `relay guard` is the guard of a worker's commands. A worker starts it, and nobody else: it is in no help.
const GUARD: &str = "guard";

/// The text about exit codes at the end of the help.
const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the job or the query failed (an outcome other than `succeeded`, a refused submission)
  2    wrong usage or configuration: the same command will fail again
  69   the server or the broker is not there: the same command may succeed later
  75   the result did not come in the time that was given: the job continues
  130  stopped by a signal before it was done

Start here:
  relay demo                       everything at work on real files, in under a minute
  relay dev -- sha256sum           a server and a worker in one process
  relay submit --wait FILE         a job, in another terminal

stdout is data, everything else goes to stderr. Colour only on a terminal; NO_COLOR turns it off.";

/// Jobs into a private cluster and results back, over connections that the client opens.
#[derive(Debug, Parser)]
#[command(name = "relay", version, after_help = EXIT_CODES, max_term_width = 110, infer_subcommands = false)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take jobs over HTTP, keep them in a store, hand them to workers
    Serve(Box<serve::ServeArgs>),
    /// Run a command, or call a local service, for each job of a server
    Worker(Box<worker::WorkerArgs>),
    /// Tell KEDA how many workers queues need, beside servers of the same broker
    Scaler(Box<scaler::ScalerArgs>),
    /// Forward jobs from one relay to another and bring the results back
    Bridge(Box<bridge::BridgeArgs>),
    /// Server and worker in one process, without authentication, for trying things out
    Dev(Box<dev::DevArgs>),
    /// Show the main path on real files: submit, run, kill a worker, lose nothing, run nothing twice
    Demo(demo::DemoArgs),
    /// Measure how many jobs a server takes, how fast, and what that costs it
    Bench(Box<bench::BenchArgs>),
    /// Submit files or stdin as jobs
    Submit(submit::SubmitArgs),
    /// Fetch the result of a job
    Result(result::ResultArgs),
    /// Read all results in their order, once or as they come
    Results(results::ResultsArgs),
    /// List jobs; show the state of one, cancel it, run it again, erase it
    Jobs(jobs::JobsArgs),
    /// Show the authenticated caller, its limits, and what is left of them
    Whoami(whoami::WhoamiArgs),
    /// Examine the way from here to a server, step by step, and say what to do where it fails
    Doctor(Box<doctor::DoctorArgs>),
    /// Keep the addresses and keys of several servers under names
    Context(context::ContextArgs),
    /// Show waiting jobs; pause and resume queues
    Queues(queues::QueuesArgs),
    /// List, redrive and remove dead letters
    Dead(dead::DeadArgs),
    /// Have a server read its files again
    Reload(reload::ReloadArgs),
    /// Create, list, rotate and revoke API keys in a key file
    Keys(keys::KeysArgs),
    /// Create or update what relay needs on NATS or AWS, and what holds for queues
    Provision(Box<provision::ProvisionArgs>),
    /// Check, measure, back up and restore a store
    Store(store::StoreArgs),
    /// Show and check the configuration of a server
    Config(config::ConfigArgs),
    /// Print what to configure on NATS
    Nats(nats_users::NatsArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
    /// Print or install manual pages
    Man(man::ManArgs),
}

impl Command {
    /// Flags about the policy, and the words of a configuration file about queues and bridges, for commands that see to them.
    ///
    /// # Errors
    /// A usage error with every flag about the policy whose value is none of its kind.
    fn take_in(&mut self, name: &str, matches: &ArgMatches, configured: &mut Configured) -> Result<(), CliError> {
        let file = configured.file.take().map(|file| (file.queues, file.bridges, file.authorities));
        let (queues, bridges, authorities) = file.unwrap_or_default();
        let policy = match self {
            Self::Serve(args) => {
                args.set_authorities(authorities.into_iter().map(|(authority, _)| authority).collect());
                args.policy()
            }
            Self::Provision(args) => args.policy(),
            Self::Dev(args) => args.policy(),
            Self::Bridge(args) => {
                args.set_bridges(bridges);
                return Ok(());
            }
            _ => return Ok(()),
        };
        let typed = flags::typed_policy(name, matches).map_err(|wrong| CliError::usage(wrong.join("\n")))?;
        policy.take_in(typed, queues);
        Ok(())
    }

    /// Whether it runs until it is stopped, with the keys and payloads of others.
    fn serves(&self) -> bool {
        matches!(self, Self::Serve(_) | Self::Worker(_) | Self::Scaler(_) | Self::Bridge(_) | Self::Dev(_))
    }

    /// Whether it has settings, which may be variables.
    fn has_settings(&self) -> bool {
        self.serves() || matches!(self, Self::Provision(_) | Self::Doctor(_) | Self::Bench(_))
    }

    /// The log filter unless the user says otherwise.
    fn default_log(&self) -> &'static str {
        // relay reports each event of the NATS client in its own words.
        if self.serves() { "info,async_nats=off" } else { "warn,async_nats=off" }
    }
}

/// Parses `args` (the program's name first), runs the command, and says how it ended.
#[must_use]
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let typed: Vec<OsString> = args.into_iter().collect();
    // Before there is any other thread.
    if typed.len() == 2 && typed[1] == GUARD {
        if std::io::stdin().is_terminal() {
            // It ignores what would stop it.
            let error =
                CliError::usage("`relay guard` is started by `relay worker` for its commands, and by nobody else");
            error.report();
            return error.exit().into();
        }
        guard::serve();
        return Exit::Done.into();
    }
    let (cli, matches) = match parse(&typed) {
        Ok(parsed) => parsed,
        Err(message) => {
            // Help and version are asked for, and go to stdout. A reader that went away is no reason to fail.
            message.print().ok();
            return if message.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    let ended = configure(cli, &matches)
        .and_then(|(command, settings)| init::reaping_orphans(|| run_to_end(command, settings)));
    let exit = match ended {
        Ok(exit) => exit,
        Err(error) => {
            error.report();
            error.exit()
        }
    };
    exit.into()
}

/// Every command with its flags: as help, manual pages and completions show them, or as they are parsed, where variables and a
/// file may give what a command demands.
fn commands(in_help: bool) -> clap::Command {
    let commands = flags::add_log(Cli::command(), in_help);
    ["serve", "worker", "scaler", "bridge", "dev", "provision", "doctor", "bench"]
        .into_iter()
        .fold(commands, |commands, name| commands.mut_subcommand(name, |command| flags::add(command, name, in_help)))
}

fn parse(typed: &[OsString]) -> Result<(Cli, ArgMatches), clap::Error> {
    let matches =
        variables::in_their_place(commands(false), typed).try_get_matches_from(typed).map_err(
            |message| match message.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                    commands(true).try_get_matches_from(typed).err().unwrap_or(message)
                }
                _ => message,
            },
        )?;
    Ok((Cli::from_arg_matches(&matches)?, matches))
}

/// The command with what holds for it.
fn configure(cli: Cli, matches: &ArgMatches) -> Result<(Command, Settings), CliError> {
    let Cli { mut command } = cli;
    let (name, of_command) = matches.subcommand().unwrap_or(("", matches));
    let mut configured = configured::of_command(name, of_command)?;
    command.take_in(name, of_command, &mut configured)?;
    Ok((command, configured.settings))
}

fn run_to_end(command: Command, settings: Settings) -> Result<Exit, CliError> {
    logs::start(settings.log.filter.as_deref(), command.default_log(), settings.log.format)?;
    if command.has_settings() {
        config::warn_of_unknown_variables();
    }
    if command.serves() {
        cores::forbid();
    }
    // Fails only if there is a provider already, which is then the same one.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("cannot start the runtime: {error}")))?;
    let ended = runtime.block_on(Box::pin(run_command(command, settings)));
    // Tasks that still run were asked to stop and did not: they must not keep the process alive.
    runtime.shutdown_timeout(Duration::from_millis(500));
    ended
}

async fn run_command(command: Command, settings: Settings) -> Result<Exit, CliError> {
    match command {
        Command::Serve(args) => Box::pin(serve::run(*args, settings)).await,
        Command::Worker(args) => Box::pin(worker::run(*args, settings)).await,
        Command::Scaler(args) => Box::pin(scaler::run(*args, settings)).await,
        Command::Bridge(args) => bridge::run(*args, settings).await,
        Command::Dev(args) => Box::pin(dev::run(*args, settings)).await,
        Command::Provision(args) => or_interrupted(Box::pin(provision::run(*args, settings))).await,
        Command::Keys(args) => keys::run(args),
        Command::Store(args) => store::run(args),
        Command::Nats(args) => nats_users::run(args),
        Command::Config(args) => config::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Demo(args) => or_interrupted(demo::run(args)).await,
        Command::Bench(args) => Box::pin(bench::run(*args, settings)).await,
        Command::Submit(args) => or_interrupted(submit::run(args)).await,
        Command::Result(args) => or_interrupted(result::run(args)).await,
        Command::Results(args) => or_interrupted(results::run(args)).await,
        Command::Jobs(args) => or_interrupted(jobs::run(args)).await,
        Command::Whoami(args) => or_interrupted(whoami::run(args)).await,
        Command::Doctor(args) => or_interrupted(Box::pin(doctor::run(*args, settings))).await,
        Command::Queues(args) => or_interrupted(queues::run(args)).await,
        Command::Dead(args) => or_interrupted(dead::run(args)).await,
        Command::Reload(args) => or_interrupted(reload::run(args)).await,
        Command::Context(args) => context::run(args),
        Command::Man(args) => man::run(args),
    }
}

/// For commands that have nothing to drain: a signal ends them where they are, and what they own is dropped.
async fn or_interrupted(run: impl Future<Output = Result<Exit, CliError>>) -> Result<Exit, CliError> {
    tokio::select! {
        ended = run => ended,
        () = signals::interrupted() => Err(CliError::interrupted()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The command of a line, and its arguments.
    pub(super) fn parsed(line: &str) -> (Command, ArgMatches) {
        let typed: Vec<_> = format!("relay {line}").split_whitespace().map(OsString::from).collect();
        let (cli, matches) = parse(&typed).unwrap();
        (cli.command, matches)
    }

    #[test]
    fn the_command_line_is_well_formed() {
        commands(true).debug_assert();
        commands(false).debug_assert();
    }

    #[test]
    fn every_argument_of_every_command_is_explained() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no description", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} of {}", argument.get_id(), command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        check(&commands(true));
    }
}
