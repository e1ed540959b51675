//! `relay nats`: what an operator of NATS needs for relay. `relay nats permissions` prints who may do what there.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, QueueName, Timestamp};
use relay_nats::config::is_domain;

use super::exit::{CliError, Exit};
use super::output;
use crate::auth::keys::{KeyEntry, KeyFile, Role};
use crate::auth::rights::{Right, Rights};

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

/// A user, the queues that it may submit to or lease from, none for all, and its rights if it is a client.
#[derive(Clone, Debug)]
struct Named {
    name: ClientId,
    queues: Vec<QueueName>,
    rights: Rights,
    /// When the first of its keys expires.
    expires: Option<Timestamp>,
}

impl Named {
    /// The user that a key makes; `None` if the key grants nothing on NATS.
    fn of_key(key: KeyEntry) -> Option<Self> {
        // No queue is not all of them.
        let has_queues = key.queues.as_ref().is_none_or(|queues| !queues.is_empty());
        let rights: Vec<_> = key.rights.iter().filter(|right| has_queues || *right != Right::Submit).collect();
        let rights = Rights::of(&rights).ok().filter(|_| has_queues || key.role == Role::Client)?;
        Some(Self { name: key.name, queues: key.queues.unwrap_or_default(), rights, expires: key.expires })
    }

    /// Adds what another key of the same name grants.
    fn add(&mut self, other: Self) {
        match (self.rights.has(Right::Submit), other.rights.has(Right::Submit)) {
            // One that has a key for all queues may use all.
            (true, true) if self.queues.is_empty() || other.queues.is_empty() => self.queues.clear(),
            (true, true) => self.queues.extend(other.queues),
            (false, true) => self.queues = other.queues,
            (_, false) => {}
        }
        self.rights = self.rights.and(other.rights);
        self.expires = self.expires.into_iter().chain(other.expires).min();
    }
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, queues) = text.split_once('=').map_or((text, None), |(name, queues)| (name, Some(queues)));
        let name = name.parse().map_err(|error| format!("{error}"))?;
        let queues = queues.into_iter().flat_map(|queues| queues.split(','));
        let queues = queues.map(str::parse).collect::<Result<_, _>>().map_err(|error| format!("{error}"))?;
        Ok(Self { name, queues, rights: Rights::ALL, expires: None })
    }
}

/// `relay nats`
pub(crate) fn run(args: NatsArgs) -> Result<Exit, CliError> {
    match args.command {
        NatsCommand::Permissions(args) => {
            output::line(resolve(args, Clock::system().now())?)?;
            Ok(Exit::Done)
        }
    }
}

/// The users that the flags and the keys that have not expired `now` name, each once.
fn resolve(args: PermissionsArgs, now: Timestamp) -> Result<Users, CliError> {
    let (mut clients, mut workers) = (args.clients, args.workers);
    if let Some(file) = args.keys {
        for key in KeyFile::new(file).list()?.into_iter().filter(|key| !key.is_expired(now)) {
            let of_role = if key.role == Role::Client { &mut clients } else { &mut workers };
            let Some(named) = Named::of_key(key) else { continue };
            match of_role.iter_mut().find(|known| known.name == named.name) {
                Some(known) => known.add(named),
                None => of_role.push(named),
            }
        }
    }
    if clients.is_empty() && workers.is_empty() {
        return Err(CliError::usage("nobody is named")
            .hint("add --client NAME, or --keys FILE with keys in it that have not expired"));
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
        clients: clients
            .into_iter()
            .map(|Named { name, queues, rights, expires }| Client { name, queues: sorted(queues), rights, expires })
            .collect(),
        workers: workers
            .into_iter()
            .map(|Named { name, queues, expires, .. }| Worker { name, queues: sorted(queues), expires })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The block for the keys of `file` that have not expired `now`.
    fn printed(file: &std::path::Path, now: Timestamp) -> String {
        let args = PermissionsArgs {
            clients: vec!["somebody".parse().unwrap()],
            workers: Vec::new(),
            keys: Some(file.to_owned()),
            relay_user: "relay".parse().unwrap(),
            in_account: false,
            nats_domain: None,
        };
        resolve(args, now).unwrap().to_string()
    }

    /// The subjects that the block lets client `acme` publish and subscribe to beside its inbox.
    fn allowed(file: &std::path::Path, now: Timestamp) -> Vec<String> {
        let text = printed(file, now);
        let subjects = text.lines().map(|line| line.trim().trim_matches('"')).filter(|line| line.contains(".acme"));
        subjects.map(str::to_owned).collect()
    }

    #[test]
    fn a_client_may_do_on_nats_what_its_keys_together_grant() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.toml");
        let new = |queues: Option<&[&str]>, rights: &[Right]| {
            let queues = queues.map(|queues| queues.iter().map(|queue| queue.parse().unwrap()).collect());
            let (rights, now) = (Rights::of(rights).unwrap(), Timestamp::EPOCH);
            KeyFile::new(&path).create_with(Role::Client, "acme".parse().unwrap(), queues, rights, now).unwrap();
        };
        new(Some(&[]), &[Right::Submit]);
        assert!(
            allowed(&path, Timestamp::EPOCH).is_empty(),
            "no queue is not all of them: {:?}",
            allowed(&path, Timestamp::EPOCH)
        );
        new(Some(&["mail"]), &[Right::Submit]);
        assert_eq!(allowed(&path, Timestamp::EPOCH), ["relay.submit.acme.mail"]);
        new(None, &[Right::Manage]);
        assert_eq!(
            allowed(&path, Timestamp::EPOCH),
            ["relay.submit.acme.mail", "relay.cancel.acme"],
            "all queues, but not to submit"
        );
        new(Some(&["render"]), &[Right::Submit, Right::Read]);
        let all = ["relay.submit.acme.mail", "relay.submit.acme.render", "relay.status.acme", "relay.result.acme"];
        let more = ["relay.results.acme", "relay.cancel.acme", "relay.reply.acme.*", "relay.events.acme.*"];
        assert_eq!(allowed(&path, Timestamp::EPOCH), [&all[..], &more].concat());
        new(None, &Right::ALL);
        assert_eq!(allowed(&path, Timestamp::EPOCH)[0], "relay.submit.acme.*");
    }
    #[test]
    fn an_expired_key_grants_nothing_on_nats_and_one_that_will_expire_says_when() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.toml");
        let (file, name, now) = (KeyFile::new(&path), || "acme".parse().unwrap(), Timestamp::EPOCH);
        let mail = Some(vec!["mail".parse().unwrap()]);
        file.create_with(Role::Client, name(), mail, Rights::of(&[Right::Submit]).unwrap(), now).unwrap();
        let old = file.create(Role::Client, name(), None, now).unwrap();
        let until = now + Duration::from_secs(60);
        let new = file.rotate(old.id(), now, until).unwrap().unwrap();
        assert!(file.revoke(new.id()).unwrap());
        assert!(allowed(&path, now).contains(&"relay.submit.acme.*".to_owned()));
        let told = format!("a key of it expires at {until}, which NATS does not know");
        assert!(printed(&path, now).contains(&told), "{}", printed(&path, now));
        assert_eq!(allowed(&path, until), ["relay.submit.acme.mail"]);
        assert!(!printed(&path, until).contains("expires"));
    }
}
