//! The configuration file from outside: every mistake at once, precedence, and the settings that take effect.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::cli_support::{Running, code, relay, run, stderr, stdout};
use relay_bridge::policy::{ClientPolicy, QueuePolicy};
use relay_embedded::{Embedded, EmbeddedConfig};
use serde_json::Value;
use tempfile::tempdir;

/// What `relay config check` says of a file with this text, and its exit code.
pub(crate) fn check(text: &str) -> (i32, String) {
    let dir = tempdir().unwrap();
    let file = dir.path().join("relay.toml");
    fs::write(&file, text).unwrap();
    let output = run(["config", "check", file.to_str().unwrap()]);
    let said = stderr(&output).replace(&format!("{}/", dir.path().display()), "");
    (code(&output), said)
}

#[test]
fn every_mistake_is_reported_at_once_with_its_line_and_what_to_write() {
    let (code, said) = check(
        r#"[listen]
http = "localhost"
drain = 30

[stor]
data = "./data"

[access]
no_auth = "true"

[queue_defaults]
retentoin = "1d"

[[queue]]
name = "orders"
max_attempts = "3"
payload_max = 4096
lease = "5x"
retry_factor = 11
keep_keyless = 1

[[queue]]
name = "Orders"

[[queue]]
lease = "10s"

[[queue]]
name = "orders"

[[queue.client]]
name = "shop"
lease = "10s"
weight = 0
"#,
    );
    assert_eq!(code, 2);
    let mut last = 0;
    for (line, parts) in [
        (2, &["listen.http", "\"localhost\"", "127.0.0.1:7410"][..]),
        (3, &["listen.drain", "`30` has no unit", "write \"30s\""]),
        (5, &["stor", "did you mean `store`?"]),
        (9, &["access.no_auth", "\"true\"", "without quotes"]),
        (12, &["queue_defaults.retentoin", "did you mean `retention`?"]),
        (16, &["queue.orders.max_attempts", "a text and not a number", "write 3, without quotes"]),
        (17, &["queue.orders.payload_max", "`4096` has no unit", "\"4096B\""]),
        (18, &["queue.orders.lease", "5x", "\"20s\""]),
        (19, &["queue.orders.retry_factor", "`11`", "from 1 to 10"]),
        (20, &["queue.orders.keep_keyless", "`1`", "true or false"]),
        (23, &["queue.name", "Orders", "[a-z0-9]"]),
        (25, &["queue", "no name", "write name"]),
        (28, &["queue.orders", "on line 14 already", "another name"]),
        (33, &["queue.orders.client.shop.lease", "there is no such setting", "weight"]),
        (34, &["queue.orders.client.shop.weight", "`0`", "from 1 to 1000"]),
    ] {
        let start = format!("relay.toml:{line}: ");
        let at = said.find(&start).unwrap_or_else(|| panic!("nothing on line {line}:\n{said}"));
        assert!(at >= last, "line {line} is out of order:\n{said}");
        last = at;
        let told = said[at..].split_once("\n  relay.toml:").map_or(&said[at..], |(told, _)| told);
        for part in parts {
            assert!(told.contains(part), "line {line} does not say {part}:\n{told}");
        }
    }
    assert!(said.contains("relay.toml has 15 mistakes"), "{said}");
}

#[test]
fn what_a_queue_takes_and_from_whom_is_checked_word_by_word() {
    for (line, parts) in [
        ("content_types = \"image/png\"", &["content_types", "in brackets"][..]),
        ("content_types = []", &["content_types", "[\"*/*\"] for all"]),
        ("content_types = [\"image/png\", \"image\"]", &["`\"image\"`", "application/json"]),
        ("content_types = [\"text/plain; charset=utf-8\"]", &["has parameters", "leave them out"]),
        ("content_types = [\"*/*\", \"image/png\"]", &["stands for all", "alone"]),
        ("allowed_clients = [\"Shop\"]", &["allowed_clients", "`\"Shop\"`", "[a-z0-9]"]),
        ("allowed_clients = [\"*\", \"shop\"]", &["stands for all", "alone"]),
        ("allowed_clients = [1]", &["allowed_clients", "[\"*\"] for all"]),
        ("rate = 100", &["queue.q.rate", "a text in quotes"]),
        ("rate = \"100\"", &["`100` is no rate", "6000/min", "\"none\" for no limit"]),
        ("rate = \"0/s\"", &["`0/s` is no rate"]),
        ("rate = \"1/s\"\nburst = 0", &["queue.q.burst", "`0`", "from 1 to"]),
        ("burst = 5", &["queue.q.burst", "without `rate` it says nothing"]),
        (
            "allowed_clients = [\"shop\"]\n[[queue.client]]\nname = \"mail\"\nweight = 2",
            &["relay.toml:6: queue.q.client.mail", "none of the queue's `allowed_clients`"],
        ),
        (
            "[[queue.client]]\nname = \"mail\"\nburst = 2",
            &["relay.toml:5: queue.q.client.mail.burst", "without `rate`"],
        ),
        ("[[queue.client]]\nname = \"mail\"\ncontent_types = [\"a/b\"]", &["there is no such setting"]),
    ] {
        let (code, said) = check(&format!("[[queue]]\nname = \"q\"\n{line}\n"));
        assert_eq!(code, 2, "{line}: {said}");
        for part in parts {
            assert!(said.contains(part), "{line}: {part} is not in\n{said}");
        }
        assert!(said.contains("has 1 mistake\n"), "{line}:\n{said}");
    }
    let all = "content_types = [\"*/*\"]\nallowed_clients = [\"*\"]\nrate = \"none\"\nburst = 1";
    assert_eq!(check(&format!("[[queue]]\nname = \"q\"\n{all}")).0, 0);
}

#[test]
fn what_contradicts_something_else_is_a_mistake() {
    for (text, parts) in [
        (
            "[store]\ndata = \"a\"\nmemory = true",
            &["relay.toml:3: store.memory", "`store.data`", "leave one of them out"][..],
        ),
        ("[store]\ndata = \"a\"\n[nats]\nservers = [\"nats://a\"]", &["relay.toml:4: nats.servers", "one place"]),
        ("[access]\nkeys = \"k\"\nno_auth = true", &["relay.toml:3: access.no_auth"]),
        ("[access]\nclients = \"c\"\nno_auth = true", &["relay.toml:3: access.no_auth", "asked who it is"]),
        (
            "[listen]\nhttp = \"0.0.0.0:1\"\n[access]\nno_auth = true",
            &["relay.toml:2: listen.http", "lets everybody in"],
        ),
        ("[listen]\nworkers = \"0.0.0.0:1\"", &["listen.workers", "clear text", "worker_tls = \"on\""]),
        (
            "[listen]\nworkers = \"0.0.0.0:1\"\n[access]\nno_auth = true",
            &["relay.toml:2: listen.workers", "lets everybody in"],
        ),
        ("[listen]\nworker_tls = \"on\"", &["relay.toml:2: listen.worker_tls", "add `listen.workers`"]),
        (
            "[listen]\nworkers = \"0.0.0.0:1\"\nworker_tls = \"on\"",
            &["relay.toml:3: listen.worker_tls", "`listen.tls_cert` is not set"],
        ),
        (
            "[listen]\nworkers = \"127.0.0.1:1\"\nworker_client_auth = \"required\"\n[[client_ca]]\nfile = \"a\"\n\
             names = [\"a.example\"]",
            &["relay.toml:3: listen.worker_client_auth", "`listen.worker_tls` is not `on`"],
        ),
        ("[[listener]]\nname = \"a\"\naddress = \"0.0.0.0:1\"", &["relay.toml:1: listener.a.tls", "clear text"]),
        (
            "[[listener]]\nname = \"a\"\naddress = \"0.0.0.0:1\"\n[access]\nno_auth = true",
            &["relay.toml:1: listener.a.address", "lets everybody in"],
        ),
        (
            "[[listener]]\nname = \"a\"\naddress = \"0.0.0.0:1\"\ntls = \"on\"",
            &["relay.toml:1: listener.a.tls", "there is no certificate", "one for all listeners"],
        ),
        (
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nproxy = \"required\"",
            &["relay.toml:1: listener.a.proxy", "without `trusted` no header would be believed"],
        ),
        (
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\ntrusted = [\"10.0.1.7\"]",
            &["relay.toml:1: listener.a.trusted", "says nothing"],
        ),
        (
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\n[[listener]]\nname = \"b\"\naddress = \"127.0.0.1:1\"",
            &["relay.toml:4: listener.b.address", "listener a listens on 127.0.0.1:1 already"],
        ),
        (
            "[listen]\nworkers = \"127.0.0.1:1\"\n[[listener]]\nname = \"workers\"\naddress = \"127.0.0.1:2\"",
            &["relay.toml:3: listener.workers", "has this name"],
        ),
        (
            "[listen]\ntls_cert = \"c\"\ntls_key = \"k\"\n[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\n\
             tls = \"on\"\nclient_auth = \"required\"",
            &["relay.toml:4: listener.a.client_auth", "there is no [[client_ca]]"],
        ),
        (
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nclient_auth = \"optional\"\n[[client_ca]]\n\
             file = \"a\"\nnames = [\"a.example\"]",
            &["relay.toml:1: listener.a.client_auth", "in the handshake of TLS"],
        ),
        (
            "[listen]\ntls = \"terminated-in-front\"\n[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"",
            &["relay.toml:2: listen.tls", "there are only those of [[listener]]"],
        ),
        ("[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nprotcol = \"http\"", &["did you mean `protocol`?"]),
        ("[admin]\nhealth_proxy = \"accept\"", &["relay.toml:2: admin.health_proxy", "add `admin.health`"]),
        ("[listen]\nhttp = \"0.0.0.0:1\"", &["relay.toml:2: listen.http", "clear text", "terminated-in-front"]),
        ("[listen]\ntls_cert = \"c\"", &["listen.tls_cert", "add `listen.tls_key`"]),
        (
            "[listen]\ntls = \"terminated-in-front\"\ntls_cert = \"c\"\ntls_key = \"k\"",
            &["relay.toml:2: listen.tls", "at one place"],
        ),
        (
            "[listen]\ntls_cert = \"c\"\ntls_key = \"k\"\nclient_auth = \"required\"",
            &["relay.toml:4: listen.client_auth", "there is no [[client_ca]]"],
        ),
        ("[[client_ca]]\nfile = \"a\"\nnames = [\"a.example\"]", &["relay.toml:1: client_ca", "no client is asked"]),
        ("[[client_ca]]\nnames = [\"a.example\"]", &["relay.toml:1: client_ca.file", "it is missing"]),
        (
            "[listen]\ntls_cert = \"c\"\ntls_key = \"k\"\nclient_auth = \"optional\"\n[[client_ca]]\nfile = \"a\"\n\
             names = [\"spiffe://a.example*\"]",
            &["relay.toml:7: client_ca.names", "no pattern of names"],
        ),
        (
            "[listen]\ntls_cert = \"c\"\ntls_key = \"k\"\nclient_auth = \"optional\"\n[[client_ca]]\nfile = \"a\"\n\
             names = [\"a.example\"]\ncrls = \"c\"",
            &["relay.toml:8: client_ca.crls", "did you mean `crl`?"],
        ),
        ("[admin]\nlisten = \"0.0.0.0:1\"\ntls = \"terminated-in-front\"", &["admin.listen", "admin.token_file"]),
        ("[admin]\nlisten = \"0.0.0.0:1\"\ntoken_file = \"t\"", &["relay.toml:2: admin.listen", "clear text"]),
        ("[admin]\nlisten = \"127.0.0.1:1\"\ntls = \"on\"", &["relay.toml:3: admin.tls", "add `listen.tls_cert`"]),
        ("[admin]\ntls = \"on\"", &["relay.toml:2: admin.tls", "add `admin.listen`"]),
        ("[admin]\ntoken_file = \"t\"", &["admin.token_file", "add `admin.listen`"]),
        (
            "[[admin_token]]\nname = \"a\"\nrights = [\"read\"]\ntoken_file = \"t\"",
            &["relay.toml:1: admin_token.a", "add `admin.listen`"],
        ),
        ("[audit]\nrequired = true", &["audit.required", "add `audit.file`"]),
        ("[nats]\ntls = true", &["nats.tls", "does not connect to NATS"]),
        ("[streams]\nreplicas = 3", &["streams.replicas", "not kept on NATS"]),
        ("[nats]\nservers = [\"a\"]\n[streams]\nreplicas = 2", &["streams.replicas", "write 1, 3 or 5"]),
        ("[nats]\nservers = [\"a\"]\n[streams]\nstorage = \"memory\"\ncompression = true", &["streams.compression"]),
        ("[nats]\nservers = [\"a\"]\nuser = \"u\"", &["nats.user", "RELAY_NATS_PASSWORD"]),
        ("[nats]\nservers = [\"a\"]\nnkey = \"n\"\ncreds = \"c\"", &["one identity"]),
        ("[nats]\nservers = [\"a\"]\ncert = \"c\"", &["nats.cert", "add `nats.key`"]),
        ("[nats]\nservers = [\"a\"]\n[listen]\nnats = [\"b\"]", &["nats.servers", "anyway"]),
        ("[listen]\nnats_waits = 5", &["listen.nats_waits", "no clients are served over NATS"]),
        (
            "[nats]\nservers = [\"a\"]\n[listen]\nnats_waits = 5\nnats_waits_per_client = 6",
            &["relay.toml:5: listen.nats_waits_per_client", "`listen.nats_waits` is 5"],
        ),
        (
            "[listen]\nproxy = \"required\"",
            &["relay.toml:2: listen.proxy", "without `listen.proxy_trusted` no header would be believed", "10.0.1.7"],
        ),
        (
            "[listen]\nproxy = \"required\"\nproxy_trusted = [\"10.0.1.7\"]\n[limits]\nsource_connections = 5",
            &["relay.toml:5: limits.source_connections", "all connections have its address"],
        ),
        (
            "[listen]\nproxy_trusted = [\"10.0.1.7\"]",
            &["relay.toml:2: listen.proxy_trusted", "without `listen.proxy` as `required` it says nothing"],
        ),
        ("[listen]\nproxy = \"off\"\n[limits]\nsource_unproven = 5", &["relay.toml:4: limits.source_unproven"]),
        ("[limits]\nendpoint_connections = 5", &["relay.toml:2: limits.endpoint_connections"]),
        ("[listen]\nproxy = \"optional\"", &["listen.proxy", "write \"off\" or \"required\""]),
        (
            "[listen]\nproxy_trusted = [\"10.0.1.7/28\"]",
            &["relay.toml:2: listen.proxy_trusted", "write `10.0.1.0/28`, or `10.0.1.7`"],
        ),
        ("[[queue]]\nname = \"q\"\nlease = \"2h\"", &["relay.toml:3: queue.q.lease", "`lease_max` (1h)"]),
        (
            "[queue_defaults]\nretry_base = \"10m\"\n[[queue]]\nname = \"q\"",
            &["queue.q.retry_cap", "`retry_base` (10m)"],
        ),
        ("[[queue]]\nname = \"q\"\nfair = false", &["relay.toml:3: queue.q.fair", "not kept on NATS"]),
        (
            "[nats]\nservers = [\"a\"]\n[[queue]]\nname = \"q\"\nmax_stored = \"1GiB\"",
            &["relay.toml:5: queue.q.max_stored", "elsewhere bytes are not counted"],
        ),
        (
            "[store]\nmemory = true\ndisk_reserve = \"1GiB\"",
            &["relay.toml:3: store.disk_reserve", "without `store.data` it says nothing"],
        ),
        (
            "[nats]\nservers = [\"a\"]\n[[queue]]\nname = \"q\"\nfair = false\nweight = 2",
            &["relay.toml:6: queue.q.weight", "nobody has turns"],
        ),
        (
            "[nats]\nservers = [\"a\"]\n[[queue]]\nname = \"q\"\nfair = false\n[[queue.client]]\nname = \"c\"\nmax_running = 2",
            &["relay.toml:8: queue.q.client.c.max_running", "nobody has turns"],
        ),
        ("[[queue]]\nname = \"q\"\npayload_max = \"17MiB\"", &["queue.q.payload_max", "16.0 MiB"]),
        (
            "[listen]\nhttp = \"127.0.0.1:1\"\nhttp = \"127.0.0.1:2\"",
            &["relay.toml:3", "duplicate key", "leave one of them out"],
        ),
        ("data = \"x\"", &["did you mean", "store.data"]),
        ("[[queues]]\nname = \"a\"", &["relay.toml:1: queues", "did you mean `queue`?"]),
        ("[worker]\nslot = 2", &["relay.toml:2: worker.slot", "did you mean `slots`?"]),
        ("[worker]\ndrain = 30", &["worker.drain", "write \"30s\""]),
        ("[worker]\ncommand = \"./handle\"", &["worker.command", "in brackets"]),
        ("[worker]\ncommand = [\"\", \"a\"]", &["worker.command", "a program and its arguments"]),
        ("[worker]\ncommand = [\"a\", 1]", &["worker.command", "a program and its arguments"]),
        ("[worker]\nqueues = [\"a\", \"b=0\"]", &["worker.queues", "the weight in `b=0`", "urgent=5"]),
        ("[worker]\nqueues = [\"a\", \"a=2\"]", &["worker.queues", "twice"]),
        ("[worker]\nqueues = [\"a=2\"]\norder = \"strict\"", &["relay.toml:2: worker.queues", "leave the weights out"]),
        ("[worker]\nid = \"a b\"", &["worker.id", "give it a name"]),
        ("[worker]\nhttp = \"localhost:3000\"", &["worker.http", "http://127.0.0.1:3000/jobs"]),
        (
            "[worker]\nhttp = \"http://a\"\ncommand = [\"b\"]",
            &["worker.http", "does a worker's jobs", "leave one of them out"],
        ),
        (
            "[nats]\nservers = [\"a\"]\n[worker]\nconnect = \"b:1\"",
            &["relay.toml:2: nats.servers", "`worker.connect` is set as well (line 4)", "takes its jobs from"],
        ),
        ("[sqs]\nenabled = true\n[worker]\nkey_file = \"k\"", &["sqs.enabled", "`worker.key_file`", "leave one"]),
        ("[[queue]]\nname = \"q\"\npaused = true", &["queue.q.paused", "a pause is not configuration"]),
    ] {
        let (code, said) = check(text);
        assert_eq!(code, 2, "{text}: {said}");
        for part in parts {
            assert!(said.contains(part), "{text}: {part} is not in\n{said}");
        }
        assert!(said.contains("has 1 mistake\n"), "{text}:\n{said}");
    }
    let whole = "[nats]\nservers = [\"nats://a\"]\nno_listen = false\n[store]\nmemory = false\n[[queue]]\nname = \"q\"";
    assert_eq!(check(whole).0, 0, "what is false is not set");
    let command = "[worker]\ncommand = [\"sh\", \"-c\", \"\"\"\nset -e\n\ttr a-z A-Z\n\"\"\", \"\"]\n";
    assert_eq!(check(command), (0, "relay.toml is right: 1 settings, 0 queues, 0 bridges\n".to_owned()));
}

/// Which of the folders has a store.
fn stores(dir: &Path) -> Vec<&'static str> {
    ["file", "variable", "flag"].into_iter().filter(|name| dir.join(name).join("relay.db").exists()).collect()
}

#[test]
fn a_flag_counts_before_a_variable_and_that_before_the_file() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("relay.toml");
    // Relative to the file, wherever the process runs.
    fs::write(&file, "[store]\ndata = \"file\"\n[access]\nno_auth = true\n[listen]\nhttp = \"127.0.0.1:0\"\n").unwrap();
    let start = |flags: &[&str], variable: bool| {
        let mut command = relay(["serve", "--json", "--config", file.to_str().unwrap()].iter().chain(flags));
        if variable {
            command.env("RELAY_DATA", dir.path().join("variable"));
        }
        Running::start_command(command).stop();
    };
    start(&[], false);
    assert_eq!(stores(dir.path()), ["file"]);
    start(&[], true);
    assert_eq!(stores(dir.path()), ["file", "variable"]);
    fs::remove_dir_all(dir.path().join("file")).unwrap();
    fs::remove_dir_all(dir.path().join("variable")).unwrap();
    start(&["--data", dir.path().join("flag").to_str().unwrap()], true);
    assert_eq!(stores(dir.path()), ["flag"]);
    // A flag for an alternative of what the file names: this start keeps nothing.
    fs::remove_dir_all(dir.path().join("flag")).unwrap();
    start(&["--memory"], false);
    assert_eq!(stores(dir.path()), [""; 0]);
}

#[test]
fn shown_is_what_holds_and_where_it_comes_from() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("relay.toml");
    let text = "[listen]\ndrain = \"10s\"\n[worker]\nqueues = [\"mail\", \"bulk=2\"]\ncommand = [\"./handle\", \"amqp://me:hush@b\"]\n[nats]\nservers = [\"nats://relay:hush@a:4222\"]\n[[queue]]\nname = \"mail\"\npayload_max = \"1MiB\"\n";
    fs::write(&file, text).unwrap();
    let mut command = relay(["config", "show", "--json", "--config", file.to_str().unwrap()]);
    let output = command
        .env("RELAY_DRAIN_DELAY", "5s")
        .env("RELAY_WORKER_SLOTS", "3")
        .env("RELAY_ADMIN_TOKEN", "hush-hush-hush-hush")
        .output()
        .unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(!stdout(&output).contains("hush"), "{}", stdout(&output));
    let shown: Value = serde_json::from_str(stdout(&output)).unwrap();
    let of = |key: &str| {
        let settings = shown["settings"].as_array().unwrap();
        let found = settings.iter().find(|setting| setting["key"] == key).unwrap_or_else(|| panic!("{key}: {shown}"));
        (found["value"].as_str().unwrap().to_owned(), found["origin"].as_str().unwrap().to_owned())
    };
    let place = |line: usize| format!("{}:{line}", file.display());
    assert_eq!(of("listen.http"), ("127.0.0.1:7410".to_owned(), "default".to_owned()));
    assert_eq!(of("listen.drain"), ("10s".to_owned(), place(2)));
    assert_eq!(of("listen.drain_delay"), ("5s".to_owned(), "variable RELAY_DRAIN_DELAY".to_owned()));
    assert_eq!(of("worker.queues"), ("mail,bulk=2".to_owned(), place(4)));
    assert_eq!(of("worker.command"), ("./handle,amqp://********@b".to_owned(), place(5)));
    assert_eq!(of("worker.order"), ("weighted".to_owned(), "default".to_owned()));
    assert_eq!(of("worker.drain"), ("30s".to_owned(), "default".to_owned()));
    assert_eq!(of("worker.slots"), ("3".to_owned(), "variable RELAY_WORKER_SLOTS".to_owned()));
    assert_eq!(of("nats.servers"), ("nats://********@a:4222".to_owned(), place(7)));
    assert_eq!(of("queue.mail.payload_max"), ("1048576B".to_owned(), place(10)));
    assert_eq!(of("RELAY_ADMIN_TOKEN"), ("********".to_owned(), "environment".to_owned()));
}

#[test]
fn bridges_are_shown_with_the_place_of_each_value_and_without_their_passwords() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("relay.toml");
    let text = r#"[[bridge]]
name = "out"
slots = 200
from.relay = { address = "relay:hush@127.0.0.1:7411", key_file = "worker.key" }
to.nats = { servers = ["nats://a:4222", "nats://b"], tls = true }
queues = { orders = "orders-eu", mail = "mail" }

[[bridge]]
name = "events"
job = { client = "shop", queue = "orders", meta = ["Trace-Id"] }

[bridge.from]
nats.servers = ["tls://c"]

[bridge.from.stream]
name = "EVENTS"
consumer = "relay"
"#;
    fs::write(&file, text).unwrap();
    let output = run(["config", "show", "--json", "--config", file.to_str().unwrap()]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(!stdout(&output).contains("hush"), "{}", stdout(&output));
    let shown: Value = serde_json::from_str(stdout(&output)).unwrap();
    let word = |setting: &Value, key: &str| setting[key].as_str().unwrap().to_owned();
    let mut found: Vec<_> = shown["settings"].as_array().unwrap().iter().collect();
    found.retain(|setting| word(setting, "key").starts_with("bridge."));
    let mut found: Vec<_> = found.iter().map(|of| (word(of, "key"), word(of, "value"), word(of, "origin"))).collect();
    found.sort();
    let key_file = dir.path().join("worker.key");
    let expected = [
        ("bridge.events.from.nats.servers", "tls://c", 13),
        ("bridge.events.from.stream.consumer", "relay", 17),
        ("bridge.events.from.stream.name", "EVENTS", 16),
        ("bridge.events.job.client", "shop", 10),
        ("bridge.events.job.meta", "Trace-Id", 10),
        ("bridge.events.job.queue", "orders", 10),
        ("bridge.events.name", "events", 9),
        ("bridge.out.from.relay.address", "********@127.0.0.1:7411", 4),
        // As other paths of a file: where it is.
        ("bridge.out.from.relay.key_file", key_file.to_str().unwrap(), 4),
        ("bridge.out.name", "out", 2),
        ("bridge.out.queues.mail", "mail", 6),
        ("bridge.out.queues.orders", "orders-eu", 6),
        ("bridge.out.slots", "200", 3),
        ("bridge.out.to.nats.servers", "nats://a:4222,nats://b", 5),
        ("bridge.out.to.nats.tls", "true", 5),
    ];
    let place = |line: usize| format!("{}:{line}", file.display());
    assert_eq!(found, expected.map(|(key, value, line)| (key.to_owned(), value.to_owned(), place(line))));
}

#[tokio::test]
async fn queues_of_the_file_have_its_policies_and_flags_change_them_all() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("relay.toml");
    let text = "
[store]
data = \"data\"
[access]
no_auth = true
[listen]
http = \"127.0.0.1:0\"
[queue_defaults]
lease = \"10s\"
max_queued = 500
[[queue]]
name = \"mail\"
retention = \"2d\"
content_types = [\"text/*\"]
allowed_clients = [\"shop\", \"post\"]
[[queue.client]]
name = \"shop\"
weight = 3
rate = \"10/min\"
burst = 20
[[queue]]
name = \"bulk\"
lease = \"1m\"
";
    fs::write(&file, text).unwrap();
    let args = ["serve", "--json", "--config", file.to_str().unwrap(), "--queue", "more", "--max-attempts", "4"];
    Running::start(args).stop();
    let path = Some(dir.path().join("data/relay.db"));
    let store = Embedded::open(EmbeddedConfig { path, ..EmbeddedConfig::default() }).await.unwrap();
    let policies = store.broker().policies.policies().await.unwrap();
    let names: Vec<_> = policies.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["bulk", "mail", "more"]);
    let [bulk, mail, more] = [&policies[0].1, &policies[1].1, &policies[2].1];
    let defaults = ClientPolicy { max_queued: 500, ..ClientPolicy::default() };
    let of_file = QueuePolicy { max_attempts: 4, client_defaults: defaults.clone(), ..QueuePolicy::default() };
    assert_eq!(*bulk, QueuePolicy { lease: Duration::from_secs(60), ..of_file.clone() });
    let rate = Some("10/min".parse().unwrap());
    let shop = [("shop".parse().unwrap(), ClientPolicy { weight: 3, rate, burst: 20, ..defaults })].into();
    let content_types = ["text/*".parse().unwrap()].into();
    let allowed_clients = ["shop", "post"].map(|name| name.parse().unwrap()).into();
    let (lease, retention) = (Duration::from_secs(10), Duration::from_secs(2 * 24 * 3600));
    let mail_of_file =
        QueuePolicy { lease, retention, content_types, allowed_clients, clients: shop, ..of_file.clone() };
    assert_eq!(*mail, mail_of_file);
    assert_eq!(*more, QueuePolicy { max_attempts: 4, ..QueuePolicy::default() });
    store.close().await;
}

#[test]
fn a_worker_is_what_the_file_says_and_flags_change_it() {
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let key = |name: &str, more: &[&str]| {
        let keys = path("keys.toml");
        let made = run(["keys", "new", name, "--file", keys.to_str().unwrap()].iter().chain(more));
        assert_eq!(code(&made), 0, "{}", stderr(&made));
        stdout(&made).trim().to_owned()
    };
    let client = key("shop", &[]);
    fs::write(path("worker.key"), key("gpu-1", &["--role", "worker"])).unwrap();
    let file = |worker: &str| {
        let server = "[store]\nmemory = true\n[access]\nkeys = \"keys.toml\"\n[listen]\nhttp = \"127.0.0.1:0\"\nworkers = \"127.0.0.1:0\"\ndrain = \"7s\"\n[[queue]]\nname = \"mail\"\n";
        fs::write(path("relay.toml"), format!("{server}[worker]\n{worker}")).unwrap();
    };
    // One file for both: each takes what is its own.
    file("");
    let config = path("relay.toml");
    let config = config.to_str().unwrap();
    let server = Running::start(["serve", "--json", "--config", config]);
    let done = |says: &str| {
        let mut submit = relay(["submit", "--server", &server.url(), "--queue", "mail", "--wait", "-"]);
        let submit = submit.env("RELAY_API_KEY", &client).stdin(std::process::Stdio::null());
        let output = submit.output().unwrap();
        assert_eq!((code(&output), stdout(&output).trim()), (0, says), "{}", stderr(&output));
    };
    let connect = format!("connect = \"{}\"", server.workers());
    let more = "key_file = \"worker.key\"\nqueues = [\"mail=2\"]\nslots = 3\nid = \"of-the-file\"";
    file(&format!("{connect}\n{more}\ncommand = [\"echo\", \"--json\", \"$HOME, of the file\"]"));
    let worker = Running::start(["worker", "--json", "--config", config]);
    assert_eq!(worker.ready["worker"]["id"], "of-the-file");
    done("--json $HOME, of the file");
    worker.stop();
    let mut command = relay(["worker", "--json", "--id", "typed", "--", "echo", "typed"]);
    command.env("RELAY_CONFIG", config);
    let worker = Running::start_command(command);
    assert_eq!(worker.ready["worker"]["id"], "typed", "a flag counts before the file");
    done("typed");
    worker.stop();
    // Only one thing does the jobs: a user who types a command means it instead of the file's service.
    file(&format!("{connect}\n{more}\nhttp = \"http://127.0.0.1:9/\""));
    let worker = Running::start(["worker", "--json", "--config", config, "--", "echo", "instead"]);
    done("instead");
    worker.stop();
    let neither = run(["worker", "--key", "x", "--connect", &server.workers(), "--queue", "mail"]);
    assert_eq!(code(&neither), 2);
    let wrong = run(["worker", "--config", config, "--key-file", "/no/such.key", "--", "cat"]);
    assert_eq!(code(&wrong), 2);
    assert!(stderr(&wrong).contains("--key-file /no/such.key: "), "{}", stderr(&wrong));
    server.stop();
}

/// Reads results as a stream of events, to its end.
fn follow(address: &str) -> String {
    let mut stream = TcpStream::connect(address.trim_start_matches("http://")).unwrap();
    let head = "GET /v1/results HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn streams_of_events_are_as_many_and_as_long_as_the_file_says() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("relay.toml");
    let start = |limits: &str| {
        let text =
            format!("[listen]\nhttp = \"127.0.0.1:0\"\n{limits}[store]\nmemory = true\n[access]\nno_auth = true\n");
        fs::write(&file, text).unwrap();
        Running::start(["serve", "--json", "--config", file.to_str().unwrap()])
    };
    let short = start("follow_for = \"2s\"\nping_every = \"1s\"\n");
    let told = follow(&short.url());
    assert!(told.starts_with("HTTP/1.1 200 ") && told.contains("\n:"), "it pings before it ends: {told}");
    short.stop();
    let none = start("followers = 0\n");
    assert!(follow(&none.url()).starts_with("HTTP/1.1 503 "));
    none.stop();
    let refused = run(["serve", "--memory", "--no-auth", "--ping-every", "2m"]);
    assert_eq!(code(&refused), 2);
    assert!(stderr(&refused).contains("--ping-every must be less than --idle (2m)"), "{}", stderr(&refused));
}

#[test]
fn a_server_does_not_start_with_a_file_that_has_mistakes() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("relay.toml");
    fs::write(&file, "[store]\ndata = \"data\"\n[acess]\nno_auth = true\n").unwrap();
    let refused = run(["serve", "--json", "--no-auth", "--config", file.to_str().unwrap()]);
    assert_eq!(code(&refused), 2);
    assert!(stderr(&refused).contains("did you mean `access`?"), "{}", stderr(&refused));
    assert!(!dir.path().join("data").exists());
    let missing = run(["serve", "--no-auth", "--config", "/no/such/relay.toml"]);
    assert_eq!(code(&missing), 2);
    assert!(stderr(&missing).contains("/no/such/relay.toml"), "{}", stderr(&missing));
}

#[test]
fn a_variable_that_is_no_text_is_refused_and_an_empty_one_is_not_set() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let dir = tempdir().unwrap();
    let data = dir.path().join("data");
    let serve = ["serve", "--no-auth", "--json", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()];
    let refused = relay(serve).env("RELAY_IDLE", OsStr::from_bytes(b"\xff")).output().unwrap();
    assert_eq!(code(&refused), 2);
    assert!(stderr(&refused).contains("variable RELAY_IDLE: its value is not UTF-8"), "{}", stderr(&refused));
    assert!(!data.exists());
    let mut command = relay(serve);
    command.env("RELAY_IDLE", "").env("RELAY_NATS", "");
    Running::start_command(command).stop();
}

#[test]
fn the_reference_in_the_docs_is_the_one_that_the_command_prints() {
    let printed = run(["config", "reference"]);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let kept = fs::read_to_string(path).unwrap_or_default();
    assert!(kept == stdout(&printed), "write it again: relay config reference > docs/configuration.md");
}

#[test]
fn the_example_of_the_reference_is_right() {
    let printed = run(["config", "reference"]);
    let (_, example) = stdout(&printed).split_once("```toml\n").unwrap();
    let (code, said) = check(example.split_once("```").unwrap().0);
    assert_eq!(code, 0, "{said}");
}

/// Everything of a file that needs jobs to be kept on NATS, without the address.
const OF_NATS: &str = "[nats]\ntls_first = true\nno_listen = true\nuser = \"relay\"\n[streams]\nreplicas = 3\n[[queue]]\n\
                       name = \"q\"\nfair = false\npayload_max = \"17MiB\"\n";

#[test]
fn what_a_file_says_of_nats_holds_wherever_the_address_comes_from() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("relay.toml");
    fs::write(&file, OF_NATS).unwrap();
    let file = file.to_str().unwrap();
    let said = |command: &mut Command| {
        let output = command.env("RELAY_NATS_PASSWORD", "hush").output().unwrap();
        (code(&output), stderr(&output).to_owned())
    };
    // Of the file alone each line is without effect, and told.
    let (code, alone) = said(&mut relay(["config", "check", file]));
    assert_eq!(code, 2, "{alone}");
    assert!(alone.contains("has 6 mistakes"), "{alone}");
    for key in
        ["nats.tls_first", "nats.no_listen", "nats.user", "streams.replicas", "queue.q.fair", "queue.q.payload_max"]
    {
        assert!(alone.contains(key), "{key}: {alone}");
    }
    let (code, checked) = said(relay(["config", "check", file]).env("RELAY_NATS", "nats://127.0.0.1:1"));
    assert_eq!(code, 0, "{checked}");
    // Servers come as far as the keys, which are not there: nothing is wrong with the file.
    let serve = ["serve", "--config", file, "--keys", "/nowhere/keys.toml"];
    let typed = serve.iter().chain(&["--nats", "nats://127.0.0.1:1"]);
    for (_, served) in [said(&mut relay(typed)), said(relay(serve).env("RELAY_NATS", "nats://127.0.0.1:1"))] {
        assert!(served.contains("/nowhere/keys.toml"), "{served}");
        assert!(!served.contains("mistake"), "{served}");
    }
    // Jobs are kept elsewhere after all: what a queue says of NATS can't hold there.
    fs::write(file, format!("[nats]\nservers = [\"a\"]\n{}", OF_NATS.trim_start_matches("[nats]\n"))).unwrap();
    assert_eq!(said(&mut relay(["config", "check", file])).0, 0);
    let (code, elsewhere) = said(&mut relay(serve.iter().chain(&["--memory"])));
    assert_eq!(code, 2, "{elsewhere}");
    assert!(elsewhere.contains("has 2 mistakes"), "{elsewhere}");
    assert!(elsewhere.contains("queue.q.fair") && elsewhere.contains("queue.q.payload_max"), "{elsewhere}");
}

#[test]
fn a_flag_that_makes_the_file_hold_is_counted_with_it() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("relay.toml");
    let text = "[listen]\nhttp = \"0.0.0.0:1\"\n[access]\nno_auth = true\n[admin]\ntoken_file = \"/nowhere/token\"\n";
    fs::write(&file, text).unwrap();
    let serve = ["serve", "--memory", "--config", file.to_str().unwrap()];
    let refused = run(serve);
    assert!(stderr(&refused).contains("has 2 mistakes"), "{}", stderr(&refused));
    let whole = run(serve.iter().chain(&["--admin", "127.0.0.1:0", "--listen", "127.0.0.1:0"]));
    assert!(!stderr(&whole).contains("mistake"), "{}", stderr(&whole));
    assert!(stderr(&whole).contains("/nowhere/token"), "{}", stderr(&whole));
}
