//! NATS by its settings: where it is, who relay is to it, how the connection is encrypted, and what streams are like. Secrets
//! come from files or the environment, never from the command line, where every process could read them.

use std::path::PathBuf;

use relay_nats::StreamSettings;
use relay_nats::config::{ClientCertificate, Credentials, NatsConfig, Secret, Tls};

use super::configured::variable;
use super::exit::CliError;
use crate::app::NatsIngress;
use crate::config::settings::{Listen, Nats, Storage, Streams};
use crate::ingress::nats::{Limits, RELAY_INBOX};

/// The variables that hold a secret itself. They have no flag.
const PASSWORD: &str = "RELAY_NATS_PASSWORD";
const TOKEN: &str = "RELAY_NATS_TOKEN";
/// The name of the ingress's connection in the server's lists.
const INGRESS: &str = "relay-listen";

/// How to reach NATS as the broker, if it is that, and for clients, if they are served there.
///
/// # Errors
/// A usage error with everything that is wrong.
pub(crate) fn broker_and_clients(
    nats: &Nats,
    listen: &Listen,
) -> Result<(Option<NatsConfig>, Option<NatsIngress>), CliError> {
    let number = |of: u32| usize::try_from(of).unwrap_or(usize::MAX);
    let limits = Limits {
        waits: number(listen.nats_waits),
        waits_per_client: listen.nats_waits_per_client.map(number),
        ..Limits::default()
    };
    if !listen.nats.is_empty() {
        let servers = Nats { servers: listen.nats.clone(), ..nats.clone() };
        let config = servers.config("--nats-listen", INGRESS, RELAY_INBOX, variable)?;
        return Ok((None, Some(NatsIngress { config, limits })));
    }
    let broker = nats.broker("relay", RELAY_INBOX)?;
    let ingress = broker.clone().filter(|_| !nats.no_listen);
    let ingress =
        ingress.map(|config| NatsIngress { config: NatsConfig { name: INGRESS.to_owned(), ..config }, limits });
    Ok((broker, ingress))
}

impl Nats {
    /// How to reach NATS, if it is the broker. `name` is what the connection is called in the server's lists, `inbox` what
    /// reply subjects begin with unless a setting says otherwise.
    ///
    /// # Errors
    /// A usage error with everything that is wrong.
    pub(crate) fn broker(&self, name: &str, inbox: &str) -> Result<Option<NatsConfig>, CliError> {
        let config = || self.clone().config("--nats", name, inbox, variable);
        (!self.servers.is_empty()).then(config).transpose()
    }

    /// `servers` is the flag that named them.
    fn config(
        self,
        servers: &str,
        name: &str,
        inbox: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<NatsConfig, CliError> {
        let mut wrong = Vec::new();
        let mut found = Vec::new();
        if let Some(user) = self.user {
            let secret = match (self.password_file, variable(PASSWORD)) {
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
        let token = self.token_file.map(Secret::File).or_else(|| variable(TOKEN).map(Secret::Value));
        found.extend(token.map(|token| ("--nats-token-file or RELAY_NATS_TOKEN", Some(Credentials::Token(token)))));
        let file = |flag, path: Option<PathBuf>, make: fn(Secret) -> Credentials| {
            path.map(|path| (flag, Some(make(Secret::File(path)))))
        };
        found.extend(file("--nats-nkey", self.nkey, Credentials::NKey));
        found.extend(file("--nats-creds", self.creds, Credentials::Creds));
        if let [(first, _), (second, _), ..] = &found[..] {
            wrong.push(format!("relay has one identity: leave out {first} or {second}"));
        }
        let config = NatsConfig {
            servers: self.servers,
            credentials: found.into_iter().find_map(|(_, credentials)| credentials).unwrap_or_default(),
            tls: Tls {
                required: self.tls,
                first: self.tls_first,
                ca: self.ca,
                client: self.cert.zip(self.key).map(|(cert, key)| ClientCertificate { cert, key }),
            },
            inbox_prefix: Some(self.inbox_prefix.unwrap_or_else(|| inbox.to_owned())),
            name: name.to_owned(),
            ping_interval: self.ping.0,
            ignore_discovered_servers: self.ignore_discovered,
            request_timeout: self.timeout.0,
            in_flight: self.in_flight,
            domain: self.domain,
            sync_always: self.sync_always,
        };
        if let Err(invalid) = config.check() {
            wrong.extend(invalid.problems().iter().map(|problem| in_flags(problem, servers)));
        }
        if wrong.is_empty() { Ok(config) } else { Err(CliError::usage(wrong.join("; "))) }
    }
}

impl Streams {
    /// The settings of new streams.
    pub(crate) fn settings(&self) -> StreamSettings {
        StreamSettings {
            replicas: self.replicas,
            memory: self.storage == Storage::Memory,
            compression: self.compression,
            placement_cluster: self.placement_cluster.clone(),
            placement_tags: self.placement_tags.clone(),
            jobs_bytes_max: self.jobs_max,
            results_bytes_max: self.results_max,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::configured::tests::settings;

    fn resolve(line: &str, variables: &[(&str, &str)]) -> Result<Option<NatsConfig>, CliError> {
        let nats = settings("provision", line, variables)?.nats;
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        if nats.servers.is_empty() {
            return nats.broker("relay-test", RELAY_INBOX);
        }
        nats.config("--nats", "relay-test", RELAY_INBOX, variable).map(Some)
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
        let line = "--nats ws://a --nats-nkey /no/such --nats-inbox-prefix a.>";
        let error = resolve(line, &[]).err().unwrap().to_string();
        for part in ["--nats:", "--nats-nkey", "--nats-inbox-prefix"] {
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
    }

    #[test]
    fn a_layer_that_contradicts_itself_is_refused() {
        for (line, variables, expected) in [
            ("--nats a --nats-storage memory --nats-compression", &[][..], "--nats-compression: streams in memory"),
            ("--nats a --nats-replicas 2", &[], "--nats-replicas: 2 replicas survive no more than 1 do"),
            (
                "--nats a --nats-user u --nats-nkey n",
                &[(PASSWORD, "hush")],
                "--nats-user: --nats-nkey is given as well",
            ),
            ("--nats a --sqs", &[], "--sqs: --nats is given as well"),
            ("", &[("RELAY_NATS", "a"), ("RELAY_SQS", "true")], "RELAY_SQS: RELAY_NATS is given as well"),
            ("--nats a --nats-user u", &[], PASSWORD),
        ] {
            let error = resolve(line, variables).err().unwrap().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        assert!(resolve("--nats a --nats-replicas 3", &[]).is_ok());
    }
}
