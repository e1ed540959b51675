//! `relay man`: manual pages, made from the same text as `--help`.

use std::path::PathBuf;

use clap::Args;

use super::exit::{CliError, Exit};
use super::output;

/// Where the pages go.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  relay man | man -l -                     read it
  relay man --dir ~/.local/share/man/man1  install the pages of all commands")]
pub(crate) struct ManArgs {
    /// Write a page for each command into this folder, instead of the first one to stdout
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// `relay man`
pub(crate) fn run(args: ManArgs) -> Result<Exit, CliError> {
    let command = super::commands(true);
    match args.dir {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            output::bytes(&page)?;
        }
        Some(dir) => {
            let failed = |error| CliError::usage(format!("cannot write to {}: {error}", dir.display()));
            std::fs::create_dir_all(&dir).map_err(failed)?;
            clap_mangen::generate_to(command, &dir).map_err(failed)?;
            output::note(format_args!("The pages are in {}.", dir.display()));
        }
    }
    Ok(Exit::Done)
}
