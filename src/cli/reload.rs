//! `relay reload`: has a server read its files again, and says what is wrong with them.

use clap::Args;

use super::exit::{CliError, Exit};
use super::output;
use super::remote::{OperatorArgs, operate};
use crate::client::retry::Patience;

/// Which server.
#[derive(Debug, Args)]
#[command(after_help = "\
A server reads keys, tokens and the like again by itself, about a second after their files
changed, and at SIGHUP. This asks the admin port of `relay serve --admin` to do it now, and tells
what came of it: exit code 1 if a file has a mistake.

Examples:
  relay reload                     with the current context
  relay reload --json              each part, for programs")]
pub(crate) struct ReloadArgs {
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: OperatorArgs,
}

/// `relay reload`
pub(crate) async fn run(args: ReloadArgs) -> Result<Exit, CliError> {
    let operator = args.server.operator()?;
    let view = operate(Patience::reading(), || operator.reload()).await?;
    if args.json {
        output::json(&view)?;
    } else {
        let rows = view.parts.iter().map(|part| {
            let told = if part.ok { "read again".to_owned() } else { part.mistakes.join("; ") };
            [part.part.clone(), told]
        });
        output::line(output::table(&["part", ""], &[], rows))?;
        output::note(format_args!("{} hold from the next start on.", view.needs_restart));
    }
    Ok(if view.ok { Exit::Done } else { Exit::Failed })
}
