//! `relay keys`: API keys in a file. The file has the hash of each secret; the secret is printed once, when it is made.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, QueueName};
use serde_json::json;

use super::exit::{CliError, Exit};
use super::{output, values};
use crate::auth::keys::{KeyEntry, KeyFile, KeysError, Role};

/// Which file, and what to do with it.
#[derive(Debug, Args)]
#[command(after_help = "\
A running `relay serve --keys FILE` notices changes within a second.

Examples:
  relay keys new orders --file keys.toml > orders.key              a client, all queues
  relay keys new gpu-1 --role worker --queue render                a worker of one queue
  relay keys list
  relay keys rotate 3f9a0c11d2e4 --keep 24h > orders.key           a successor; both work for a day
  relay keys revoke 3f9a0c11d2e4")]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

/// The key file.
#[derive(Debug, Args)]
struct FileArgs {
    /// The key file
    #[arg(long, value_name = "FILE", env = "RELAY_KEYS", default_value = "keys.toml")]
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make a key and print it: the only time that it is shown
    New {
        /// The client or worker that owns the key; several keys may have one name, so that a key can be replaced without a gap
        #[arg(value_name = "NAME")]
        name: ClientId,
        /// A client submits and reads results, a worker takes and settles jobs; no key does both
        #[arg(long, value_enum, default_value = "client")]
        role: RoleArg,
        /// A queue that it may use; repeat it for more [default: all]
        #[arg(long = "queue", value_name = "NAME")]
        queues: Vec<QueueName>,
        #[command(flatten)]
        file: FileArgs,
    },
    /// List the keys; secrets are not in the file
    List {
        #[command(flatten)]
        file: FileArgs,
    },
    /// Create a replacement for a key; the old key stays valid for a while
    Rotate {
        /// The old key's id: the part before the dot
        #[arg(value_name = "KEY_ID")]
        id: String,
        /// How long the old key stays valid; `0s` ends it at once
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = values::duration)]
        keep: Duration,
        #[command(flatten)]
        file: FileArgs,
    },
    /// Remove a key for good
    Revoke {
        /// The key's id: the part before the dot
        #[arg(value_name = "KEY_ID")]
        id: String,
        #[command(flatten)]
        file: FileArgs,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoleArg {
    /// Submits jobs and reads their results
    Client,
    /// Takes jobs and settles them
    Worker,
}

/// `relay keys`
pub(crate) fn run(args: KeysArgs) -> Result<Exit, CliError> {
    match args.command {
        KeysCommand::New { name, role, queues, file } => new(&file, name, role, queues),
        KeysCommand::List { file } => list(&file),
        KeysCommand::Rotate { id, keep, file } => rotate(&file, &id, keep),
        KeysCommand::Revoke { id, file } => revoke(&file, &id),
    }
}

impl From<KeysError> for CliError {
    fn from(error: KeysError) -> Self {
        Self::usage(error.to_string())
    }
}

fn new(file: &FileArgs, name: ClientId, role: RoleArg, queues: Vec<QueueName>) -> Result<Exit, CliError> {
    let role = match role {
        RoleArg::Client => Role::Client,
        RoleArg::Worker => Role::Worker,
    };
    let queues = (!queues.is_empty()).then_some(queues);
    let key = KeyFile::new(&file.file).create(role, name.clone(), queues, Clock::system().now())?;
    if file.json {
        output::json(&json!({ "id": key.id(), "key": key.to_string(), "role": role, "name": name }))?;
    } else {
        output::line(&key)?;
        output::note(format_args!("This is key {} of {role} {name}. It is not shown again.", key.id()));
    }
    Ok(Exit::Done)
}

fn rotate(file: &FileArgs, id: &str, keep: Duration) -> Result<Exit, CliError> {
    let (id, now) = (id_of(id), Clock::system().now());
    let until = now + keep;
    let Some(key) = KeyFile::new(&file.file).rotate(id, now, until)? else { return Err(unknown(file, id)) };
    if file.json {
        output::json(&json!({ "id": key.id(), "key": key.to_string(), "replaces": id, "expires": until }))?;
    } else {
        output::line(&key)?;
        output::note(format_args!("This is key {}. It is not shown again. Key {id} is valid until {until}.", key.id()));
    }
    Ok(Exit::Done)
}

/// A user who pastes the whole key means the same one; the secret must not be echoed.
fn id_of(text: &str) -> &str {
    text.split_once('.').map_or(text, |(id, _)| id)
}

fn unknown(file: &FileArgs, id: &str) -> CliError {
    CliError::failed(format!("there is no key {id} in {}", file.file.display()))
        .hint("`relay keys list` shows those that are there")
}

fn list(file: &FileArgs) -> Result<Exit, CliError> {
    let keys = KeyFile::new(&file.file).list()?;
    if file.json {
        let plain = |key: &KeyEntry| json!({ "id": key.id, "role": key.role, "name": key.name, "queues": key.queues, "created": key.created, "expires": key.expires });
        output::json(&keys.iter().map(plain).collect::<Vec<_>>())?;
        return Ok(Exit::Done);
    }
    let rows = keys.iter().map(|key| {
        let queues = key.queues.as_ref().map_or_else(
            || "all".to_owned(),
            |queues| queues.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        );
        let expires = key.expires.map_or_else(|| "never".to_owned(), |at| at.to_string());
        [key.id.clone(), key.role.to_string(), key.name.to_string(), queues, key.created.to_string(), expires]
    });
    output::line(output::table(&["id", "role", "name", "queues", "created", "expires"], &[], rows))?;
    Ok(Exit::Done)
}

fn revoke(file: &FileArgs, id: &str) -> Result<Exit, CliError> {
    let id = id_of(id);
    if !KeyFile::new(&file.file).revoke(id)? {
        return Err(unknown(file, id));
    }
    if file.json {
        output::json(&json!({ "revoked": id }))?;
    } else {
        output::note(format_args!("Key {id} is revoked; a running server notices within a second."));
    }
    Ok(Exit::Done)
}
