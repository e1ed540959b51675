//! `relay keys`: API keys in a file. The file has the hash of each secret; the secret is printed once, when it is made.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, QueueName};
use serde_json::json;

use super::exit::{CliError, Exit};
use super::secret_file::SecretFile;
use super::{output, values};
use crate::auth::keys::{self, Key, KeyEntry, KeyFile, KeysError, Role};
use crate::auth::rights::{Right, Rights};

/// Which file, and what to do with it.
#[derive(Debug, Args)]
#[command(after_help = "\
A running `relay serve --keys FILE` notices changes within a second, as long as it may read the
file: its user and its group stay as they are, or nothing is changed. It takes no file that others
than its owner can write.

Examples:
  relay keys new orders --file keys.toml --out orders.key          a client, all queues
  relay keys new web --right submit --right read --queue mail      submits and reads in one queue
  relay keys new gpu-1 --role worker --queue render                a worker, its key on stdout
  relay keys list
  relay keys rotate 3f9a0c11d2e4 --keep 24h --out orders-2.key     a successor; both work for a day
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

/// Where a new key goes.
#[derive(Debug, Args)]
struct OutArgs {
    /// Write the key to this new file, which only its user can read; a file that is there is not overwritten [default: stdout]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl OutArgs {
    /// The file, if there is to be one. It is made before the key, which would be lost without it, and is not the key file `keys`,
    /// which is replaced when the key is made.
    fn create(&self, keys: &Path) -> Result<Option<SecretFile<'_>>, CliError> {
        let Some(path) = self.out.as_deref() else { return Ok(None) };
        let refused = |error: std::io::Error| {
            let told = CliError::usage(format!("--out {}: {error}", path.display()));
            match error.kind() {
                ErrorKind::AlreadyExists => told.hint("name another file, or remove that one: nothing is overwritten"),
                _ => told,
            }
        };
        let file = SecretFile::create(path).map_err(refused)?;
        if file.is_at(keys) {
            let told =
                CliError::usage(format!("--out {}: this is the key file itself, and has no secrets", path.display()));
            return Err(told.hint("name a file for the key alone, such as NAME.key"));
        }
        Ok(Some(file))
    }

    /// Says `key`, or writes it to `file`. `facts` are what JSON says of it, `name` is what people call it, and `more` what they
    /// should know of it.
    fn tell(
        &self,
        key: &Key,
        file: Option<SecretFile<'_>>,
        (name, more): (&str, &str),
        facts: Option<serde_json::Value>,
    ) -> Result<(), CliError> {
        let Some((file, path)) = file.zip(self.out.as_deref()) else {
            return match facts {
                Some(mut facts) => {
                    facts["key"] = key.to_string().into();
                    output::json(&facts)
                }
                None => {
                    output::line(key)?;
                    output::note(format_args!("This is {name}. It is not shown again.{more}"));
                    Ok(())
                }
            };
        };
        let path = path.display();
        file.write(&format!("{key}\n")).map_err(|error| {
            CliError::failed(format!("--out {path}: {error}: key {} was made, and is lost", key.id()))
                .hint(format!("`relay keys revoke {}` removes it from the key file", key.id()))
        })?;
        match facts {
            Some(mut facts) => {
                facts["out"] = path.to_string().into();
                output::json(&facts)
            }
            None => {
                let (first, rest) = name.split_at(1);
                output::note(format_args!("{}{rest} is in {path}.{more}", first.to_uppercase()));
                Ok(())
            }
        }
    }
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make a key and print it, or write it to a file: the only time that it is shown
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
        /// A right that a client's key has; repeat it for more [default: all]
        #[arg(long = "right", value_name = "RIGHT", value_enum)]
        rights: Vec<RightArg>,
        #[command(flatten)]
        out: OutArgs,
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
        /// The old key's id: the part after `rlyk_`, or before the dot
        #[arg(value_name = "KEY_ID")]
        id: String,
        /// How long the old key stays valid, if it does not end before; `0s` ends it at once
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = values::duration)]
        keep: Duration,
        #[command(flatten)]
        out: OutArgs,
        #[command(flatten)]
        file: FileArgs,
    },
    /// Remove a key for good
    Revoke {
        /// The key's id: the part after `rlyk_`, or before the dot
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

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RightArg {
    /// Submits jobs and runs finished ones again
    Submit,
    /// Reads jobs, events and results
    Read,
    /// Cancels and erases jobs
    Manage,
}

impl From<RightArg> for Right {
    fn from(right: RightArg) -> Self {
        match right {
            RightArg::Submit => Self::Submit,
            RightArg::Read => Self::Read,
            RightArg::Manage => Self::Manage,
        }
    }
}

/// `relay keys`
pub(crate) fn run(args: KeysArgs) -> Result<Exit, CliError> {
    match args.command {
        KeysCommand::New { name, role, queues, rights, out, file } => new(&file, &out, (name, role), queues, &rights),
        KeysCommand::List { file } => list(&file),
        KeysCommand::Rotate { id, keep, out, file } => rotate(&file, &out, &id, keep),
        KeysCommand::Revoke { id, file } => revoke(&file, &id),
    }
}

impl From<KeysError> for CliError {
    fn from(error: KeysError) -> Self {
        Self::usage(error.to_string())
    }
}

fn new(
    file: &FileArgs,
    out: &OutArgs,
    (name, role): (ClientId, RoleArg),
    queues: Vec<QueueName>,
    rights: &[RightArg],
) -> Result<Exit, CliError> {
    let role = match role {
        RoleArg::Client => Role::Client,
        RoleArg::Worker => Role::Worker,
    };
    let queues = (!queues.is_empty()).then_some(queues);
    let rights: Vec<_> = rights.iter().map(|right| Right::from(*right)).collect();
    // Nobody makes a key without any: none named means all.
    let rights = Rights::of(&rights).unwrap_or_default();
    let to = out.create(&file.file)?;
    let key = KeyFile::new(&file.file).create_with(role, name.clone(), queues, rights, Clock::system().now())?;
    let facts = file.json.then(|| json!({ "id": key.id(), "role": role, "name": name }));
    out.tell(&key, to, (&format!("key {} of {role} {name}", key.id()), ""), facts)?;
    Ok(Exit::Done)
}

fn rotate(file: &FileArgs, out: &OutArgs, id: &str, keep: Duration) -> Result<Exit, CliError> {
    let (id, now) = (id_of(id), Clock::system().now());
    let keys = KeyFile::new(&file.file);
    let old = keys.list()?.into_iter().find(|key| key.id == id).ok_or_else(|| unknown(file, id))?;
    if let Some(expired) = old.expires.filter(|_| old.is_expired(now)) {
        return Err(CliError::failed(format!("key {id} expired at {expired}, and is not replaced"))
            .hint("`relay keys new NAME` makes another one"));
    }
    // One that ends before is not kept longer.
    let until = old.expires.map_or(now + keep, |expires| expires.min(now + keep));
    let to = out.create(&file.file)?;
    let Some(key) = keys.rotate(id, now, until)? else { return Err(unknown(file, id)) };
    let facts = file.json.then(|| json!({ "id": key.id(), "replaces": id, "expires": until }));
    out.tell(&key, to, (&format!("key {}", key.id()), &format!(" Key {id} is valid until {until}.")), facts)?;
    Ok(Exit::Done)
}

/// A user who pastes the whole key means the same one; the secret must not be echoed.
fn id_of(text: &str) -> &str {
    keys::id_in(text).unwrap_or(text)
}

fn unknown(file: &FileArgs, id: &str) -> CliError {
    CliError::failed(format!("there is no key {id} in {}", file.file.display()))
        .hint("`relay keys list` shows those that are there")
}

fn list(file: &FileArgs) -> Result<Exit, CliError> {
    let keys = KeyFile::new(&file.file).list()?;
    if file.json {
        let plain = |key: &KeyEntry| json!({ "id": key.id, "role": key.role, "name": key.name, "queues": key.queues, "rights": rights_of(key), "created": key.created, "expires": key.expires });
        output::json(&keys.iter().map(plain).collect::<Vec<_>>())?;
        return Ok(Exit::Done);
    }
    let rows = keys.iter().map(|key| {
        let queues = key.queues.as_ref().map_or_else(
            || "all".to_owned(),
            |queues| queues.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        );
        let expires = key.expires.map_or_else(|| "never".to_owned(), |at| at.to_string());
        let rights = rights_of(key).map_or_else(|| "-".to_owned(), |rights| rights.join(", "));
        [key.id.clone(), key.role.to_string(), key.name.to_string(), queues, rights, key.created.to_string(), expires]
    });
    output::line(output::table(&["id", "role", "name", "queues", "rights", "created", "expires"], &[], rows))?;
    Ok(Exit::Done)
}

/// The rights of a client's key; a worker's has none to choose from.
fn rights_of(key: &KeyEntry) -> Option<Vec<&'static str>> {
    (key.role == Role::Client).then(|| key.rights.iter().map(Right::as_str).collect())
}

fn revoke(file: &FileArgs, id: &str) -> Result<Exit, CliError> {
    let (id, keys) = (id_of(id), KeyFile::new(&file.file));
    // A file that is not there is not made.
    keys.list()?;
    if !keys.revoke(id)? {
        return Err(unknown(file, id));
    }
    if file.json {
        output::json(&json!({ "revoked": id }))?;
    } else {
        let path = file.file.display();
        output::note(format_args!(
            "Key {id} is revoked: a running server that may read {path} refuses it within a second."
        ));
    }
    Ok(Exit::Done)
}
