//! Values that can't be true together, or have no effect: each value is well, and the whole is not. They are looked for
//! once all layers are merged.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU32;

use relay_bridge::policy::QueuePolicy;
use relay_embedded::PAYLOAD_MAX;
use relay_workers::config::QUEUES_MAX;
use relay_workers::handler::http::{Http, HttpConfig};

use super::file::File;
use super::layers::{ALTERNATIVES, Merged};
use super::mistake::Mistake;
use super::queues::Queue;
use super::settings::{self, Listen, Order, ProxyHeader, ScalerTls, Settings, Storage, TLS_SCHEME, TlsEnd, TlsOf};
use super::values::{WeightedQueue, show_duration, show_size};

mod addresses;
mod listeners;

/// The mistakes in the queues of one worker together, and what to do about them.
fn of_queues(queues: &[WeightedQueue], strict: bool) -> Vec<(String, &'static str)> {
    let mut found = Vec::new();
    if let Some(weighted) = queues.iter().find(|queue| strict && queue.weight != NonZeroU32::MIN) {
        let what =
            format!("`{}` has a weight, and in strict order the first queue that has jobs is asked", weighted.name);
        found.push((what, "leave the weights out, or let the order be \"weighted\""));
    }
    let names: BTreeSet<_> = queues.iter().map(|queue| &queue.name).collect();
    if names.len() < queues.len() {
        found.push(("a queue is there twice".to_owned(), "name each once"));
    }
    if names.len() > QUEUES_MAX {
        let what = format!("{} queues are more than one worker takes, which is {QUEUES_MAX}", names.len());
        found.push((what, "divide them among several workers"));
    }
    found
}

/// Everything that contradicts something else.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// By the line of a file.
    pub(crate) in_file: Vec<Mistake>,
    /// Of flags and variables: each mistake, and the way to correct it.
    pub(crate) above: Vec<(String, String)>,
}

/// Everything in the whole that contradicts something else there, or has no effect. `variable` gives those variables that hold
/// a secret; `serves` is whether the process is a server.
pub(crate) fn find(
    serves: bool,
    file: Option<&File>,
    merged: &Merged,
    settings: &Settings,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Found {
    let mut finder = Finder { file, merged, settings, variable, found: Found::default() };
    for (group, why) in ALTERNATIVES {
        finder.one_of(group, why);
    }
    // Neither of these says which of both is meant.
    finder.one_of(&["listen.nats", "nats.servers"], "clients are served on the broker's own NATS servers anyway");
    finder.one_of(&["worker.key_file", "nats.servers"], KEY_IS_FOR_A_SERVER);
    finder.one_of(&["worker.key_file", "sqs.enabled"], KEY_IS_FOR_A_SERVER);
    for (key, needed, why) in NEEDS {
        finder.needs(key, needed, why);
    }
    finder.about_nats();
    finder.about_waits();
    finder.events();
    finder.addresses();
    finder.ports(serves);
    finder.servers();
    finder.proxy();
    finder.admin_tokens();
    finder.tls();
    finder.listeners();
    finder.worker();
    finder.streams();
    finder.queues();
    finder.found
}

/// Settings that say nothing without another one, with the reason.
const NEEDS: [(&str, &str, &str); 29] = [
    ("listen.tls_cert", "listen.tls_key", "a certificate has a key"),
    ("listen.tls_key", "listen.tls_cert", "a key has a certificate"),
    ("listen.client_auth", "listen.tls_cert", "clients show certificates in the handshake of TLS"),
    ("listen.worker_tls", "listen.workers", "there is no listener for workers"),
    ("listen.worker_client_auth", "listen.workers", "there is no listener for workers"),
    ("admin.health_proxy", "admin.health", "there is no port for health checks"),
    ("admin.token_file", "admin.listen", "there is no admin port"),
    ("admin.tls", "admin.listen", "there is no admin port"),
    ("worker.certificate", "worker.certificate_key", "a certificate has a key"),
    ("worker.certificate_key", "worker.certificate", "a key has a certificate"),
    ("scaler.tls", "scaler.listen", NO_SCALER),
    ("scaler.client_ca", "scaler.listen", NO_SCALER),
    ("scaler.client_ca", "listen.tls_cert", "callers show certificates in the handshake of TLS"),
    ("worker.do_not_disrupt", "worker.kubernetes", "Kubernetes is told nothing"),
    ("audit.required", "audit.file", "nobody knows whether a line of the log was written"),
    ("store.disk_reserve", "store.data", "jobs are not kept in a directory"),
    ("nats.password_file", "nats.user", "relay has no user on NATS"),
    ("nats.cert", "nats.key", "a certificate has a key"),
    ("nats.key", "nats.cert", "a key has a certificate"),
    ("nats.no_listen", "nats.servers", "no clients are served over NATS anyway"),
    ("nats.domain", "nats.servers", NOT_KEPT_ON_NATS),
    ("nats.sync_always", "nats.servers", NOT_KEPT_ON_NATS),
    ("sqs.region", "sqs.enabled", NOT_KEPT_ON_SQS),
    ("sqs.endpoint", "sqs.enabled", NOT_KEPT_ON_SQS),
    ("sqs.table", "sqs.enabled", NOT_KEPT_ON_SQS),
    ("sqs.prefix", "sqs.enabled", NOT_KEPT_ON_SQS),
    ("sqs.fifo", "sqs.enabled", NOT_KEPT_ON_SQS),
    ("sqs.forward", "sqs.enabled", NOT_KEPT_ON_SQS),
    ("sqs.share", "sqs.enabled", NOT_KEPT_ON_SQS),
];
const NO_SCALER: &str = "KEDA is not served";
const NOT_KEPT_ON_SQS: &str = "jobs are not kept on SQS";
const KEY_IS_FOR_A_SERVER: &str = "a worker's key is for the server that it connects to";
const NOT_KEPT_ON_NATS: &str = "jobs are not kept on NATS";
const SAY_WHERE: &str = "leave it out, or say where NATS is with `nats.servers`, its flag or its variable";
const WITHOUT_RATE: &str = "without `rate` it says nothing";
const ADD_RATE: &str = "leave it out, or add `rate`";

struct Finder<'a> {
    file: Option<&'a File>,
    merged: &'a Merged,
    settings: &'a Settings,
    variable: &'a dyn Fn(&str) -> Option<String>,
    found: Found,
}

impl Finder<'_> {
    /// Whether anybody sets it.
    fn is(&self, key: &str) -> bool {
        self.merged.is(key)
    }

    /// The line in the file, if the value there is the one that holds.
    fn line(&self, key: &str) -> Option<usize> {
        let file = self.file?;
        let (_, line) = file.values.get(key)?;
        (self.merged.origin(key)? == file.place(*line)).then_some(*line)
    }

    /// The flag or the variable that gave it.
    fn given_by(&self, key: &str) -> String {
        let origin = self.merged.origin(key).unwrap_or_else(|| key.to_owned());
        origin.strip_prefix("variable ").map_or(origin.clone(), ToOwned::to_owned)
    }

    /// How another setting is called in a mistake about `key`.
    fn called(&self, other: &str, key: &str) -> String {
        let flag = settings::of(other).map(|setting| setting.flag).filter(|flag| !flag.is_empty());
        match flag.filter(|_| self.line(key).is_none()) {
            Some(flag) => format!("--{flag}"),
            None => format!("`{other}`"),
        }
    }

    fn add(&mut self, key: &str, what: impl Into<String>, fix: impl Into<String>) {
        match self.line(key) {
            Some(line) => self.at(line, key, what, fix),
            None => self.found.above.push((format!("{}: {}", self.given_by(key), what.into()), fix.into())),
        }
    }

    fn at(&mut self, line: usize, key: &str, what: impl Into<String>, fix: impl Into<String>) {
        self.found.in_file.push(Mistake { line, key: key.to_owned(), what: what.into(), fix: fix.into() });
    }

    fn one_of(&mut self, keys: &[&str], why: &str) {
        let set: Vec<_> = keys.iter().filter(|key| self.is(key)).collect();
        let [first, others @ ..] = &set[..] else { return };
        for other in others {
            // Of a line and a flag the line is the one to mend.
            let line_first = self.line(first).is_some() && self.line(other).is_none();
            let (first, other) = if line_first { (other, first) } else { (first, other) };
            let beside = match self.line(first) {
                Some(line) => format!("`{first}` is set as well (line {line})"),
                None => format!("{} is given as well", self.given_by(first)),
            };
            self.add(other, format!("{beside}, and {why}"), "leave one of them out");
        }
    }

    /// A setting that says nothing without another one. `why` is for those that read no file.
    fn needs(&mut self, key: &str, needed: &str, why: &str) {
        if !self.is(key) || self.is(needed) {
            return;
        }
        let other = self.called(needed, key);
        match self.line(key) {
            Some(line) => {
                let (what, fix) = (format!("without {other} it says nothing"), format!("leave it out, or add {other}"));
                self.at(line, key, what, fix);
            }
            None => self.without(key, &other, why),
        }
    }

    /// A flag or a variable that says nothing without the flag `needed`.
    fn without(&mut self, key: &str, needed: &str, why: &str) {
        let fix = match needed {
            "--nats" => "leave it out, or say where NATS is with --nats".to_owned(),
            _ => format!("leave it out, or add {needed}"),
        };
        self.found.above.push((format!("{} without {needed}: {why}", self.given_by(key)), fix));
    }

    /// Tokens for a port that is not there.
    fn admin_tokens(&mut self) {
        if self.is("admin.listen") {
            return;
        }
        for token in self.file.into_iter().flat_map(|file| &file.admin_tokens) {
            let fix = "leave it out, or add `admin.listen`";
            self.at(token.line, &format!("admin_token.{}", token.name), "without an admin port it says nothing", fix);
        }
    }

    /// Settings about NATS where there is none, beside those that were found already to need another one.
    fn about_nats(&mut self) {
        const CONNECT: &str =
            "leave it out, or say where NATS is with `nats.servers` or `listen.nats`, or their flags or variables";
        let (broker, clients, on_sqs) = (self.is("nats.servers"), self.is("listen.nats"), self.is("sqs.enabled"));
        for key in settings::all().map(|setting| setting.key) {
            let told = NEEDS.iter().any(|(of, needed, _)| *of == key && !self.is(needed));
            let streams = key.starts_with("streams.") && !(key == "streams.provision" && on_sqs);
            let (why, fix) = match (self.is(key) && !told && !broker, streams, key.starts_with("nats.")) {
                (true, true, _) => (NOT_KEPT_ON_NATS, SAY_WHERE),
                (true, _, true) if !clients => ("relay does not connect to NATS", CONNECT),
                _ => continue,
            };
            match self.line(key) {
                Some(line) => self.at(line, key, why, fix),
                None => self.without(key, "--nats", why),
            }
        }
    }

    /// Settings about waits over NATS where no clients are, and a share that is more than there is.
    fn about_waits(&mut self) {
        const SHARE: &str = "listen.nats_waits_per_client";
        let served = (self.is("nats.servers") && !self.is("nats.no_listen")) || self.is("listen.nats");
        for key in ["listen.nats_waits", SHARE] {
            if self.is(key) && !served {
                let fix = "leave it out, or say where clients are with `nats.servers` or `listen.nats`";
                self.add(key, "no clients are served over NATS", fix);
            }
        }
        let waits = self.settings.listen.nats_waits;
        if let Some(share) = self.settings.listen.nats_waits_per_client.filter(|share| *share > waits) {
            let all = self.called("listen.nats_waits", SHARE);
            self.add(
                SHARE,
                format!("{share} are more than there are: {all} is {waits}"),
                format!("lower it, or raise {all}"),
            );
        }
    }

    /// Streams of events that relay itself would end.
    fn events(&mut self) {
        let (ping_every, idle) = (self.settings.listen.ping_every.0, self.settings.listen.idle.0);
        if ping_every >= idle {
            let key = if self.is("listen.ping_every") { "listen.ping_every" } else { "listen.idle" };
            let (ping, hang_up) = (self.called("listen.ping_every", key), self.called("listen.idle", key));
            let what = format!(
                "{ping} must be less than {hang_up} ({}), after which relay itself hangs up",
                show_duration(idle)
            );
            self.add(key, what, "lower the one, or raise the other");
        }
    }

    /// An address of the file that others can reach.
    fn open(&self, key: &str, address: Option<SocketAddr>) -> Option<SocketAddr> {
        address.filter(|address| !address.ip().is_loopback() && self.line(key).is_some())
    }

    /// Addresses that others can reach, where others must not. Commands look at those of flags, which name them.
    fn addresses(&mut self) {
        let Settings { listen, admin, .. } = self.settings;
        if let Some(address) = self.open("listen.http", Some(listen.http)).filter(|_| self.is("access.no_auth")) {
            let what = format!("others can reach {address}, and `access.no_auth` lets everybody in");
            self.add("listen.http", what, "write \"127.0.0.1:7410\", or set `access.keys` instead");
        }
        if let Some(address) = self.open("listen.tcp", listen.tcp) {
            let what = format!("others can reach {address}, and keys and payloads would come in clear text");
            let fix = "write \"127.0.0.1:7413\", or make it a [[listener]] with protocol = \"relay\" and tls = \"on\"";
            self.add("listen.tcp", what, fix);
        }
        let open = self.open("listen.workers", listen.workers);
        if let Some(address) = open.filter(|_| listen.worker_tls == TlsOf::Off && !self.is("access.no_auth")) {
            let what = format!("others can reach {address}, and keys and payloads would come in clear text");
            self.add("listen.workers", what, "set worker_tls = \"on\", or write \"127.0.0.1:7411\"");
        }
        if let Some(address) = open.filter(|_| self.is("access.no_auth")) {
            let what = format!("others can reach {address}, and `access.no_auth` lets everybody in");
            self.add("listen.workers", what, "write \"127.0.0.1:7411\", or set `access.keys` instead");
        }
        let variable = (self.variable)("RELAY_ADMIN_TOKEN").is_some();
        let named = self.file.is_some_and(|file| !file.admin_tokens.is_empty());
        let token = self.is("admin.token_file") || variable || named;
        if let Some(address) = self.open("admin.listen", admin.listen).filter(|_| !token) {
            let what = format!("others can reach {address}, and nobody is asked for a token");
            self.add("admin.listen", what, "write \"127.0.0.1:7412\", or set `admin.token_file`, or [[admin_token]]");
        }
        if let Some(address) = self.open("admin.listen", admin.listen).filter(|_| admin.tls == TlsOf::Off) {
            let what = format!("others can reach {address}, and tokens would come in clear text");
            let fix = "set tls = \"on\" with `listen.tls_cert`, or tls = \"terminated-in-front\" if something in front ends TLS";
            self.add("admin.listen", what, fix);
        }
        if self.line("admin.token_file").is_some() && variable {
            self.add("admin.token_file", "RELAY_ADMIN_TOKEN is set as well", "leave one of them out");
        }
        let password = (self.variable)("RELAY_NATS_PASSWORD").is_some() || self.is("nats.password_file");
        if self.line("nats.user").is_some() && !password {
            let fix = "add nats.password_file, or set RELAY_NATS_PASSWORD";
            self.add("nats.user", "a user has a password, and none is given", fix);
        }
    }

    /// A header from nobody, or bounds that need one.
    fn proxy(&mut self) {
        const PROXY: &str = "listen.proxy";
        let Listen { proxy, proxy_trusted, .. } = &self.settings.listen;
        if *proxy == ProxyHeader::Required {
            if proxy_trusted.is_empty() {
                let trusted = self.called("listen.proxy_trusted", PROXY);
                let fix = format!("add {trusted} with your load balancer's own addresses, such as 10.0.1.7");
                self.add(PROXY, format!("without {trusted} no header would be believed"), fix);
            }
        } else if self.is("listen.proxy_trusted") {
            self.without_proxy("listen.proxy_trusted");
        }
        if self.settings.listeners.iter().any(|one| one.proxy == ProxyHeader::Required) {
            if self.is("limits.source_connections") {
                let fix = "leave it out: `limits.source_unproven` and `limits.endpoint_connections` tell clients apart";
                self.add("limits.source_connections", "behind a load balancer all connections have its address", fix);
            }
            return;
        }
        for key in ["limits.source_unproven", "limits.endpoint_connections"] {
            if self.is(key) {
                self.without_proxy(key);
            }
        }
    }

    fn without_proxy(&mut self, key: &str) {
        let proxy = self.called("listen.proxy", key);
        self.add(key, format!("without {proxy} as `required` it says nothing"), "leave it out, or add that");
    }

    /// TLS at two places or at none.
    fn tls(&mut self) {
        let Listen { tls, http, tls_cert, .. } = &self.settings.listen;
        if *tls == TlsEnd::TerminatedInFront && tls_cert.is_some() {
            let cert = self.called("listen.tls_cert", "listen.tls");
            self.add("listen.tls", format!("{cert} is set as well"), "leave one of them out: TLS ends at one place");
        }
        if tls_cert.is_none()
            && *tls == TlsEnd::Here
            && !self.is("access.no_auth")
            && let Some(address) = self.open("listen.http", Some(*http))
        {
            let what = format!("others can reach {address}, and keys and payloads would come in clear text");
            let fix = "set `tls_cert` and `tls_key`, or tls = \"terminated-in-front\" if something in front ends TLS";
            self.add("listen.http", what, fix);
        }
        if self.settings.admin.tls == TlsOf::On && tls_cert.is_none() && self.is("admin.listen") {
            let (cert, key) = (self.called("listen.tls_cert", "admin.tls"), self.called("listen.tls_key", "admin.tls"));
            self.add("admin.tls", "there is no certificate", format!("add {cert} and {key}"));
        }
        let scaler = &self.settings.scaler;
        if scaler.tls == ScalerTls::Off && scaler.client_ca.is_some() {
            let tls = self.called("scaler.tls", "scaler.client_ca");
            self.add(
                "scaler.client_ca",
                format!("{tls} is off, and certificates are shown in TLS"),
                "leave one of them out",
            );
        }
    }

    fn worker(&mut self) {
        if self.is("worker.key_file") && (self.variable)("RELAY_WORKER_KEY").is_some() {
            self.add("worker.key_file", "RELAY_WORKER_KEY is set as well", "leave one of them out");
        }
        let worker = &self.settings.worker;
        let speaks_tls = worker.connect.starts_with(TLS_SCHEME) && !self.is("nats.servers") && !self.is("sqs.enabled");
        for key in ["worker.ca", "worker.certificate"] {
            if self.is(key) && !speaks_tls {
                let connect = self.called("worker.connect", key);
                let fix = format!("leave it out, or write tls:// in front of the address in {connect}");
                self.add(key, "the worker connects to no server over TLS", fix);
            }
        }
        if let Some(url) = worker.http.clone()
            && let Err(error) = Http::new(HttpConfig { url, ..HttpConfig::default() })
        {
            let fix = "write \"http://127.0.0.1:3000/jobs\", with your service's port";
            self.add("worker.http", error.to_string(), fix);
        }
        for (what, fix) in of_queues(&worker.queues, worker.order == Order::Strict) {
            self.add("worker.queues", what, fix);
        }
    }

    fn streams(&mut self) {
        let streams = &self.settings.streams;
        if streams.storage == Storage::Memory && streams.compression {
            let fix = "leave it out, or write storage = \"file\"";
            self.add("streams.compression", "streams in memory can't be compressed", fix);
        }
        if let replicas @ (2 | 4) = streams.replicas.get() {
            let what = format!("{replicas} replicas survive no more than {} do", replicas - 1);
            self.add("streams.replicas", what, "write 1, 3 or 5");
        }
    }

    /// Shares that need turns, in a queue without any.
    fn shares(&mut self, queue: &Queue, policy: &QueuePolicy) {
        for (client, key) in policy.shares_without_turns() {
            let (full, written) = match client {
                Some(client) => {
                    (format!("queue.{}.client.{client}.{key}", queue.name), queue.patch.clients.get(client))
                }
                None => (format!("queue.{}.{key}", queue.name), Some(&queue.patch.values)),
            };
            // A client that has it from the queue is told of with the queue.
            if let Some((_, line)) = written.and_then(|written| written.get(key)) {
                self.at(
                    *line,
                    &full,
                    "with `fair = false` nobody has turns, and it can't hold",
                    "leave it out, or `fair`",
                );
            }
        }
    }

    /// The values for single clients of a queue whose policy is `policy`.
    fn clients(&mut self, queue: &Queue, policy: &QueuePolicy) {
        for (client, written) in &queue.patch.clients {
            let line = written.values().map(|(_, line)| *line).min().unwrap_or(queue.line);
            let full = format!("queue.{}.client.{client}", queue.name);
            if !policy.allows(client) {
                let what = "it is none of the queue's `allowed_clients`, so nothing can hold for it";
                self.at(line, &full, what, "leave it out, or add it there");
            }
            let has_rate = written.contains_key("rate") || queue.patch.values.contains_key("rate");
            if let Some((_, line)) = written.get("burst").filter(|_| !has_rate) {
                self.at(*line, &format!("{full}.burst"), WITHOUT_RATE, ADD_RATE);
            }
        }
    }

    fn queues(&mut self) {
        let on_nats = self.is("nats.servers");
        let embedded = !on_nats && !self.is("sqs.enabled");
        for queue in self.file.map_or(&[][..], |file| &file.queues) {
            let policy = queue.patch.over(QueuePolicy::default());
            let mut found = Vec::new();
            if policy.lease > policy.lease_max {
                let what = format!(
                    "a lease of {} is longer than `lease_max` ({}), the longest a worker may hold a job in all",
                    show_duration(policy.lease),
                    show_duration(policy.lease_max)
                );
                found.push(("lease", what, "shorten it, or lengthen `lease_max`".to_owned()));
            }
            if policy.retry.cap < policy.retry.base {
                let (cap, base) = (show_duration(policy.retry.cap), show_duration(policy.retry.base));
                found.push((
                    "retry_cap",
                    format!("{cap} is shorter than `retry_base` ({base})"),
                    format!("write \"{base}\" or more"),
                ));
            }
            for (key, bytes) in [("payload_max", policy.payload_max), ("result_max", policy.result_max)] {
                if embedded && bytes > PAYLOAD_MAX {
                    let max = show_size(PAYLOAD_MAX);
                    found.push((
                        key,
                        format!("{} are more than the store takes, which is {max}", show_size(bytes)),
                        "write \"16MiB\" or less".to_owned(),
                    ));
                }
            }
            let body_bytes = self.settings.limits.body_bytes;
            if self.is("limits.body_bytes") && policy.payload_max > body_bytes {
                let (payload, bodies) = (show_size(policy.payload_max), show_size(body_bytes));
                found.push((
                    "payload_max",
                    format!("{payload} are more than `limits.body_bytes` ({bodies}), so that none so large could be submitted"),
                    "write less, or raise `limits.body_bytes`".to_owned(),
                ));
            }
            if queue.patch.values.contains_key("burst") && !queue.patch.values.contains_key("rate") {
                found.push(("burst", WITHOUT_RATE.to_owned(), ADD_RATE.to_owned()));
            }
            if !policy.fair && !on_nats {
                let what = "jobs are not kept on NATS, and elsewhere there is no such line".to_owned();
                found.push(("fair", what, SAY_WHERE.to_owned()));
            }
            if !embedded && policy.bounds_stored() {
                let what = "jobs are not kept in relay's own store, and elsewhere bytes are not counted".to_owned();
                found.push(("max_stored", what, "leave it out, or keep jobs in `store.data`".to_owned()));
            }
            self.shares(queue, &policy);
            self.clients(queue, &policy);
            for (key, what, fix) in found {
                let line = queue.patch.line(key, queue.line);
                self.found.in_file.push(Mistake { line, key: format!("queue.{}.{key}", queue.name), what, fix });
            }
        }
    }
}
