//! `relay completions`: a completion script for a shell.

use clap::Args;
use clap_complete::Shell;

use super::exit::{CliError, Exit};
use super::output;

/// Which shell.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  relay completions bash > ~/.bash_completion.d/relay")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// `relay completions`
pub(crate) fn run(args: CompletionsArgs) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::commands(true), "relay", &mut script);
    output::bytes(&script)?;
    Ok(Exit::Done)
}
