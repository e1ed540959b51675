//! The NATS settings that a person writes. They are checked as a whole before the first connection, and all problems
//! are reported at once, each with its key, its value and what to do. Secrets are read at each connection, so that a
//! rotated file needs no restart.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::rustls::pki_types::pem::PemObject as _;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::{Auth, ServerAddr};

use relay_bridge::broker::Durability;

/// How relay reaches NATS. The `Default` is a server on this machine, for development.
#[derive(Clone, Debug)]
pub struct NatsConfig {
    /// Where servers are: `nats://HOST:PORT`, `tls://HOST:PORT` or `HOST:PORT`; port 4222 unless said. At most 100.
    pub servers: Vec<String>,
    /// How relay identifies itself to NATS.
    pub credentials: Credentials,
    /// How the connection is encrypted.
    pub tls: Tls,
    /// The prefix of reply subjects, for servers where relay's user may not subscribe to `_INBOX.>`. Default `_INBOX`.
    pub inbox_prefix: Option<String>,
    /// The name of the connection in the server's lists. Default `relay`.
    pub name: String,
    /// How often a quiet connection is pinged: 1 s to 2 min. It is given up after two pings without an answer. Default
    /// 10 s, well under the 350 s after which load balancers forget a connection.
    pub ping_interval: Duration,
    /// Keep to `servers`, and ignore the addresses that a cluster announces: they may not be reachable from here.
    pub ignore_discovered_servers: bool,
    /// How long one call may be unanswered: 100 ms to 1 min; default 5 s. A call that may have reached the server is in
    /// doubt then, not refused.
    pub request_timeout: Duration,
    /// The most publishes that await their confirmation at once, over the whole process: 1 to 8,192; default 4,096. Others
    /// wait for their turn. A stream refuses more than 10,000 that are not stored yet.
    pub in_flight: usize,
    /// The JetStream domain, where relay's servers are not the ones it connects to, such as behind a leaf node.
    pub domain: Option<String>,
    /// Whether the servers run with `sync_interval: always`. No client can see it, and durability depends on it.
    pub sync_always: bool,
}

/// How relay identifies itself to NATS.
#[derive(Clone, Debug, Default)]
pub enum Credentials {
    /// No credentials: the server has no users, or one user for all who connect.
    #[default]
    None,
    /// A user with a password.
    User {
        /// The user's name.
        name: String,
        /// The password.
        password: Secret,
    },
    /// A token.
    Token(Secret),
    /// The seed of a user's NKey: `SU…`.
    NKey(Secret),
    /// A credentials file as `nsc` writes it: a user's JWT and the seed of its key.
    Creds(Secret),
}

/// A secret, or the file that holds it. It is never printed.
#[derive(Clone)]
pub enum Secret {
    /// The secret itself, such as from an environment variable.
    Value(String),
    /// A file, read at each connection.
    File(PathBuf),
}

/// How the connection is encrypted.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Refuse a server that does not encrypt. `tls://` addresses and servers that ask for TLS get it anyway.
    pub required: bool,
    /// Encrypt before the server's first word, for servers with `handshake_first` and load balancers that end TLS.
    pub first: bool,
    /// A PEM file of the authorities that may have signed the server's certificate. `None`: the system's.
    pub ca: Option<PathBuf>,
    /// Relay's own certificate, as PEM files.
    pub client: Option<ClientCertificate>,
}

/// A certificate that relay shows to the server.
#[derive(Clone, Debug)]
pub struct ClientCertificate {
    /// The certificate and those between it and its authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self {
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            credentials: Credentials::None,
            tls: Tls::default(),
            inbox_prefix: None,
            name: "relay".to_owned(),
            ping_interval: Duration::from_secs(10),
            ignore_discovered_servers: false,
            request_timeout: Duration::from_secs(5),
            in_flight: 4_096,
            domain: None,
            sync_always: false,
        }
    }
}

/// Everything that is wrong with a [`NatsConfig`]: one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidConfig(Vec<String>);

impl InvalidConfig {
    /// The problems: key, value, and what to do.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for InvalidConfig {}

impl NatsConfig {
    /// For servers at `urls`, with everything else as usual.
    #[must_use]
    pub fn new(urls: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { servers: urls.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Checks every value and reads every file once.
    ///
    /// # Errors
    /// All problems at once.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let mut problems = Vec::new();
        self.check_servers(&mut problems);
        self.credentials.check(&mut problems);
        self.tls.check(&mut problems);
        if let Some(prefix) = &self.inbox_prefix
            && (prefix.split('.').any(str::is_empty) || !prefix.bytes().all(is_subject_byte))
        {
            problems.push(format!(
                "inbox_prefix: `{prefix}` is no subject: use words with dots between, such as `_INBOX_relay`"
            ));
        }
        for (key, value, least, most) in [
            ("ping_interval", self.ping_interval, Duration::from_secs(1), Duration::from_secs(120)),
            ("request_timeout", self.request_timeout, Duration::from_millis(100), Duration::from_secs(60)),
        ] {
            if value < least || value > most {
                problems.push(format!("{key}: {value:?} is not between {least:?} and {most:?}"));
            }
        }
        if !(1..=IN_FLIGHT_MAX).contains(&self.in_flight) {
            problems.push(format!("in_flight: {} is not between 1 and {IN_FLIGHT_MAX}", self.in_flight));
        }
        if let Some(domain) = &self.domain
            && !is_domain(domain)
        {
            problems.push(format!("domain: `{domain}` is no word of a subject"));
        }
        if problems.is_empty() { Ok(()) } else { Err(InvalidConfig(problems)) }
    }

    fn check_servers(&self, problems: &mut Vec<String>) {
        if self.servers.is_empty() || self.servers.len() > SERVERS_MAX {
            problems.push(format!("servers: there are {}; name 1 to {SERVERS_MAX}", self.servers.len()));
        }
        for server in self.servers.iter().take(SERVERS_MAX) {
            // Not repeated in the message: it may hold a password.
            if server.contains('@') {
                problems.push("servers: an address has credentials in it: put them in a file".to_owned());
                continue;
            }
            match server.parse::<ServerAddr>() {
                Ok(address) if address.is_websocket() => {
                    problems.push(format!("servers: `{server}`: websockets are not built in: use nats:// or tls://"));
                }
                Ok(address) if address.host().is_empty() => problems.push(format!("servers: `{server}` has no host")),
                Ok(_) => {}
                Err(error) => problems.push(format!("servers: `{server}`: {error}: write it as nats://HOST:PORT")),
            }
        }
    }

    /// The servers' addresses as the client library takes them. Addresses that can't be parsed are left out.
    pub(crate) fn addresses(&self) -> Vec<ServerAddr> {
        self.servers.iter().filter_map(|server| server.parse().ok()).collect()
    }

    /// The durability of an accepted job in streams with this many replicas, in memory or on disk.
    #[must_use]
    pub fn durability(&self, replicas: usize, memory: bool) -> Durability {
        match (memory, self.sync_always, replicas) {
            (true, _, 0..=2) => Durability::None,
            (false, true, _) => Durability::PowerLoss,
            (_, _, 3..) => Durability::Replicated,
            _ => Durability::ProcessCrash,
        }
    }
}

impl Tls {
    fn check(&self, problems: &mut Vec<String>) {
        let certificates = |key: &str, path: &Path| match read_certificates(path) {
            Ok(0) => Some(format!("{key}: {} holds no certificate: it must be PEM", path.display())),
            Ok(_) => None,
            Err(error) => Some(format!("{key}: {}: {error}", path.display())),
        };
        problems.extend(self.ca.as_deref().and_then(|path| certificates("tls.ca", path)));
        if let Some(client) = &self.client {
            problems.extend(certificates("tls.cert", &client.cert));
            if let Err(error) = PrivateKeyDer::from_pem_file(&client.key) {
                problems.push(format!("tls.key: {}: {error}", client.key.display()));
            }
        }
    }

    /// Whether nothing is sent in the clear to `address`.
    pub(crate) fn covers(&self, address: &ServerAddr) -> bool {
        self.required || self.first || address.tls_required()
    }
}

fn read_certificates(path: &Path) -> Result<usize, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    read.map(|certificates| certificates.len()).map_err(|error| error.to_string())
}

impl Credentials {
    fn check(&self, problems: &mut Vec<String>) {
        if let Self::User { name, .. } = self
            && name.is_empty()
        {
            problems.push("credentials.user: it is empty".to_owned());
        }
        let (key, secret) = match self {
            Self::None => return,
            Self::User { password, .. } => ("credentials.password", password),
            Self::Token(token) => ("credentials.token", token),
            Self::NKey(seed) => ("credentials.nkey", seed),
            Self::Creds(creds) => ("credentials.creds", creds),
        };
        let read = secret.read_now().and_then(|text| self.auth(&text, b""));
        problems.extend(read.err().map(|problem| format!("{key}: {problem}")));
    }

    /// The authentication to send to a server whose challenge is `nonce`. Reads the secret.
    ///
    /// # Errors
    /// In words, with the file's name and without the secret.
    pub(crate) async fn sign(&self, nonce: &[u8]) -> Result<Auth, String> {
        let secret = match self {
            Self::None => return Ok(Auth::new()),
            Self::User { password: secret, .. } | Self::Token(secret) | Self::NKey(secret) | Self::Creds(secret) => {
                secret.clone()
            }
        };
        let text =
            tokio::task::spawn_blocking(move || secret.read_now()).await.map_err(|error| error.to_string())??;
        self.auth(&text, nonce)
    }

    /// `secret` is what the secret's file holds, without space around it.
    fn auth(&self, secret: &str, nonce: &[u8]) -> Result<Auth, String> {
        let mut auth = Auth::new();
        match self {
            Self::None => {}
            Self::User { name, .. } => {
                auth.username = Some(name.clone());
                auth.password = Some(secret.to_owned());
            }
            Self::Token(_) => auth.token = Some(secret.to_owned()),
            Self::NKey(_) => {
                let pair = user_key(secret)?;
                auth.nkey = Some(pair.public_key());
                auth.signature = Some(pair.sign(nonce).map_err(|error| error.to_string())?);
            }
            Self::Creds(_) => {
                let missing = |what| format!("there is no {what} in it: it must be a file that `nsc` wrote");
                let jwt = between(secret, "NATS USER JWT").ok_or_else(|| missing("user JWT"))?;
                let seed = between(secret, "USER NKEY SEED").ok_or_else(|| missing("NKey seed"))?;
                auth.jwt = Some(jwt.to_owned());
                auth.signature = Some(user_key(seed)?.sign(nonce).map_err(|error| error.to_string())?);
            }
        }
        Ok(auth)
    }

    /// Whether a secret itself is sent, and not a signature made with it.
    pub(crate) fn reveals(&self) -> bool {
        matches!(self, Self::User { .. } | Self::Token(_))
    }
}

fn user_key(seed: &str) -> Result<nkeys::KeyPair, String> {
    let pair = nkeys::KeyPair::from_seed(seed).map_err(|error| format!("this is no seed of an NKey: {error}"))?;
    match pair.key_pair_type() {
        nkeys::KeyPairType::User => Ok(pair),
        other => Err(format!("this is the seed of an NKey for {other:?}: a user's begins with SU")),
    }
}

/// The text between `-----BEGIN name-----` and the next line of dashes.
fn between<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("BEGIN {name}-"))?;
    let (_, rest) = rest.split_once('\n')?;
    let (found, _) = rest.split_once("---")?;
    Some(found.trim()).filter(|found| !found.is_empty())
}

impl Secret {
    /// The secret as it is now, without white space around it.
    ///
    /// # Errors
    /// A text for people: the file can't be read, or is empty.
    pub fn read_now(&self) -> Result<String, String> {
        let text = match self {
            Self::Value(value) => value.clone(),
            Self::File(path) => {
                std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?
            }
        };
        let trimmed = text.trim();
        match self {
            _ if !trimmed.is_empty() => Ok(trimmed.to_owned()),
            Self::Value(_) => Err("it is empty".to_owned()),
            Self::File(path) => Err(format!("{} is empty", path.display())),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str("Value(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// Whether a JetStream domain can have this name: it must be one token of a subject.
#[must_use]
pub fn is_domain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| is_subject_byte(byte) && byte != b'.')
}

fn is_subject_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'*' | b'>')
}

const SERVERS_MAX: usize = 100;
/// Below the 10,000 messages on their way into a stream beyond which a server refuses:
/// <https://docs.nats.io/running-a-nats-service/configuration/resource_management>
const IN_FLIGHT_MAX: usize = 8_192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_configuration_has_no_problem() {
        assert_eq!(NatsConfig::default().check(), Ok(()));
        assert_eq!(NatsConfig::new(["a.example", "tls://b.example:4443", "[::1]:4222"]).check(), Ok(()));
    }

    #[test]
    fn publishes_in_flight_stay_below_what_a_stream_takes() {
        for (in_flight, is_fine) in [(0, false), (1, true), (8_192, true), (8_193, false)] {
            let checked = NatsConfig { in_flight, ..NatsConfig::default() }.check();
            assert_eq!(checked.is_ok(), is_fine, "{in_flight}: {checked:?}");
        }
    }

    #[test]
    fn all_problems_are_named_at_once_and_no_secret_among_them() {
        let config = NatsConfig {
            servers: vec!["ws://a".to_owned(), "nats://me:hush@b".to_owned(), "http://c".to_owned()],
            credentials: Credentials::NKey(Secret::Value("SUHUSH".to_owned())),
            tls: Tls { ca: Some("/no/such/ca.pem".into()), ..Tls::default() },
            inbox_prefix: Some("a.>".to_owned()),
            ping_interval: Duration::ZERO,
            domain: Some("a.b".to_owned()),
            ..NatsConfig::default()
        };
        let error = config.check().unwrap_err();
        let keys: Vec<_> = error.problems().iter().filter_map(|problem| problem.split(':').next()).collect();
        let expected =
            ["servers", "servers", "servers", "credentials.nkey", "tls.ca", "inbox_prefix", "ping_interval", "domain"];
        assert_eq!(keys, expected);
        assert!(!error.to_string().to_lowercase().contains("hush"), "{error}");
        assert!(!format!("{config:?}").contains("SUHUSH"));
    }

    #[test]
    fn a_credentials_file_is_its_jwt_and_a_signature() {
        let pair = nkeys::KeyPair::new_user();
        let file = format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.eyJq.c2ln\n------END NATS USER JWT------\n\n*** IMPORTANT ***\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            pair.seed().unwrap()
        );
        let auth = Credentials::Creds(Secret::Value(String::new())).auth(&file, b"nonce").unwrap();
        assert_eq!(auth.jwt.as_deref(), Some("eyJ0.eyJq.c2ln"));
        assert!(pair.verify(b"nonce", &auth.signature.unwrap()).is_ok());
        let refused = Credentials::Creds(Secret::Value("nothing of it".to_owned()));
        assert!(refused.auth("nothing of it", b"").err().unwrap().contains("JWT"));
    }

    #[test]
    fn the_seed_of_an_account_is_no_user() {
        let seed = nkeys::KeyPair::new_account().seed().unwrap();
        let refused = Credentials::NKey(Secret::Value(String::new())).auth(&seed, b"");
        assert!(refused.err().unwrap().contains("Account"));
    }

    #[test]
    fn durability_is_what_replicas_and_flushing_make_it() {
        let of = |memory, sync_always, replicas| {
            NatsConfig { sync_always, ..NatsConfig::default() }.durability(replicas, memory)
        };
        assert_eq!(of(false, false, 1), Durability::ProcessCrash);
        assert_eq!(of(false, false, 3), Durability::Replicated);
        assert_eq!(of(false, true, 1), Durability::PowerLoss);
        assert_eq!(of(true, true, 1), Durability::None);
        assert_eq!(of(true, true, 3), Durability::Replicated);
    }
}
