//! The settings of listening, of relay's own store, of access, and of a worker.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use relay_bridge::contract::WorkerId;
use serde::Deserialize;

use super::super::kind::Kind;
use super::super::listeners::{CLIENT_AUTH, TLS};
use super::super::values::{ClientShare, WeightedQueue};
use super::{Setting, Table, switch, table, value};
use crate::api::DurationText;
use crate::ranges::AddressRange;

table! {
    /// Where clients and workers connect, and how the process ends.
    "listen", Some("Listening"), Listen {
        /// Where clients connect over HTTP and, with --tls-cert, over relay's TCP protocol as well; port 0 takes a free one
        http: SocketAddr = value("listen", "RELAY_LISTEN", "ADDR", Kind::Address).or("127.0.0.1:7410");
        /// Whether a load balancer writes a PROXY header in front of each connection of clients
        proxy: ProxyHeader = value("proxy", "RELAY_PROXY", "WHETHER", PROXY_HEADER).or("off");
        /// The addresses from which a PROXY header is believed: the load balancer's own, such as 10.0.1.7, or ranges such as
        /// 10.0.1.0/28. Other peers are closed unread. Every host of a range can say that it is any client's endpoint
        proxy_trusted: Vec<AddressRange> =
            value("proxy-trusted", "RELAY_PROXY_TRUSTED", "RANGE[,RANGE]", Kind::AddressRanges);
        /// Speak TLS with clients, and show the certificates of this file (PEM) wherever TLS is spoken. It is read again when it
        /// changes
        tls_cert: Option<PathBuf> = value("tls-cert", "RELAY_TLS_CERT", "FILE", Kind::Path);
        /// The private key of that certificate (PEM)
        tls_key: Option<PathBuf> = value("tls-key", "RELAY_TLS_KEY", "FILE", Kind::Path);
        /// Where TLS of clients ends. Addresses that others can reach need one or the other
        tls: TlsEnd = value("tls", "RELAY_TLS", "WHERE", Kind::Choice(&[
            ("here", "In relay, with --tls-cert; without it clients come in clear text, on loopback addresses only"),
            ("terminated-in-front", "In a proxy or load balancer, and the network behind it is trusted with keys and payloads"),
        ])).or("here");
        /// Whether clients are asked for a certificate of a `[[client_ca]]`
        client_auth: AskedCertificate = value("client-auth", "RELAY_CLIENT_AUTH", "WHETHER", Kind::Choice(CLIENT_AUTH)).or("off");
        /// Where clients connect over relay's TCP protocol without TLS, such as 127.0.0.1:7413; port 0 takes a free one. Off unless given.
        /// Only loopback addresses: with TLS the port of --listen takes them, or a `[[listener]]` of protocol `relay`
        tcp: Option<SocketAddr> = value("tcp", "RELAY_TCP", "ADDR", Kind::Address);
        /// Where workers of other processes connect, such as 127.0.0.1:7411; port 0 takes a free one. Off unless given
        workers: Option<SocketAddr> = value("worker-listen", "RELAY_WORKER_LISTEN", "ADDR", Kind::Address);
        /// Where TLS of those workers ends. Addresses that others can reach need it
        worker_tls: TlsOf = value("worker-tls", "RELAY_WORKER_TLS", "WHERE", Kind::Choice(TLS)).or("off");
        /// Whether those workers are asked for a certificate of a `[[client_ca]]`
        worker_client_auth: AskedCertificate =
            value("worker-client-auth", "RELAY_WORKER_CLIENT_AUTH", "WHETHER", Kind::Choice(CLIENT_AUTH)).or("off");
        /// Bytes that workers' connections may hold together, beside 64 KiB of each: frames on their way in, requests that are not
        /// answered, and jobs that are not written. Those under one key have half of them at most; a frame waits 10 s for
        /// its bytes. At least twice 17 MiB is of use
        worker_bytes: u64 = value("worker-bytes", "RELAY_WORKER_BYTES", "SIZE", Kind::Size(1)).or("64MiB");
        /// Serve clients on these NATS servers, as the micro service `relay`: nats://HOST[:PORT] or tls://HOST[:PORT]. With
        /// --nats they are served on its servers anyway. Credentials and TLS are the --nats-* flags'; NATS permissions
        /// tell clients apart: see `relay nats permissions`
        nats: Vec<String> = value("nats-listen", "RELAY_NATS_LISTEN", "URL[,URL]", Kind::List);
        /// Requests over NATS that may wait for a result at a time (`Relay-Wait`), of all clients together; more are
        /// answered at once what there is
        nats_waits: u32 = value("nats-waits", "RELAY_NATS_WAITS", "N", Kind::Count(0, 100_000)).or("10000");
        /// Of these, those of one client while another one waits, or asked for it within 10 s [default: a quarter of them]
        nats_waits_per_client: Option<u32> =
            value("nats-waits-per-client", "RELAY_NATS_WAITS_PER_CLIENT", "N", Kind::Count(1, 100_000));
        /// Streams of events that clients may hold open, all of them together; more are answered 503
        followers: u32 = value("followers", "RELAY_FOLLOWERS", "N", Kind::Count(0, 1_000_000)).or("10000");
        /// How long a stream of events lasts before it ends on purpose, within a fifth; clients then resume by its last cursor
        follow_for: DurationText = value("follow-for", "RELAY_FOLLOW_FOR", "DURATION", Kind::Duration(1_000)).or("5m");
        /// How often a stream of events without any says that it is there: less than what idle connections are given on the way
        ping_every: DurationText = value("ping-every", "RELAY_PING_EVERY", "DURATION", Kind::Duration(1_000)).or("15s");
        /// Hang up on a client that asks for nothing, or does not read its answer, for this long
        idle: DurationText = value("idle", "RELAY_IDLE", "DURATION", Kind::Duration(2_000)).or("2m");
        /// How long a connection of a client or worker lasts, within a fifth, before its peer is told to make a new one, so that load
        /// spreads over servers that came later. Nothing is cut off for it
        max_age: DurationText = value("max-age", "RELAY_MAX_AGE", "DURATION", Kind::Duration(1_000)).or("15m");
        /// How long requests and handlers in flight may take once the server is asked to stop
        drain: DurationText = value("drain", "RELAY_DRAIN", "DURATION", Kind::Duration(0)).or("30s");
        /// How long /readyz fails before anything is stopped, so that load balancers send no more; meanwhile clients and workers are
        /// told to connect elsewhere. `relay dev` does not wait [default: 5s, and 180s where a PROXY header is required]
        drain_delay: Option<DurationText> =
            value("drain-delay", "RELAY_DRAIN_DELAY", "DURATION", Kind::Duration(0));
    }
}

table! {
    /// Bounds on what clients together, and each of them, may hold of a server. Memory follows from them: see `docs/security.md`.
    "limits", Some("Limits"), Bounds {
        /// Bytes of requests' bodies in flight; more are answered 503. A body counts with its whole length once 64 KiB of it came
        body_bytes: u64 = value("body-bytes", "RELAY_BODY_BYTES", "SIZE", Kind::Size(1)).or("64MiB");
        /// Bytes of answers that are being read from the broker or not yet taken by their readers, one half of it for streams of
        /// events; more wait, streams for as long as they last, and other answers 2 s until they are 503
        answer_bytes: u64 = value("answer-bytes", "RELAY_ANSWER_BYTES", "SIZE", Kind::Size(1)).or("64MiB");
        /// Bytes a second in which a body must come on average, from 5 s after its head; slower ones are answered 408. A frame of
        /// more than 64 KiB over TCP too, from when there is room for it
        body_rate: u64 = value("body-rate", "RELAY_BODY_RATE", "SIZE", Kind::Size(1)).or("16KiB");
        /// Requests in flight over HTTP, waits and unread answers included; more are answered 503
        requests: u32 = value("requests", "RELAY_REQUESTS", "N", Kind::Count(1, 1_000_000)).or("10000");
        /// Connections of clients; more close the one that has been idle for longest, or wait [default: 10000 and one for each
        /// of the followers, or as many as there may be open files for]
        connections: Option<u32> = value("connections", "RELAY_CONNECTIONS", "N", Kind::Count(1, 1_000_000));
        /// Of these, connections on which nobody was authenticated yet; each may be so for 10 s
        unproven_connections: u32 =
            value("unproven-connections", "RELAY_UNPROVEN_CONNECTIONS", "N", Kind::Count(1, 1_000_000)).or("1000");
        /// Connections from one address over HTTP; more are closed unread. Off unless given: behind a load balancer all callers
        /// have its address
        source_connections: Option<u32> =
            value("source-connections", "RELAY_SOURCE_CONNECTIONS", "N", Kind::Count(1, 1_000_000));
        /// Make the limits smaller where the memory that this process may use is less than they can come to need; without it, a
        /// warning says both numbers
        fit_memory: bool = switch("fit-memory", "RELAY_FIT_MEMORY");
        /// With a PROXY header, over HTTP: connections of one source on which nobody was authenticated yet; more are closed. A
        /// source is a VPC endpoint with the address behind it, or an address
        source_unproven: u32 = value("source-unproven", "RELAY_SOURCE_UNPROVEN", "N", Kind::Count(1, 1_000_000)).or("16");
        /// With a PROXY header, over HTTP: connections through one VPC endpoint; more are closed
        endpoint_connections: u32 =
            value("endpoint-connections", "RELAY_ENDPOINT_CONNECTIONS", "N", Kind::Count(1, 1_000_000)).or("256");
        /// How much of requests, connections, streams and bytes one client may hold, in percent [default: 25, and 100 where the
        /// keys are of one client or nobody is authenticated]
        client_share: Option<u8> = value("client-share", "RELAY_CLIENT_SHARE", "PERCENT", Kind::Count(1, 100));
        /// The same for single clients
        client_shares: Vec<ClientShare> =
            value("client-share-of", "RELAY_CLIENT_SHARE_OF", "CLIENT=PERCENT", Kind::ClientShares);
    }
}

table! {
    /// Where jobs and results are kept, if not on NATS: one of the two.
    "store", Some("Store"), Store {
        /// Keep jobs and results in this directory; it is created if it is not there
        data: Option<PathBuf> = value("data", "RELAY_DATA", "DIR", Kind::Path);
        /// Keep jobs and results in memory: they end with this process
        memory: bool = switch("memory", "RELAY_MEMORY");
        /// Room on the disk of --data that no new job takes, at most an eighth of the disk: with less, submissions and reruns
        /// are answered `overloaded`, while jobs can be finished, cancelled, erased and removed. 0B is none
        disk_reserve: u64 = value("disk-reserve", "RELAY_DISK_RESERVE", "SIZE", Kind::Size(0)).or("64MiB");
    }
}

table! {
    /// Access of callers: keys, clients or both; or nobody is asked.
    "access", Some("Access"), Access {
        /// Let in callers that have a key of this file; `relay keys new` makes one
        keys: Option<PathBuf> = value("keys", "RELAY_KEYS", "FILE", Kind::Path);
        /// Let in whom this file lists by keys, certificates, tokens and VPC endpoints: see `docs/identity.md`. A client that has a
        /// block there is let in by its lists only, and others by their keys
        clients: Option<PathBuf> = value("clients", "RELAY_CLIENTS", "FILE", Kind::Path);
        /// Let in everybody, for development: only on this machine's loopback addresses
        no_auth: bool = switch("no-auth", "RELAY_NO_AUTH");
    }
}

table! {
    /// The port for operators. Its token may also be in `RELAY_ADMIN_TOKEN`.
    "admin", Some("Admin port"), Admin {
        /// Serve /livez, /readyz, /metrics, what `relay queues` and `relay dead` ask, and on servers a dashboard there; port 0
        /// takes a free one. Off unless given. Never let clients reach it
        listen: Option<SocketAddr> = value("admin", "RELAY_ADMIN", "ADDR", Kind::Address).alone("127.0.0.1:7412");
        /// Serve /livez and /readyz, and nothing else, on this address as well, or instead of --admin: to everybody, and with
        /// connections of their own, which no peer of another port takes. Port 0 takes a free one. Off unless given
        health: Option<SocketAddr> = value("health", "RELAY_HEALTH", "ADDR", Kind::Address).alone("127.0.0.1:7413");
        /// Whether those checks may begin with a PROXY header: a network load balancer that writes one for its targets writes it for
        /// its checks as well, whichever port they go to. It is read and means nothing
        health_proxy: HealthProxy = value("health-proxy", "RELAY_HEALTH_PROXY", "WHETHER", Kind::Choice(&[
            ("off", "They may not"),
            ("accept", "They may, and need not"),
        ])).or("off");
        /// File with the token that callers send as `Authorization: Bearer TOKEN`; or set RELAY_ADMIN_TOKEN. Addresses other
        /// than loopback need one; /livez and /readyz are answered without it
        token_file: Option<PathBuf> = value("admin-token-file", "RELAY_ADMIN_TOKEN_FILE", "FILE", Kind::Path);
        /// Where TLS of operators ends; the certificate is that of --tls-cert. Addresses that others can reach need it. Health
        /// checks never have any
        tls: TlsOf = value("admin-tls", "RELAY_ADMIN_TLS", "WHERE", Kind::Choice(TLS)).or("off");
    }
}

table! {
    /// The port for KEDA, which asks there how many workers a queue needs: see `docs/keda.md`. Never let clients reach it.
    "scaler", Some("Scaler"), Scaler {
        /// Answer KEDA's external scaler protocol (gRPC) on this address; port 0 takes a free one. Off unless given
        listen: Option<SocketAddr> = value("scaler", "RELAY_SCALER", "ADDR", Kind::Address).alone("127.0.0.1:7414");
        /// Whether TLS is spoken there. Addresses that others can reach need one or the other
        tls: ScalerTls = value("scaler-tls", "RELAY_SCALER_TLS", "WHERE", Kind::Choice(&[
            ("here", "With the certificate of --tls-cert; without it KEDA comes in clear text, on loopback addresses only"),
            ("off", "None, and the network is trusted: whoever reaches the port learns how much waits in each queue"),
        ])).or("here");
        /// Take only callers whose certificate one of the authorities in this file (PEM) signed. It is read again when it changes
        client_ca: Option<PathBuf> = value("scaler-client-ca", "RELAY_SCALER_CLIENT_CA", "FILE", Kind::Path);
    }
}

table! {
    /// The work of `relay worker --config FILE`. The worker takes its jobs from the server at `connect`, or from NATS or SQS
    /// itself where `[nats]` or `[sqs]` says so. Beside it, `[admin]`, `[telemetry]` and `[log]` hold for a worker as well. Its
    /// key may also be in `RELAY_WORKER_KEY`. The command is seen from where the worker was started.
    "worker", None, Worker {
        /// The server's worker address: what `relay serve --worker-listen` was given; with tls:// in front where it speaks TLS
        connect: String = value("connect", "RELAY_WORKER_CONNECT", "ADDR", Kind::Text).or("127.0.0.1:7411");
        /// File with the worker's key, which stays out of the list of processes
        key_file: Option<PathBuf> = value("key-file", "RELAY_WORKER_KEY_FILE", "FILE", Kind::Path);
        /// Trust a server whose certificate an authority of this file signed (PEM) [default: the system's]
        ca: Option<PathBuf> = value("ca", "RELAY_WORKER_CA", "FILE", Kind::Path);
        /// Show the server this certificate, with those between it and its authority (PEM). It is read at each connection
        certificate: Option<PathBuf> = value("certificate", "RELAY_WORKER_CERTIFICATE", "FILE", Kind::Path);
        /// The private key of that certificate (PEM)
        certificate_key: Option<PathBuf> =
            value("certificate-key", "RELAY_WORKER_CERTIFICATE_KEY", "FILE", Kind::Path);
        /// A queue to take jobs from, with its share among several; repeat it for more
        queues: Vec<WeightedQueue> =
            value("queue", "RELAY_WORKER_QUEUE", "NAME[=WEIGHT]", Kind::WeightedQueues).or("default");
        /// Which queue is asked first when several have jobs
        order: Order = value("order", "RELAY_WORKER_ORDER", "ORDER", Kind::Choice(&[
            ("weighted", "By turns, each as often as its weight says"),
            ("strict", "The first one that was named, as long as it has jobs"),
        ])).or("weighted");
        /// Handlers at work at once [default: the number of processors]
        slots: Option<NonZeroU32> = value("slots", "RELAY_WORKER_SLOTS", "N", Kind::Count(1, u32::MAX as u64));
        /// The worker's name in logs [default: worker- and the process id]
        id: Option<WorkerId> = value("id", "RELAY_WORKER_ID", "NAME", Kind::Worker);
        /// How long handlers may take once the worker is asked to stop; after it their jobs are handed back
        drain: DurationText = value("drain", "RELAY_WORKER_DRAIN", "DURATION", Kind::Duration(0)).or("30s");
        /// Run this command for each job: payload on stdin, `RELAY_JOB_ID` and the like in its environment, result from
        /// its stdout. Exit code 0 is success, 64 to 66 reject the job for good, others are tried again; the end of stderr
        /// explains a failure
        command: Vec<String> = value("", "", "COMMAND", Kind::Command).under("Handler");
        /// Let handlers inherit these variables of the worker although they may hold its credentials, such as `AWS_*`; `*` stands
        /// for any text. Others of `OTEL_*HEADERS`, and of `AWS_*` where the worker itself uses SQS, are withheld, and `RELAY_*`
        /// always
        pass_env: Vec<String> = value("pass-env", "RELAY_WORKER_PASS_ENV", "NAME[,NAME]", Kind::Variables).under("Handler");
        /// Send each job to this local service with POST; its answer is the result
        http: Option<String> = value("http", "RELAY_WORKER_HTTP", "URL", Kind::Text).under("Handler");
        /// Stop a handler that takes longer; the attempt counts as failed and is retried
        timeout: Option<DurationText> = value("timeout", "RELAY_WORKER_TIMEOUT", "DURATION", Kind::Duration(1)).under("Handler");
        /// Tell Kubernetes whether this pod is at work, so that pods without work are taken away first. Its account has to be
        /// allowed to patch the pod; handlers can read that account's token. See `docs/keda.md`
        kubernetes: bool = switch("kubernetes", "RELAY_WORKER_KUBERNETES").under("Kubernetes");
        /// Ask Karpenter to leave the node alone while this pod is at work
        do_not_disrupt: bool = switch("do-not-disrupt", "RELAY_WORKER_DO_NOT_DISRUPT").under("Kubernetes");
    }
}

/// Whether a header of a load balancer is in front of each connection. There is no third way: a peer that could choose would
/// choose whether it is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProxyHeader {
    /// None is read.
    Off,
    /// Every connection begins with one.
    Required,
}

/// The words for it.
pub(crate) const PROXY_HEADER: Kind = Kind::Choice(&[
    ("off", "None is read, and none is believed"),
    ("required", "Version 2, on each connection; those without one are closed"),
]);

/// The place where TLS of one listener ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TlsOf {
    /// There is none.
    Off,
    /// Relay itself.
    On,
    /// Something in front of it.
    TerminatedInFront,
}

impl TlsOf {
    /// The one of a word that is one of its own.
    pub(crate) fn named(word: &str) -> Self {
        match word {
            "on" => Self::On,
            "terminated-in-front" => Self::TerminatedInFront,
            _ => Self::Off,
        }
    }
}

/// The place where TLS of clients ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TlsEnd {
    /// Relay itself.
    Here,
    /// Something in front of it.
    TerminatedInFront,
}

/// Whether the scaler speaks TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ScalerTls {
    /// It does, if there is a certificate.
    Here,
    /// It does not.
    Off,
}

/// Whether clients are asked for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AskedCertificate {
    /// They are not.
    Off,
    /// They may leave it out.
    Optional,
    /// They may not.
    Required,
}

impl AskedCertificate {
    /// The one of a word that is one of its own.
    pub(crate) fn named(word: &str) -> Self {
        match word {
            "optional" => Self::Optional,
            "required" => Self::Required,
            _ => Self::Off,
        }
    }
}

/// Whether health checks may begin with a header of a load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HealthProxy {
    /// None is read.
    Off,
    /// One is read, and means nothing.
    Accept,
}

/// Which queue a worker asks first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Order {
    /// By turns, each as often as its weight says.
    Weighted,
    /// The first one that was named, as long as it has jobs.
    Strict,
}

table! {
    /// Where spans of jobs go. The other variables of OpenTelemetry, such as `OTEL_TRACES_SAMPLER`, hold as everywhere.
    "telemetry", Some("Traces"), Telemetry {
        /// Send spans of jobs to this collector over OTLP/HTTP, such as http://127.0.0.1:4318. Off unless given.
        /// OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS and OTEL_RESOURCE_ATTRIBUTES hold as everywhere
        otlp_endpoint: Option<String> = value("otlp-endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT", "URL", Kind::Text);
    }
}

table! {
    /// The log: its level and its form.
    "log", Some("Logging"), Log {
        /// Which log lines go to stderr: `warn`, `relay=debug,info`. Default: `info` for serve, worker, bridge and dev, else `warn`
        filter: Option<String> = value("log", "RELAY_LOG", "FILTER", Kind::Text);
        /// How log lines look
        format: LogFormat = value("log-format", "RELAY_LOG_FORMAT", "LOG_FORMAT", Kind::Choice(&[
            ("text", "For people"),
            ("json", "One flat JSON object a line: timestamp, level, target, message, and fields such as request_id and job_id"),
        ])).or("text");
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One flat JSON object a line.
    Json,
}
