//! The settings of NATS and of SQS: where they are, who relay is there, and what relay creates.

use std::num::NonZeroU8;
use std::path::PathBuf;

use serde::Deserialize;

use super::super::kind::Kind;
use super::{Setting, Table, switch, table, value};
use crate::api::DurationText;

table! {
    /// NATS JetStream as the broker, or how relay connects to NATS to serve clients there. A password may also be in
    /// `RELAY_NATS_PASSWORD`, a token in `RELAY_NATS_TOKEN`.
    "nats", Some("NATS"), Nats {
        /// Keep jobs and results on these NATS servers, of one cluster: nats://HOST[:PORT] or tls://HOST[:PORT]
        servers: Vec<String> = value("nats", "RELAY_NATS", "URL[,URL]", Kind::List);
        /// Serve no clients on the servers of --nats
        no_listen: bool = switch("no-nats-listen", "RELAY_NO_NATS_LISTEN").under("Listening");
        /// Credentials file of relay's user, as `nsc` writes it
        creds: Option<PathBuf> = value("nats-creds", "RELAY_NATS_CREDS", "FILE", Kind::Path);
        /// File with the seed of relay's NKey
        nkey: Option<PathBuf> = value("nats-nkey", "RELAY_NATS_NKEY", "FILE", Kind::Path);
        /// Relay's user, with --nats-password-file or RELAY_NATS_PASSWORD
        user: Option<String> = value("nats-user", "RELAY_NATS_USER", "NAME", Kind::Text);
        /// File with the password of --nats-user; it is read at each connection, so that it may be rotated
        password_file: Option<PathBuf> = value("nats-password-file", "RELAY_NATS_PASSWORD_FILE", "FILE", Kind::Path);
        /// File with a token; or set RELAY_NATS_TOKEN
        token_file: Option<PathBuf> = value("nats-token-file", "RELAY_NATS_TOKEN_FILE", "FILE", Kind::Path);
        /// Refuse a server that does not encrypt; tls:// addresses are encrypted anyway
        tls: bool = switch("nats-tls", "RELAY_NATS_TLS");
        /// Encrypt before the server's first word: `handshake_first`, or a load balancer that ends TLS
        tls_first: bool = switch("nats-tls-first", "RELAY_NATS_TLS_FIRST");
        /// PEM file of the authorities that may have signed the server's certificate [default: the system's]
        ca: Option<PathBuf> = value("nats-ca", "RELAY_NATS_CA", "FILE", Kind::Path);
        /// PEM file of relay's own certificate, for servers that verify it
        cert: Option<PathBuf> = value("nats-cert", "RELAY_NATS_CERT", "FILE", Kind::Path);
        /// PEM file of that certificate's key
        key: Option<PathBuf> = value("nats-key", "RELAY_NATS_KEY", "FILE", Kind::Path);
        /// The prefix of reply subjects, to which relay's user has to be allowed to subscribe [default: what `relay nats
        /// permissions` grants: _INBOX__relay, and _INBOX__worker-ID for `relay worker --id ID`]
        inbox_prefix: Option<String> = value("nats-inbox-prefix", "RELAY_NATS_INBOX_PREFIX", "PREFIX", Kind::Text);
        /// The JetStream domain, where it is not the one of these servers
        domain: Option<String> = value("nats-domain", "RELAY_NATS_DOMAIN", "NAME", Kind::Text);
        /// Keep to the addresses of --nats, and ignore those that the cluster announces
        ignore_discovered: bool = switch("nats-ignore-discovered", "RELAY_NATS_IGNORE_DISCOVERED");
        /// How often a quiet connection is tried; it is given up after two tries
        ping: DurationText = value("nats-ping", "RELAY_NATS_PING", "DURATION", Kind::Duration(1_000)).or("10s");
        /// How long a call may be unanswered before it is in doubt
        timeout: DurationText = value("nats-timeout", "RELAY_NATS_TIMEOUT", "DURATION", Kind::Duration(100)).or("5s");
        /// The most publishes that await their confirmation at once: 1 to 8192; others wait for their turn
        in_flight: usize = value("nats-in-flight", "RELAY_NATS_IN_FLIGHT", "N", Kind::Count(1, 8_192)).or("4096");
        /// The servers run with `sync_interval: always`: say `power-loss` where relay says what an accepted job survives
        sync_always: bool = switch("nats-sync-always", "RELAY_NATS_SYNC_ALWAYS");
    }
}

table! {
    /// SQS with DynamoDB as the broker. Credentials are those of the AWS tools: environment, profile, pod or machine.
    "sqs", Some("SQS"), Sqs {
        /// Keep jobs and results in a table of DynamoDB, and put jobs in line in queues of SQS. Credentials are those of the
        /// AWS tools: environment, profile, pod or machine
        enabled: bool = switch("sqs", "RELAY_SQS");
        /// The AWS region [default: that of AWS_REGION, of the profile, or of the machine]
        region: Option<String> = value("sqs-region", "RELAY_SQS_REGION", "REGION", Kind::Text);
        /// Where both services are, if not at the region's endpoints: an emulator, or a VPC endpoint without private names
        endpoint: Option<String> = value("sqs-endpoint", "RELAY_SQS_ENDPOINT", "URL", Kind::Text);
        /// The table
        table: String = value("sqs-table", "RELAY_SQS_TABLE", "NAME", Kind::Text).or("relay");
        /// The prefix of the names of queues in SQS
        prefix: String = value("sqs-prefix", "RELAY_SQS_PREFIX", "PREFIX", Kind::Text).or("relay-");
        /// Queues of the FIFO kind, where a send that is repeated makes no second message
        fifo: bool = switch("sqs-fifo", "RELAY_SQS_FIFO");
        /// Send each of a client's results to a queue of SQS of its own, which may be another account's: the queue's URL;
        /// repeat it for more clients. `relay serve` does so, and --print-iam allows it
        forward: Vec<String> = value("sqs-forward", "RELAY_SQS_FORWARD", "CLIENT=URL", Kind::List);
        /// Provision a queue of SQS that another account uses, such as one for a client's results or one that a bridge takes
        /// messages from, and let that account or role send there, or receive: `orders=send:111122223333`. Its policy has no
        /// other grants; repeat it for more. A name alone lets in nobody
        share: Vec<String> = value("sqs-share", "RELAY_SQS_SHARE", "QUEUE=send|receive:WHO", Kind::List);
    }
}

table! {
    /// The streams on NATS that relay creates.
    "streams", Some("NATS streams"), Streams {
        /// Create what is missing on NATS or AWS and change what differs, as `relay provision` does. Without it what is missing
        /// is an error
        provision: bool = switch("provision", "RELAY_PROVISION");
        /// Copies of each message: 1, 3 or 5
        replicas: NonZeroU8 = value("nats-replicas", "RELAY_NATS_REPLICAS", "N", Kind::Count(1, 5)).or("1");
        /// Where the servers keep them; `memory` is for trials
        storage: Storage = value("nats-storage", "RELAY_NATS_STORAGE", "STORAGE", Kind::Choice(&[
            ("file", "On their disks"),
            ("memory", "In their memory: gone with the last of them"),
        ])).or("file");
        /// Compress stored blocks (S2)
        compression: bool = switch("nats-compression", "RELAY_NATS_COMPRESSION");
        /// The cluster to place them in, of several
        placement_cluster: Option<String> =
            value("nats-placement-cluster", "RELAY_NATS_PLACEMENT_CLUSTER", "NAME", Kind::Text);
        /// A tag that servers must have which hold them; repeat it for more
        placement_tags: Vec<String> = value("nats-placement-tag", "RELAY_NATS_PLACEMENT_TAG", "TAG", Kind::List);
        /// Bytes that all jobs may take; at 90 % new ones are refused [default: what the account may store]
        jobs_max: Option<u64> = value("nats-jobs-max", "RELAY_NATS_JOBS_MAX", "SIZE", Kind::Size(0));
        /// The same for results and dead letters
        results_max: Option<u64> = value("nats-results-max", "RELAY_NATS_RESULTS_MAX", "SIZE", Kind::Size(0));
    }
}

/// Where the servers of NATS keep messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Storage {
    /// On their disks.
    File,
    /// In their memory: gone with the last of them.
    Memory,
}
