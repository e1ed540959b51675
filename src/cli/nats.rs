//! NATS as flags: where it is, who relay is to it, how the connection is encrypted, and what streams are like. Secrets come
//! from files or the environment, never from the command line, where every process could read them.

use std::num::NonZeroU8;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use relay_nats::StreamSettings;
use relay_nats::config::{ClientCertificate, Credentials, NatsConfig, Secret, Tls};

use super::exit::CliError;
use super::values;
use crate::app::NatsDoor;
use crate::ingress::nats::{Limits, RELAY_INBOX};

/// The variables that hold a secret itself. They have no flag.
const PASSWORD: &str = "RELAY_NATS_PASSWORD";
const TOKEN: &str = "RELAY_NATS_TOKEN";

const PING: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// NATS JetStream 2.12 or newer as the broker, and how relay connects to NATS, whatever for.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "NATS")]
pub(crate) struct NatsArgs {
    /// Keep jobs and results on these NATS servers, of one cluster: nats://HOST[:PORT] or tls://HOST[:PORT]
    #[arg(long = "nats", value_name = "URL[,URL]", env = "RELAY_NATS", value_delimiter = ',')]
    nats: Vec<String>,
    /// Credentials file of relay's user, as `nsc` writes it
    #[arg(long, value_name = "FILE", env = "RELAY_NATS_CREDS")]
    nats_creds: Option<PathBuf>,
    /// File with the seed of relay's NKey
    #[arg(long, value_name = "FILE", env = "RELAY_NATS_NKEY")]
    nats_nkey: Option<PathBuf>,
    /// Relay's user, with --nats-password-file or RELAY_NATS_PASSWORD
    #[arg(long, value_name = "NAME", env = "RELAY_NATS_USER")]
    nats_user: Option<String>,
    /// File with the password of --nats-user; it is read at each connection, so that it may be rotated
    #[arg(long, value_name = "FILE", env = "RELAY_NATS_PASSWORD_FILE", requires = "nats_user")]
    nats_password_file: Option<PathBuf>,
    /// File with a token; or set RELAY_NATS_TOKEN
    #[arg(long, value_name = "FILE", env = "RELAY_NATS_TOKEN_FILE")]
    nats_token_file: Option<PathBuf>,
    /// Refuse a server that does not encrypt; tls:// addresses are encrypted anyway
    #[arg(long, env = "RELAY_NATS_TLS")]
    nats_tls: bool,
    /// Encrypt before the server's first word: `handshake_first`, or a load balancer that ends TLS
    #[arg(long, env = "RELAY_NATS_TLS_FIRST")]
    nats_tls_first: bool,
    /// PEM file of the authorities that may have signed the server's certificate [default: the system's]
    #[arg(long, value_name = "FILE", env = "RELAY_NATS_CA")]
    nats_ca: Option<PathBuf>,
    /// PEM file of relay's own certificate, for servers that verify it
    #[arg(long, value_name = "FILE", env = "RELAY_NATS_CERT", requires = "nats_key")]
    nats_cert: Option<PathBuf>,
    /// PEM file of that certificate's key
    #[arg(long, value_name = "FILE", env = "RELAY_NATS_KEY", requires = "nats_cert")]
    nats_key: Option<PathBuf>,
    /// What reply subjects begin with, which relay's user has to be allowed to subscribe to [default: what `relay nats
    /// permissions` grants: _INBOX__relay, and _INBOX__worker-ID for `relay worker --id ID`]
    #[arg(long, value_name = "PREFIX", env = "RELAY_NATS_INBOX_PREFIX")]
    nats_inbox_prefix: Option<String>,
    /// The JetStream domain, where it is not the one of these servers
    #[arg(long, value_name = "NAME", env = "RELAY_NATS_DOMAIN")]
    nats_domain: Option<String>,
    /// Keep to the addresses of --nats, and ignore those that the cluster announces
    #[arg(long, env = "RELAY_NATS_IGNORE_DISCOVERED")]
    nats_ignore_discovered: bool,
    /// How often a quiet connection is tried; it is given up after two tries [default: 10s]
    #[arg(long, value_name = "DURATION", env = "RELAY_NATS_PING", value_parser = values::duration)]
    nats_ping: Option<Duration>,
    /// How long a call may be unanswered before it is in doubt [default: 5s]
    #[arg(long, value_name = "DURATION", env = "RELAY_NATS_TIMEOUT", value_parser = values::duration)]
    nats_timeout: Option<Duration>,
    /// The most publishes that await their confirmation at once: 1 to 8192; others wait for their turn [default: 4096]
    #[arg(long, value_name = "N", env = "RELAY_NATS_IN_FLIGHT")]
    nats_in_flight: Option<usize>,
    /// The servers run with `sync_interval: always`: say `power-loss` where relay says what an accepted job survives
    #[arg(long, env = "RELAY_NATS_SYNC_ALWAYS")]
    nats_sync_always: bool,
}

/// Clients over NATS: whether, and where if not at the servers of the broker.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Listening")]
pub(crate) struct NatsListenArgs {
    /// Serve clients on these NATS servers, as the micro service `relay`: nats://HOST[:PORT] or tls://HOST[:PORT]. With
    /// --nats they are served on its servers anyway. Credentials and TLS are the --nats-* flags'; NATS permissions say
    /// who is who: see `relay nats permissions`
    #[arg(long, value_name = "URL[,URL]", env = "RELAY_NATS_LISTEN", value_delimiter = ',', conflicts_with = "nats")]
    nats_listen: Vec<String>,
    /// Serve no clients on the servers of --nats
    #[arg(long, env = "RELAY_NO_NATS_LISTEN")]
    no_nats_listen: bool,
    /// Requests over NATS that may wait for a result at a time (`Relay-Wait`), of all clients together; more are answered at
    /// once what there is [default: 10000]
    #[arg(long, value_name = "N", env = "RELAY_NATS_WAITS", value_parser = clap::value_parser!(u32).range(..=100_000))]
    nats_waits: Option<u32>,
    /// Of these, those of one client while another one waits, or asked for it within 10 s [default: a quarter of them]
    #[arg(long, value_name = "N", env = "RELAY_NATS_WAITS_PER_CLIENT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    nats_waits_per_client: Option<u32>,
}

impl NatsListenArgs {
    /// How to reach NATS as the broker, if it is that, and for clients, if they are served there.
    ///
    /// # Errors
    /// As [`NatsArgs::resolve`]; flags about clients over NATS where there are none.
    pub(crate) fn resolve(self, nats: NatsArgs) -> Result<(Option<NatsConfig>, Option<NatsDoor>), CliError> {
        let limits = self.limits()?;
        let waits = first_given([
            ("--nats-waits", self.nats_waits.is_some()),
            ("--nats-waits-per-client", self.nats_waits_per_client.is_some()),
        ]);
        if !self.nats_listen.is_empty() {
            let config = nats.resolve_listen(self.nats_listen, DOOR)?;
            return Ok((None, Some(NatsDoor { config, limits })));
        }
        let broker = nats.resolve("relay", RELAY_INBOX)?;
        if self.no_nats_listen && broker.is_none() {
            return Err(without_nats("--no-nats-listen", "no clients are served over NATS anyway"));
        }
        let door = broker.clone().filter(|_| !self.no_nats_listen);
        if let (None, Some(flag)) = (&door, waits) {
            return Err(CliError::usage(format!("{flag}: no clients are served over NATS"))
                .hint("leave it out, or say where they are with --nats or --nats-listen"));
        }
        let door = door.map(|config| NatsDoor { config: NatsConfig { name: DOOR.to_owned(), ..config }, limits });
        Ok((broker, door))
    }

    /// The limits on clients' requests.
    fn limits(&self) -> Result<Limits, CliError> {
        let usual = Limits::default();
        let number = |of: u32| usize::try_from(of).unwrap_or(usize::MAX);
        let waits = self.nats_waits.map_or(usual.waits, number);
        let waits_per_client = self.nats_waits_per_client.map(number);
        if let Some(share) = waits_per_client.filter(|share| *share > waits) {
            return Err(CliError::usage(format!(
                "--nats-waits-per-client {share} is more than there are: --nats-waits is {waits}"
            )));
        }
        Ok(Limits { waits, waits_per_client, ..usual })
    }
}

/// The name of the ingress's connection in the server's lists.
const DOOR: &str = "relay-listen";

/// The settings of the streams that relay creates.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "NATS streams")]
pub(crate) struct StreamArgs {
    /// Copies of each message: 1, 3 or 5 [default: 1]
    #[arg(long, value_name = "N", env = "RELAY_NATS_REPLICAS", value_parser = replicas)]
    nats_replicas: Option<NonZeroU8>,
    /// Where the servers keep them; `memory` is for trials [default: file]
    #[arg(long, value_enum, env = "RELAY_NATS_STORAGE")]
    nats_storage: Option<Storage>,
    /// Compress stored blocks (S2)
    #[arg(long, env = "RELAY_NATS_COMPRESSION")]
    nats_compression: bool,
    /// The cluster to place them in, of several
    #[arg(long, value_name = "NAME", env = "RELAY_NATS_PLACEMENT_CLUSTER")]
    nats_placement_cluster: Option<String>,
    /// A tag that servers must have which hold them; repeat it for more
    #[arg(long = "nats-placement-tag", value_name = "TAG", env = "RELAY_NATS_PLACEMENT_TAG", value_delimiter = ',')]
    nats_placement_tags: Vec<String>,
    /// Bytes that all jobs may take; at 90 % new ones are refused [default: what the account may store]
    #[arg(long, value_name = "SIZE", env = "RELAY_NATS_JOBS_MAX", value_parser = values::size)]
    nats_jobs_max: Option<u64>,
    /// The same for results and dead letters
    #[arg(long, value_name = "SIZE", env = "RELAY_NATS_RESULTS_MAX", value_parser = values::size)]
    nats_results_max: Option<u64>,
}

/// Where the servers keep messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Storage {
    /// On their disks
    File,
    /// In their memory: gone with the last of them
    Memory,
}

impl NatsArgs {
    /// How to reach NATS, if it is the broker. `name` is what the connection is called in the server's lists, `inbox` what
    /// reply subjects begin with unless a flag says otherwise.
    ///
    /// # Errors
    /// A usage error with everything that is wrong.
    pub(crate) fn resolve(self, name: &str, inbox: &str) -> Result<Option<NatsConfig>, CliError> {
        if self.nats.is_empty() {
            return match self.given() {
                None => Ok(None),
                Some(flag) => Err(without_nats(flag, "relay does not connect to NATS")),
            };
        }
        self.with("--nats", name, inbox, environment).map(Some)
    }

    /// How to reach NATS for the ingress alone, at `servers`, while another broker keeps the jobs.
    ///
    /// # Errors
    /// A usage error with everything that is wrong, also flags that are about a broker.
    pub(crate) fn resolve_listen(mut self, servers: Vec<String>, name: &str) -> Result<NatsConfig, CliError> {
        let about_broker =
            [("--nats-domain", self.nats_domain.is_some()), ("--nats-sync-always", self.nats_sync_always)];
        if let Some(flag) = first_given(about_broker) {
            return Err(without_nats(flag, NOT_KEPT));
        }
        self.nats = servers;
        self.with("--nats-listen", name, RELAY_INBOX, environment)
    }

    /// Whether NATS is the broker.
    pub(crate) fn is_broker(&self) -> bool {
        !self.nats.is_empty()
    }

    /// A flag about the connection that was given.
    fn given(&self) -> Option<&'static str> {
        first_given([
            ("--nats-creds", self.nats_creds.is_some()),
            ("--nats-nkey", self.nats_nkey.is_some()),
            ("--nats-user", self.nats_user.is_some()),
            ("--nats-password-file", self.nats_password_file.is_some()),
            ("--nats-token-file", self.nats_token_file.is_some()),
            ("--nats-tls", self.nats_tls),
            ("--nats-tls-first", self.nats_tls_first),
            ("--nats-ca", self.nats_ca.is_some()),
            ("--nats-cert", self.nats_cert.is_some()),
            ("--nats-key", self.nats_key.is_some()),
            ("--nats-cert", self.nats_cert.is_some()),
            ("--nats-inbox-prefix", self.nats_inbox_prefix.is_some()),
            ("--nats-domain", self.nats_domain.is_some()),
            ("--nats-ignore-discovered", self.nats_ignore_discovered),
            ("--nats-ping", self.nats_ping.is_some()),
            ("--nats-timeout", self.nats_timeout.is_some()),
            ("--nats-in-flight", self.nats_in_flight.is_some()),
            ("--nats-sync-always", self.nats_sync_always),
        ])
    }

    /// `servers` is the flag that named them.
    fn with(
        self,
        servers: &str,
        name: &str,
        inbox: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<NatsConfig, CliError> {
        let mut wrong = Vec::new();
        let mut found = Vec::new();
        if let Some(user) = self.nats_user {
            let secret = match (self.nats_password_file, variable(PASSWORD)) {
                (Some(file), None) => Some(Secret::File(file)),
                (None, Some(password)) => Some(Secret::Value(password)),
                (Some(_), Some(_)) => {
                    wrong.push(format!("both --nats-password-file and {PASSWORD} are set: leave one out"));
                    None
                }
                (None, None) => {
                    wrong.push(format!("--nats-user needs --nats-password-file or {PASSWORD}"));
                    None
                }
            };
            found.push(("--nats-user", secret.map(|password| Credentials::User { name: user, password })));
        }
        let token = self.nats_token_file.map(Secret::File).or_else(|| variable(TOKEN).map(Secret::Value));
        found.extend(token.map(|token| ("--nats-token-file or RELAY_NATS_TOKEN", Some(Credentials::Token(token)))));
        let file = |flag, path: Option<PathBuf>, make: fn(Secret) -> Credentials| {
            path.map(|path| (flag, Some(make(Secret::File(path)))))
        };
        found.extend(file("--nats-nkey", self.nats_nkey, Credentials::NKey));
        found.extend(file("--nats-creds", self.nats_creds, Credentials::Creds));
        if let [(first, _), (second, _), ..] = &found[..] {
            wrong.push(format!("relay has one identity: leave out {first} or {second}"));
        }
        let config = NatsConfig {
            servers: self.nats,
            credentials: found.into_iter().find_map(|(_, credentials)| credentials).unwrap_or_default(),
            tls: Tls {
                required: self.nats_tls,
                first: self.nats_tls_first,
                ca: self.nats_ca,
                client: self.nats_cert.zip(self.nats_key).map(|(cert, key)| ClientCertificate { cert, key }),
            },
            inbox_prefix: Some(self.nats_inbox_prefix.unwrap_or_else(|| inbox.to_owned())),
            name: name.to_owned(),
            ping_interval: self.nats_ping.unwrap_or(PING),
            ignore_discovered_servers: self.nats_ignore_discovered,
            request_timeout: self.nats_timeout.unwrap_or(ANSWER_WITHIN),
            in_flight: self.nats_in_flight.unwrap_or(NatsConfig::default().in_flight),
            domain: self.nats_domain,
            sync_always: self.nats_sync_always,
        };
        if let Err(invalid) = config.check() {
            wrong.extend(invalid.problems().iter().map(|problem| in_flags(problem, servers)));
        }
        if wrong.is_empty() { Ok(config) } else { Err(CliError::usage(wrong.join("; "))) }
    }
}

impl StreamArgs {
    /// Nothing of this was asked for: for where jobs are not kept on NATS.
    ///
    /// # Errors
    /// A usage error that names what was.
    pub(crate) fn refuse(&self) -> Result<(), CliError> {
        let given = first_given([
            ("--nats-replicas", self.nats_replicas.is_some()),
            ("--nats-storage", self.nats_storage.is_some()),
            ("--nats-compression", self.nats_compression),
            ("--nats-placement-cluster", self.nats_placement_cluster.is_some()),
            ("--nats-placement-tag", !self.nats_placement_tags.is_empty()),
            ("--nats-jobs-max", self.nats_jobs_max.is_some()),
            ("--nats-results-max", self.nats_results_max.is_some()),
        ]);
        given.map_or(Ok(()), |flag| Err(without_nats(flag, NOT_KEPT)))
    }

    /// The settings of new streams.
    ///
    /// # Errors
    /// A usage error for settings that contradict each other.
    pub(crate) fn resolve(self) -> Result<StreamSettings, CliError> {
        let memory = self.nats_storage == Some(Storage::Memory);
        if memory && self.nats_compression {
            return Err(CliError::usage(
                "--nats-compression: streams in memory can't be compressed: leave out one of them",
            ));
        }
        Ok(StreamSettings {
            replicas: self.nats_replicas.unwrap_or(NonZeroU8::MIN),
            memory,
            compression: self.nats_compression,
            placement_cluster: self.nats_placement_cluster,
            placement_tags: self.nats_placement_tags,
            jobs_bytes_max: self.nats_jobs_max,
            results_bytes_max: self.nats_results_max,
        })
    }
}

/// A flag that says nothing without `--nats`. The parser would not say so beside one that excludes `--nats`.
pub(crate) fn without_nats(flag: &str, why: &str) -> CliError {
    CliError::usage(format!("{flag} without --nats: {why}")).hint("leave it out, or say where NATS is with --nats")
}

/// Why flags about streams say nothing there.
pub(crate) const NOT_KEPT: &str = "jobs are not kept on NATS";

fn first_given<const N: usize>(flags: [(&'static str, bool); N]) -> Option<&'static str> {
    flags.into_iter().find_map(|(flag, given)| given.then_some(flag))
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A problem of the configuration, with the flag instead of the key.
fn in_flags(problem: &str, servers: &str) -> String {
    let flags = [
        ("servers", servers),
        ("credentials.user", "--nats-user"),
        ("credentials.password", "--nats-password-file or RELAY_NATS_PASSWORD"),
        ("credentials.token", "--nats-token-file or RELAY_NATS_TOKEN"),
        ("credentials.nkey", "--nats-nkey"),
        ("credentials.creds", "--nats-creds"),
        ("tls.ca", "--nats-ca"),
        ("tls.cert", "--nats-cert"),
        ("tls.key", "--nats-key"),
        ("ping_interval", "--nats-ping"),
        ("request_timeout", "--nats-timeout"),
    ];
    let Some((key, rest)) = problem.split_once(':') else { return problem.to_owned() };
    let flag = flags.iter().find(|(known, _)| *known == key).map(|(_, flag)| (*flag).to_owned());
    // Every other key has a flag of its own name.
    let flag = flag.unwrap_or_else(|| format!("--nats-{}", key.replace('_', "-")));
    format!("{flag}:{rest}")
}

fn replicas(text: &str) -> Result<NonZeroU8, String> {
    match text.parse() {
        Ok(replicas @ (1 | 3 | 5)) => NonZeroU8::new(replicas).ok_or_else(String::new),
        _ => Err("it must be 1, 3 or 5: an even number outlives no more servers than one less".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        nats: NatsArgs,
        #[command(flatten)]
        streams: StreamArgs,
    }

    fn resolve(line: &str, variables: &[(&str, &str)]) -> Result<Option<NatsConfig>, CliError> {
        let line = Line::try_parse_from(format!("relay {line}").split_whitespace()).unwrap();
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        if line.nats.nats.is_empty() {
            return line.nats.resolve("relay-test", RELAY_INBOX);
        }
        line.nats.with("--nats", "relay-test", RELAY_INBOX, variable).map(Some)
    }

    #[test]
    fn without_an_address_it_is_not_the_broker() {
        assert!(resolve("", &[]).unwrap().is_none());
    }

    #[test]
    fn several_addresses_and_a_password_of_the_environment() {
        let config = resolve("--nats a:4222,tls://b --nats-user relay", &[(PASSWORD, "hush")]).unwrap().unwrap();
        assert_eq!(config.servers, ["a:4222", "tls://b"]);
        assert!(matches!(config.credentials, Credentials::User { ref name, .. } if name == "relay"));
        assert!(!format!("{config:?}").contains("hush"));
    }

    #[test]
    fn all_mistakes_are_named_at_once_by_their_flags() {
        let line = "--nats ws://a --nats-user relay --nats-nkey /no/such --nats-ping 1ms --nats-inbox-prefix a.>";
        let error = resolve(line, &[]).err().unwrap().to_string();
        for part in ["--nats:", PASSWORD, "one identity", "--nats-nkey", "--nats-ping", "--nats-inbox-prefix"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn a_flag_of_nats_without_an_address_is_a_mistake() {
        for line in [
            "--nats-user relay",
            "--nats-tls",
            "--nats-inbox-prefix a",
            "--nats-cert a --nats-key b",
            "--nats-ping 10s",
        ] {
            let error = resolve(line, &[]).err().unwrap().to_string();
            assert!(error.contains("without --nats"), "{error}");
        }
        assert!(Line::try_parse_from(["relay", "--nats", "a", "--nats-replicas", "2"]).is_err());
        assert!(Line::try_parse_from(["relay", "--nats", "a", "--nats-replicas", "3"]).is_ok());
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let line = Line::try_parse_from(["relay", "--nats", "a", "--nats-storage", "memory", "--nats-compression"]);
        assert!(line.unwrap().streams.resolve().is_err());
    }
}
