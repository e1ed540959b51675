//! `relay context`: the relays that this user talks to, by name.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use relay_bridge::contract::ClientId;
use serde_json::json;

use super::contexts::{self, Context, Contexts};
use super::exit::{CliError, Exit};
use super::output;
use crate::client::{Client, ClientTls};

/// The action to take on contexts.
#[derive(Debug, Args)]
#[command(after_help = "\
Contexts are kept in relay/contexts.toml in the folder for configuration ($XDG_CONFIG_HOME, else
~/.config), or in the file that RELAY_CONTEXTS names; only its owner may read it. --server and
RELAY_SERVER go before any context.

Examples:
  relay context add prod --server https://relay.example --api-key-file orders.key
  relay context use prod
  relay submit --context staging FILE")]
pub(crate) struct ContextArgs {
    #[command(subcommand)]
    command: ContextCommand,
}

#[derive(Debug, Subcommand)]
enum ContextCommand {
    /// Add a context, or change it: with the same server, what is not given stays. The first one is used from then on
    Add {
        /// Its name
        #[arg(value_name = "NAME", value_parser = contexts::name)]
        name: String,
        /// The server's address
        #[arg(long, value_name = "URL")]
        server: String,
        /// A file with the API key in it, as `relay keys new --out FILE` wrote it; `-` reads stdin
        #[arg(long, value_name = "FILE")]
        api_key_file: Option<PathBuf>,
        /// The client's name, for a server without authentication
        #[arg(long, value_name = "NAME", conflicts_with = "api_key_file")]
        client: Option<ClientId>,
        /// The address of the admin port, for operators
        #[arg(long, value_name = "URL")]
        admin: Option<String>,
        /// A file with the admin port's token in it
        #[arg(long, value_name = "FILE", requires = "admin")]
        admin_token_file: Option<PathBuf>,
        /// A file with the authorities that may sign the server's certificate (PEM); it is read at each call
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
        /// A file with the certificate to show (PEM)
        #[arg(long, value_name = "FILE", requires = "certificate_key")]
        certificate: Option<PathBuf>,
        /// A file with its private key (PEM)
        #[arg(long, value_name = "FILE", requires = "certificate")]
        certificate_key: Option<PathBuf>,
    },
    /// List the contexts; keys are not shown
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Use this context where none is named
    Use {
        /// Its name
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Remove a context
    Remove {
        /// Its name
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// `relay context`
pub(crate) fn run(args: ContextArgs) -> Result<Exit, CliError> {
    match args.command {
        ContextCommand::Add {
            name,
            server,
            api_key_file,
            client,
            admin,
            admin_token_file,
            ca,
            certificate,
            certificate_key,
        } => {
            // Calls come from any folder.
            let whole = |file: Option<PathBuf>| file.map(std::path::absolute).transpose();
            let whole = |file| whole(file).map_err(|error| CliError::usage(error.to_string()));
            let (ca, certificate, certificate_key) = (whole(ca)?, whole(certificate)?, whole(certificate_key)?);
            let tls = ClientTls { ca: ca.clone(), identity: certificate.clone().zip(certificate_key.clone()) };
            let api_key = api_key_file.map(|file| read_secret(&file)).transpose()?;
            let admin_token = admin_token_file.map(|file| read_secret(&file)).transpose()?;
            // A text that can't be an address is refused now, not at the first call.
            for address in [Some(&server), admin.as_ref()].into_iter().flatten() {
                Client::with_tls(address, None, &tls)?;
            }
            let context = Context { server, api_key, client, admin, admin_token, ca, certificate, certificate_key };
            contexts::change(|contexts| {
                let context = match contexts.context.get(&name) {
                    Some(before) => changed(&name, before, context)?,
                    None => context,
                };
                contexts.context.insert(name.clone(), context);
                contexts.current.get_or_insert(name);
                Ok(Exit::Done)
            })
        }
        ContextCommand::List { json } => list(&Contexts::read()?, json),
        ContextCommand::Use { name } => contexts::change(|contexts| {
            contexts.pick(Some(&name))?;
            contexts.current = Some(name);
            Ok(Exit::Done)
        }),
        ContextCommand::Remove { name } => contexts::change(|contexts| {
            contexts.context.remove(&name).ok_or_else(|| contexts::unknown(&name))?;
            contexts.current.take_if(|current| *current == name);
            Ok(Exit::Done)
        }),
    }
}

/// A context after a change: what is not given stays. A key is for its server alone, and so is a token for its admin port.
fn changed(name: &str, before: &Context, given: Context) -> Result<Context, CliError> {
    let is_moved = before.server != given.server;
    let names_caller = given.api_key.is_some() || given.client.is_some();
    if is_moved && before.api_key.is_some() && !names_caller {
        let what = format!("the context {name} has a key, which is for {} alone", before.server);
        return Err(CliError::usage(what).hint(format!(
            "give the key for {} with --api-key-file, or `relay context remove {name}` first",
            given.server
        )));
    }
    if is_moved {
        return Ok(given);
    }
    let has_admin = given.admin.is_none() || given.admin == before.admin;
    if !has_admin && before.admin_token.is_some() && given.admin_token.is_none() {
        let what = format!("the context {name} has a token, which is for its admin port before alone");
        return Err(CliError::usage(what)
            .hint(format!("give the new port's with --admin-token-file, or `relay context remove {name}` first")));
    }
    let before = before.clone();
    let (api_key, client) = if names_caller { (given.api_key, given.client) } else { (before.api_key, before.client) };
    Ok(Context {
        server: given.server,
        api_key,
        client,
        admin: given.admin.or(before.admin),
        admin_token: given.admin_token.or(before.admin_token),
        ca: given.ca.or(before.ca),
        certificate: given.certificate.or(before.certificate),
        certificate_key: given.certificate_key.or(before.certificate_key),
    })
}

pub(super) fn read_secret(file: &Path) -> Result<String, CliError> {
    let read = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin().lock())
    } else {
        std::fs::read_to_string(file)
    };
    let text = read.map_err(|error| CliError::usage(format!("cannot read {}: {error}", file.display())))?;
    let key = text.trim();
    if key.is_empty() || key.len() > 300 || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(CliError::usage(format!("{} holds no key or token", file.display()))
            .hint("`relay keys new NAME --out FILE` makes a key and puts it into a file"));
    }
    Ok(key.to_owned())
}

fn list(contexts: &Contexts, json: bool) -> Result<Exit, CliError> {
    let is_current = |name: &String| contexts.current.as_ref() == Some(name);
    if json {
        let plain = |(name, context): (&String, &Context)| {
            json!({ "name": name, "current": is_current(name), "server": context.server,
                    "key_id": key_id(context), "client": context.client, "admin": context.admin })
        };
        output::json(&contexts.context.iter().map(plain).collect::<Vec<_>>())?;
        return Ok(Exit::Done);
    }
    let rows = contexts.context.iter().map(|(name, context)| {
        let who = key_id(context).map(|id| format!("key {id}")).or(context.client.as_ref().map(ToString::to_string));
        let mark = if is_current(name) { "*" } else { "" };
        [mark.to_owned(), name.clone(), context.server.clone(), who.unwrap_or_default()]
    });
    output::line(output::table(&["", "name", "server", "as"], &[], rows))?;
    Ok(Exit::Done)
}

/// The public part of the key.
fn key_id(context: &Context) -> Option<&str> {
    context.api_key.as_deref().map(|key| crate::auth::keys::id_in(key).unwrap_or_default())
}
