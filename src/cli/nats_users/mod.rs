//! `relay nats`: what an operator of NATS needs for relay. `relay nats permissions` prints who may do what there.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use relay_bridge::contract::{ClientId, QueueName};
use relay_nats::config::is_domain;

use super::exit::{CliError, Exit};
use super::output;
use crate::auth::keys::{KeyFile, Role};

mod permissions;

use permissions::{Client, Users, Worker};

/// NATS, as relay uses it.
#[derive(Debug, Args)]
pub(crate) struct NatsArgs {
    #[command(subcommand)]
    command: NatsCommand,
}

#[derive(Debug, Subcommand)]
enum NatsCommand {
    /// Print the users that keep clients apart, for the configuration of nats-server
    Permissions(PermissionsArgs),
}

/// The users to set up.
#[derive(Debug, Args)]
#[command(after_help = "\
Passwords are variables of the server's environment, which it demands at start and reads as
configuration: put the value into double quotes of its own. Write nkeys in their place as
you like. Each user needs the inbox prefix that the block names beside it:
  nats --inbox-prefix _INBOX_orders --user orders ...

Examples:
  relay nats permissions --client orders --client billing=mail,render --worker gpu-1=render
  relay nats permissions --keys keys.toml > relay-users.conf
  nats-server --config nats.conf             with `include relay-users.conf` in it
  relay nats permissions --keys keys.toml --in-account > relay-users.conf
                                             with the `include` inside the account's block")]
struct PermissionsArgs {
    /// A client that submits to all queues, or to those after `=`; repeat it for more
    #[arg(long = "client", value_name = "NAME[=QUEUE,...]")]
    clients: Vec<Named>,
    /// A worker on NATS itself, and its queues; workers that connect to relay need no user. Repeat it for more
    #[arg(long = "worker", value_name = "NAME=QUEUE,...")]
    workers: Vec<Named>,
    /// Also the clients and workers of this key file
    #[arg(long, value_name = "FILE", env = "RELAY_KEYS")]
    keys: Option<PathBuf>,
    /// The user that `relay serve` connects as
    #[arg(long, value_name = "NAME", default_value = "relay")]
    relay_user: ClientId,
    /// Print `users` alone, for an account's block in `accounts`, instead of the `authorization` of a server without accounts
    #[arg(long)]
    in_account: bool,
    /// The JetStream domain, where relay and the workers reach the streams by one
    #[arg(long, value_name = "NAME", env = "RELAY_NATS_DOMAIN")]
    nats_domain: Option<String>,
}

/// A user and the queues it may use.
#[derive(Clone, Debug)]
struct Named {
    name: ClientId,
    queues: Vec<QueueName>,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, queues) = text.split_once('=').map_or((text, None), |(name, queues)| (name, Some(queues)));
        let name = name.parse().map_err(|error| format!("{error}"))?;
        let queues = queues.into_iter().flat_map(|queues| queues.split(','));
        let queues = queues.map(str::parse).collect::<Result<_, _>>().map_err(|error| format!("{error}"))?;
        Ok(Self { name, queues })
    }
}

/// `relay nats`
pub(crate) fn run(args: NatsArgs) -> Result<Exit, CliError> {
    match args.command {
        NatsCommand::Permissions(args) => {
            output::line(resolve(args)?)?;
            Ok(Exit::Done)
        }
    }
}

/// The users that the flags and the key file name, each once.
fn resolve(args: PermissionsArgs) -> Result<Users, CliError> {
    let (mut clients, mut workers) = (args.clients, args.workers);
    if let Some(file) = args.keys {
        for key in KeyFile::new(file).list()? {
            let of_role = if key.role == Role::Client { &mut clients } else { &mut workers };
            let queues = key.queues.unwrap_or_default();
            match of_role.iter_mut().find(|named| named.name == key.name) {
                // Several keys of one name: a client or worker that has one of them for all queues may use all.
                Some(known) if known.queues.is_empty() || queues.is_empty() => known.queues.clear(),
                Some(known) => known.queues.extend(queues),
                None => of_role.push(Named { name: key.name, queues }),
            }
        }
    }
    if clients.is_empty() && workers.is_empty() {
        return Err(CliError::usage("nobody is named").hint("add --client NAME, or --keys FILE with keys in it"));
    }
    let mut names = BTreeSet::from([args.relay_user.clone()]);
    for named in clients.iter().chain(&workers) {
        if !names.insert(named.name.clone()) {
            let told = CliError::usage(format!("`{}` is named twice: a user of NATS is one of them", named.name));
            return Err(told.hint("give each its own name; --relay-user changes that of relay itself"));
        }
    }
    if let Some(worker) = workers.iter().find(|worker| worker.queues.is_empty()) {
        return Err(CliError::usage(format!("worker `{}` has no queues, and NATS needs to know them", worker.name))
            .hint(format!("write --worker {}=QUEUE,QUEUE; or make its key with --queue", worker.name)));
    }
    let sorted = |queues: Vec<QueueName>| queues.into_iter().collect::<BTreeSet<_>>();
    if let Some(domain) = args.nats_domain.as_ref().filter(|domain| !is_domain(domain)) {
        return Err(CliError::usage(format!("--nats-domain `{domain}`: a domain is one word of a subject"))
            .hint("write it as `domain` stands in the servers' `jetstream` block"));
    }
    Ok(Users {
        relay: args.relay_user,
        domain: args.nats_domain,
        in_account: args.in_account,
        clients: clients.into_iter().map(|named| Client { name: named.name, queues: sorted(named.queues) }).collect(),
        workers: workers.into_iter().map(|named| Worker { name: named.name, queues: sorted(named.queues) }).collect(),
    })
}
